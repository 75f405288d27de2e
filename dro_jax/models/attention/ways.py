"""The choice among five ways to compute attention, which give the same numbers, and their place on a mesh.

- `dense`: all scores in memory, H T S numbers a row: the fastest for short rows, and for decoding.
- `blockwise`: plain JAX, a block of scores at a time: on every device, for every span.
- `splash`: the TPU kernel of jax, a block of scores at a time.
- `cudnn`: NVIDIA's kernel; scores stay in the kernel, but its mask is an array of T S numbers a row.
- `fused`: a TPU kernel with a relative bias, for T5.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Float

from dro_jax.errors import UsageError
from dro_jax.models import layers
from dro_jax.models.attention import blockwise, cudnn, dense, fused, splash
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues
from dro_jax.types import Array

WAYS = ('auto', 'dense', 'blockwise', 'splash', 'cudnn', 'fused')
# Keys of a query's row, of all sources, from which on `auto` leaves dense attention. On a CPU blockwise takes
# less time from 128 keys on (benchmarks/attention.py); below 512 there is little to save, and dense compiles
# sooner. There was no TPU or GPU to measure on: there, it is where the scores of a head fill 4 MiB.
LONG_ON_CPU = 512
LONG = 1024

Attend = Callable[[Array, Sequence[Source], float | None], Array]
_FUNCTIONS: dict[str, Attend] = {
  'blockwise': blockwise.attend, 'splash': splash.attend, 'cudnn': cudnn.attend, 'fused': fused.attend
}  # fmt: skip


def attend(
  queries: Float[Array, 'N T H C'],
  sources: Sequence[Source],
  *,
  softcap: float | None = None,
  way: str = 'auto',
) -> Float[Array, 'N T H C']:
  """softmax(q · k + bias) v over the keys of all sources in the queries' spans, in one softmax.

  A head of keys serves H / K heads of queries. With `softcap` c, products are c tanh(q · k / c). Scores and
  sums are float32. A query that reads nothing gets finite numbers without a meaning.

  Args:
    queries: scaled.
    sources: what is read.
    softcap: c.
    way: one of WAYS. Decoding is dense whatever is chosen.

  Raises:
    UsageError: the way does not run on the device, or lacks what the model needs.
  """
  chosen = _choose(way, queries, sources, softcap)
  if chosen == 'dense':
    return dense.attend(queries, sources, softcap)
  return run(chosen, queries, sources, softcap)


def run(
  way: str, queries: Float[Array, 'N T H C'], sources: Sequence[Source], softcap: float | None = None
) -> Float[Array, 'N T H C']:
  """`attend` by a way that was chosen, other than `dense`."""
  return on_mesh(_FUNCTIONS[way], queries, sources, softcap)


def _choose(way: str, queries: Array, sources: Sequence[Source], softcap: float | None) -> str:
  rows, length, *_ = queries.shape
  if length == 1 or any(source.keys_values.keys.shape[0] != rows for source in sources):
    return 'dense'  # Decoding.
  keys = sum(source.keys_values.keys.shape[1] for source in sources)
  return choose(way, keys, _refusals(queries, softcap))


def choose(way: str, keys: int, refusals: Mapping[str, str | None]) -> str:
  """The way of so many keys to a row.

  Args:
    way: one of WAYS.
    keys: of all sources.
    refusals: why each kernel cannot run here, as a clause; `None` where it can.

  Raises:
    UsageError: the way is a kernel that cannot run, or none.
  """
  if way in ('dense', 'blockwise'):
    return way
  if way == 'auto':
    kernels = [kernel for kernel, refusal in refusals.items() if refusal is None]
    long = LONG_ON_CPU if is_on_cpu() else LONG
    return 'dense' if keys < long else (*kernels, 'blockwise')[0]
  if way not in refusals:
    raise UsageError(f'attention={way!r} is unknown: pass one of {WAYS} (--set ATTENTION=).')
  if refusals[way] is not None:
    raise UsageError(
      f'attention={way!r} cannot run: {refusals[way]}. Pass blockwise, which runs on every device, dense, or '
      'auto, which chooses (--set ATTENTION=).'
    )
  return way


def refusals_with_bias() -> dict[str, str | None]:
  """Why each kernel cannot run a model with a relative bias, as a clause; `None` where it can."""
  lacking = dict.fromkeys(
    ('splash', 'cudnn'), 'it has no relative bias, and the model adds one to its scores'
  )
  return lacking | {'fused': _unless_tpu()}


def _refusals(queries: Array, softcap: float | None) -> dict[str, str | None]:
  """Why each kernel cannot run here, as a clause; `None` where it can."""
  _, kind = _device()
  return {
    'splash': _unless_tpu(),
    'cudnn': cudnn.refusal(queries, softcap)
    if 'NVIDIA' in kind
    else f"it is a kernel for NVIDIA's GPUs, and the device is '{kind}'",
    'fused': "it is T5's kernel, whose keys have one source",
  }


def _unless_tpu() -> str | None:
  platform, kind = _device()
  return None if platform == 'tpu' else f"it is a kernel for TPUs, and the device is '{kind}'"


def _device() -> tuple[str, str]:
  """The platform and the kind of the mesh's devices, which need not be this machine's."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    device = jax.devices()[0]
  return device.platform, device.device_kind


def is_on_cpu() -> bool:
  """Whether the mesh's devices are CPUs, or this machine's where there is no mesh."""
  return _device()[0] == 'cpu'


def on_mesh(
  function: Attend, queries: Array, sources: Sequence[Source], softcap: float | None
) -> Float[Array, 'N T H C']:
  """Runs a way of attention on each device's rows and heads: the compiler cannot cut a kernel or a loop."""
  mesh = jax.sharding.get_abstract_mesh()

  def run(queries: Array, sources: Sequence[Source]) -> Array:
    return function(queries, sources, softcap)

  if mesh.empty or mesh.size == 1:
    return run(queries, sources)
  heads = [queries.shape[2], *(source.keys_values.keys.shape[2] for source in sources)]
  (cuts,) = layers.num_parts('activation_heads')
  axis = None if any(count % cuts for count in heads) else 'activation_heads'
  by_head = nn.logical_to_mesh_axes(('activation_batch', None, axis, None))
  by_row = PartitionSpec(by_head[0])
  biases = [None if source.bias is None else PartitionSpec(by_head[2]) for source in sources]
  specs = [Source(KeysValues(by_head, by_head), Span(by_row, by_row), bias) for bias in biases]
  # Kernels say nothing of how their results vary over the mesh, which the check would need.
  mapped = jax.shard_map(run, in_specs=(by_head, specs), out_specs=by_head, check_vma=False)
  return mapped(queries, list(sources))
