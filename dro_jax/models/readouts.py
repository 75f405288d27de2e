"""A prompt's states as one state, which value networks read."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dro_jax.types import Array


def prompt_means(
  encoded: Float[Array, 'B S D'],
  prompt_segments: Int[Array, 'B S'],
  response_prompts: Int[Array, 'B R'],
) -> Float[Array, 'B R D']:
  """Mean of the states of each response's prompt, float32; 0 where a response points at none.

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


def prompt_ends(prompt_segments: Int[Array, 'B S'], wanted: Int[Array, 'B Q']) -> Int[Array, 'B Q']:
  """The place in its row of the last token of each prompt that is asked for, by its segment.

  Segments count up through a row; where none is asked for (0), the place is 0.
  """
  # Counted, not searched for: a mesh counts each row where it lies, and a search is a loop of gathers.
  upto_BQS = (prompt_segments > 0)[:, None] & (prompt_segments[:, None] <= wanted[:, :, None])
  return jnp.maximum(jnp.sum(upto_BQS, axis=-1, dtype=jnp.int32) - 1, 0)


def last_states(
  states: Float[Array, 'B S D'],
  prompt_segments: Int[Array, 'B S'],
  response_prompts: Int[Array, 'B R'],
) -> Float[Array, 'B R D']:
  """The state of the last token of each response's prompt, float32; 0 where a response points at none."""
  ends_BR = prompt_ends(prompt_segments, response_prompts)
  last_BRD = jnp.take_along_axis(states, ends_BR[:, :, None], axis=1).astype(jnp.float32)
  return jnp.where(response_prompts[:, :, None] > 0, last_BRD, 0.0)
