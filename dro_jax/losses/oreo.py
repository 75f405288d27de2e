"""OREO (arXiv 2412.16145): soft Bellman consistency of a policy and a value at every token.

Log-probs are of tokens, in nats. ρ_t = policy_logps_t − reference_logps_t, V_t = V(x, y_<t). The policy
loss's extra KL term needs full distributions and is left out.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from dro_jax.ops import checks, masked, returns
from dro_jax.types import Array, Scalar


def oreo_value(
  policy_logps: Float[Array, 'B T'],
  reference_logps: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  values: Float[Array, 'B T'],
  rewards: Float[Array, ' B'],
  beta: Scalar = 0.03,
) -> Float[Array, ' B']:
  """OREO's value loss: regression on the reward minus the policy's later log-ratios.

  L = (1/|y|) Σ_t (V_t + β Σ_{i≥t} sg ρ_i − r)²        (arXiv 2412.16145)

  Args:
    policy_logps: log π(y_t | x, y_<t), nats; no gradient reaches it.
    reference_logps: the reference's, nats.
    mask: which tokens belong to the response.
    values: V_t, reward units.
    rewards: r(x, y), one a response.
    beta: β > 0, reward units per nat.

  Raises:
    ValueError: token arrays are not all `[B, T]`, or rewards not `[B]`.
  """
  _check(policy_logps, reference_logps, mask, values, rewards)
  values = jnp.where(mask, values, 0.0)
  future = returns.future_sums(jax.lax.stop_gradient(policy_logps - reference_logps), mask)
  return masked.masked_mean(jnp.square(values + beta * future - rewards[:, None]), mask)


def oreo_policy(
  policy_logps: Float[Array, 'B T'],
  reference_logps: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  values: Float[Array, 'B T'],
  rewards: Float[Array, ' B'],
  beta: Scalar = 0.03,
) -> Float[Array, ' B']:
  """OREO's policy loss: the same residual, with a gradient through the token's own log-ratio only.

  L = (1/|y|) Σ_t (sg V_t + β ρ_t + β Σ_{i>t} sg ρ_i − r)²        (arXiv 2412.16145, without its KL)

  Args:
    policy_logps: log π(y_t | x, y_<t), nats.
    reference_logps: the reference's, nats.
    mask: which tokens belong to the response.
    values: V_t, reward units; no gradient reaches it.
    rewards: r(x, y), one a response.
    beta: β > 0, reward units per nat.

  Raises:
    ValueError: token arrays are not all `[B, T]`, or rewards not `[B]`.
  """
  _check(policy_logps, reference_logps, mask, values, rewards)
  rho, values = (jnp.where(mask, x, 0.0) for x in (policy_logps - reference_logps, values))
  later = returns.future_sums(rho, mask) - rho
  residuals = jax.lax.stop_gradient(values + beta * later) + beta * rho - rewards[:, None]
  return masked.masked_mean(jnp.square(residuals), mask)


def _check(policy_logps: Array, reference_logps: Array, mask: Array, values: Array, rewards: Array) -> None:
  checks.check_tokens(
    mask, per_example={'rewards': rewards}, policy_logps=policy_logps, reference_logps=reference_logps,
    values=values,
  )  # fmt: skip


__all__ = ['oreo_policy', 'oreo_value']
