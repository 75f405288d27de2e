"""Runs the arena's suites one after another, and resumes them: the tables of docs/results/arena.md.

  python benchmarks/arena.py --folder=arena --dry_run
  nohup python benchmarks/arena.py --folder=arena > arena.log &

Two commands run at a time, each on a core of its own where the system can tie it to one. What is finished is
not run again, so the same command goes on after an interruption.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures

WORLDS = ('habits', 'another_hand', 'exercises')
LADDER = (
  'dro_p,dro_regressed_value,dro_group_mean,dro_group_leave_one_out_mean,dro_group_log_mean_exp,'
  'dro_group_leave_one_out_log_mean_exp,dro_v,dro_oracle_value'
)
LEADING = 5  # Methods with three seeds, besides DRO-V.


def stages(folder: pathlib.Path, trials: int, draws: int) -> Iterator[list[list[str]]]:
  """Commands by stage; those of a stage may run at the same time.

  The last stage reads what the ones before it found.

  Args:
    folder: each suite has a folder in it.
    trials: of each method of the text suite, on each draw.
    draws: of each world of the text suite.
  """

  def suite(name: str, of: str, *arguments: str) -> list[str]:
    return [f'--suite={of}', f'--model_dir={folder / name}', *arguments]

  def text(world: str, *arguments: str) -> list[str]:
    sizes = ('--set', f'WORLDS={world}', '--set', f'DRAWS={draws}', '--set', f'TRIALS={trials}', '--seeds=1')
    return suite(f'text-{world}', 'text', *sizes, *arguments)

  yield [suite('bandit', 'bandit')]
  yield [text(world) for world in WORLDS] + [
    suite('ladder', 'exact', '--set', 'RESPONSES=(1, 2, 4, 16)', f'--algorithms={LADDER}', '--seeds=1'),
    suite('exact', 'exact', '--widen', '--seeds=1'),
  ]
  yield [suite('axes', 'exact', '--set', axis, '--seeds=1') for axis in AXES]
  yield [
    text(world, '--set', 'REPEATS=2', f'--algorithms={",".join(leading(folder / f"text-{world}"))}')
    for world in WORLDS
  ]


AXES = ('NOISE=(0.0, 1.0)', 'SPREAD=(0.0, 1.0)', 'COVERAGE=(0.5, 1.0)')


def leading(folder: pathlib.Path, most: int = LEADING) -> list[str]:
  """The methods with the greatest mean gain over SFT in a text suite's results, and DRO-V."""
  results = folder / 'results.json'
  if not results.exists():
    return ['dro_v']
  tables = {
    table['title']: table['rows'] for table in json.loads(results.read_text(encoding='utf-8'))['tables']
  }
  gains = {}
  for row in tables.get('Reward less SFT’s, by world and draw', []):
    found = [value['value'] for name, value in row.items() if name != 'method']
    gains[row['method']] = sum(found) / len(found)
  best = sorted(gains, key=lambda name: -gains[name])[:most]
  return list(dict.fromkeys([*best, 'dro_v']))


def run(arguments: Sequence[str], core: int | None) -> int:
  """Runs `dro_jax arena`; returns its exit status."""
  tied = None if core is None else lambda: os.sched_setaffinity(0, {core})
  print('dro_jax arena', *arguments, flush=True)
  command = [sys.executable, '-m', 'dro_jax.main', 'arena', *arguments]
  return subprocess.run(command, preexec_fn=tied).returncode


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--trials', type=int, default=2, help='of each method of the text suite')
  parser.add_argument('--draws', type=int, default=2, help='of each world of the text suite')
  parser.add_argument('--jobs', type=int, default=2, help='commands at a time')
  parser.add_argument('--dry_run', action='store_true', help='tells what would run, and runs nothing')
  given = parser.parse_args()
  # Cells of other draws and seeds run the same programs.
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(given.folder.absolute() / 'compiled'))
  jobs = 1 if given.dry_run else given.jobs
  free: list[int | None] = [*sorted(os.sched_getaffinity(0))] if hasattr(os, 'sched_getaffinity') else []
  cores = free[:jobs] if len(free) >= jobs > 1 else [None] * jobs

  def job(arguments: list[str]) -> int:
    core = cores.pop()
    try:
      return run([*arguments, *(['--dry_run'] if given.dry_run else [])], core)
    finally:
      cores.append(core)

  failed = 0
  with futures.ThreadPoolExecutor(jobs) as pool:
    for stage in stages(given.folder, given.trials, given.draws):
      failed += sum(map(bool, pool.map(job, stage)))
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  main()
