"""Imitation, plain and weighted: SFT, weighted behaviour cloning, filtered SFT, RFT, AWR."""

from collections.abc import Callable

import jax.numpy as jnp

from dro_jax import limits, losses
from dro_jax.algorithms import columns, refusals
from dro_jax.algorithms.base import Algorithm, by_response
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.labels import (
  Baseline,
  Labels,
  checked_labels,
  dataset_mean_labels,
  derived_labels,
  value_baseline,
)
from dro_jax.errors import UsageError
from dro_jax.ops import masked
from dro_jax.types import LossOutput, LossTerm, Scalar


def sft() -> Algorithm:
  """Supervised fine-tuning on the responses, rewards ignored."""
  return by_response(
    'sft', lambda batch: losses.sft(batch.policy_logps), uses_reference=False, uses_rewards=False
  )


def weighted_bc() -> Algorithm:
  """Behaviour cloning weighted by rewards, which must not be negative (`losses.weighted_bc`)."""
  return by_response(
    'weighted_bc',
    lambda batch: losses.weighted_bc(batch.policy_logps, batch.rewards),
    uses_reference=False,
    check=refusals.refuse_negative_rewards,
  )


def filtered_sft(labels: Callable[[], Labels] = dataset_mean_labels) -> Algorithm:
  """Supervised fine-tuning on the desirable responses only."""
  label = checked_labels(columns.some_desirable, labels())

  def loss(batch: Batch) -> LossOutput:
    thumbs = label.thumbs(batch)
    kept = batch.valid & thumbs.known & thumbs.up
    metrics = {'desirable': masked.weighted_mean(kept.astype(jnp.float32), batch.valid)}
    return LossOutput({'policy': LossTerm(losses.sft(batch.policy_logps), kept)}, metrics)

  return Algorithm(
    'filtered_sft', loss, uses_reference=False, uses_rewards=label.uses_rewards, couples=label.couples,
    requires=label.requires, columns=label.columns,
  )  # fmt: skip


def rft(threshold: float | int | None = None, share: float | int = 0.25) -> Algorithm:
  """RFT: supervised fine-tuning on each prompt's best responses (rejection sampling; arXiv 2308.01825).

  Keeps a response whose reward, in its own units, is at or above `threshold` and among the top `share` of its
  prompt's responses, ties included; prompts without one are skipped and counted. Without a threshold, binary
  rewards keep the higher one only. It is `filtered_sft` on these responses.
  """
  if not 0 < share <= 1:
    raise UsageError(
      f'rft: share={share} must be above 0 and at most 1, because it is a share of a prompt’s responses; '
      'pass another with --set rft.share=0.25.'
    )
  fit = columns.best_of_prompt(threshold, share)
  filtered = filtered_sft(labels=lambda: derived_labels(fit))
  return filtered._replace(name='rft', select=lambda table: table.columns['derived_label'] == 1)


def awr(beta: Scalar = 1.0, baseline: Callable[[], Baseline] = value_baseline) -> Algorithm:
  """Advantage-weighted regression (`losses.awr`), A = r − baseline."""
  limits.above_zero('awr', 'it divides the advantage', beta=beta)
  base = baseline()
  return by_response(
    'awr',
    lambda batch: losses.awr(
      policy_logps=batch.policy_logps, advantages=batch.rewards - base.values(batch), beta=beta
    ),
    temperature=beta, uses_reference=False, couples=base.couples, columns=base.columns,
  )  # fmt: skip


__all__ = ['awr', 'filtered_sft', 'rft', 'sft', 'weighted_bc']
