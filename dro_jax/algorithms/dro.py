"""DRO-V and its relatives: a policy and a value trained so that r − V(x) = τ log π/π_ref."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dro_jax import limits, losses
from dro_jax.algorithms import columns, refusals
from dro_jax.algorithms.base import Algorithm, by_group, normalised_by_length
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.labels import Labels, checked_labels, dataset_mean_labels
from dro_jax.algorithms.settings import UNHELD
from dro_jax.ops import masked
from dro_jax.types import Array, LossOutput, LossTerm, Scalar


def _value_loss(batch: Batch, rewards: Array, tau: Scalar) -> Array:
  """DRO-V's value loss `[N]`, by response, or by token where the value is read per token."""
  if batch.scores.token_values is None:
    return losses.dro_v_value(batch.policy_logps, batch.reference_logps, rewards, batch.values, tau=tau)
  policy_NT, reference_NT, values_NT = map(
    batch.tokens, (batch.scores.token_logps, batch.reference.token_logps, batch.scores.token_values)
  )
  return losses.dro_v_token_value(policy_NT, reference_NT, batch.token_mask, rewards, values_NT, tau=tau)


def _dro_v_terms(batch: Batch, rewards: Array, tau: Scalar, weights: Array) -> LossOutput:
  policy = losses.dro_v_policy(batch.policy_logps, batch.reference_logps, rewards, batch.values, tau=tau)
  value = _value_loss(batch, rewards, tau)
  return LossOutput({'policy': LossTerm(policy, weights), 'value': LossTerm(value, weights)})


def dro_v(tau: Scalar = 1.0, length_normalised: bool = False) -> Algorithm:
  """DRO-V: a policy and a value trained together (`losses.dro_v_policy`, `losses.dro_v_value`).

  `length_normalised` divides every log-prob by the length of its response first, which is another method: the
  paper does not say whether it summed, and some re-implementations average.
  """
  limits.above_zero('dro_v', UNHELD, tau=tau)
  # The criterion is the value's loss, ½ (r − V − τρ)², DRO's objective (Eq. 4): the policy's has no minimum.
  loss = lambda batch: _dro_v_terms(batch, batch.rewards, tau, batch.valid)  # noqa: E731
  algorithm = Algorithm(
    'dro_v', loss, tau, criterion='loss/value', uses_value=True, check=refusals.refuse_equal_rewards
  )
  return normalised_by_length(algorithm) if length_normalised else algorithm


def dro_v_binary(tau: Scalar = 1.0, labels: Callable[[], Labels] = dataset_mean_labels) -> Algorithm:
  """DRO-V on thumbs instead of rewards, which shows how much the scalar reward adds."""
  limits.above_zero('dro_v_binary', UNHELD, tau=tau)
  label = checked_labels(columns.both_kinds, labels())

  def loss(batch: Batch) -> LossOutput:
    thumbs = label.thumbs(batch)
    return _dro_v_terms(batch, thumbs.up.astype(jnp.float32), tau, batch.valid & thumbs.known)

  return Algorithm(
    'dro_v_binary', loss, tau, criterion='loss/value', uses_value=True, uses_rewards=label.uses_rewards,
    couples=label.couples, requires=label.requires, columns=label.columns,
  )  # fmt: skip


def dro_v_residual(tau: Scalar = 1.0) -> Algorithm:
  """DRO's squared residual (`losses.dro_v_residual`) without stopped gradients, for policy and value."""
  limits.above_zero('dro_v_residual', UNHELD, tau=tau)

  def loss(batch: Batch) -> LossOutput:
    residual = losses.dro_v_residual(
      batch.policy_logps, batch.reference_logps, batch.rewards, batch.values, tau=tau
    )
    return LossOutput({'residual': LossTerm(residual, batch.valid)})

  return Algorithm('dro_v_residual', loss, tau, uses_value=True, check=refusals.refuse_equal_rewards)


def dro_fixed_value(tau: Scalar = 1.0) -> Algorithm:
  """DRO with a fixed V, the data's column `value`: a regressed mean reward, or the oracle's V*.

  V is part of the solution: any other than V* biases the policy (arXiv 2405.19107, Sect. 3.3).
  """
  limits.above_zero('dro_fixed_value', UNHELD, tau=tau)

  def loss(batch: Batch) -> LossOutput:
    values = batch.column('scaled_value')
    policy = losses.dro_v_policy(batch.policy_logps, batch.reference_logps, batch.rewards, values, tau=tau)
    residual = batch.rewards - values - tau * (batch.policy_logps - batch.reference_logps)
    metrics = {'residual': masked.weighted_mean(jnp.square(residual) / 2, batch.valid)}
    return LossOutput({'policy': LossTerm(policy, batch.valid)}, metrics)

  return Algorithm('dro_fixed_value', loss, tau, columns={'scaled_value': columns.scaled_value})


def dro_p(tau: Scalar = 1.0, length_normalised: bool = False) -> Algorithm:
  """DRO-P: the global batch's mean residual in place of a value (`losses.dro_p`).

  `length_normalised` divides every log-prob by the length of its response first, which is another method.
  """
  limits.above_zero('dro_p', UNHELD, tau=tau)

  def loss(batch: Batch) -> LossOutput:
    residuals = batch.rewards - tau * (batch.policy_logps - batch.reference_logps)
    mean = jax.lax.stop_gradient(masked.weighted_mean(residuals, batch.valid))
    policy = losses.dro_p(batch.policy_logps, batch.reference_logps, batch.rewards, mean, tau=tau)
    return LossOutput({'policy': LossTerm(policy, batch.valid)}, {'mean_residual': mean})

  algorithm = Algorithm('dro_p', loss, tau, couples=True, check=refusals.refuse_equal_rewards, least_batch=2)
  return normalised_by_length(algorithm) if length_normalised else algorithm


def rpo(tau: Scalar = 5.0) -> Algorithm:
  """RPO (`losses.rpo`), with V̂ from all logged responses to a prompt, two or more, in one group.

  GROUP_SIZE must be the largest number of responses to a prompt or more: a part of them has another V̂.
  """
  limits.above_zero('rpo', 'the targets divide by it', tau=tau)

  def per_group(batch: Batch) -> Array:
    mask_GK = batch.unit_mask
    policy_GK, reference_GK, rewards_GK, lengths_GK = map(
      batch.members, (batch.policy_logps, batch.reference_logps, batch.rewards, batch.lengths)
    )
    log_terms_GK = reference_GK / lengths_GK + rewards_GK / tau
    values_G1 = tau * jax.nn.logsumexp(log_terms_GK, axis=1, where=mask_GK, keepdims=True)
    # A unit that fills up a batch has no members, and its −∞ would make NaN of the gradient.
    values_GK = jnp.where(mask_GK, values_G1, 0.0)
    arrays = (x.reshape(-1) for x in (policy_GK, reference_GK, rewards_GK, values_GK, lengths_GK))
    return masked.masked_mean(losses.rpo(*arrays, tau=tau).reshape(mask_GK.shape), mask_GK)

  return by_group('rpo', per_group, temperature=tau, whole_groups=True)


def regression() -> Algorithm:
  """A value alone, fitted to rewards by least squares; the policy gets no gradient.

  L = ½ (V(x) − r)²
  """

  def loss(batch: Batch) -> LossOutput:
    return LossOutput({'value': LossTerm(jnp.square(batch.values - batch.rewards) / 2, batch.valid)})

  return Algorithm('regression', loss, uses_reference=False, uses_value=True, trains_policy=False)


__all__ = ['dro_fixed_value', 'dro_p', 'dro_v', 'dro_v_binary', 'dro_v_residual', 'regression', 'rpo']
