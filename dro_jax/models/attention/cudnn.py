"""cuDNN's attention through jax, for NVIDIA's GPUs: scores stay in the kernel.

cuDNN knows no spans, and segment ids only for texts that share nothing. So it gets the mask as an array, in
jax as a bias of the queries' type: B T S numbers of two bytes, and none for each head. The backward
pass makes its gradient too, of the same size.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dro_jax.models.attention import spans
from dro_jax.models.attention.spans import Source
from dro_jax.types import Array

# Heads up to this width run on every GPU since Ampere, those up to 256 on Hopper and later only.
_WIDEST = 128


def refusal(queries: Float[Array, 'B T H C'], softcap: float | None) -> str | None:
  """Why cuDNN cannot compute this attention, as a clause; `None` where it can."""
  width = queries.shape[-1]
  if softcap is not None:
    return f'cuDNN has no soft cap, and the model caps scores at {softcap:g}'
  if queries.dtype not in (jnp.bfloat16, jnp.float16):
    return f'cuDNN computes in bfloat16, and activations are {queries.dtype} (--set DTYPE=bfloat16)'
  if width % 8 or width > _WIDEST:
    return f'cuDNN needs heads whose width is a multiple of 8 up to {_WIDEST}, and they are {width} wide'
  return None


def attend(
  queries: Float[Array, 'B T H C'],
  sources: Sequence[Source],
  softcap: float | None,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> Float[Array, 'B T H C']:
  """See `ways.attend`.

  Args:
    queries: scaled.
    sources: what is read, which is joined into one.
    softcap: None.
    implementation: of `jax.nn.dot_product_attention`; `xla` computes the same on every device, densely.
  """
  assert softcap is None, refusal(queries, softcap)
  length = queries.shape[1]
  # The kernel's backward pass wants even lengths.
  even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
  keys, values = (
    even(jnp.concatenate([source.keys_values[i] for source in sources], axis=1)) for i in range(2)
  )
  masks = [spans.mask(source.span, source.keys_values.keys.shape[1]) for source in sources]
  mask_BTS = jnp.concatenate(masks, axis=-1)
  mask_BTS = jnp.pad(mask_BTS, ((0, 0), (0, length % 2), (0, mask_BTS.shape[-1] % 2)))
  read_BTHC = jax.nn.dot_product_attention(
    even(queries), keys, values, mask=mask_BTS[:, None], scale=1.0, implementation=implementation
  )
  return read_BTHC[:, :length]
