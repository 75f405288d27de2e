"""Sequences a second, MFU and memory of whole steps, on the GPU or TPU that is here.

    python benchmarks/accelerator.py [--models=large,xl] [--lengths=512/128,512/512] [--batch=32] [--json]

Fine-tuning, DRO-V with a live reference and DRO-V with a cached one: bfloat16 activations, float32
parameters, Adafactor, layers scanned and recomputed in the backward pass (`--remat=`). One device: hide the
others (CUDA_VISIBLE_DEVICES=0). MFU counts what the step must compute, without recomputation, against the
device's dense bfloat16 peak, which `--peak=` gives for a device that is not in the table. A step that does
not fit, or fails, is a row that says so. For comparison: NVIDIA's T5X does 75.8 (large) and 21.0 (XL)
sequences a second at 512/128 on an A100, 36-37 % MFU.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
from typing import Any

import jax
import steps
import timing

from dro_jax import algorithms
from dro_jax.costs import slices
from dro_jax.step import optimizers

MODELS = {
  'large': steps.T5_LARGE,
  'xl': dataclasses.replace(steps.T5_LARGE, emb_dim=2048, num_heads=32, mlp_dim=5120),
}
MODELS['tiny'] = steps.slice_of(dataclasses.replace(MODELS['large'], emb_dim=64, num_heads=2, mlp_dim=128), 2)
# Dense bfloat16 operations a second, by the maker's data sheets; TPUs by what they call themselves.
PEAKS = {'A100': 312e12, 'H100': 989e12, 'H200': 989e12} | {
  f'TPU {name}': slices.CHIPS[kind].flops
  for name, kind in {'v4': 'v4', 'v5 lite': 'v5e', 'v5': 'v5p', 'v6 lite': 'v6e'}.items()
}
SUBJECTS = {
  'sft': (algorithms.sft, False),
  'dro_v_live': (algorithms.dro_v, False),
  'dro_v_cached': (algorithms.dro_v, True),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--models', default='large,xl', help=', '.join(MODELS))
  parser.add_argument('--lengths', default='512/128,512/512', help='prompt/response tokens of a row')
  parser.add_argument('--steps', default=','.join(SUBJECTS), help='which steps')
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument(
    '--remat', default=True, type=lambda word: {'true': True, 'false': False}.get(word, word)
  )
  parser.add_argument('--chunk_size', type=int)
  parser.add_argument('--peak', type=float)
  parser.add_argument('--json', action='store_true')
  options = parser.parse_args()
  cells = list(itertools.product(*(x.split(',') for x in (options.models, options.lengths, options.steps))))
  rows = [one(options, *cells[0])] if len(cells) == 1 else [apart(cell) for cell in cells]
  print(json.dumps(rows)) if options.json else show(rows)
  sys.exit(any('failed' in row for row in rows))


def apart(cell: tuple[str, str, str]) -> dict[str, Any]:
  """One row from a process of its own, whose memory holds nothing else and whose peak is the step's.

  Where it fails the row has its exit status; it has said why on standard error.
  """
  names = ('--models', '--lengths', '--steps')
  own = [f'{name}={value}' for name, value in zip(names, cell)]
  done = subprocess.run([sys.executable, *sys.argv, *own, '--json'], stdout=subprocess.PIPE, text=True)
  if done.returncode:
    return dict(zip(('model', 'lengths', 'step'), cell)) | {'failed': done.returncode}
  return json.loads(done.stdout)[0]


def show(rows: list[dict[str, Any]]) -> None:
  for device, peak in {(row['device'], row['peak']) for row in rows if 'failed' not in row}:
    print(f'{device}, peak {peak} operations/s')
  for row in rows:
    what = f'{row["model"]:6} {row["lengths"]:8} {row["step"]:12}'
    if not row.get('fits'):
      print(f'{what} failed: exit {row["failed"]}' if 'failed' in row else f'{what} does not fit')
      continue
    mfu, memory = ('-' if row[name] is None else f'{row[name]:.3g}' for name in ('mfu', 'peak_gib'))
    print(
      f'{what} {row["seconds"]:.4f} s  {row["sequences_per_second"]:.1f} sequences/s  MFU {mfu}  {memory} GiB'
    )


def one(options: argparse.Namespace, model: str, lengths: str, step: str) -> dict[str, Any]:
  """Times one step."""
  make, cached = SUBJECTS[step]
  algorithm, device = make(), jax.devices()[0]
  settings = {'cached': cached, 'chunk_size': options.chunk_size, 'optimizer': optimizers.adafactor}
  config = dataclasses.replace(MODELS[model], dtype=options.dtype, remat=options.remat)
  rows = steps.full_rows(config, options.batch, *map(int, lengths.split('/')))
  rows = steps.for_algorithm(rows, algorithm)
  plain = settings | {'chunk_size': None}  # Chunks are projected once more in the backward pass.
  useful = steps.make(dataclasses.replace(config, remat=False), algorithm, **plain).flops(rows)
  peak = options.peak or peak_of(device)
  row = {'device': device.device_kind, 'peak': peak, 'model': model, 'lengths': lengths, 'step': step}
  try:
    run = steps.compiled(steps.make(config, algorithm, **settings), rows)
    seconds = statistics.median(timing.interleaved({step: run}, options.rounds)[step])
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return row | {'fits': False}
  memory = device.memory_stats()
  return row | {
    'fits': True, 'seconds': seconds, 'sequences_per_second': options.batch / seconds,
    'mfu': peak and useful / (seconds * peak),
    'peak_gib': memory and memory['peak_bytes_in_use'] / 2**30,
  }  # fmt: skip


def peak_of(device: jax.Device) -> float | None:
  """A device's peak by the longest name that fits: a v5e calls itself TPU v5 lite."""
  names = sorted((name for name in PEAKS if name in device.device_kind), key=len)
  return PEAKS[names[-1]] if names else None


if __name__ == '__main__':
  main()
