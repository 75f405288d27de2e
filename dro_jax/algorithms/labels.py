"""Labels and baselines: rules by which rewards count as good, and numbers subtracted from rewards."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from dro_jax.algorithms import columns as algorithms_columns
from dro_jax.algorithms import refusals
from dro_jax.algorithms.batch import Batch
from dro_jax.ops import masked
from dro_jax.types import Array


class Thumbs(NamedTuple):
  """A batch's labels, `[N]` booleans each: which responses are desirable, and which have a label at all."""

  up: Array
  known: Array


class Labels(NamedTuple):
  """How rewards become thumbs: `thumbs(batch)`, and the parts of the data that it reads.

  `couples` where a response's label depends on the batch it is in.
  """

  thumbs: Callable[[Batch], Thumbs]
  couples: bool = False
  uses_rewards: bool = True
  requires: tuple[str, ...] = ()
  columns: Mapping[str, algorithms_columns.Fit] = {}


def _logged_thumbs(batch: Batch) -> Thumbs:
  """The labels in the derived column (see `algorithms.columns.Labelling`)."""
  label = batch.column('derived_label')
  return Thumbs(label == 1, label != algorithms_columns.NO_LABEL)


def _minibatch_thumbs(batch: Batch) -> Thumbs:
  """Labels by the batch's mean: above it is desirable. Equal rewards have no label."""
  mean = masked.weighted_mean(batch.rewards, batch.valid)
  spread = jnp.sqrt(masked.weighted_variance(batch.rewards, batch.valid))
  # A reward that is the mean does not exceed it, in whichever order the layout made the float32 sum.
  above = batch.rewards - mean > 1e-5 * (jnp.abs(mean) + spread)
  return Thumbs(above, jnp.full_like(batch.valid, masked.varies(batch.rewards, batch.valid)))


def derived_labels(fit: algorithms_columns.Fit) -> Labels:
  """Labels that a rule takes from the data before the first step."""
  return Labels(_logged_thumbs, columns={'derived_label': fit})


def minibatch_mean_labels() -> Labels:
  """Desirable when the reward exceeds the mean of the global minibatch (DRO's KTO baseline).

  Binary rewards are labels themselves (see `algorithms.columns.binary_labels`), and their column holds them.
  """

  def thumbs(batch: Batch) -> Thumbs:
    by_batch = batch.column('derived_label') == algorithms_columns.BY_BATCH
    choices = zip(_minibatch_thumbs(batch), _logged_thumbs(batch))
    return Thumbs(*(jnp.where(by_batch, *choice) for choice in choices))

  return Labels(thumbs, couples=True, columns={'derived_label': algorithms_columns.above_minibatch_mean})


def column_labels() -> Labels:
  """Desirable when the data's `label` column is positive."""
  return derived_labels(algorithms_columns.label_column)._replace(uses_rewards=False, requires=('label',))


def threshold_labels(threshold: float = 0.0) -> Labels:
  """Desirable when the reward, in its own units, exceeds a threshold."""
  return derived_labels(algorithms_columns.above_threshold(threshold))


def dataset_mean_labels() -> Labels:
  """Desirable when the reward exceeds the training responses' mean; binary rewards are labels themselves."""
  return derived_labels(algorithms_columns.above_dataset_mean)


def prompt_mean_labels() -> Labels:
  """Desirable when the reward exceeds the mean of the responses logged for its prompt.

  Binary rewards are labels themselves. Lone answers are compared with the data set's mean; ties have no
  label.
  """
  return derived_labels(algorithms_columns.above_prompt_mean)


def value_labels() -> Labels:
  """Desirable when the reward exceeds the prompt's fitted value, the data's column `value`.

  Binary rewards are labels themselves (see `algorithms.columns.binary_labels`).
  """
  return derived_labels(algorithms_columns.above_value)


def checked_labels(
  check: Callable[[algorithms_columns.Fit], algorithms_columns.Fit], labels: Labels
) -> Labels:
  """The same labels with a check, which refuses them where an algorithm cannot use them."""
  return labels._replace(columns={name: check(fit) for name, fit in labels.columns.items()})


class Baseline(NamedTuple):
  """The number subtracted from a reward to make an advantage: `values(batch)`, `[N]`, scaled."""

  values: Callable[[Batch], Array]
  couples: bool = False
  columns: Mapping[str, algorithms_columns.Fit] = {}
  check: Callable[[Any], None] = lambda triplets: None
  least_batch: int = 1


def zero_baseline() -> Baseline:
  """b = 0."""
  return Baseline(lambda batch: jnp.zeros_like(batch.rewards), check=refusals.refuse_zero_rewards)


def minibatch_mean_baseline() -> Baseline:
  """b = the global minibatch's mean reward."""
  return Baseline(
    lambda batch: jnp.full_like(batch.rewards, masked.weighted_mean(batch.rewards, batch.valid)),
    couples=True, check=refusals.refuse_equal_rewards, least_batch=2,
  )  # fmt: skip


def value_baseline() -> Baseline:
  """b = V(x), the data's column `value`."""
  return Baseline(
    lambda batch: batch.column('scaled_value'), columns={'scaled_value': algorithms_columns.scaled_value}
  )


__all__ = [
  'column_labels',
  'dataset_mean_labels',
  'minibatch_mean_baseline',
  'minibatch_mean_labels',
  'prompt_mean_labels',
  'threshold_labels',
  'value_baseline',
  'value_labels',
  'zero_baseline',
]
