"""Splash attention, jax's kernel for TPUs: one call for each source, joined in one softmax.

The kernel tests a mask of two integers, one of the query and the place of the key. A span fits into the
first: `first` in its upper half, `stop` in its lower. So spans that are known only as the step runs need
neither a mask [T, S] nor a compilation by layout, and blocks that no span meets are skipped.

Each call returns its sources' softmax and the logarithm of its sum, by which they are joined. The kernel has
no derivative of that logarithm; its own backward pass, given the joined one in place of its own, computes the
gradients of the joined softmax. That pass is private to jax, whose version is pinned.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Bool, Float, Int

from dro_jax.errors import UsageError
from dro_jax.models.attention.spans import Source, Span
from dro_jax.types import Array

_LANES = 128
# Queries, and keys, of a block: as many as divide the row.
_BLOCKS = (512, 256, _LANES)
# Half of a query's integer.
_HALF = 16
LONGEST = 2 ** (_HALF - 1) - 1


class _Row(NamedTuple):
  """One source of one row, as the kernel takes it."""

  keys: Float[Array, 'K S C']
  values: Float[Array, 'K S C']
  span: Span


class _Joined(NamedTuple):
  """What a row reads of all its sources, and the logarithms of its softmax's sums."""

  read: Float[Array, 'H T C']
  logsumexp: Float[Array, 'H T']


def attend(
  queries: Float[Array, 'B T H C'],
  sources: Sequence[Source],
  softcap: float | None,
  interpret: bool = False,
) -> Float[Array, 'B T H C']:
  """See `ways.attend`. `interpret` runs the kernel's program on any device, slowly.

  Raises:
    UsageError: a source has more keys than LONGEST.
  """
  for source in sources:
    if source.keys_values.keys.shape[1] > LONGEST:
      raise UsageError(
        f"attention='splash' reads rows of up to {LONGEST} keys, and these have "
        f'{source.keys_values.keys.shape[1]}: pass shorter rows (ROW_PROMPT_LENGTH, ROW_RESPONSE_LENGTH) or '
        "attention='blockwise' (--set ATTENTION=blockwise)."
      )
  length = queries.shape[1]
  by_head = lambda x: _padded(x).swapaxes(1, 2)  # noqa: E731
  # Padded keys are in no span; padded queries have empty ones.
  rows = [
    _Row(by_head(keys), by_head(values), Span(_padded(span.first), _padded(span.stop)))
    for (keys, values), span, _ in sources
  ]
  one_row = functools.partial(_attend_row, softcap, interpret)
  read_BHTC = jax.lax.map(lambda row: one_row(*row), (by_head(queries), rows))
  return read_BHTC.swapaxes(1, 2)[:, :length]


def _padded(x: Array) -> Array:
  """With zeros up to whole lanes at the end of the second axis."""
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES)) + ((0, 0),) * (x.ndim - 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_row(softcap: float | None, interpret: bool, queries_HTC: Array, sources: list[_Row]) -> Array:
  return _forward(softcap, interpret, queries_HTC, sources)[0]


def _forward(
  softcap: float | None, interpret: bool, queries_HTC: Array, sources: list[_Row]
) -> tuple[Array, Any]:
  parts = [_read_source(softcap, interpret, queries_HTC, source) for source in sources]
  joined = _join(parts)
  return joined.read, (queries_HTC, sources, joined)


def _read_source(softcap: float | None, interpret: bool, queries_HTC: Array, source: _Row) -> _Joined:
  sizes = _sizes(queries_HTC.shape[1], source.keys.shape[1])
  read_HTC, (logsumexp_HT,) = kernel.SplashAttentionKernel(
    _mask_info(source.span, sizes.block_q, sizes.block_kv, source.keys.shape[1]), None, None,
    is_mqa=False, block_sizes=sizes, save_residuals=True, mask_value=kernel.DEFAULT_MASK_VALUE,
    attn_logits_soft_cap=softcap, residual_checkpoint_name=None, mask_function=_is_in_span,
    interpret=interpret,
  )(queries_HTC, source.keys, source.values)  # fmt: skip
  return _Joined(read_HTC, logsumexp_HT)


def _join(parts: Sequence[_Joined]) -> _Joined:
  """One softmax of several: Σ_i e^(l_i − l) o_i with l = log Σ_i e^(l_i)."""
  # A query that reads nothing of a source has no number there, or one of masked scores.
  logsumexps_PHT = jnp.stack(
    [jnp.where(part.logsumexp > kernel.DEFAULT_MASK_VALUE / 2, part.logsumexp, -jnp.inf) for part in parts]
  )
  maximum_HT = jnp.maximum(logsumexps_PHT.max(axis=0), kernel.DEFAULT_MASK_VALUE)
  total_HT = jnp.exp(logsumexps_PHT - maximum_HT[None]).sum(axis=0)
  logsumexp_HT = jnp.where(total_HT > 0, maximum_HT + jnp.log(total_HT), 0.0)
  read_HTC = jnp.zeros(parts[0].read.shape, jnp.float32)
  for part, one_HT in zip(parts, logsumexps_PHT):
    share_HT1 = jnp.exp(one_HT - logsumexp_HT)[..., None]
    read_HTC += jnp.where(share_HT1 > 0, share_HT1 * part.read.astype(jnp.float32), 0.0)
  return _Joined(read_HTC.astype(parts[0].read.dtype), logsumexp_HT)


def _backward(
  softcap: float | None, interpret: bool, kept: Any, cotangent_HTC: Array
) -> tuple[Array, list[_Row]]:
  queries_HTC, sources, joined = kept
  to_queries_HTC, to_sources = jnp.zeros(queries_HTC.shape, jnp.float32), []
  for source in sources:
    sizes = _sizes(queries_HTC.shape[1], source.keys.shape[1])
    info = functools.partial(_mask_info, source.span, sizes.block_q, sizes.block_kv, source.keys.shape[1])
    *_, more_HTC, to_keys, to_values, _, _ = kernel._splash_attention_bwd(
      False, kernel.DEFAULT_MASK_VALUE, False, sizes, None, _is_in_span, softcap, interpret,
      (
        queries_HTC, source.keys, source.values, None, None, joined.read, joined.logsumexp,
        info(), info(by_keys=True),
      ),
      cotangent_HTC,
    )  # fmt: skip
    to_queries_HTC += more_HTC.astype(jnp.float32)
    to_sources.append(_Row(to_keys, to_values, None))
  return to_queries_HTC.astype(queries_HTC.dtype), to_sources


_attend_row.defvjp(_forward, _backward)


def _sizes(queries: int, keys: int) -> BlockSizes:
  block_q, block_kv = (next(size for size in _BLOCKS if length % size == 0) for length in (queries, keys))
  return BlockSizes(
    block_q=block_q, block_kv=block_kv, block_q_dkv=block_q, block_kv_dkv=block_kv, block_q_dq=block_q,
    block_kv_dq=block_kv,
  )  # fmt: skip


def _is_in_span(query: Array, key: Array) -> Array:
  """The mask of the kernel: the integer of a query, and the place of a key."""
  return (key >= (query >> _HALF)) & (key < (query & (2**_HALF - 1)))


def _mask_info(span: Span, block_q: int, block_kv: int, keys: int, by_keys: bool = False) -> MaskInfo:
  """A row's spans as the kernel reads them, and for each block whether it is run, and which comes next.

  Args:
    span: of one row's queries.
    block_q: queries of a block.
    block_kv: keys of a block.
    keys: of the row.
    by_keys: blocks are run in the order of keys, as the pass that computes their gradient does.
  """
  is_run_IJ = _blocks_read(span, block_q, block_kv, keys)
  order = is_run_IJ.T if by_keys else is_run_IJ
  # A block that is not run names the next one that is, so that its keys (or queries) are fetched meanwhile.
  places = jnp.arange(order.size, dtype=jnp.int32)
  last = jnp.int32(order.size - 1)
  following = jax.lax.cummin(jnp.where(order.reshape(-1), places, last), reverse=True)
  following = (following % order.shape[1]).reshape(order.shape)
  following_IJ = following.T if by_keys else following
  return MaskInfo(
    data_next=following_IJ[None], mask_next=None, block_mask=is_run_IJ[None].astype(jnp.int32),
    partial_mask_blocks=None, q_sequence=(span.first << _HALF) | span.stop,
  )  # fmt: skip


def _blocks_read(span: Span, block_q: int, block_kv: int, keys: int) -> Bool[Array, 'I J']:
  """Whether any query of a block reads any key of another."""
  starts_1J: Int[Array, '1 J'] = jnp.arange(0, keys, block_kv)[None]
  first_T1, stop_T1 = span.first[:, None], span.stop[:, None]
  is_read_TJ = (first_T1 < starts_1J + block_kv) & (stop_T1 > starts_1J) & (first_T1 < stop_T1)
  return is_read_TJ.reshape(-1, block_q, starts_1J.size).any(axis=1)
