"""Dense attention: all scores in memory at once, the fastest way for short rows and for decoding.

Dimensions beyond `dro_jax.models.layers`, here and in the other ways: K heads of keys, G heads of queries by
head of keys (H = K G), C width of a head, N rows of queries.
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dro_jax.models.attention import spans
from dro_jax.models.attention.spans import Source
from dro_jax.models.layers import MASKED, toeplitz
from dro_jax.types import Array


class _Partial(NamedTuple):
  """Attention to one source, before the division: Σ e^(s − m) v, Σ e^(s − m), m."""

  read: Float[Array, 'N T K G C']
  total: Float[Array, 'N T K G']
  maximum: Float[Array, 'N T K G']


def attend(
  queries: Float[Array, 'N T H C'], sources: Sequence[Source], softcap: float | None
) -> Float[Array, 'N T H C']:
  """See `attend.attend`. Products with values have the values' type."""
  heads = sources[0].keys_values.keys.shape[-2]
  grouped = queries.reshape(*queries.shape[:2], heads, queries.shape[2] // heads, queries.shape[3])
  partials = [_attend_one(grouped, source, softcap) for source in sources]
  maximum = jnp.stack([partial.maximum for partial in partials]).max(axis=0)
  factors = [jnp.exp(partial.maximum - maximum) for partial in partials]
  total = _sum(factor * partial.total for factor, partial in zip(factors, partials))
  read = _sum(factor[..., None] * partial.read for factor, partial in zip(factors, partials))
  return (read / total[..., None]).reshape(queries.shape).astype(queries.dtype)


def _sum(arrays: Iterable[Array]) -> Array:
  return functools.reduce(operator.add, arrays)


def _attend_one(queries_NTKGC: Array, source: Source, softcap: float | None) -> _Partial:
  keys, values = source.keys_values
  rows, length, *heads, _ = queries_NTKGC.shape
  # Rows that share their keys become queries of one row, so that the keys are neither copied nor read twice.
  shared = queries_NTKGC.reshape(keys.shape[0], -1, *queries_NTKGC.shape[2:])
  scores_BKGTS = jnp.einsum('btkgc,bskc->bkgts', shared, keys, preferred_element_type=jnp.float32)
  if softcap is not None:
    scores_BKGTS = softcap * jnp.tanh(scores_BKGTS / softcap)
  if source.bias is not None:
    bias_HTS = toeplitz(source.bias, length, length)
    scores_BKGTS = scores_BKGTS + bias_HTS.reshape(1, *heads, length, length)
  mask_BTS = spans.mask(source.span, keys.shape[1])
  scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, MASKED)
  # The result does not depend on the maximum, which only keeps the exponentials finite.
  maximum_BKGT = jax.lax.stop_gradient(scores_BKGTS.max(axis=-1))
  weights_BKGTS = jnp.exp(scores_BKGTS - maximum_BKGT[..., None])
  read_BTKGC = jnp.einsum(
    'bkgts,bskc->btkgc', weights_BKGTS.astype(values.dtype), values, preferred_element_type=jnp.float32
  )
  by_query = lambda x: jnp.moveaxis(x, -1, 1).reshape(rows, length, *heads)  # noqa: E731
  return _Partial(
    read_BTKGC.reshape(rows, length, *heads, -1), by_query(weights_BKGTS.sum(axis=-1)), by_query(maximum_BKGT)
  )
