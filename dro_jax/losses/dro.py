"""Direct Reward Optimisation (arXiv 2405.19107): r(x, y) − V(x) = τ log π(y|x) / π_ref(y|x).

Log-probs are in nats, summed over the response's tokens, EOS included. ρ = policy_logps − reference_logps.
τ has the reward's units per nat. All losses are per example, float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from dro_jax.ops import checks, masked, returns
from dro_jax.types import Array, Scalar


def dro_v_policy(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  rewards: Float[Array, ' B'],
  values: Float[Array, ' B'],
  tau: Scalar = 1.0,
) -> Float[Array, ' B']:
  """DRO-V's policy loss: a policy gradient with baseline V, and a quadratic pull to the reference.

  L = −(r − sg V)·log π + (τ/2)·ρ²        (arXiv 2405.19107, Eq. 8 divided by τ)

  V is not a variance-reduction baseline: the responses are off-policy, so dropping or replacing it biases the
  optimum (Sect. 3.3). Algorithm 1 prints ½ for τ/2; with ½ the temperature is lost.

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats; the caller stops its gradient.
    rewards: r(x, y).
    values: V(x); no gradient reaches it.
    tau: temperature τ > 0.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(
    policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards, values=values
  )
  rho = policy_logps - reference_logps
  advantages = rewards - jax.lax.stop_gradient(values)
  return -advantages * policy_logps + tau / 2 * jnp.square(rho)


def dro_v_value(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  rewards: Float[Array, ' B'],
  values: Float[Array, ' B'],
  tau: Scalar = 1.0,
) -> Float[Array, ' B']:
  """DRO-V's value loss: regression on the part of the reward that the policy does not explain.

  L = ½ (V − sg(r − τρ))²        (arXiv 2405.19107, Eq. 7)

  Args:
    policy_logps: log π(y|x), nats; no gradient reaches it.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    values: V(x), reward units.
    tau: temperature τ > 0.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(
    policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards, values=values
  )
  rho = policy_logps - reference_logps
  return jnp.square(values - jax.lax.stop_gradient(rewards - tau * rho)) / 2


def dro_v_token_value(
  policy_logps: Float[Array, 'B T'],
  reference_logps: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  rewards: Float[Array, ' B'],
  values: Float[Array, 'B T'],
  tau: Scalar = 1.0,
) -> Float[Array, ' B']:
  """DRO-V's value loss by token, V_t = V(x, y_<t): regression on the reward minus the later log-ratios.

  L = (1/|y|) Σ_t ½ (V_t − sg(r − τ Σ_{i≥t} ρ_i))²    (Eq. 7 by token, as OREO, arXiv 2412.16145)

  Args:
    policy_logps: log π(y_t | x, y_<t), nats; no gradient reaches it.
    reference_logps: the reference's, nats.
    mask: which tokens belong to the response.
    rewards: r(x, y), one a response.
    values: V_t, reward units.
    tau: temperature τ > 0.

  Raises:
    ValueError: token arrays are not all `[B, T]`, or rewards not `[B]`.
  """
  checks.check_tokens(
    mask,
    per_example={'rewards': rewards},
    policy_logps=policy_logps,
    reference_logps=reference_logps,
    values=values,
  )
  future_rho = returns.future_sums(policy_logps - reference_logps, mask)
  targets = jax.lax.stop_gradient(rewards[:, None] - tau * future_rho)
  return masked.masked_mean(jnp.square(jnp.where(mask, values - targets, 0.0)) / 2, mask)


def dro_v_residual(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  rewards: Float[Array, ' B'],
  values: Float[Array, ' B'],
  tau: Scalar = 1.0,
) -> Float[Array, ' B']:
  """DRO's joint objective without stopped gradients: a diagnostic, and an algorithm of its own.

  L = ½ (r − V − τρ)²        (arXiv 2405.19107, Eq. 4)

  Its gradient in π is τ times `dro_v_policy`'s; its gradient in V is `dro_v_value`'s.

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    values: V(x), reward units.
    tau: temperature τ > 0.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(
    policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards, values=values
  )
  rho = policy_logps - reference_logps
  return jnp.square(rewards - values - tau * rho) / 2


def dro_p(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  rewards: Float[Array, ' B'],
  mean: Float[Array, ''],
  tau: Scalar = 1.0,
) -> Float[Array, ' B']:
  """DRO-P: without a value network; the batch's mean residual takes the place of every V(x).

  L = ½ (e − sg ē)²,  e = r − τρ        (arXiv 2405.19107, App. B, Eq. 15)

  Args:
    policy_logps: log π(y|x), nats.
    reference_logps: log π_ref(y|x), nats.
    rewards: r(x, y).
    mean: ē, the mean of e over the global batch; no gradient reaches it.
    tau: temperature τ > 0.

  Raises:
    ValueError: the arrays are not all `[B]`, or `mean` is not a scalar.
  """
  checks.check_same(policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards)
  checks.check_scalar(mean=mean)
  residuals = rewards - tau * (policy_logps - reference_logps)
  return jnp.square(residuals - jax.lax.stop_gradient(mean)) / 2


def rpo(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  rewards: Float[Array, ' B'],
  values: Float[Array, ' B'],
  lengths: Float[Array, ' B'],
  tau: Scalar = 5.0,
) -> Float[Array, ' B']:
  """RPO: DRO's residual by token, with V̂ from the rewards of all answers to the prompt.

  L = ½ (ρ̄ − (r − V̂)/τ)²,  ρ̄ = ρ / |y|
  V̂ = τ log Σ_y π̄_ref(y) e^{r(x, y)/τ},  π̄_ref = e^{log π_ref / |y|}    (arXiv 2506.13702, as its code has it)

  The sum in V̂ is over the answers that the data hold, and is not normalised. With one answer to a prompt the
  reward cancels, and ρ̄ is driven to −log π̄_ref: imitation. So callers refuse prompts with one answer.

  Args:
    policy_logps: log π(y|x), nats, summed over tokens.
    reference_logps: log π_ref(y|x), nats; the caller stops its gradient.
    rewards: r(x, y).
    values: V̂(x), reward units; no gradient reaches it.
    lengths: tokens of each response.
    tau: temperature τ > 0, reward units per nat.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(
    policy_logps=policy_logps, reference_logps=reference_logps, rewards=rewards, values=values,
    lengths=lengths,
  )  # fmt: skip
  mean_rho = (policy_logps - reference_logps) / lengths
  targets = (rewards - jax.lax.stop_gradient(values)) / tau
  return jnp.square(mean_rho - targets) / 2


__all__ = ['dro_p', 'dro_v_policy', 'dro_v_residual', 'dro_v_token_value', 'dro_v_value', 'rpo']
