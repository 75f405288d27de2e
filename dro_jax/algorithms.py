"""What each algorithm asks of a step: its losses, and which scores they need. Data, no branches."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dro_jax import losses, masked
from dro_jax.errors import UsageError
from dro_jax.types import Array, LossOutput, LossTerm, Rows, Scores


class Algorithm(NamedTuple):
  """What a train step needs to know of an algorithm.

  Attributes:
    name: the algorithm's, recorded with the run.
    loss: from the global batch's scores, the reference's and the rows to per-example losses with weights.
    criterion: the validation loss, or part of it, whose least value marks the best checkpoint.
    temperature: τ (or β), by which τρ is an advantage in reward units.
    uses_reference: whether it reads the reference policy's scores.
    uses_value: whether it reads, and trains, a value network.
    uses_mismatched: whether it reads scores of mismatched pairs.
    uses_rewards: whether it reads rewards.
    couples: whether one example's loss depends on other examples' scores, so that a microbatch alone cannot
      give its gradient.
    requires: the data's columns without which it cannot run.
  """

  name: str
  loss: Callable[[Scores, Scores | None, Rows], LossOutput]
  temperature: float = 1.0
  criterion: str = 'loss'
  uses_reference: bool = True
  uses_value: bool = False
  uses_mismatched: bool = False
  uses_rewards: bool = True
  couples: bool = False
  requires: tuple[str, ...] = ()


def flat(x_BR: Array) -> Array:
  """`[B, R]` slots to the `[N]` examples that losses see."""
  return x_BR.reshape(-1)


def sft() -> Algorithm:
  """Supervised fine-tuning on the responses, rewards ignored."""

  def loss(scores: Scores, reference: Scores | None, rows: Rows) -> LossOutput:
    return LossOutput({'policy': LossTerm(losses.sft(flat(scores.logps)), flat(rows.valid))})

  return Algorithm('sft', loss, uses_reference=False, uses_rewards=False)


def value_loss(scores: Scores, reference: Scores, rows: Rows, tau: float) -> Array:
  """DRO-V's value loss `[N]`, by response, or by token where the value is read per token."""
  if scores.token_values is None:
    return losses.dro_v_value(
      flat(scores.logps), flat(reference.logps), flat(rows.rewards), flat(scores.values), tau=tau
    )
  num_slots = rows.rewards.shape[1]
  policy_NT, mask_NT = masked.unpack(scores.token_logps, rows.response_segments, num_slots)
  reference_NT, _ = masked.unpack(reference.token_logps, rows.response_segments, num_slots)
  values_NT, _ = masked.unpack(scores.token_values, rows.response_segments, num_slots)
  return losses.dro_v_token_value(policy_NT, reference_NT, mask_NT, flat(rows.rewards), values_NT, tau=tau)


def dro_v(tau: float = 1.0) -> Algorithm:
  """DRO-V: a policy and a value trained together (`losses.dro_v_policy`, `losses.dro_v_value`)."""

  def loss(scores: Scores, reference: Scores | None, rows: Rows) -> LossOutput:
    policy = losses.dro_v_policy(
      flat(scores.logps), flat(reference.logps), flat(rows.rewards), flat(scores.values), tau=tau
    )
    valid = flat(rows.valid)
    return LossOutput(
      {'policy': LossTerm(policy, valid), 'value': LossTerm(value_loss(scores, reference, rows, tau), valid)}
    )

  # The policy's loss has no meaning by itself; the value's is ½ (r − V − τρ)², DRO's own objective (Eq. 4).
  return Algorithm('dro_v', loss, tau, criterion='loss/value', uses_value=True)


def dro_v_residual(tau: float = 1.0) -> Algorithm:
  """DRO's squared residual, nothing stopped (`losses.dro_v_residual`): policy and value share one loss."""

  def loss(scores: Scores, reference: Scores | None, rows: Rows) -> LossOutput:
    residual = losses.dro_v_residual(
      flat(scores.logps), flat(reference.logps), flat(rows.rewards), flat(scores.values), tau=tau
    )
    return LossOutput({'residual': LossTerm(residual, flat(rows.valid))})

  return Algorithm('dro_v_residual', loss, tau, uses_value=True)


def dro_p(tau: float = 1.0) -> Algorithm:
  """DRO-P: the global batch's mean residual in place of a value (`losses.dro_p`)."""

  def loss(scores: Scores, reference: Scores | None, rows: Rows) -> LossOutput:
    policy_logps, reference_logps, rewards, valid = map(
      flat, (scores.logps, reference.logps, rows.rewards, rows.valid)
    )
    mean = jax.lax.stop_gradient(
      masked.weighted_mean(rewards - tau * (policy_logps - reference_logps), valid)
    )
    policy = losses.dro_p(policy_logps, reference_logps, rewards, mean, tau=tau)
    return LossOutput({'policy': LossTerm(policy, valid)}, {'mean_residual': mean})

  return Algorithm('dro_p', loss, tau, couples=True)


class Labels(NamedTuple):
  """How rewards become thumbs: `of(rows) -> [B, R]`, and what of the data it reads."""

  of: Callable[[Rows], Array]
  uses_rewards: bool = True
  requires: tuple[str, ...] = ()


def minibatch_mean_labels() -> Labels:
  """Desirable when the reward exceeds the mean of the global minibatch (DRO's KTO baseline)."""

  def of(rows: Rows) -> Array:
    mean = masked.weighted_mean(rows.rewards, rows.valid)
    spread = jnp.sqrt(masked.weighted_variance(rows.rewards, rows.valid))
    # A reward that is the mean does not exceed it, in whichever order the layout made the float32 sum.
    return rows.rewards - mean > 1e-5 * (jnp.abs(mean) + spread)

  return Labels(of)


def column_labels() -> Labels:
  """Desirable when the data's `label` column is positive."""
  return Labels(lambda rows: rows.columns['label'] > 0, uses_rewards=False, requires=('label',))


def kto(
  beta: float = 1.0,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
  labels: Callable[[], Labels] = minibatch_mean_labels,
) -> Algorithm:
  """KTO (`losses.kto`), its reference point from mismatched pairs of the global batch."""
  label = labels()

  def loss(scores: Scores, reference: Scores | None, rows: Rows) -> LossOutput:
    mismatched_valid = flat(rows.mismatched.valid)
    reference_point = losses.kto_reference_point(
      flat(scores.mismatched_logps), flat(reference.mismatched_logps), mismatched_valid
    )
    labels_N, valid = flat(label.of(rows)), flat(rows.valid)
    policy = losses.kto(
      flat(scores.logps),
      flat(reference.logps),
      labels_N,
      reference_point,
      beta=beta,
      desirable_weight=desirable_weight,
      undesirable_weight=undesirable_weight,
    )
    metrics = {
      'reference_point': reference_point,
      'desirable': masked.weighted_mean(labels_N.astype(jnp.float32), valid),
      'unpaired': jnp.sum(valid) - jnp.sum(mismatched_valid),
    }
    return LossOutput({'policy': LossTerm(policy, valid)}, metrics)

  return Algorithm(
    'kto',
    loss,
    beta,
    uses_mismatched=True,
    uses_rewards=label.uses_rewards,
    couples=True,
    requires=label.requires,
  )


def check_columns(algorithm: Algorithm, columns: Iterable[str]) -> None:
  """Refuses data without a column that the algorithm reads.

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


__all__ = ['column_labels', 'dro_p', 'dro_v', 'dro_v_residual', 'kto', 'minibatch_mean_labels', 'sft']
