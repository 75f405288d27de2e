"""Attention of decoder-only models: rotary positions, and one softmax over several sources of keys.

Dimensions beyond `dro_jax.models.layers`: K heads of keys, G heads of queries by head of keys (H = K G), C
width of a head, N rows of queries, J rotated pairs of a head.
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dro_jax.models.causal.config import CausalConfig, RopeScaling
from dro_jax.models.layers import MASKED, KeysValues
from dro_jax.types import Array


class Source(NamedTuple):
  """Keys and values that queries read, and which of them each query may read.

  `keys_values` may have fewer rows than the queries, which then share them: row n reads row n // (N / B). The
  mask has those rows too, and one row of queries where all of them read alike.
  """

  keys_values: KeysValues
  mask: Bool[Array, 'B T S']


class _Partial(NamedTuple):
  """Attention to one source, before the division: Σ e^(s − m) v, Σ e^(s − m), m."""

  read: Float[Array, 'N T K G C']
  total: Float[Array, 'N T K G']
  maximum: Float[Array, 'N T K G']


def attend(
  queries: Float[Array, 'N T H C'], sources: Sequence[Source], *, softcap: float | None = None
) -> Float[Array, 'N T H C']:
  """softmax(q · k) v over the keys of all sources that the masks allow, in one softmax.

  A head of keys serves H / K heads of queries. With `softcap` c, scores are c tanh(s / c). Scores and sums
  are float32; the products with values have the values' type. A query that may read nothing gets a mean.
  """
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
  scores_BKGTS = jnp.where(source.mask[:, None, None], scores_BKGTS, MASKED)
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
