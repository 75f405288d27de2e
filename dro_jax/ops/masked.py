"""Masked and segment reductions.

Sums over masks and never matrix products: an accelerator would round a product's inputs to bfloat16.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num, Shaped

from dro_jax.types import Array


def weighted_mean(x: Float[Array, '*N'], weights: Shaped[Array, '*N']) -> Float[Array, '']:
  """Σ wx / Σ w, 0 when all weights are 0. Entries of weight 0 may be anything."""
  weights = weights.astype(x.dtype)
  total = jnp.sum(jnp.where(weights > 0, weights * x, 0.0))
  return total / jnp.maximum(jnp.sum(weights), jnp.finfo(x.dtype).tiny)


def weighted_variance(x: Float[Array, '*N'], weights: Shaped[Array, '*N']) -> Float[Array, '']:
  """Population variance of `x` under `weights`, Σ w(x − x̄)² / Σ w."""
  return weighted_mean(jnp.square(x - weighted_mean(x, weights)), weights)


def varies(x: Float[Array, '*N'], weights: Shaped[Array, '*N']) -> Bool[Array, '']:
  """Whether entries of weight above 0 differ by more than float32's rounding."""
  low = jnp.min(jnp.where(weights > 0, x, jnp.inf))
  high = jnp.max(jnp.where(weights > 0, x, -jnp.inf))
  return high - low > 1e-6 * jnp.maximum(jnp.abs(low), jnp.abs(high))


def masked_mean(x: Float[Array, '*B T'], mask: Bool[Array, '*B T']) -> Float[Array, '*B']:
  """Mean of `x` over the last axis where `mask` is set; 0 where it is set nowhere."""
  count = jnp.maximum(jnp.sum(mask, axis=-1), 1)
  return jnp.sum(jnp.where(mask, x, 0.0), axis=-1) / count


def in_segment(segments: Int[Array, 'B T'], num_segments: int) -> Bool[Array, 'B R T']:
  """Whether token t belongs to the response of slot r, that is to segment r + 1."""
  slots = jnp.arange(1, num_segments + 1, dtype=segments.dtype)
  return segments[:, None, :] == slots[None, :, None]


def segment_sum(x: Num[Array, 'B T'], segments: Int[Array, 'B T'], num_segments: int) -> Num[Array, 'B R']:
  """Σ of `x` over each segment; 0 for a segment with no token."""
  return jnp.sum(jnp.where(in_segment(segments, num_segments), x[:, None, :], 0), axis=-1)


def segment_first(x: Num[Array, 'B T'], segments: Int[Array, 'B T'], num_segments: int) -> Num[Array, 'B R']:
  """`x` at each segment's first position; 0 for a segment with no token."""
  starts = jnp.concatenate([jnp.ones_like(segments[:, :1]), segments[:, 1:] - segments[:, :-1]], axis=-1) != 0
  return segment_sum(jnp.where(starts, x, 0), segments, num_segments)


def segment_last(x: Num[Array, 'B T'], segments: Int[Array, 'B T'], num_segments: int) -> Num[Array, 'B R']:
  """`x` at each segment's last position; 0 for a segment with no token."""
  ends = jnp.concatenate([segments[:, 1:] - segments[:, :-1], jnp.ones_like(segments[:, :1])], axis=-1) != 0
  return segment_sum(jnp.where(ends, x, 0), segments, num_segments)


def unpack(
  x: Num[Array, 'B T'], segments: Int[Array, 'B T'], num_segments: int
) -> tuple[Num[Array, 'N T'], Bool[Array, 'N T']]:
  """Packed rows to one response a row, each moved to its row's start: (`x` by response, its mask).

  Token-level losses see one response a row whatever the packing. Values are gathered, never summed.
  """
  num_rows, length = x.shape
  inside_BRT = in_segment(segments, num_segments)
  starts_BR = jnp.argmax(inside_BRT, axis=-1)
  lengths_BR = jnp.sum(inside_BRT, axis=-1)
  offsets_T = jnp.arange(length)
  mask_BRT = offsets_T[None, None, :] < lengths_BR[:, :, None]
  index_BRT = jnp.minimum(starts_BR[:, :, None] + offsets_T[None, None, :], length - 1)
  x_BRT = jnp.take_along_axis(x[:, None, :], index_BRT, axis=-1)
  shape = (num_rows * num_segments, length)
  return jnp.where(mask_BRT, x_BRT, 0).reshape(shape), mask_BRT.reshape(shape)
