"""Memory and time of a causal model's attention to packed rows, by way: dense, blockwise, and a TPU's kernel.

  python benchmarks/attention.py [--tpu] [--json]

A row of n tokens, half of them prompts and half responses, in SmolLM2-135M's heads (9 of queries, 3 of keys,
64 wide). The response stream's attention, forward and backward.

1. Memory: temporary bytes, as XLA allocates them; with --tpu as compiled for one v5e and one v6e chip too.
2. Time on this machine: blockwise over dense, for a row of one prompt and its response, and for a row of four
   prompts with four responses each. The row length from which on `auto` is blockwise follows from it.
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
WAYS = {'dense': dense.attend, 'blockwise': blockwise.attend, 'splash': splash.attend}
TOPOLOGIES = 'v5e:2x2', 'v6e:2x2'


def gradients(way: str, queries, prompt, own, prompt_span, own_span):
  """The gradients of a sum of outputs, one for each input."""

  def total(queries, prompt, own):
    sources = [Source(prompt, prompt_span), Source(own, own_span)]
    return jnp.sum(WAYS[way](queries, sources, None).astype(jnp.float32) ** 2)

  return jax.grad(total, (0, 1, 2))(queries, prompt, own)


def shapes(rows: int, length: int, dtype: str, sharding: Any = None) -> tuple[Any, ...]:
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  half = length // 2
  keys = KeysValues(*[shape((rows, half, KV_HEADS, WIDTH), jnp.dtype(dtype))] * 2)
  span = Span(*[shape((rows, half), jnp.int32)] * 2)
  return shape((rows, half, HEADS, WIDTH), jnp.dtype(dtype)), keys, keys, span, span


def temporary(way: str, length: int, device: Any = None) -> int:
  """Temporary bytes of one row's attention; bfloat16 on a TPU, float32 here."""
  sharding = jax.sharding.SingleDeviceSharding(device) if device else None
  arguments = shapes(1, length, 'bfloat16' if device else 'float32', sharding)
  compiled = jax.jit(functools.partial(gradients, way)).lower(*arguments).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def chip(topology: str) -> Any:
  """A chip to compile for, which need not be here."""
  from jax.experimental import topologies

  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices[0]


def row(length: int, prompts: int, responses: int) -> tuple[Any, ...]:
  """Queries, keys and spans of one row that is full of prompts with so many responses each."""
  half, random = length // 2, np.random.default_rng(0)
  made = jax.tree.map(
    lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), shapes(1, length, 'float32')[:3]
  )
  owner = np.arange(half) * prompts // half
  starts = owner * (half // prompts)
  ends = starts + half // prompts - 1
  segments = jnp.asarray(np.arange(half) * prompts * responses // half + 1)[None]
  return *made, Span(jnp.asarray(starts)[None], jnp.asarray(ends)[None]), spans.own_span(segments)


def times(options: argparse.Namespace, length: int) -> dict[str, Any]:
  calls = {}
  for kind, texts in (('one', (1, 1)), ('packed', (4, 4))):
    for way in ('dense', 'blockwise'):
      run = functools.partial(jax.jit(functools.partial(gradients, way)), *row(length, *texts))
      calls[f'{kind} {way}'] = lambda run=run: jax.block_until_ready(run())
  seconds = timing.interleaved(calls, options.rounds, clock=options.clock)
  return {
    'seconds': {name: statistics.median(found) for name, found in seconds.items()},
    'over_dense': {
      kind: timing.ratio(seconds[f'{kind} blockwise'], seconds[f'{kind} dense']) for kind in ('one', 'packed')
    },
  }


def show(found: dict[str, Any]) -> None:
  print('temporary MiB of one row, forward and backward:')
  for device, by_length in found['memory'].items():
    for length, by_way in by_length.items():
      said = ', '.join(f'{way} {size / 2**20:.1f}' for way, size in by_way.items())
      print(f'  {device:>8} {length:>6} tokens: {said}')
  print('seconds of one row, and blockwise over dense:')
  for length, one in found['times'].items():
    for kind, ratio in one['over_dense'].items():
      seconds = [one['seconds'][f'{kind} {way}'] for way in ('dense', 'blockwise')]
      print(
        f'  {length:>6} tokens, {kind:>6}: {seconds[0]:.3f}, {seconds[1]:.3f}: {ratio["median"]:.2f} '
        f'({ratio["low"]:.2f}-{ratio["high"]:.2f})'
      )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--memory', type=numbers, default=(4096, 8192), help='tokens of a row')
  parser.add_argument('--times', type=numbers, default=(256, 1024, 4096), help='tokens of a timed row')
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
  found = {'memory': memory, 'times': {length: times(options, length) for length in options.times}}
  print(json.dumps(found)) if options.json else show(found)


if __name__ == '__main__':
  main()
