"""Advantage-Leftover-Lunch RL (arXiv 2305.14718): imitate responses better than the reference's average.

Log-probs are in nats, summed over the response's tokens where they are `[B]`. Responses with A = r − V(x) < 0
weigh nothing. ρ = policy_logps − reference_logps. The clipped ratio sits inside the stop-gradient: outside
its window the gradient does not vanish, unlike PPO's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from dro_jax.ops import checks
from dro_jax.types import Array


def _clipped_ratio(rho: Array, epsilon: float) -> Array:
  """sg clip(e^ρ, 1−ε, 1+ε); ρ is clipped first, because e^ρ may overflow."""
  return jax.lax.stop_gradient(jnp.clip(jnp.exp(jnp.minimum(rho, 2.0)), 1 - epsilon, 1 + epsilon))


def a_lol(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  advantages: Float[Array, ' B'],
  epsilon: float = 0.9,
) -> Float[Array, ' B']:
  """A-LoL: imitation weighted by the positive advantage and the clipped ratio to the reference.

  L = −max(A, 0) · sg clip(e^ρ, 1−ε, 1+ε) · log π        (arXiv 2305.14718)

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    advantages: A = r − V(x), reward units.
    epsilon: 0 ≤ ε < 1, half the window of the ratio.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, reference_logps=reference_logps, advantages=advantages)
  ratio = _clipped_ratio(policy_logps - reference_logps, epsilon)
  return -jnp.maximum(advantages, 0) * ratio * policy_logps


def a_lol_ref_free(policy_logps: Float[Array, ' B'], advantages: Float[Array, ' B']) -> Float[Array, ' B']:
  """A-LoL without a reference: the ratio taken to be 1.

  L = −max(A, 0) · log π        (arXiv 2305.14718)

  Args:
    policy_logps: log π(y|x), nats.
    advantages: A = r − V(x), reward units.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, advantages=advantages)
  return -jnp.maximum(advantages, 0) * policy_logps


def a_lol_kl(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  advantages: Float[Array, ' B'],
  kl_weight: float = 0.1,
) -> Float[Array, ' B']:
  """A-LoL with a penalty on the log-ratio instead of the ratio.

  L = −max(A, 0) · log π + kl_weight · ρ        (arXiv 2305.14718)

  As published. On fixed data the reference cancels from the gradient, −(max(A, 0) − kl_weight) ∇log π: the
  penalty is a constant subtracted from every advantage, and not a KL.

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    advantages: A = r − V(x), reward units.
    kl_weight: weight of ρ, reward units per nat.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, reference_logps=reference_logps, advantages=advantages)
  return -jnp.maximum(advantages, 0) * policy_logps + kl_weight * (policy_logps - reference_logps)


def a_lol_sequence(
  policy_logps: Float[Array, 'B T'],
  reference_logps: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  advantages: Float[Array, ' B'],
  epsilon: float = 0.9,
) -> Float[Array, ' B']:
  """A-LoL seq.: every token has its own clipped ratio.

  L = −max(A, 0) · Σ_t sg clip(e^{ρ_t}, 1−ε, 1+ε) · log π_t        (arXiv 2305.14718)

  Args:
    policy_logps: log π(y_t | x, y_<t), nats.
    reference_logps: the reference's, nats.
    mask: which tokens belong to the response.
    advantages: A = r − V(x), reward units, one a response.
    epsilon: 0 ≤ ε < 1.

  Raises:
    ValueError: token arrays are not all `[B, T]`, or advantages not `[B]`.
  """
  checks.check_tokens(
    mask, per_example={'advantages': advantages}, policy_logps=policy_logps, reference_logps=reference_logps
  )
  rho = jnp.where(mask, policy_logps - reference_logps, 0.0)
  imitated = jnp.sum(_clipped_ratio(rho, epsilon) * jnp.where(mask, policy_logps, 0.0), axis=-1)
  return -jnp.maximum(advantages, 0) * imitated


def r_lol(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  rewards: Float[Array, ' B'],
  epsilon: float = 0.9,
) -> Float[Array, ' B']:
  """R-LoL: A-LoL with the reward, of either sign, in place of the advantage.

  L = −r · sg clip(e^ρ, 1−ε, 1+ε) · log π        (arXiv 2305.14718)

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    epsilon: 0 ≤ ε < 1.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards)
  return -rewards * _clipped_ratio(policy_logps - reference_logps, epsilon) * policy_logps


__all__ = ['a_lol', 'a_lol_kl', 'a_lol_ref_free', 'a_lol_sequence', 'r_lol']
