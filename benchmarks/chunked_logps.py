"""What projecting to the vocabulary in chunks saves in memory and costs in time, with equal gradients.

  python benchmarks/chunked_logps.py [--tpu] [--json]

1. Memory: temporary bytes of the projection alone, forward and backward, as XLA allocates them, over those of
   one array of full logits. T5-L's width and vocabulary, and Gemma 3 1B's, whose vocabulary is eight times as
   large; with --tpu also as compiled for a v5e chip. The chunk that `models.chunks` chooses is marked.
2. Time: the full SFT step of T5 1.1 small, a quarter of whose parameters project to the vocabulary (of T5-L's
   a 24th), halved: 4 layers a side, half the vocabulary. Chunks cost most in it.
3. Gradients of that step's loss against those with full logits: largest difference over the largest entry.
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
import steps
import timing
from arguments import numbers
from flax import linen as nn

from dro_jax import algorithms
from dro_jax.models import scoring
from dro_jax.models.chunks import choose_chunk_size
from dro_jax.models.policy import smallest_rows
from dro_jax.models.t5.config import T5Config
from dro_jax.models.t5.network import T5
from dro_jax.ops import logprobs
from dro_jax.parallel import partitioning

T5_SMALL = T5Config(
  vocab_size=32128, emb_dim=512, num_heads=6, mlp_dim=1024, num_encoder_layers=8, num_decoder_layers=8
)
T5_LARGE = steps.T5_LARGE.emb_dim, steps.T5_LARGE.vocab_size
GEMMA_3_1B = 1152, 262_144
CHUNKS = 8, 16, 32, 64, 128, 256


def projection(hidden, kernel, tokens, weights, *, chunk_size: int | None):
  """The weighted sum of log-probs and its gradients to hidden states and kernel."""

  def total(hidden, kernel):
    logits = lambda hidden: jnp.einsum('btd,dv->btv', hidden, kernel)  # noqa: E731
    logps = logprobs.response_token_logps(logits, hidden, tokens, tokens > 0, chunk_size)
    return jnp.sum(weights * logps)

  return jax.value_and_grad(total, (0, 1))(hidden, kernel)


def memory(rows: int, length: int, sizes: tuple[int, int], device: Any) -> dict[str, Any]:
  """Bytes of full logits, and temporary bytes by chunk size, of one device, for a width and a vocabulary."""
  width, vocab = sizes
  where = jax.sharding.SingleDeviceSharding(device)
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=where)
  args = (
    shape((rows, length, width), jnp.float32), shape((width, vocab), jnp.float32),
    shape((rows, length), jnp.int32), shape((rows, length), jnp.float32),
  )  # fmt: skip

  def temporary(chunk_size: int | None) -> int:
    jitted = jax.jit(functools.partial(projection, chunk_size=chunk_size))
    return jitted.lower(*args).compile().memory_analysis().temp_size_in_bytes

  return {
    'rows': [rows, length], 'logits_bytes': 4 * rows * length * vocab,
    'temporary_bytes': {str(size): temporary(size) for size in (None, *CHUNKS)},
    'chosen': str(choose_chunk_size(None, rows, length, vocab)),
  }  # fmt: skip


def tpu_chip() -> Any:
  """A v5e chip to compile for, which need not be here."""
  from jax.experimental import topologies

  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  return topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices[0]


def times(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
  config, algorithm = steps.slice_of(T5_SMALL, 4), algorithms.sft()
  rows = steps.for_algorithm(steps.full_rows(config, options.batch, *options.lengths), algorithm)
  made = {str(size): steps.make(config, algorithm, chunk_size=size) for size in (None, *options.chunks)}
  calls = {name: steps.compiled(subject, rows) for name, subject in made.items()}
  seconds = timing.interleaved(calls, options.rounds, clock=options.clock)
  return {
    name: {'seconds': statistics.median(found), 'over_full': timing.ratio(found, seconds['None'])}
    for name, found in seconds.items()
  }


def more_flops() -> float:
  """FLOPs of T5-L's SFT step at 512 + 512 tokens in chunks, over those of full logits."""
  rows = steps.full_rows(steps.T5_LARGE, 1, 512, 512)._replace(mismatched=None)
  chunked, full = (
    steps.make(steps.T5_LARGE, algorithms.sft(), chunk_size=size).flops(rows) for size in (64, None)
  )
  return chunked / full


def gradient_differences(options: argparse.Namespace) -> dict[str, float]:
  """Largest |difference| / largest |entry| of a parameter's gradient, the worst over parameters."""
  config = steps.slice_of(T5_SMALL, 1)
  rows = steps.full_rows(config, 2, *options.lengths)._replace(mismatched=None)
  params = nn.unbox(T5(config).init(jax.random.key(0), smallest_rows())['params'])

  def gradients(chunk_size: int | None):
    score = scoring.make_score(T5(config), chunk_size=chunk_size)
    loss = lambda params: jnp.mean(score({'policy': params}, rows, None).logps)  # noqa: E731
    return jax.device_get(jax.jit(jax.grad(loss), compiler_options=partitioning.COMPILER_OPTIONS)(params))

  whole = gradients(None)

  def worst(chunk_size: int) -> float:
    apart = jax.tree.map(
      lambda x, y: float(np.abs(x - y).max() / np.abs(x).max()), whole, gradients(chunk_size)
    )
    return max(jax.tree.leaves(apart))

  return {str(size): worst(size) for size in options.chunks}


def show(found: dict[str, Any]) -> None:
  for name, one in found['memory'].items():
    rows, length = one['rows']
    print(f'{name}: {rows} x {length} tokens, full logits {one["logits_bytes"] / 2**20:.0f} MiB; temporary:')
    for size, temporary in one['temporary_bytes'].items():
      print(
        f'  chunk {size:>4} {temporary / 2**20:8.0f} MiB  {temporary / one["logits_bytes"]:6.1%} of logits'
        f'{" (chosen)" if size == one["chosen"] else ""}'
      )
  print(f"full step (T5-L's FLOPs in chunks: {found['flops_over_full_t5_large']:.3f}):")
  for size, one in found['times'].items():
    ratio = one['over_full']
    print(
      f'  chunk {size:>4} {one["seconds"]:7.3f} s  {ratio["median"]:.3f} ({ratio["low"]:.2f}-'
      f'{ratio["high"]:.2f}) of full logits; gradients apart by {found["gradients"].get(size, 0):.1e}'
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--batch', type=int, default=4, help='rows of the timed step')
  parser.add_argument('--lengths', type=numbers, default=(64, 512), help='prompt,response tokens of a row')
  parser.add_argument('--chunks', type=numbers, default=(16, 64), help='chunk sizes timed')
  parser.add_argument('--tpu', action='store_true', help='memory on a v5e chip too (compiles for minutes)')
  parser.add_argument('--clock', choices=timing.CLOCKS, default='wall', help='cpu: of all cores together')
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  # The batch of the paper on one host; of which a chip of 4 has 8 rows.
  here = jax.devices()[0]
  found = {
    'memory': {'T5-L, CPU': memory(32, 512, T5_LARGE, here), 'Gemma, CPU': memory(4, 512, GEMMA_3_1B, here)}
  }
  if options.tpu:
    chip = tpu_chip()
    found['memory'] |= {
      'T5-L, v5e': memory(8, 512, T5_LARGE, chip), 'Gemma, v5e': memory(4, 512, GEMMA_3_1B, chip)
    }  # fmt: skip
  found |= {'gradients': gradient_differences(options), 'times': times(options)}
  found['flops_over_full_t5_large'] = more_flops()
  print(json.dumps(found)) if options.json else show(found)


if __name__ == '__main__':
  main()
