"""One, two and four processes over the same 8 devices: `python tests/long/processes.py [data|fsdp|...]`.

Each family of meshes trains DRO-V for 8 steps by 1, 2 and 4 processes, validation at the end included. Every
process writes down the examples of each row that it places on its devices: put together, they must be those
of one process, in its order, exactly. What is computed must agree to float32's rounding: it prints the
largest differences. Without a name it does all six families, three minutes each on 2 cores that have nothing
else to do; on busier ones four processes miss gloo's deadline of 30 seconds.
"""

import json
import math
import os
import pathlib
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import faults

STEPS, LIMIT = 8, 1e-3
FAMILIES = {
  'data': ['--gin_file=meshes/data.gin'],
  'fsdp': ['--gin_file=meshes/fsdp.gin'],
  'data_fsdp': ['--gin_file=meshes/data_fsdp.gin'],
  'data_model': ['--gin_file=meshes/data_model.gin'],
  'fsdp_model': ['--gin_file=meshes/fsdp_model.gin'],
  'sequence': ['--gin_file=meshes/fsdp_model.gin', '--gin_file=meshes/sequence.gin'],
}
# What the data alone decide.
EXACT = ('step', 'tokens')
PLACED = 'DRO_JAX_PLACED'  # Names the folder of the rows that each process placed.


def main(folder: pathlib.Path, names: list[str]) -> None:
  faults.write_triplets(folder)
  for name in names or FAMILIES:
    runs, batches = {}, {}
    for processes in (1, 2, 4):
      run = f'{name}_{processes}'
      arguments = faults.command(folder, run, STEPS, program=[__file__])
      arguments += [*FAMILIES[name], '--set', f'EVAL_EVERY={STEPS}']
      os.environ[PLACED] = str(folder / f'{run}_placed')
      faults.finish(arguments, processes, 8 // processes)
      runs[processes] = faults.metrics(folder / run)
      batches[processes] = placed(folder / f'{run}_placed', processes)
    for processes in (2, 4):
      faults.expect(batches[processes], batches[1], f'{name}: examples by batch and row')
      compare(name, processes, runs[1], runs[processes])
    print(f'{name:10} the same examples in every row of {len(batches[1])} batches', flush=True)


def noting() -> None:
  """`dro_jax train`, which writes down the rows that this process places: (first row, examples by row)."""
  import jax
  import numpy as np

  from dro_jax import main as dro_jax_main
  from dro_jax.parallel import partitioning

  place, folder = partitioning.global_batch, pathlib.Path(os.environ[PLACED])

  def noted(grid: Any, local: Any, num_rows: int) -> Any:
    first, _ = partitioning.host_rows(grid, num_rows)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / str(jax.process_index()), 'a') as file:
      file.write(json.dumps([first, np.where(local.valid, local.example_id, -1).tolist()]) + '\n')
    return place(grid, local, num_rows)

  partitioning.global_batch = noted
  dro_jax_main.run()


def placed(folder: pathlib.Path, processes: int) -> list[list[list[int]]]:
  """The examples of every batch by row, from what all processes placed; what several hold is the same."""
  files = [(folder / str(i)).read_text().splitlines() for i in range(processes)]
  batches = []
  for lines in zip(*files, strict=True):
    rows: dict[int, list[int]] = {}
    for first, examples in map(json.loads, lines):
      for i, ids in enumerate(examples, first):
        faults.expect(ids, rows.setdefault(i, ids), f'row {i} of batch {len(batches)}')
    faults.expect(sorted(rows), list(range(len(rows))), f'rows of batch {len(batches)}')
    batches.append([rows[i] for i in range(len(rows))])
  return batches


def compare(name: str, processes: int, one: list[dict], several: list[dict]) -> None:
  """Prints the largest difference of each kind of number, relative to 1 and its size."""
  worst = {}
  for a, b in zip(one, several, strict=True):
    faults.expect(sorted(b), sorted(a), f'{name}: what is recorded of step {a["step"]}')
    faults.expect([b.get(key) for key in EXACT], [a.get(key) for key in EXACT], f'{name}: data')
    for key in a.keys() - set(EXACT):
      faults.expect(math.isfinite(a[key]) and math.isfinite(b[key]), True, f'{name}: {key} is finite')
      worst[key] = max(worst.get(key, 0), abs(a[key] - b[key]) / (1 + abs(a[key])))
  largest = max(worst, key=worst.get)
  said = f'loss {worst["loss"]:.1e}, reward {worst["reward"]:.1e}, largest {largest} {worst[largest]:.1e}'
  print(f'{name:10} {processes} processes and 1: {len(one)} records; {said}', flush=True)
  faults.expect(worst['reward'] < 1e-6 and worst[largest] < LIMIT, True, f'{name} with {processes} processes')


if __name__ == '__main__' and sys.argv[1:2] == ['train']:
  noting()
elif __name__ == '__main__':
  with tempfile.TemporaryDirectory() as place:
    main(pathlib.Path(place), sys.argv[1:])
