"""Blockwise attention in plain JAX: one block of scores at a time (FlashAttention, arXiv 2205.14135).

Memory grows with T and S, never with T S. Blocks that no query of theirs reads are skipped. It runs on every
device, and is what kernels are held to.

Dimensions beyond `dense`: A queries of a block, times G: all heads of queries that share a head of keys; E
keys of a block; I blocks of queries; J blocks of keys; P = 2 I − 1 distances of blocks of the same tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dro_jax.models.attention.spans import Source, Span, mask
from dro_jax.models.layers import toeplitz
from dro_jax.types import Array

# Queries and keys of a block.
BLOCK = 256
_LOWEST = -1e30  # A maximum before any score: finite, so that differences are.


class _Blocks(NamedTuple):
  """One row's keys, values and spans of a source, in blocks."""

  keys: Float[Array, 'J K E C']
  values: Float[Array, 'J K E C']
  first: Int[Array, 'I A']
  stop: Int[Array, 'I A']


class _Softmax(NamedTuple):
  """A block of queries so far: Σ e^(s − m) v, Σ e^(s − m), m."""

  read: Float[Array, 'K A C']
  total: Float[Array, 'K A']
  maximum: Float[Array, 'K A']


class _Gradient(NamedTuple):
  """The gradient of a source's keys, values and bias, in blocks."""

  keys: Float[Array, 'J K E C']
  values: Float[Array, 'J K E C']
  bias: Float[Array, 'P K A E'] | None


def attend(
  queries: Float[Array, 'B T H C'], sources: Sequence[Source], softcap: float | None, block: int | None = None
) -> Float[Array, 'B T H C']:
  """See `ways.attend`. One row after the other, so that each skips its own blocks of BLOCK, or of `block`."""
  block = BLOCK if block is None else block
  length, heads = queries.shape[1], sources[0].keys_values.keys.shape[2]
  size = min(block, _round_up(length, 8))
  biases = [_cut_bias(source.bias, heads, size) for source in sources]

  def one_row(row: tuple[Array, list[Source]]) -> Array:
    queries_THC, row_sources = row
    cut = [_cut(source, size, block, queries_THC.shape[1] // heads) for source in row_sources]
    read_IKAC = _attend_row(softcap, _cut_queries(queries_THC, heads, size), cut, biases)
    return _joined_queries(read_IKAC, size)[:length]

  return jax.lax.map(one_row, (queries, [source._replace(bias=None) for source in sources]))


def _round_up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple


def _padded(x: Array, multiple: int) -> Array:
  """With zeros at the end of the first axis."""
  extra = _round_up(x.shape[0], multiple) - x.shape[0]
  return jnp.pad(x, ((0, extra),) + ((0, 0),) * (x.ndim - 1))


def _cut_queries(queries_THC: Array, heads: int, size: int) -> Float[Array, 'I K A C']:
  all_heads, width = queries_THC.shape[1:]
  cut = _padded(queries_THC, size).reshape(-1, size, heads, all_heads // heads, width)
  return cut.transpose(0, 2, 1, 3, 4).reshape(cut.shape[0], heads, -1, width)


def _joined_queries(read_IKAC: Array, size: int) -> Float[Array, 'T H C']:
  blocks, heads, _, width = read_IKAC.shape
  read = read_IKAC.reshape(blocks, heads, size, -1, width).transpose(0, 2, 1, 3, 4)
  return read.reshape(blocks * size, -1, width)


def _cut(source: Source, size: int, block: int, groups: int) -> _Blocks:
  """Padded keys are in no span; padded queries have empty ones."""
  block = min(block, _round_up(source.keys_values.keys.shape[0], 8))
  by_block = lambda x: _padded(x, block).reshape(-1, block, *x.shape[1:]).swapaxes(1, 2)  # noqa: E731
  by_query = lambda x: jnp.repeat(_padded(x, size), groups).reshape(-1, size * groups)  # noqa: E731
  keys, values = source.keys_values
  return _Blocks(by_block(keys), by_block(values), by_query(source.span.first), by_query(source.span.stop))


def _cut_bias(bias_HL: Array | None, heads: int, size: int) -> Float[Array, 'P K A E'] | None:
  """The bias of a block of queries and a block of keys, by how many blocks the keys come after the queries,
  from −(I − 1) on: the same for all rows, and few, for the bias depends on distances only."""
  if bias_HL is None:
    return None
  all_heads, relative = bias_HL.shape
  extra = _round_up(relative // 2, size) - relative // 2
  parts_HNA = jnp.pad(bias_HL, ((0, 0), (extra, extra))).reshape(all_heads, -1, size)
  pairs_HPL = jnp.concatenate([parts_HNA[:, :-1], parts_HNA[:, 1:]], axis=-1)
  blocks_HPAE = toeplitz(pairs_HPL.reshape(-1, 2 * size), size, size).reshape(all_heads, -1, size, size)
  groups = blocks_HPAE.reshape(heads, -1, *blocks_HPAE.shape[1:]).transpose(2, 0, 3, 1, 4)
  return groups.reshape(groups.shape[0], heads, -1, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_row(
  softcap: float | None, queries_IKAC: Array, sources: list[_Blocks], biases: list[Array | None]
) -> Array:
  return _forward(softcap, queries_IKAC, sources, biases)[0]


def _forward(
  softcap: float | None, queries_IKAC: Array, sources: list[_Blocks], biases: list[Array | None]
) -> tuple[Array, Any]:
  def one_block(block: tuple[Array, Array, list[Span]]) -> tuple[Array, Array]:
    number, queries_KAC, spans = block
    shape = queries_KAC.shape[:2]
    state = _Softmax(
      jnp.zeros(queries_KAC.shape, jnp.float32), jnp.zeros(shape), jnp.full(shape, _LOWEST, jnp.float32)
    )
    for source, span, bias_PKAE in zip(sources, spans, biases):
      bias_JKAE = _of_queries(bias_PKAE, number, source.keys.shape[0])
      state = _read_source(softcap, queries_KAC, source, span, bias_JKAE, state)
    # A query that read nothing has a total of 0.
    total = jnp.where(state.total > 0, state.total, 1.0)
    return (state.read / total[..., None]).astype(queries_KAC.dtype), state.maximum + jnp.log(total)

  spans = [Span(source.first, source.stop) for source in sources]
  blocks = (jnp.arange(queries_IKAC.shape[0]), queries_IKAC, spans)
  read_IKAC, logsumexp_IKA = jax.lax.map(one_block, blocks)
  return read_IKAC, (queries_IKAC, sources, biases, read_IKAC, logsumexp_IKA)


def _of_queries(bias_PKAE: Array | None, number: Array, count: int) -> Float[Array, 'J K A E'] | None:
  """The bias of a block of queries and every block of keys."""
  if bias_PKAE is None:
    return None
  return jax.lax.dynamic_slice_in_dim(bias_PKAE, count - 1 - number, count)


def _read_source(
  softcap: float | None,
  queries_KAC: Array,
  source: _Blocks,
  span: Span,
  bias_JKAE: Array | None,
  state: _Softmax,
) -> _Softmax:
  """One more source in a block of queries' softmax."""
  size = source.keys.shape[2]

  def read(
    state: _Softmax, place: Array, keys_KEC: Array, values_KEC: Array, bias_KAE: Array | None
  ) -> _Softmax:
    scores_KAE, _ = _scores(softcap, queries_KAC, keys_KEC, bias_KAE)
    scores_KAE = jnp.where(mask(span, size, place)[None], scores_KAE, -jnp.inf)
    maximum_KA = jnp.maximum(state.maximum, scores_KAE.max(axis=-1))
    weights_KAE = jnp.exp(scores_KAE - maximum_KA[..., None])
    factor_KA = jnp.exp(state.maximum - maximum_KA)
    new_KAC = _product('kae,kec->kac', weights_KAE.astype(values_KEC.dtype), values_KEC)
    return _Softmax(
      factor_KA[..., None] * state.read + new_KAC, factor_KA * state.total + weights_KAE.sum(-1), maximum_KA
    )

  def step(state: _Softmax, block: tuple[Array, Array, Array, Array | None]) -> tuple[_Softmax, None]:
    return jax.lax.cond(_is_read(span, block[0], size), read, lambda state, *_: state, state, *block), None

  state, _ = jax.lax.scan(step, state, (_places(source), source.keys, source.values, bias_JKAE))
  return state


def _backward(
  softcap: float | None, kept: Any, cotangent_IKAC: Array
) -> tuple[Array, list[_Blocks], list[Array | None]]:
  queries_IKAC, sources, biases, read_IKAC, logsumexp_IKA = kept
  # Σ_s p_s ∂L/∂p_s, which the derivative of a softmax subtracts.
  mean_IKA = jnp.sum(read_IKAC.astype(jnp.float32) * cotangent_IKAC.astype(jnp.float32), axis=-1)

  def one_block(gradients: list[_Gradient], block: Any) -> tuple[list[_Gradient], Array]:
    number, spans, *queries = block
    to_queries = jnp.zeros(queries[0].shape, jnp.float32)
    added = []
    for source, span, bias_PKAE, gradient in zip(sources, spans, biases, gradients):
      count = source.keys.shape[0]
      bias_JKAE, old_JKAE = (_of_queries(x, number, count) for x in (bias_PKAE, gradient.bias))
      more, here = _pull_source(
        softcap, source, span, bias_JKAE, gradient._replace(bias=old_JKAE), *queries
      )  # fmt: skip
      if here.bias is not None:
        whole = jax.lax.dynamic_update_slice_in_dim(gradient.bias, here.bias, count - 1 - number, axis=0)
        here = here._replace(bias=whole)
      to_queries, added = to_queries + more, [*added, here]
    return added, to_queries.astype(queries[0].dtype)

  zeros = [
    jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), _Gradient(source.keys, source.values, bias))
    for source, bias in zip(sources, biases)
  ]
  spans = [Span(source.first, source.stop) for source in sources]
  numbers = jnp.arange(queries_IKAC.shape[0])
  gradients, to_queries_IKAC = jax.lax.scan(
    one_block, zeros, (numbers, spans, queries_IKAC, cotangent_IKAC, logsumexp_IKA, mean_IKA)
  )
  to_sources = [
    _Blocks(gradient.keys.astype(source.keys.dtype), gradient.values.astype(source.values.dtype), None, None)
    for gradient, source in zip(gradients, sources)
  ]
  return to_queries_IKAC, to_sources, [gradient.bias for gradient in gradients]


def _pull_source(
  softcap: float | None, source: _Blocks, span: Span, bias_JKAE: Array | None, gradient: _Gradient,
  queries_KAC: Array, cotangent_KAC: Array, logsumexp_KA: Array, mean_KA: Array,
) -> tuple[Array, _Gradient]:  # fmt: skip
  """The share of a block of queries' gradient that comes from a source, and the source's with theirs."""
  size = source.keys.shape[2]

  def pull(
    place: Array, keys_KEC: Array, values_KEC: Array, bias_KAE: Array | None
  ) -> tuple[Array, _Gradient]:
    scores_KAE, slope_KAE = _scores(softcap, queries_KAC, keys_KEC, bias_KAE)
    mask_1AE = mask(span, size, place)[None]
    weights_KAE = jnp.where(mask_1AE, jnp.exp(scores_KAE - logsumexp_KA[..., None]), 0.0)
    to_weights_KAE = _product('kac,kec->kae', cotangent_KAC, values_KEC)
    to_scores_KAE = weights_KAE * (to_weights_KAE - mean_KA[..., None])
    to_products_KAE = (to_scores_KAE * slope_KAE).astype(keys_KEC.dtype)
    return (
      _product('kae,kec->kac', to_products_KAE, keys_KEC),
      _Gradient(
        _product('kae,kac->kec', to_products_KAE, queries_KAC),
        _product('kae,kac->kec', weights_KAE.astype(keys_KEC.dtype), cotangent_KAC),
        None if bias_KAE is None else to_scores_KAE,
      ),
    )

  def nothing(
    place: Array, keys_KEC: Array, values_KEC: Array, bias_KAE: Array | None
  ) -> tuple[Array, _Gradient]:
    zeros = (queries_KAC, _Gradient(keys_KEC, values_KEC, bias_KAE))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), zeros)

  def step(to_queries_KAC: Array, block: Any) -> tuple[Array, _Gradient]:
    *block, old = block
    more_KAC, new = jax.lax.cond(_is_read(span, block[0], size), pull, nothing, *block)
    return to_queries_KAC + more_KAC, jax.tree.map(jnp.add, old, new)

  blocks = (_places(source), source.keys, source.values, bias_JKAE, gradient)
  return jax.lax.scan(step, jnp.zeros(queries_KAC.shape, jnp.float32), blocks)


_attend_row.defvjp(_forward, _backward)


def _product(equation: str, first: Array, second: Array) -> Array:
  return jnp.einsum(equation, first, second, preferred_element_type=jnp.float32)


def _scores(
  softcap: float | None, queries_KAC: Array, keys_KEC: Array, bias_KAE: Array | None
) -> tuple[Float[Array, 'K A E'], Float[Array, 'K A E'] | float]:
  """Scores, and their derivative by the product."""
  scores_KAE, slope_KAE = _capped(softcap, _product('kac,kec->kae', queries_KAC, keys_KEC))
  return scores_KAE if bias_KAE is None else scores_KAE + bias_KAE, slope_KAE


def _capped(
  softcap: float | None, products_KAE: Array
) -> tuple[Float[Array, 'K A E'], Float[Array, 'K A E'] | float]:
  if softcap is None:
    return products_KAE, 1.0
  tanh_KAE = jnp.tanh(products_KAE / softcap)
  return softcap * tanh_KAE, 1.0 - tanh_KAE**2


def _places(source: _Blocks) -> Int[Array, 'J']:
  """The first place of each block of keys."""
  return jnp.arange(source.keys.shape[0]) * source.keys.shape[2]


def _is_read(span: Span, place: Array, size: int) -> Array:
  return jnp.any((span.first < span.stop) & (span.first < place + size) & (span.stop > place))
