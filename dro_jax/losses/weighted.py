"""Weighted behaviour cloning, and supervised fine-tuning, where all weights are 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dro_jax.ops import checks
from dro_jax.types import Array, Scalar


def sft(policy_logps: Float[Array, ' B']) -> Float[Array, ' B']:
  """Supervised fine-tuning: the response's negative log-likelihood, summed over its tokens.

  L = −log π(y|x)

  Args:
    policy_logps: log π(y|x), nats, EOS included.

  Raises:
    ValueError: it is not `[B]`.
  """
  checks.check_same(policy_logps=policy_logps)
  return -policy_logps


def weighted_bc(policy_logps: Float[Array, ' B'], rewards: Float[Array, ' B']) -> Float[Array, ' B']:
  """Behaviour cloning, each response weighted by its reward.

  L = −r log π        (a baseline of arXiv 2305.14718)

  Args:
    policy_logps: log π(y|x), nats.
    rewards: r(x, y) ≥ 0; the caller refuses negative ones, which this loss would push away without bound.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, rewards=rewards)
  return -rewards * policy_logps


def awr(
  policy_logps: Float[Array, ' B'], advantages: Float[Array, ' B'], beta: Scalar = 1.0
) -> Float[Array, ' B']:
  """Advantage-weighted regression: imitation weighted by the exponential advantage, cut at 20.

  L = −sg min(e^{A/β}, 20) log π        (arXiv 1910.00177)

  Args:
    policy_logps: log π(y|x), nats.
    advantages: A = r − V(x), reward units.
    beta: β > 0, reward units.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, advantages=advantages)
  weights = jnp.minimum(jnp.exp(jnp.minimum(advantages / beta, 4.0)), 20.0)
  return -jax.lax.stop_gradient(weights) * policy_logps


__all__ = ['awr', 'sft', 'weighted_bc']
