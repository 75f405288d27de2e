"""Methods on fresh responses of the current policy: RLOO, CoPG, PPO."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from dro_jax import limits, losses
from dro_jax.algorithms.base import Algorithm, Online
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.groups import copg, rloo
from dro_jax.algorithms.settings import CLIPPED, WINDOW
from dro_jax.errors import UsageError
from dro_jax.ops import masked, returns
from dro_jax.types import Array, LossOutput, LossTerm, Scalar


def _on_fresh_groups(algorithm: Algorithm, samples: int, epochs: int = 1) -> Algorithm:
  """An algorithm for groups, with groups sampled from the current policy."""
  if samples < 2:
    raise UsageError(
      f'{algorithm.name} compares the samples of a prompt, so samples={samples} is too few: pass 2 or more, '
      'as samples=4 or --set GROUP_SAMPLES=4.'
    )
  return algorithm._replace(
    name=f'{algorithm.name}_online', unit='prompt', uses_rewards=False, online=_online(samples, epochs),
    check=lambda triplets: None,
  )  # fmt: skip


def _online(
  samples: int, epochs: int, token_columns: Callable[[Batch], Mapping[str, Array]] | None = None
) -> Online:
  if samples < 1 or epochs < 1:
    raise UsageError(f'samples={samples}, epochs={epochs}: pass 1 or more of each.')
  return Online(samples, epochs, token_columns)


def rloo_online(beta: Scalar = 0.05, samples: int = 4) -> Algorithm:
  """RLOO (`losses.rloo`) as published: on fresh samples, with one step on each batch."""
  return _on_fresh_groups(rloo(beta), samples)


def copg_online(beta: Scalar = 0.06, samples: int = 4, epochs: int = 1) -> Algorithm:
  """CoPG (`losses.copg`) on fresh samples, with `epochs` steps on each batch."""
  return _on_fresh_groups(copg(beta), samples, epochs)


def ppo_online(
  beta: Scalar = 0.05, epsilon: float = 0.2, lam: float = 0.95, samples: int = 1, epochs: int = 1
) -> Algorithm:
  """PPO by token (`losses.ppo_token`) on fresh samples (arXiv 1707.06347).

  r_t = −β log π(y_t|·)/π_ref(y_t|·), and r at the last token; advantages by GAE(γ = 1, λ) on the value of
  each token, which is fitted to A_t + V_t by least squares. Old log-probs, values and advantages are those of
  the policy that sampled, for all `epochs`. A-LoL (arXiv 2305.14718) compares with TRL's PPO instead, where β
  adapts, scores are scaled, advantages whitened and values clipped, and a batch has 4 epochs.
  """
  limits.at_least_zero('ppo_online', beta=beta)
  limits.above_zero('ppo_online', CLIPPED, epsilon=epsilon)
  limits.within('ppo_online', 0, 1, WINDOW, epsilon=epsilon)
  if not 0 <= lam <= 1:
    raise UsageError(f'ppo_online: lam={lam} must be from 0 to 1 (--gin.ppo_online.lam=0.95).')

  def token_columns(batch: Batch) -> dict[str, Array]:
    policy_NT, reference_NT, values_NT = map(
      batch.tokens, (batch.scores.token_logps, batch.reference.token_logps, batch.scores.token_values)
    )
    mask_NT = batch.token_mask
    last_NT = jnp.arange(mask_NT.shape[1])[None, :] == batch.lengths[:, None] - 1
    rewards_NT = jnp.where(last_NT, batch.rewards[:, None], 0.0) - beta * (policy_NT - reference_NT)
    advantages_NT = returns.gae(rewards_NT, values_NT, mask_NT, lam=lam)
    return {
      'behaviour_logps': policy_NT,
      'advantages': advantages_NT,
      'returns': jnp.where(mask_NT, advantages_NT + values_NT, 0.0),
    }

  def loss(batch: Batch) -> LossOutput:
    columns, mask_NT = batch.rows.token_columns, batch.token_mask
    policy_NT, behaviour_NT = batch.tokens(batch.scores.token_logps), batch.tokens(columns['behaviour_logps'])
    policy = losses.ppo_token(
      policy_logps=policy_NT, mask=mask_NT, behaviour_logps=behaviour_NT,
      advantages=batch.tokens(columns['advantages']), epsilon=epsilon,
    )  # fmt: skip
    errors_NT = batch.tokens(batch.scores.token_values) - batch.tokens(columns['returns'])
    value = masked.masked_mean(jnp.square(errors_NT) / 2, mask_NT)
    clipped_NT = jnp.abs(jnp.expm1(policy_NT - behaviour_NT)) > epsilon
    metrics = {'clipped': masked.weighted_mean(clipped_NT.astype(jnp.float32), mask_NT)}
    return LossOutput(
      {'policy': LossTerm(policy, batch.valid), 'value': LossTerm(value, batch.valid)}, metrics
    )

  return Algorithm(
    'ppo_online', loss, beta, unit='prompt', uses_value=True, uses_token_values=True, uses_rewards=False,
    online=_online(samples, epochs, token_columns),
  )  # fmt: skip


__all__ = ['copg_online', 'ppo_online', 'rloo_online']
