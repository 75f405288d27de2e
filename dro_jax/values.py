"""Value read-outs and the targets they are fitted to."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dro_jax.types import Array


def prompt_means(
  encoded: Float[Array, 'B S D'],
  prompt_segments: Int[Array, 'B S'],
  response_prompts: Int[Array, 'B R'],
) -> Float[Array, 'B R D']:
  """Mean of the encoder's states over each response's prompt, float32; 0 where a response points at none.

  x̄_r = Σ_s [segment_s = prompt_r] h_s / Σ_s [segment_s = prompt_r].
  """
  mask_BRS = (prompt_segments[:, None, :] == response_prompts[:, :, None]) & (
    response_prompts[:, :, None] > 0
  )
  count_BR = jnp.maximum(jnp.sum(mask_BRS, axis=-1), 1)
  sums_BRD = jnp.einsum(
    'brs,bsd->brd',
    mask_BRS.astype(jnp.float32),
    encoded.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return sums_BRD / count_BR[:, :, None]


def future_sums(x: Float[Array, 'N T'], mask: Bool[Array, 'N T']) -> Float[Array, 'N T']:
  """Σ_{i ≥ t} x_i over the response's tokens."""
  return jnp.flip(jnp.cumsum(jnp.flip(jnp.where(mask, x, 0.0), axis=-1), axis=-1), axis=-1)
