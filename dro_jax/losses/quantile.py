"""Quantile Reward Policy Optimisation (arXiv 2507.08068): rewards as quantiles, whose log Z is known."""

import jax.numpy as jnp
from jaxtyping import Float

from dro_jax.ops import checks
from dro_jax.types import Array, Scalar


def qrpo(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  quantiles: Float[Array, ' B'],
  beta: Scalar = 0.1,
) -> Float[Array, ' B']:
  """QRPO: regression on the optimum's log-ratio, whose log Z is exact because quantiles are uniform.

  L = (q − β log Z − βρ)²,  Z = β(e^{1/β} − 1)        (arXiv 2507.08068)

  log Z = log β + 1/β + log1p(−e^{−1/β}) does not overflow. Its first and last term are computed together, so
  that they do not cancel where β is large.

  Args:
    policy_logps: log π(y|x), nats, summed over tokens.
    reference_logps: log π_ref(y|x), nats.
    quantiles: q in [0, 1], the reward's among responses to the prompt.
    beta: β > 0, quantiles per nat.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, reference_logps=reference_logps, quantiles=quantiles)
  log_z = 1 / beta + jnp.log(-beta * jnp.expm1(-1 / beta))
  return jnp.square(quantiles - beta * log_z - beta * (policy_logps - reference_logps))


__all__ = ['qrpo']
