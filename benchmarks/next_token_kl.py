"""What next-token KL costs in memory and time, at vocabularies of 32k and 128k pieces.

  python benchmarks/next_token_kl.py [--json]

1. Memory: temporary bytes of the projection alone, forward and backward, as XLA allocates them for the CPU,
   of log-probs and of log-probs with KL, at once and in chunks; T5-L's width.
2. Time: DRO-V's full step with the term over that without it, both in chunks; T5 1.1 small's width, 4 layers
   a side. The vocabulary is most of its parameters, far more than of a large model's, so the term costs most.
3. FLOPs: the same of T5-L's step, counted.
"""

import argparse
import dataclasses
import functools
import json
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import steps
import timing
from arguments import numbers
from chunked_logps import T5_SMALL

from dro_jax import algorithms
from dro_jax.ops import logprobs

WITHOUT = algorithms.dro_v()
WITH = algorithms.with_next_token_kl(WITHOUT)


def projection(states, kernels, tokens, *, chunk_size: int | None, adds_kl: bool):
  """A sum of log-probs, with or without KLs, and its gradients to the policy's states and kernel."""

  def total(own, kernel):
    (reference, reference_kernel), mask = (states[1], kernels[1]), tokens > 0
    project = lambda kernel: lambda hidden: jnp.einsum('btd,dv->btv', hidden, kernel)  # noqa: E731
    if not adds_kl:
      return jnp.sum(logprobs.response_token_logps(project(kernel), own, tokens, mask, chunk_size))
    logps, kls = logprobs.response_token_logps_and_kls(
      project(kernel), project(reference_kernel), own, reference, tokens, mask, chunk_size=chunk_size
    )
    return jnp.sum(logps) + jnp.sum(kls)

  return jax.value_and_grad(total, (0, 1))(states[0], kernels[0])


def memory(vocab: int, rows: int, length: int, chunk_size: int) -> dict[str, Any]:
  """Bytes of one array of full logits, and temporary bytes without and with KL, at once and in chunks."""
  shape, width = jax.ShapeDtypeStruct, steps.T5_LARGE.emb_dim
  states, kernels = shape((rows, length, width), jnp.float32), shape((width, vocab), jnp.float32)
  args = (states, states), (kernels, kernels), shape((rows, length), jnp.int32)

  def temporary(adds_kl: bool, size: int | None) -> int:
    jitted = jax.jit(functools.partial(projection, chunk_size=size, adds_kl=adds_kl))
    return jitted.lower(*args).compile().memory_analysis().temp_size_in_bytes

  found = {
    f'{"whole" if size is None else "chunks"} {"with" if adds_kl else "without"}': temporary(adds_kl, size)
    for size in (None, chunk_size)
    for adds_kl in (False, True)
  }
  return {'logits_bytes': 4 * rows * length * vocab, 'temporary_bytes': found}


def times(vocab: int, options: argparse.Namespace) -> dict[str, Any]:
  """Seconds of a step without and with the term, and their ratio."""
  config = dataclasses.replace(steps.slice_of(T5_SMALL, 4), vocab_size=vocab)
  rows = steps.for_algorithm(steps.full_rows(config, options.batch, *options.lengths), WITHOUT)
  made = {
    name: steps.make(config, algorithm, chunk_size=options.chunk_size)
    for name, algorithm in {'without': WITHOUT, 'with': WITH}.items()
  }
  calls = {name: steps.compiled(subject, rows) for name, subject in made.items()}
  seconds = timing.interleaved(calls, options.rounds, clock=options.clock)
  return {
    'seconds': {name: statistics.median(found) for name, found in seconds.items()},
    'ratio': timing.ratio(seconds['with'], seconds['without']),
    'flops_ratio': made['with'].flops(rows) / made['without'].flops(rows),
  }


def more_flops(vocab: int, chunk_size: int) -> float:
  """FLOPs of T5-L's step at 512 + 512 tokens with the term, over those without it."""
  config = dataclasses.replace(steps.T5_LARGE, vocab_size=vocab)
  rows = steps.full_rows(config, 1, 512, 512)._replace(mismatched=None)
  added, alone = (
    steps.make(config, algorithm, chunk_size=chunk_size).flops(rows) for algorithm in (WITH, WITHOUT)
  )
  return added / alone


def show(found: dict[str, Any]) -> None:
  for vocab, one in found.items():
    print(f'{vocab} pieces; an array of logits {one["memory"]["logits_bytes"] / 2**20:.0f} MiB')
    for name, temporary in one['memory']['temporary_bytes'].items():
      print(f'  {name:>15} {temporary / 2**20:8.0f} MiB')
    ratio, seconds = one['times']['ratio'], one['times']['seconds']
    print(
      f'  step {seconds["without"]:.3f} s without, {seconds["with"]:.3f} s with: {ratio["median"]:.3f} '
      f'({ratio["low"]:.2f}-{ratio["high"]:.2f}); FLOPs {one["times"]["flops_ratio"]:.3f}, of T5-L '
      f'{one["flops_ratio_t5_large"]:.3f}'
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--vocabularies', type=numbers, default=(32128, 131072), help='pieces')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--batch', type=int, default=4, help='rows of the timed step')
  parser.add_argument('--lengths', type=numbers, default=(64, 64), help='prompt,response tokens of a row')
  parser.add_argument('--chunk_size', type=int, default=32, help='response tokens of each row at once')
  parser.add_argument('--clock', choices=timing.CLOCKS, default='wall', help='cpu: of all cores together')
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  found = {
    vocab: {
      'memory': memory(vocab, 8, 512, options.chunk_size),
      'times': times(vocab, options),
      'flops_ratio_t5_large': more_flops(vocab, options.chunk_size),
    }
    for vocab in options.vocabularies
  }
  print(json.dumps(found)) if options.json else show(found)


if __name__ == '__main__':
  main()
