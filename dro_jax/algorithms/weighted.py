"""Imitation, plain and weighted: SFT, weighted behaviour cloning, filtered SFT, AWR."""

from collections.abc import Callable

import jax.numpy as jnp

from dro_jax import limits, losses
from dro_jax.algorithms import columns, refusals
from dro_jax.algorithms.base import Algorithm, by_response
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.labels import Baseline, Labels, checked_labels, dataset_mean_labels, value_baseline
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


__all__ = ['awr', 'filtered_sft', 'sft', 'weighted_bc']
