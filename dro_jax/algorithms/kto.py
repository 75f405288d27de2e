"""Methods for thumbs: KTO and BCO."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dro_jax import limits, losses
from dro_jax.algorithms.base import Algorithm, normalised_by_length
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.labels import Labels, minibatch_mean_labels
from dro_jax.algorithms.settings import STILL
from dro_jax.ops import masked
from dro_jax.types import LossOutput, LossTerm, Scalar


def kto(
  beta: Scalar = 1.0,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
  balanced: bool = False,
  labels: Callable[[], Labels] = minibatch_mean_labels,
  length_normalised: bool = False,
) -> Algorithm:
  """KTO (`losses.kto`), with the reference point from mismatched pairs of the global batch.

  `balanced` multiplies λ_D and λ_U so that both kinds of a global batch weigh the same. `length_normalised`
  divides every log-prob, the mismatched ones too, by the length of its response first: another method.
  """
  limits.above_zero('kto', STILL, beta=beta)
  limits.at_least_zero('kto', desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
  label = labels()

  def loss(batch: Batch) -> LossOutput:
    mismatched_valid = batch.rows.mismatched.valid.reshape(-1)
    reference_point = losses.kto_reference_point(
      batch.scores.mismatched_logps.reshape(-1),
      batch.reference.mismatched_logps.reshape(-1),
      mismatched_valid,
    )
    labels_N, known = label.thumbs(batch)
    labelled = batch.valid & known
    desirable = masked.weighted_mean(labels_N.astype(jnp.float32), labelled)
    shares = jnp.stack([desirable, 1 - desirable])
    # A batch of one kind of label has nothing to balance.
    factors = jnp.where(balanced & jnp.all(shares > 0), 0.5 / jnp.maximum(shares, 1e-6), 1.0)
    per_example = losses.kto(
      batch.policy_logps, batch.reference_logps, labels_N, reference_point, beta=beta,
      desirable_weight=desirable_weight, undesirable_weight=undesirable_weight,
    ) * jnp.where(labels_N, factors[0], factors[1])  # fmt: skip
    metrics = {
      'reference_point': reference_point,
      'desirable': desirable,
      'unpaired': jnp.sum(batch.valid) - jnp.sum(mismatched_valid),
    }
    return LossOutput({'policy': LossTerm(per_example, labelled)}, metrics)

  algorithm = Algorithm(
    'kto', loss, beta, uses_mismatched=True, uses_rewards=label.uses_rewards, couples=True,
    requires=label.requires, columns=label.columns,
  )  # fmt: skip
  return normalised_by_length(algorithm) if length_normalised else algorithm


def bco(beta: Scalar = 0.1, labels: Callable[[], Labels] = minibatch_mean_labels) -> Algorithm:
  """BCO (`losses.bco`), with the running mean of βρ over all examples so far as its shift δ."""
  limits.above_zero('bco', STILL, beta=beta)
  label = labels()

  def loss(batch: Batch) -> LossOutput:
    rho = jax.lax.stop_gradient(batch.policy_logps - batch.reference_logps)
    count = batch.statistics['count'] + jnp.sum(batch.valid)
    gained = jnp.sum(jnp.where(batch.valid, beta * rho - batch.statistics['shift'], 0.0))
    shift = batch.statistics['shift'] + gained / jnp.maximum(count, 1)
    labels_N, known = label.thumbs(batch)
    policy = losses.bco(batch.policy_logps, batch.reference_logps, labels_N, shift, beta=beta)
    return LossOutput(
      {'policy': LossTerm(policy, batch.valid & known)}, {'shift': shift}, {'shift': shift, 'count': count}
    )

  return Algorithm(
    'bco', loss, beta, couples=True, uses_rewards=label.uses_rewards, requires=label.requires,
    columns=label.columns, statistics={'shift': 0.0, 'count': 0.0},
  )  # fmt: skip


__all__ = ['bco', 'kto']
