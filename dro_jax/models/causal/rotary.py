"""Rotary positions. Dimensions beyond `dro_jax.models.layers`: J rotated pairs of a head."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dro_jax.models.causal.config import CausalConfig, RopeScaling
from dro_jax.types import Array


class Rotation(NamedTuple):
  """Cosines and sines of the angles by which each token's pairs are turned."""

  cosines: Float[Array, 'B T J']
  sines: Float[Array, 'B T J']


def rotation(frequencies: Float[np.ndarray, 'J'], positions: Int[Array, 'B T']) -> Rotation:
  """The rotation of tokens at these positions: angle p f_j."""
  angles_BTJ = positions[..., None].astype(jnp.float32) * frequencies[None, None]
  return Rotation(jnp.cos(angles_BTJ), jnp.sin(angles_BTJ))


def rotate(x: Float[Array, 'B T H C'], rotation: Rotation) -> Float[Array, 'B T H C']:
  """RoPE (arXiv 2104.09864) in the layout of Hugging Face's models: pair j is the entries j and j + J.

  Entries beyond 2 J stay as they are. Computed in float32.
  """
  cosines_BT1J, sines_BT1J = (part[:, :, None, :] for part in rotation)
  pairs = cosines_BT1J.shape[-1]
  first, second, rest = jnp.split(x.astype(jnp.float32), (pairs, 2 * pairs), axis=-1)
  turned = (first * cosines_BT1J - second * sines_BT1J, second * cosines_BT1J + first * sines_BT1J, rest)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def frequencies(config: CausalConfig, *, local: bool = False) -> Float[np.ndarray, 'J']:
  """The angle by which each pair turns from one token to the next: θ^(−j / J), stretched as configured.

  Args:
    config: of the model.
    local: of its layers with a window, where these have a base of their own, which is never stretched.
  """
  own_base = local and config.rope_local_theta is not None
  theta = config.rope_local_theta if own_base else config.rope_theta
  exponents = np.arange(0, config.rotated_dim, 2, dtype=np.float32) / np.float32(config.rotated_dim)
  plain_J = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
  return plain_J if config.rope_scaling is None or own_base else _stretched(plain_J, config.rope_scaling)


def _stretched(plain_J: np.ndarray, scaling: RopeScaling) -> np.ndarray:
  if scaling.kind == 'linear':
    return (plain_J / scaling.factor).astype(np.float32)
  turns_J = scaling.original_length * plain_J / (2 * np.pi)  # Of a whole context.
  share_J = np.clip((turns_J - scaling.low) / (scaling.high - scaling.low), 0, 1)
  return (share_J * plain_J + (1 - share_J) * plain_J / scaling.factor).astype(np.float32)
