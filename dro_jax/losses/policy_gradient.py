"""Policy gradients on logged responses, and PPO.

Log-probs are in nats, summed over the response's tokens where they are `[B]`. ρ = policy_logps −
reference_logps; μ is the behaviour policy, which sampled the log.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from dro_jax.ops import checks, masked
from dro_jax.types import Array, Scalar


def reinforce(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  rewards: Float[Array, ' B'],
  baselines: Float[Array, ' B'],
  beta: Scalar = 0.0,
) -> Float[Array, ' B']:
  """Naive off-policy policy gradient, KL-regularised where β > 0: biased, with a bias that depends on b.

  L = −sg(r − βρ − b) log π        (the baseline of arXiv 2406.19185, Sect. 5, there at β = ½)

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    baselines: b, reward units.
    beta: β ≥ 0, reward units per nat.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(
    policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards, baselines=baselines
  )
  returns = rewards - beta * (policy_logps - reference_logps)
  return -jax.lax.stop_gradient(returns - baselines) * policy_logps


def ppo_clip(
  policy_logps: Float[Array, ' B'],
  behaviour_logps: Float[Array, ' B'],
  advantages: Float[Array, ' B'],
  epsilon: float = 0.2,
) -> Float[Array, ' B']:
  """PPO by response, with its ratio to the logging policy.

  L = −min(w A, clip(w, 1−ε, 1+ε) A),  w = π/μ        (arXiv 1707.06347, Eq. 7)

  Where A < 0 nothing bounds w: it is cut at e^40 for float32, and beyond that there is no gradient.

  Args:
    policy_logps: log π(y|x), nats.
    behaviour_logps: log μ(y|x), nats; a propensity only where the log was sampled.
    advantages: A, reward units.
    epsilon: ε, half the window of the ratio.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, behaviour_logps=behaviour_logps, advantages=advantages)
  return _clipped_surrogate(policy_logps - behaviour_logps, advantages, epsilon)


def ppo_token(
  policy_logps: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  behaviour_logps: Float[Array, 'B T'],
  advantages: Float[Array, 'B T'],
  epsilon: float = 0.2,
) -> Float[Array, ' B']:
  """PPO by token, the mean over a response's tokens; advantages by `ops.returns.gae`.

  L = (1/|y|) Σ_t −min(w_t A_t, clip(w_t, 1−ε, 1+ε) A_t),  w_t = π_t/μ_t        (arXiv 1707.06347, Eq. 7)

  Args:
    policy_logps: log π(y_t | x, y_<t), nats.
    mask: which tokens belong to the response.
    behaviour_logps: log μ(y_t | x, y_<t), nats.
    advantages: A_t, reward units.
    epsilon: ε, half the window of the ratio.

  Raises:
    ValueError: the arrays are not all `[B, T]`.
  """
  checks.check_tokens(
    mask, per_example={}, policy_logps=policy_logps, behaviour_logps=behaviour_logps, advantages=advantages
  )
  log_ratio = jnp.where(mask, policy_logps - behaviour_logps, 0.0)
  return masked.masked_mean(_clipped_surrogate(log_ratio, advantages, epsilon), mask)


def dro_token(
  policy_logps: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  behaviour_logps: Float[Array, 'B T'],
  advantages: Float[Array, 'B T'],
  beta: Scalar = 0.05,
) -> Float[Array, ' B']:
  """The loss that Tinker, verl and Tencent Cloud call DRO: it is not DRO-V, for it has no V and no reference.

  L = −Σ_t [A_t log π_t − (β/2)(log π_t − log μ_t)²]

  A policy gradient by token with a quadratic pull to the policy that sampled the response. DRO-V
  (`dro_v_policy`) squares the log-ratio of the whole response to a reference, and its advantage is r − V(x).

  Args:
    policy_logps: log π(y_t | x, y_<t), nats.
    mask: which tokens belong to the response.
    behaviour_logps: log μ(y_t | x, y_<t) of the policy that sampled the response, nats.
    advantages: A_t, reward units.
    beta: β > 0, reward units per nat.

  Raises:
    ValueError: the arrays are not all `[B, T]`.
  """
  checks.check_tokens(
    mask, per_example={}, policy_logps=policy_logps, behaviour_logps=behaviour_logps, advantages=advantages
  )
  # Masked before the products: the gradient of a masked product has the other factor, which may be infinite.
  arrays = policy_logps, behaviour_logps, advantages
  policy_BT, behaviour_BT, advantages_BT = (jnp.where(mask, x_BT, 0.0) for x_BT in arrays)
  return -jnp.sum(advantages_BT * policy_BT - beta / 2 * jnp.square(policy_BT - behaviour_BT), axis=-1)


def _clipped_surrogate(log_ratio: Array, advantages: Array, epsilon: float) -> Array:
  # Beyond e^40 an optimiser's square of the gradient would overflow.
  ratio = jnp.exp(jnp.minimum(log_ratio, 40.0))
  clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon)
  return -jnp.minimum(ratio * advantages, clipped * advantages)


def topr(
  policy_logps: Float[Array, ' B'], behaviour_logps: Float[Array, ' B'], rewards: Float[Array, ' B']
) -> Float[Array, ' B']:
  """TOPR: imitates rewarded responses fully, and pushes others away by their ratio, at most 1.

  r ≥ 0: L = −r log π;   r < 0: L = −r sg min(1, π/μ) log π        (arXiv 2503.14286)

  Args:
    policy_logps: log π(y|x), nats.
    behaviour_logps: log μ(y|x), nats; a propensity only where the log was sampled.
    rewards: r(x, y); the sign decides which of the two applies.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, behaviour_logps=behaviour_logps, rewards=rewards)
  taper = jax.lax.stop_gradient(jnp.exp(jnp.minimum(policy_logps - behaviour_logps, 0.0)))
  return -rewards * jnp.where(rewards >= 0, 1.0, taper) * policy_logps


def gold(
  policy_logps: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  rewards: Float[Array, ' B'],
  floor: float = 0.1,
) -> Float[Array, ' B']:
  """GOLD: imitation weighted by the policy's own probability of each token, in A-LoL's reward form.

  L = −r Σ_t sg max(floor, π_t) log π_t        (arXiv 2009.07839, as arXiv 2305.14718 ran it)

  Args:
    policy_logps: log π(y_t | x, y_<t), nats.
    mask: which tokens belong to the response.
    rewards: r(x, y), one a response.
    floor: smallest weight of a token.

  Raises:
    ValueError: token arrays are not all `[B, T]`, or rewards not `[B]`.
  """
  checks.check_tokens(mask, per_example={'rewards': rewards}, policy_logps=policy_logps)
  logps = jnp.where(mask, policy_logps, 0.0)
  weights = jax.lax.stop_gradient(jnp.maximum(floor, jnp.exp(logps)))
  return -rewards * jnp.sum(weights * logps, axis=-1)


__all__ = ['dro_token', 'gold', 'ppo_clip', 'ppo_token', 'reinforce', 'topr']
