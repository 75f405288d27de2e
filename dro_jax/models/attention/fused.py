"""Attention with a relative bias, one TPU kernel: scores and bias of a block of queries stay in fast memory.

T5 adds a bias to its scores, which jax's kernels lack or read as an array [T, S] of each row and head. Here a
block of queries reads all keys of its row at once, so that one softmax is complete in the block and nothing
is kept for the backward pass, which computes it again.

The bias comes as one number by head and relative position, eight times, each turned by one more place.
Turning these eight by eight more places for each eight queries spreads the bias over the scores; the inverse
gathers its gradient.

Dimensions beyond `dense`: A queries of a block; I blocks; L relative positions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from dro_jax.models.attention.spans import Source, Span
from dro_jax.types import Array

_LANES, _SUBLANES = 128, 8
_SCORES = 2**18  # Of a block at most, so that several arrays of them fit in VMEM.
_VMEM = 64 * 2**20


def attend(
  queries: Float[Array, 'B T H C'],
  sources: Sequence[Source],
  softcap: float | None,
  multiple: int = _LANES,
  interpret: bool = False,
) -> Float[Array, 'B T H C']:
  """See `ways.attend`, for one source without a soft cap, with as many heads of keys as of queries.

  Args:
    queries: scaled.
    sources: what is read, one.
    softcap: None.
    multiple: to which lengths are padded.
    interpret: runs the kernel's program on any device, slowly.
  """
  assert softcap is None
  (source,) = sources
  (keys, values), span, bias = source
  length = queries.shape[1]
  by_head = lambda x: _padded(x, multiple).swapaxes(1, 2)  # noqa: E731
  places = [_padded(place, multiple)[:, :, None] for place in span]  # Padded queries have empty spans.
  if bias is not None:
    extra = places[0].shape[1] - length
    bias = jnp.pad(bias.astype(jnp.float32), ((0, 0), (extra, extra)))
    bias = jnp.stack([jnp.roll(bias, turn, axis=1) for turn in range(_SUBLANES)], axis=1)
  read = _attend(multiple, interpret, *map(by_head, (queries, keys, values)), Span(*places), bias)
  return read.swapaxes(1, 2)[:, :length]


def _padded(x: Array, multiple: int) -> Array:
  """With zeros up to a multiple at the end of the second axis."""
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple)) + ((0, 0),) * (x.ndim - 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
  multiple: int, interpret: bool, queries_BHTC: Array, keys_BHSC: Array, values_BHSC: Array, span_BT1: Span,
  bias_H8L: Array | None,
) -> Array:  # fmt: skip
  return _forward(multiple, interpret, queries_BHTC, keys_BHSC, values_BHSC, span_BT1, bias_H8L)[0]


def _forward(multiple: int, interpret: bool, *inputs: Any) -> tuple[Array, Any]:
  (read,) = _run(_read, multiple, interpret, inputs, [inputs[0]])
  return read, inputs


def _backward(multiple: int, interpret: bool, inputs: Any, cotangent_BHTC: Array) -> tuple[Any, ...]:
  queries, keys, values, _, bias = inputs
  # Of keys, values and bias several blocks' shares are summed.
  summed = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (keys, values)]
  if bias is not None:
    summed.append(jax.ShapeDtypeStruct(bias.shape, jnp.float32))
  to_queries, to_keys, to_values, *to_bias = _run(
    _pull, multiple, interpret, (*inputs, cotangent_BHTC), [queries, *summed]
  )
  to_span = None
  return (
    to_queries, to_keys.astype(keys.dtype), to_values.astype(values.dtype), to_span,
    to_bias[0] if to_bias else None,
  )  # fmt: skip


_attend.defvjp(_forward, _backward)


def block_size(multiple: int, queries: int, keys: int) -> int:
  """The queries of a block: up to four multiples that divide all, and whose scores fit in fast memory."""
  sizes = [size for size in (4 * multiple, 2 * multiple) if queries % size == 0 and size * keys <= _SCORES]
  return sizes[0] if sizes else multiple


def _run(
  kernel: Callable[..., None], multiple: int, interpret: bool, inputs: Any, results: Sequence[Any]
) -> Sequence[Array]:
  """Runs a kernel over heads, rows and blocks of queries, in this order: so sums over the later ones stay in
  fast memory. `results` have the shapes of queries, and then of what is summed over a row's blocks."""
  queries, keys, values, span, bias, *cotangent = inputs
  rows, heads, length, width = queries.shape
  size = block_size(multiple, length, keys.shape[2])
  by_queries = pl.BlockSpec((1, 1, size, width), lambda h, b, i: (b, h, i, 0))
  by_place = pl.BlockSpec((1, size, 1), lambda h, b, i: (b, i, 0))
  by_keys = pl.BlockSpec((1, 1, *keys.shape[2:]), lambda h, b, i: (b, h, 0, 0))
  by_head = [] if bias is None else [pl.BlockSpec((1, *bias.shape[1:]), lambda h, b, i: (h, 0, 0))]
  is_summed = len(results) > 1
  over_rows = 'arbitrary' if is_summed else 'parallel'
  return pl.pallas_call(
    functools.partial(kernel, bias is not None),
    grid=(heads, rows, length // size),
    in_specs=[by_queries, by_keys, by_keys, by_place, by_place, *by_head, *[by_queries] * len(cotangent)],
    out_specs=[by_queries, *([by_keys, by_keys, *by_head] if is_summed else [])],
    out_shape=[jax.ShapeDtypeStruct(result.shape, result.dtype) for result in results],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', over_rows, over_rows), vmem_limit_bytes=_VMEM
    ),
    interpret=interpret,
  )(queries, keys, values, *span, *([] if bias is None else [bias]), *cotangent)


# --- kernels: of one head and row, and one block of its queries ---------------------------------------------


def _read(has_bias: bool, queries: Any, keys: Any, values: Any, first: Any, stop: Any, *rest: Any) -> None:
  *bias, read = rest
  weights_AS = _weights(queries[0, 0], keys[0, 0], first[0], stop[0], bias[0][0] if has_bias else None)
  values_SC = values[0, 0]
  read[0, 0] = _product(weights_AS.astype(values_SC.dtype), values_SC, 1, 0).astype(read.dtype)


def _pull(has_bias: bool, queries: Any, keys: Any, values: Any, first: Any, stop: Any, *rest: Any) -> None:
  if has_bias:
    bias, cotangent, to_queries, to_keys, to_values, to_bias = rest
  else:
    (cotangent, to_queries, to_keys, to_values), bias, to_bias = rest, None, None
  queries_AC, keys_SC, values_SC, cotangent_AC = queries[0, 0], keys[0, 0], values[0, 0], cotangent[0, 0]
  weights_AS = _weights(queries_AC, keys_SC, first[0], stop[0], None if bias is None else bias[0])
  to_weights_AS = _product(cotangent_AC, values_SC, 1, 1)
  mean_A1 = jnp.sum(weights_AS * to_weights_AS, axis=1, keepdims=True)
  to_scores_AS = weights_AS * (to_weights_AS - mean_A1)

  @pl.when(pl.program_id(2) == 0)
  def _() -> None:
    to_keys[...], to_values[...] = jnp.zeros_like(to_keys), jnp.zeros_like(to_values)

  if to_bias is not None:

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
      to_bias[...] = jnp.zeros_like(to_bias)

    to_bias[0] += _gathered(to_scores_AS, to_bias.shape[2])
  to_products_AS = to_scores_AS.astype(keys_SC.dtype)
  to_queries[0, 0] = _product(to_products_AS, keys_SC, 1, 0).astype(to_queries.dtype)
  to_keys[0, 0] += _product(to_products_AS, queries_AC, 0, 0)
  to_values[0, 0] += _product(weights_AS.astype(values_SC.dtype), cotangent_AC, 0, 0)


def _weights(
  queries_AC: Array, keys_SC: Array, first_A1: Array, stop_A1: Array, bias_8L: Array | None
) -> Array:
  """The softmax of a block of queries over all keys of their row; 0 where a query reads nothing."""
  scores_AS = _product(queries_AC, keys_SC, 1, 1)
  if bias_8L is not None:
    scores_AS += _spread(bias_8L, *scores_AS.shape)
  places_AS = jax.lax.broadcasted_iota(jnp.int32, scores_AS.shape, 1)
  is_read_AS = (places_AS >= first_A1) & (places_AS < stop_A1)
  scores_AS = jnp.where(is_read_AS, scores_AS, -1e30)
  exponentials_AS = jnp.exp(scores_AS - jnp.max(scores_AS, axis=1, keepdims=True))
  exponentials_AS = jnp.where(is_read_AS, exponentials_AS, 0.0)
  total_A1 = jnp.sum(exponentials_AS, axis=1, keepdims=True)
  return exponentials_AS / jnp.where(total_A1 > 0, total_A1, 1.0)


def _spread(bias_8L: Array, queries: int, keys: int) -> Array:
  """Entry (a, s) is the bias of key s and the block's query a: row a is turned by one more place than row
  a − 1."""
  relative = bias_8L.shape[1]
  groups = jnp.broadcast_to(bias_8L[None], (queries // _SUBLANES, *bias_8L.shape))
  turned = pltpu.roll(groups, relative - _last(queries, relative), 2, stride=_SUBLANES, stride_axis=0)
  return turned.reshape(queries, relative)[:, :keys]


def _gathered(to_scores_AS: Array, relative: int) -> Array:
  """The transpose of `_spread`: sums along the diagonals of every eighth query, `[8, L]`."""
  queries, keys = to_scores_AS.shape
  empty = jnp.zeros((queries, relative - keys), jnp.float32)
  groups = jnp.concatenate([to_scores_AS, empty], axis=1).reshape(-1, _SUBLANES, relative)
  turned = pltpu.roll(groups, _last(queries, relative), 2, stride=relative - _SUBLANES, stride_axis=0)
  return jnp.sum(turned, axis=0)


def _last(queries: int, relative: int) -> Array:
  """The place among relative positions of key 0 and the block's first query."""
  return relative // 2 - 1 - pl.program_id(2) * queries


def _product(x: Array, y: Array, axis_of_x: int, axis_of_y: int) -> Array:
  """A product summed over these axes, in float32."""
  return jax.lax.dot_general(
    x, y, (((axis_of_x,), (axis_of_y,)), ((), ())), preferred_element_type=jnp.float32
  )  # fmt: skip
