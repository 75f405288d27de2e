"""Sums over later tokens: returns and generalised advantages."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from dro_jax.ops import checks
from dro_jax.types import Array


def future_sums(x: Float[Array, 'N T'], mask: Bool[Array, 'N T']) -> Float[Array, 'N T']:
  """Σ_{i ≥ t} x_i over the response's tokens."""
  return jnp.flip(jnp.cumsum(jnp.flip(jnp.where(mask, x, 0.0), axis=-1), axis=-1), axis=-1)


def gae(
  rewards: Float[Array, 'N T'],
  values: Float[Array, 'N T'],
  mask: Bool[Array, 'N T'],
  gamma: float = 1.0,
  lam: float = 0.95,
) -> Float[Array, 'N T']:
  """Generalised advantage estimates of a response's tokens; the value after the last token is 0.

  A_t = Σ_{i≥t} (γλ)^{i−t} δ_i,  δ_t = r_t + γ V_{t+1} − V_t        (arXiv 1506.02438, Eq. 16)

  Args:
    rewards: r_t, by token.
    values: V_t before token t.
    mask: which tokens belong to the response, a prefix of each row.
    gamma: discount γ.
    lam: λ; 1 gives returns minus values, 0 gives one-step differences.

  Raises:
    ValueError: the arrays are not all `[B, T]`.
  """
  checks.check_tokens(mask, per_example={}, rewards=rewards, values=values)
  rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)
  next_values = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
  deltas_NT = rewards + gamma * next_values - values

  def accumulate(advantage_N: Array, delta_N: Array) -> tuple[Array, Array]:
    advantage_N = delta_N + gamma * lam * advantage_N
    return advantage_N, advantage_N

  _, advantages_TN = jax.lax.scan(accumulate, jnp.zeros_like(deltas_NT[:, 0]), deltas_NT.T, reverse=True)
  return jnp.where(mask, advantages_TN.T, 0.0)
