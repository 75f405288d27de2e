"""Algorithms: a loss over a batch, and what the loss needs of a run and its data."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.columns import Fit
from dro_jax.algorithms.refusals import refuse_equal_within_prompts
from dro_jax.errors import UsageError
from dro_jax.ops import masked
from dro_jax.types import Array, LossOutput, LossTerm

# What a reward model's scores are: rewards in their own units, or logits of preferences.
REWARDS, PREFERENCES = 'rewards', 'preferences'


class Online(NamedTuple):
  """How an algorithm that learns from fresh responses samples them, and how often it uses them.

  Attributes:
    samples: responses of the current policy to each prompt of a batch.
    epochs: optimiser steps on every batch of them.
    token_columns: from a batch, scored by the policy that sampled it, to the columns by token that the loss
      reads, `[N, T]` each; `None` where it reads none, and then no such scores are taken.
  """

  samples: int
  epochs: int = 1
  token_columns: Callable[[Batch], Mapping[str, Array]] | None = None


class Algorithm(NamedTuple):
  """An algorithm as a train step uses it.

  Attributes:
    name: its name, recorded with the run.
    loss: from a batch to losses with weights, by response, pair or group.
    temperature: τ (or β): τρ is an advantage in reward units.
    criterion: the validation loss, or part of it, whose smallest value marks the best checkpoint.
    unit: the things that `batch_size` counts: 'response', 'pair' or 'group' (of responses to one prompt), or
      'prompt' (to be answered).
    uses_reference: whether it reads the reference policy's scores.
    uses_value: whether it reads, and trains, a value network.
    uses_token_values: whether that network must give a value for each token.
    uses_response_values: whether that network must score each response, which it then reads to the end.
    pools_values: whether it reads one value for the whole batch, the mean over its responses.
    uses_mismatched: whether it reads scores of mismatched pairs.
    kl_direction: the direction of the next-token KL that it reads (see `with_next_token_kl`); `None`: none.
    uses_rewards: whether it reads rewards.
    trains_policy: whether the policy gets a gradient.
    scores_policy: whether a step takes the policy's log-probs; without, no pass of the policy is made.
    whole_groups: whether a group must hold all responses to its prompt.
    couples: whether one example's loss depends on other examples, so that a microbatch alone cannot give its
      gradient.
    requires: columns that the data must have.
    columns: columns that it derives from the data (see `algorithms.columns`), by name.
    check: refuses triplets from which it cannot learn.
    least_batch: the smallest batch, in its unit: 2 where it compares with the batch's mean.
    select: marks a table's responses to train on, `[N]` booleans; `None` for all.
    weights: how often to draw each of a table's responses, `[N]`; `None` for each once an epoch.
    statistics: running scalars, checkpointed, with their first values.
    online: how it gets fresh responses; `None` where it learns from the logged ones.
    code: a hash of the code that defines it, where that is not dro_jax's own: recorded with a run.
    reward_model: of a reward model, its `role` ('proxy' or 'gold') and what its `scores` are ('rewards' or
      'preferences', whose differences are logits): recorded with a run.
  """

  name: str
  loss: Callable[[Batch], LossOutput]
  temperature: float = 1.0
  criterion: str = 'loss'
  unit: str = 'response'
  uses_reference: bool = True
  uses_value: bool = False
  uses_token_values: bool = False
  uses_response_values: bool = False
  pools_values: bool = False
  uses_mismatched: bool = False
  kl_direction: str | None = None
  uses_rewards: bool = True
  trains_policy: bool = True
  scores_policy: bool = True
  whole_groups: bool = False
  couples: bool = False
  requires: tuple[str, ...] = ()
  columns: Mapping[str, Fit] = {}
  check: Callable[[Any], None] = lambda triplets: None
  least_batch: int = 1
  select: Callable[[Any], np.ndarray] | None = None
  weights: Callable[[Any], np.ndarray] | None = None
  statistics: Mapping[str, float] = {}
  online: Online | None = None
  code: str | None = None
  reward_model: Mapping[str, str] | None = None

  @property
  def scores(self) -> str | None:
    """What a reward model's scores are, REWARDS or PREFERENCES; `None` of other algorithms."""
    return None if self.reward_model is None else self.reward_model['scores']


def with_batch_value(algorithm: Algorithm) -> Algorithm:
  """The algorithm with one value for the whole batch, which couples the batch's examples."""
  return algorithm._replace(pools_values=True, couples=True)


def normalised_by_length(algorithm: Algorithm) -> Algorithm:
  """The algorithm on means over each response's tokens in place of sums, which is another method."""
  return algorithm._replace(
    name=f'{algorithm.name}_by_length', loss=lambda batch: algorithm.loss(batch.by_length())
  )


def by_response(name: str, per_example: Callable[[Batch], Array], **settings: Any) -> Algorithm:
  """An algorithm with one loss `[N]`, by response."""

  def loss(batch: Batch) -> LossOutput:
    return LossOutput({'policy': LossTerm(per_example(batch), batch.valid)})

  return Algorithm(name, loss, **settings)


def pair_metrics(margins_P: Array, valid_P: Array) -> dict[str, Array]:
  """The mean margin of chosen over rejected responses, and how often it is positive; 0 counts half."""
  margins = jax.lax.stop_gradient(margins_P)
  wins = jnp.where(margins == 0, 0.5, (margins > 0).astype(jnp.float32))
  return {
    'pair_margin': masked.weighted_mean(margins, valid_P),
    'pair_accuracy': masked.weighted_mean(wins, valid_P),
  }


def by_pair(name: str, per_pair: Callable[[Batch], Array], **settings: Any) -> Algorithm:
  """An algorithm with one loss `[P]`, by pair: member 0 is chosen, member 1 rejected."""

  def loss(batch: Batch) -> LossOutput:
    valid = jnp.all(batch.unit_mask, axis=1)
    scores = batch.policy_logps - (0.0 if batch.reference is None else batch.reference_logps)
    margins = jnp.diff(-batch.members(scores), axis=1)[:, 0]
    return LossOutput({'policy': LossTerm(per_pair(batch), valid)}, pair_metrics(margins, valid))

  return Algorithm(name, loss, unit='pair', couples=True, **settings)


def by_group(name: str, per_group: Callable[[Batch], Array], **settings: Any) -> Algorithm:
  """An algorithm with one loss `[G]`, by group of responses to one prompt."""

  def loss(batch: Batch) -> LossOutput:
    return LossOutput({'policy': LossTerm(per_group(batch), jnp.any(batch.unit_mask, axis=1))})

  settings = {'check': refuse_equal_within_prompts, **settings}
  return Algorithm(name, loss, unit='group', couples=True, **settings)


def check_columns(algorithm: Algorithm, columns: Iterable[str]) -> None:
  """Refuses data that lacks a column that the algorithm reads.

  Raises:
    UsageError: a required column is missing.
  """
  for column in algorithm.requires:
    if column not in columns:
      raise UsageError(
        f'the algorithm reads the column {column!r}, which the triplets lack (they have '
        f'{", ".join(sorted(columns)) or "no extra columns"}): add it, or map one with '
        f'--columns {column}=YOURS.'
      )


NO_LOSS = Algorithm('none', lambda batch: LossOutput({}))
