"""What each method's step costs beside that of supervised fine-tuning, measured and as its FLOPs predict.

  python benchmarks/methods.py [--json]

All take the same full rows (nothing padded) with the same T5 and AdamW, in turn, round after round; a
multiple is the median over rounds of (the step's seconds / SFT's seconds of the same round).
"""

import argparse
import dataclasses
import json
import statistics
from typing import Any

import steps
import timing
from arguments import pair

from dro_jax import algorithms

# Name: algorithm, and what `steps.make` takes.
METHODS = {
  'SFT': (algorithms.sft, {}),
  'BCO (KTO without mismatched pairs)': (algorithms.bco, {}),
  'KTO': (algorithms.kto, {}),
  'KTO, cached reference': (algorithms.kto, {'cached': True}),
  'DRO-V': (algorithms.dro_v, {}),
  'DRO-V, cached reference': (algorithms.dro_v, {'cached': True}),
  'DRO-V, shared trunk': (algorithms.dro_v, {'value': {'shared': True}}),
  'DRO-V, shared trunk, cached': (algorithms.dro_v, {'value': {'shared': True}, 'cached': True}),
  'DRO-V, token value': (algorithms.dro_v, {'value': {'readout': 'token'}}),
}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
  """One row of the table for each method."""
  config = steps.slice_of(dataclasses.replace(steps.T5_LARGE, dtype=options.dtype), options.layers)
  rows, large = (steps.full_rows(of, options.batch, *options.lengths) for of in (config, steps.T5_LARGE))
  calls, flops, large_flops = {}, {}, {}
  for name, (algorithm, settings) in METHODS.items():
    subject, mine = steps.make(config, algorithm(), **settings), steps.for_algorithm(rows, algorithm())
    calls[name], flops[name] = steps.compiled(subject, mine), subject.flops(mine)
    of_large = steps.make(steps.T5_LARGE, algorithm(), **settings)
    large_flops[name] = of_large.flops(steps.for_algorithm(large, algorithm()))
  seconds = timing.interleaved(calls, options.rounds, clock=options.clock)
  return [_row(name, seconds, flops, large_flops) for name in METHODS]


def _row(name: str, seconds: dict, flops: dict, large_flops: dict) -> dict[str, Any]:
  multiple = timing.ratio(seconds[name], seconds['SFT'])
  predicted = flops[name] / flops['SFT']
  return {
    'method': name, 'seconds': statistics.median(seconds[name]), 'flops': flops[name],
    'multiple': multiple, 'predicted': predicted, 'off_by': multiple['median'] / predicted - 1,
    'predicted_t5_large': large_flops[name] / large_flops['SFT'],
  }  # fmt: skip


def show(found: list[dict[str, Any]]) -> None:
  print(f'{"":36} seconds  multiple  quartiles   FLOPs  off by  GFLOP/s  FLOPs of T5-L')
  for row in found:
    multiple, predicted = row['multiple'], row['predicted']
    print(
      f'{row["method"]:36} {row["seconds"]:7.3f}  {multiple["median"]:8.3f}  '
      f'{multiple["low"]:.2f}-{multiple["high"]:.2f} {predicted:9.3f}  {row["off_by"]:+6.1%}  '
      f'{row["flops"] / row["seconds"] / 1e9:7.0f}  {row["predicted_t5_large"]:13.3f}'
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--batch', type=int, default=8, help='rows')
  parser.add_argument('--lengths', type=pair, default=(128, 128), help='prompt,response tokens of a row')
  parser.add_argument('--layers', type=int, default=1, help="of T5-L's 24 a side, with as much vocabulary")
  parser.add_argument('--dtype', default='float32', help='of activations')
  parser.add_argument('--clock', choices=timing.CLOCKS, default='wall', help='cpu: of all cores together')
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  found = measure(options)
  print(json.dumps({'methods': found})) if options.json else show(found)


if __name__ == '__main__':
  main()
