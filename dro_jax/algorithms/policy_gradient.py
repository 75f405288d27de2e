"""Policy gradients on logged responses: GOLD, REINFORCE, clipped PPO, TOPR, DRO by token."""

from collections.abc import Callable

import jax.numpy as jnp

from dro_jax import limits, losses
from dro_jax.algorithms import columns, refusals
from dro_jax.algorithms.base import Algorithm, by_response
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.labels import Baseline, minibatch_mean_baseline, zero_baseline
from dro_jax.algorithms.settings import CLIPPED, UNHELD, WINDOW
from dro_jax.types import Array, Scalar


def gold(floor: float = 0.1) -> Algorithm:
  """GOLD: behaviour cloning weighted by rewards and the policy's own token probabilities (`losses.gold`)."""
  limits.at_least_zero('gold', floor=floor)

  def per_example(batch: Batch) -> Array:
    return losses.gold(
      policy_logps=batch.tokens(batch.scores.token_logps),
      mask=batch.token_mask,
      rewards=batch.rewards,
      floor=floor,
    )

  return by_response('gold', per_example, uses_reference=False, check=refusals.refuse_negative_rewards)


def reinforce(beta: Scalar = 0.0, baseline: Callable[[], Baseline] = minibatch_mean_baseline) -> Algorithm:
  """Naive off-policy policy gradient (`losses.reinforce`): the biased method in CoPG's comparison."""
  limits.at_least_zero('reinforce', beta=beta)
  base = baseline()
  return by_response(
    'reinforce',
    lambda batch: losses.reinforce(
      policy_logps=batch.policy_logps, reference_logps=batch.reference_logps, rewards=batch.rewards,
      baselines=base.values(batch), beta=beta,
    ),
    temperature=beta, couples=base.couples, columns=base.columns, check=base.check,
    least_batch=base.least_batch,
  )  # fmt: skip


def ppo_clip(
  epsilon: float = 0.2,
  baseline: Callable[[], Baseline] = minibatch_mean_baseline,
  behaviour_sampler: str | None = None,
) -> Algorithm:
  """PPO's clipped ratio to the logging policy, by response (`losses.ppo_clip`), A = r − baseline."""
  limits.above_zero('ppo_clip', CLIPPED, epsilon=epsilon)
  limits.within('ppo_clip', 0, 1, WINDOW, epsilon=epsilon)
  base = baseline()
  return by_response(
    'ppo_clip',
    lambda batch: losses.ppo_clip(
      policy_logps=batch.policy_logps, behaviour_logps=batch.column('propensity'),
      advantages=batch.rewards - base.values(batch), epsilon=epsilon,
    ),
    uses_reference=False, couples=base.couples, check=base.check, least_batch=base.least_batch,
    columns={'propensity': columns.propensities(behaviour_sampler), **base.columns},
  )  # fmt: skip


def topr(baseline: Callable[[], Baseline] = zero_baseline, behaviour_sampler: str | None = None) -> Algorithm:
  """TOPR (`losses.topr`): imitates rewarded responses, and pushes others away by their clipped ratio."""
  base = baseline()
  return by_response(
    'topr',
    lambda batch: losses.topr(
      policy_logps=batch.policy_logps, behaviour_logps=batch.column('propensity'),
      rewards=batch.rewards - base.values(batch),
    ),
    uses_reference=False, couples=base.couples, check=base.check, least_batch=base.least_batch,
    columns={'propensity': columns.propensities(behaviour_sampler), **base.columns},
  )  # fmt: skip


def dro_token(beta: Scalar = 0.05, baseline: Callable[[], Baseline] = minibatch_mean_baseline) -> Algorithm:
  """The token loss that some toolkits call DRO (`losses.dro_token`), A = r − baseline for every token.

  It is not DRO-V. The sampler μ is the run's reference, so the responses must be samples of the checkpoint
  that the run starts from.
  """
  limits.above_zero('dro_token', UNHELD, beta=beta)
  base = baseline()

  def per_example(batch: Batch) -> Array:
    mask_NT, advantages_N = batch.token_mask, batch.rewards - base.values(batch)
    return losses.dro_token(
      policy_logps=batch.tokens(batch.scores.token_logps), mask=mask_NT,
      behaviour_logps=batch.tokens(batch.reference.token_logps),
      advantages=jnp.where(mask_NT, advantages_N[:, None], 0.0), beta=beta,
    )  # fmt: skip

  return by_response(
    'dro_token', per_example, temperature=beta, couples=base.couples, columns=base.columns, check=base.check,
    least_batch=base.least_batch,
  )  # fmt: skip


__all__ = ['dro_token', 'gold', 'ppo_clip', 'reinforce', 'topr']
