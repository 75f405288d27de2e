"""Losses of groups: K responses to one prompt and their rewards, `[G, K]` each; one loss a group.

Log-probs are in nats, summed over the response's tokens, EOS included. ρ = policy_logps − reference_logps, Δ
is a difference within a pair i < j. `mask` marks a group's members; entries outside it may hold anything and
take no part. A group of fewer than two members has loss 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from dro_jax.ops import checks, masked
from dro_jax.types import Array, Scalar

GROUP_VALUES = ('mean', 'leave_one_out_mean', 'log_mean_exp', 'leave_one_out_log_mean_exp')


def _pairs(x_GK: Array) -> Array:
  """x_i − x_j of every two members, `[G, K, K]`."""
  return x_GK[:, :, None] - x_GK[:, None, :]


def _pair_mean(x_GKK: Array, mask_GK: Array) -> Array:
  """Mean over pairs i < j of members, `[G]`; 0 for a group without pairs."""
  size = mask_GK.shape[1]
  both_GKK = mask_GK[:, :, None] & mask_GK[:, None, :] & jnp.triu(jnp.ones((1, size, size), bool), 1)
  count_G = jnp.maximum(jnp.sum(both_GKK, axis=(1, 2)), 1)
  return jnp.sum(jnp.where(both_GKK, x_GKK, 0.0), axis=(1, 2)) / count_G


def _clean(mask: Array, *arrays: Array) -> tuple[Array, ...]:
  """The arrays with 0 outside the mask, so that nothing there reaches a gradient."""
  return tuple(jnp.where(mask, x, 0.0) for x in arrays)


def copg(
  policy_logps: Float[Array, 'G K'],
  reference_logps: Float[Array, 'G K'],
  rewards: Float[Array, 'G K'],
  mask: Bool[Array, 'G K'],
  beta: Scalar = 0.06,
) -> Float[Array, ' G']:
  """CoPG: a policy gradient for off-policy data, in which each response of a pair is the other's baseline.

  L = mean_{i<j} −(Δr − (β/2) Δρ) Δρ        (arXiv 2406.19185, Eq. 17, negated)

  The half β belongs to the loss, the full β to its gradient: stopping the weight would converge to β/2.

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    mask: members of each group.
    beta: β > 0, reward units per nat.

  Raises:
    ValueError: the arrays are not all `[G, K]`.
  """
  checks.check_groups(mask, policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards)
  rho, rewards = _clean(mask, policy_logps - reference_logps, rewards)
  delta_rho, delta_r = _pairs(rho), _pairs(rewards)
  return _pair_mean(-(delta_r - beta / 2 * delta_rho) * delta_rho, mask)


def agro(
  policy_logps: Float[Array, 'G K'],
  reference_logps: Float[Array, 'G K'],
  rewards: Float[Array, 'G K'],
  mask: Bool[Array, 'G K'],
  beta: Scalar = 0.1,
) -> Float[Array, ' G']:
  """AGRO: at the optimum r − βρ is the same for all responses to a prompt.

  L = ½ Var_K(r − βρ), population variance        (arXiv 2503.19612)

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    mask: members of each group.
    beta: β > 0, reward units per nat.

  Raises:
    ValueError: the arrays are not all `[G, K]`.
  """
  checks.check_groups(mask, policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards)
  (residuals,) = _clean(mask, rewards - beta * (policy_logps - reference_logps))
  centred = residuals - masked.masked_mean(residuals, mask)[:, None]
  return masked.masked_mean(jnp.square(centred), mask) / 2


def dro_group_value(
  policy_logps: Float[Array, 'G K'],
  reference_logps: Float[Array, 'G K'],
  rewards: Float[Array, 'G K'],
  mask: Bool[Array, 'G K'],
  tau: Scalar = 1.0,
  value: str = 'leave_one_out_log_mean_exp',
  value_temperature: Scalar | None = None,
  behaviour_logps: Float[Array, 'G K'] | None = None,
) -> Float[Array, ' G']:
  """DRO's policy loss, whose V̂ is estimated from the rewards of the group and not learnt.

  L = mean_k −(r_k − sg V̂)·log π_k + (τ/2)·ρ_k²        (arXiv 2405.19107, Eq. 8 divided by τ)

  V̂ has four names. `mean` is mean_j r_j (as in arXiv 2602.05933, which divides by the length besides);
  `log_mean_exp` is β₁ log mean_j e^{r_j/β₁} (as in arXiv 2505.20686); `leave_one_out_mean` and
  `leave_one_out_log_mean_exp` are the same over all j ≠ k, so that V̂ does not depend on the response itself.

  DRO's V(x) is τ log E_ref[e^{r/τ}], which `log_mean_exp` with β₁ = τ estimates from samples of the
  reference. Samples of another policy μ bias it, unless `behaviour_logps` weigh each by
  e^{log π_ref − log μ}, normalised to sum 1.

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    mask: members of each group.
    tau: temperature τ > 0, reward units per nat.
    value: the name of V̂; no gradient reaches it.
    value_temperature: β₁ > 0, reward units; None is τ.
    behaviour_logps: log μ(y|x) of the policy that sampled the log, nats; None weighs all members equally.

  Raises:
    ValueError: the arrays are not all `[G, K]`, or there is no V̂ of that name.
  """
  weighing = {} if behaviour_logps is None else {'behaviour_logps': behaviour_logps}
  checks.check_groups(
    mask, policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards, **weighing
  )
  log_weights = jnp.zeros_like(rewards) if behaviour_logps is None else reference_logps - behaviour_logps
  policy_logps, rho, rewards, log_weights = _clean(
    mask, policy_logps, policy_logps - reference_logps, rewards, log_weights
  )
  beta_1 = tau if value_temperature is None else value_temperature
  values = jax.lax.stop_gradient(_group_values(rewards, log_weights, mask, value, beta_1))
  per_member = -(rewards - values) * policy_logps + tau / 2 * jnp.square(rho)
  enough = jnp.sum(mask, axis=1, keepdims=True) > 1
  return masked.masked_mean(jnp.where(enough, per_member, 0.0), mask)


def _group_values(rewards: Array, log_weights: Array, mask: Array, value: str, beta_1: Scalar) -> Array:
  """V̂ for each member, `[G, K]`; 0 where no response is left to estimate it from."""
  if value not in GROUP_VALUES:
    raise ValueError(f'value={value!r} is unknown: pass one of {", ".join(GROUP_VALUES)}.')
  members_GKK = jnp.broadcast_to(mask[:, None, :], (*mask.shape, mask.shape[1]))
  if value.startswith('leave_one_out'):
    members_GKK &= ~jnp.eye(mask.shape[1], dtype=bool)[None]
  # Far below any log-weight, and finite: a group without members gets no NaN.
  log_weights_GKK = jax.nn.log_softmax(jnp.where(members_GKK, log_weights[:, None, :], -1e30), axis=2)
  rewards_GKK = rewards[:, None, :]
  if value.endswith('log_mean_exp'):
    values = beta_1 * jax.nn.logsumexp(rewards_GKK / beta_1 + log_weights_GKK, axis=2)
  else:
    values = jnp.sum(jnp.exp(log_weights_GKK) * rewards_GKK, axis=2)
  return jnp.where(jnp.any(members_GKK, axis=2), values, 0.0)


def rebel(
  policy_logps: Float[Array, 'G K'],
  behaviour_logps: Float[Array, 'G K'],
  rewards: Float[Array, 'G K'],
  mask: Bool[Array, 'G K'],
  eta: Scalar = 1.0,
) -> Float[Array, ' G']:
  """REBEL: differences of log-ratios to the logging policy, regressed on differences of rewards.

  L = mean_{i<j} (Δ(log π − log μ) − η Δr)²        (arXiv 2404.16767)

  Args:
    policy_logps: log π(y|x), nats.
    behaviour_logps: log μ(y|x) of the policy that sampled the log, nats.
    rewards: r(x, y).
    mask: members of each group.
    eta: η > 0, nats per reward unit.

  Raises:
    ValueError: the arrays are not all `[G, K]`.
  """
  checks.check_groups(mask, policy_logps=policy_logps, behaviour_logps=behaviour_logps, rewards=rewards)
  log_ratio, rewards = _clean(mask, policy_logps - behaviour_logps, rewards)
  return _pair_mean(jnp.square(_pairs(log_ratio) - eta * _pairs(rewards)), mask)


def rloo(
  policy_logps: Float[Array, 'G K'],
  reference_logps: Float[Array, 'G K'],
  rewards: Float[Array, 'G K'],
  mask: Bool[Array, 'G K'],
  beta: Scalar = 0.05,
) -> Float[Array, ' G']:
  """RLOO: REINFORCE whose baseline is the mean return of the group's other responses.

  L = −(1/K) Σ_i sg(R_i − mean_{j≠i} R_j) log π_i,  R = r − β sg ρ        (arXiv 2402.14740)

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    mask: members of each group.
    beta: β ≥ 0, reward units per nat.

  Raises:
    ValueError: the arrays are not all `[G, K]`.
  """
  checks.check_groups(mask, policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards)
  (policy_logps, returns) = _clean(mask, policy_logps, rewards - beta * (policy_logps - reference_logps))
  count = jnp.sum(mask, axis=1, keepdims=True)
  others = (jnp.sum(returns, axis=1, keepdims=True) - returns) / jnp.maximum(count - 1, 1)
  advantages = jnp.where(mask & (count > 1), jax.lax.stop_gradient(returns - others), 0.0)
  return -masked.masked_mean(advantages * policy_logps, mask)


def pro(
  policy_logps: Float[Array, 'G K'],
  rewards: Float[Array, 'G K'],
  lengths: Float[Array, 'G K'],
  mask: Bool[Array, 'G K'],
  sft_weight: float = 0.05,
) -> Float[Array, ' G']:
  """PRO: a ranking loss over the whole list, by length-mean log-probs, and imitation of the best.

  L = Σ_{k=1}^{K−1} [log(e^{p_k T_k} + Σ_{j>k} e^{p_j T_kj}) − p_k T_k] − sft_weight · log π_1
  p = log π / length, ranked by r; T_kj = r_k − r_j; T_k = max_j T_kj        (arXiv 2306.17492)

  Args:
    policy_logps: log π(y|x), nats, summed over tokens.
    rewards: r(x, y), which rank the group in any order.
    lengths: tokens of each response.
    mask: members of each group.
    sft_weight: weight of imitating the best.

  Raises:
    ValueError: the arrays are not all `[G, K]`.
  """
  checks.check_groups(mask, policy_logps=policy_logps, rewards=rewards, lengths=lengths)
  # The best first, entries outside the mask last; K(K−1)/2 terms.
  order = jnp.argsort(jnp.where(mask, -rewards, jnp.inf), axis=1, stable=True)
  policy_logps, rewards, lengths, mask = (
    jnp.take_along_axis(x, order, axis=1) for x in (policy_logps, rewards, lengths, mask)
  )
  policy_logps, rewards = _clean(mask, policy_logps, rewards)
  means = policy_logps / jnp.where(mask, lengths, 1.0)
  size = mask.shape[1]
  below = mask[:, :, None] & mask[:, None, :] & jnp.triu(jnp.ones((1, size, size), bool), 1)
  gaps = jnp.where(below, _pairs(rewards), 0.0)
  own = means * jnp.max(gaps, axis=2)
  others = jnp.where(below, means[:, None, :] * gaps, -jnp.inf)
  log_sum = jax.nn.logsumexp(jnp.concatenate([own[:, :, None], others], axis=2), axis=2)
  ranking = jnp.sum(jnp.where(jnp.any(below, axis=2), log_sum - own, 0.0), axis=1)
  imitation = jnp.where(jnp.sum(mask, axis=1) > 1, -policy_logps[:, 0], 0.0)
  return ranking + sft_weight * imitation


def nca(
  policy_logps: Float[Array, 'G K'],
  reference_logps: Float[Array, 'G K'],
  rewards: Float[Array, 'G K'],
  mask: Bool[Array, 'G K'],
  beta: Scalar = 0.01,
  alpha: float = 0.01,
) -> Float[Array, ' G']:
  """NCA: classifies each response against noise, so that a good response's likelihood does not fall.

  L = −Σ_i p_i log σ(βρ_i) − (1/K) Σ_i log σ(−βρ_i),  p = softmax(r/α)        (arXiv 2402.05369)

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    mask: members of each group.
    beta: β > 0, per nat.
    alpha: α > 0, reward units: the smaller, the more the best rewards weigh.

  Raises:
    ValueError: the arrays are not all `[G, K]`.
  """
  checks.check_groups(mask, policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards)
  (rho,) = _clean(mask, policy_logps - reference_logps)
  enough = jnp.sum(mask, axis=1) > 1
  weights = jax.nn.softmax(jnp.where(mask, rewards / alpha, -1e30), axis=1)
  attracted = jnp.sum(jnp.where(mask, weights * jax.nn.log_sigmoid(beta * rho), 0.0), axis=1)
  repelled = masked.masked_mean(jax.nn.log_sigmoid(-beta * rho), mask)
  return jnp.where(enough, -attracted - repelled, 0.0)


__all__ = ['agro', 'copg', 'dro_group_value', 'nca', 'pro', 'rebel', 'rloo']
