"""Memory and time of attention to packed rows, by way: dense, blockwise, and a TPU's kernel.

  python benchmarks/attention.py [--tpu] [--json]

A row of n tokens, half of them prompts and half responses, in SmolLM2-135M's heads (9 of queries, 3 of keys,
64 wide): the response stream's attention, forward and backward. And four rows of n tokens of prompts in
T5-small's heads (8, 64 wide): the encoder's attention with its relative bias, whose gradient is taken too.

1. Memory: temporary bytes, as XLA allocates them; with --tpu as compiled for one v5e and one v6e chip too.
2. Time on this machine: blockwise over dense, for a row of one prompt and its response, and for a row of four
   prompts with four responses each; for T5 rows of one prompt and of four. The row length from which on
   `auto` is blockwise follows from it.
"""

import argparse
import functools
import json
import os
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
from arguments import numbers

from dro_jax.models.attention import blockwise, dense, spans, splash
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues

HEADS, KV_HEADS, WIDTH = 9, 3, 64
T5_HEADS, T5_ROWS, T5_LONGEST = 8, 4, 1024
WAYS = {'dense': dense.attend, 'blockwise': blockwise.attend, 'splash': splash.attend}
TOPOLOGIES = 'v5e:2x2', 'v6e:2x2'


def gradients(way: str, queries, read, read_spans):
  """The gradients of a sum of outputs by queries, and by keys, values and bias of every source."""

  def total(queries, read):
    sources = [Source(keys, span, bias) for (keys, bias), span in zip(read, read_spans)]
    return jnp.sum(WAYS[way](queries, sources, None).astype(jnp.float32) ** 2)

  return jax.grad(total, (0, 1))(queries, read)


def shapes(length: int, dtype: str, sharding: Any = None) -> tuple[Any, ...]:
  """Of one row of SmolLM2's: queries, both sources' keys and values without a bias, and their spans."""
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  half = length // 2
  keys = KeysValues(*[shape((1, half, KV_HEADS, WIDTH), jnp.dtype(dtype))] * 2)
  span = Span(*[shape((1, half), jnp.int32)] * 2)
  return shape((1, half, HEADS, WIDTH), jnp.dtype(dtype)), [(keys, None)] * 2, [span] * 2


def t5_shapes(length: int, dtype: str, sharding: Any = None) -> tuple[Any, ...]:
  """The same of T5's rows: one source, with a bias."""
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  queries = shape((T5_ROWS, length, T5_HEADS, WIDTH), jnp.dtype(dtype))
  span = Span(*[shape((T5_ROWS, length), jnp.int32)] * 2)
  return queries, [(KeysValues(queries, queries), shape((T5_HEADS, 2 * length), jnp.float32))], [span]


def temporary(way: str, length: int, device: Any = None, of: Any = shapes) -> int:
  """Temporary bytes of attention; bfloat16 on a TPU, float32 here."""
  sharding = jax.sharding.SingleDeviceSharding(device) if device else None
  arguments = of(length, 'bfloat16' if device else 'float32', sharding)
  compiled = jax.jit(functools.partial(gradients, way)).lower(*arguments).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def chip(topology: str) -> Any:
  """A chip to compile for, which need not be here."""
  from jax.experimental import topologies

  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices[0]


def row(length: int, prompts: int, responses: int) -> tuple[Any, ...]:
  """Queries, keys and spans of one row that is full of prompts with so many responses each."""
  half = length // 2
  owner = np.arange(half) * prompts // half
  starts = owner * (half // prompts)
  ends = starts + half // prompts - 1
  segments = jnp.asarray(np.arange(half) * prompts * responses // half + 1)[None]
  prompt = Span(jnp.asarray(starts)[None], jnp.asarray(ends)[None])
  return *drawn(shapes(length, 'float32')[:2]), [prompt, spans.own_span(segments)]


def t5_rows(length: int, prompts: int) -> tuple[Any, ...]:
  """Queries, keys, bias and spans of rows that are full of prompts."""
  segments = jnp.broadcast_to(jnp.arange(length) * prompts // length + 1, (T5_ROWS, length))
  return *drawn(t5_shapes(length, 'float32')[:2]), [spans.segment_span(segments)]


def drawn(like: Any) -> Any:
  random = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), like)


def times(options: argparse.Namespace, length: int) -> dict[str, Any]:
  calls = {}
  kinds = {'one': row(length, 1, 1), 'packed': row(length, 4, 4)}
  if length <= T5_LONGEST:
    kinds |= {'T5 one': t5_rows(length, 1), 'T5 packed': t5_rows(length, 4)}
  for kind, inputs in kinds.items():
    for way in ('dense', 'blockwise'):
      run = functools.partial(jax.jit(functools.partial(gradients, way)), *inputs)
      calls[f'{kind} {way}'] = lambda run=run: jax.block_until_ready(run())
  seconds = timing.interleaved(calls, options.rounds, clock=options.clock)
  return {
    'seconds': {name: statistics.median(found) for name, found in seconds.items()},
    'over_dense': {
      kind: timing.ratio(seconds[f'{kind} blockwise'], seconds[f'{kind} dense']) for kind in kinds
    },
  }


def show(found: dict[str, Any]) -> None:
  print(f'temporary MiB of one row (T5: of {T5_ROWS}), forward and backward:')
  for device, by_length in found['memory'].items():
    for length, by_way in by_length.items():
      said = ', '.join(f'{way} {size / 2**20:.1f}' for way, size in by_way.items())
      print(f'  {device:>12} {length:>6} tokens: {said}')
  print('seconds of the same, and blockwise over dense:')
  for length, one in found['times'].items():
    for kind, ratio in one['over_dense'].items():
      seconds = [one['seconds'][f'{kind} {way}'] for way in ('dense', 'blockwise')]
      print(
        f'  {length:>6} tokens, {kind:>9}: {seconds[0]:.3f}, {seconds[1]:.3f}: {ratio["median"]:.2f} '
        f'({ratio["low"]:.2f}-{ratio["high"]:.2f})'
      )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--memory', type=numbers, default=(4096, 8192), help='tokens of a row')
  parser.add_argument('--times', type=numbers, default=(256, 512, 1024, 4096), help='tokens of a timed row')
  parser.add_argument('--tpu', action='store_true', help='memory on TPUs too (compiles for minutes)')
  parser.add_argument('--clock', choices=timing.CLOCKS, default='wall', help='cpu: of all cores together')
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  devices = {'cpu': (None, ('dense', 'blockwise'))}
  if options.tpu:
    devices |= {topology: (chip(topology), tuple(WAYS)) for topology in TOPOLOGIES}
  memory = {
    name: {length: {way: temporary(way, length, device) for way in ways} for length in options.memory}
    for name, (device, ways) in devices.items()
  }
  memory |= {
    f'T5, {name}': {
      length: {way: temporary(way, length, device, t5_shapes) for way in ('dense', 'blockwise')}
      for length in options.times
      if length <= T5_LONGEST
    }
    for name, (device, _) in devices.items()
  }
  found = {'memory': memory, 'times': {length: times(options, length) for length in options.times}}
  print(json.dumps(found)) if options.json else show(found)


if __name__ == '__main__':
  main()
