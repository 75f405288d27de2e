"""Ctrl-C in every phase of every command that lasts: `python tests/long/interrupts.py [train table ...]`.

    train      as it compiles, steps, validates: exit 75, one sentence, a checkpoint; the command goes on.
    table      as a run tokenises its triplets: exit 130, one sentence, nothing half-written.
    others     evaluate, generate and arena: exit 130, one sentence, no result that looks whole.
    twice      a second Ctrl-C within a compilation ends the run in a second, exit 130.
    processes  Ctrl-C in both of two processes: the same step is saved in both, exit 75.

Without a name it does all five, in about ten minutes on 2 cores. It prints what it saw, and fails at the
first thing that is not so.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import faults

# A job in the background ignores Ctrl-C, which is meant for what is in front.
FRONT = (
  '-c',
  'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '
  'from dro_jax import main; main.run()',
)


def main(folder: pathlib.Path, names: list[str]) -> None:
  faults.write_triplets(folder)
  for name in names or ('train', 'table', 'others', 'twice', 'processes'):
    globals()[name](folder)


def train(folder: pathlib.Path) -> None:
  for phase in ('compiling', 'stepping', 'validating'):
    arguments = run_of(folder, phase)
    wanted = {'compiling': 'starting: ', 'stepping': 'step 3 ', 'validating': 'step 99 '}[phase]
    code, text, seconds = pressed(arguments, wanted)
    faults.expect(code, 75, f'{phase}: {text[-2000:]}')
    faults.expect('stopped by Ctrl-C after step' in text, True, text[-2000:])
    saved = faults.newest(folder / phase)
    faults.expect(saved is not None, True, f'{phase}: a checkpoint')
    faults.finish(run_of(folder, phase, steps=saved + 2))
    print(
      f'Ctrl-C while {phase}: exit 75 after {seconds:.1f} s, step {saved} is saved, and goes on', flush=True
    )


def table(folder: pathlib.Path) -> None:
  cache = folder / 'fresh'
  arguments = faults.command(folder, 'table', 100, cache='fresh', program=FRONT)
  code, text, seconds = pressed(arguments, lambda: any(path.is_dir() for path in cache.glob('.building-*')))
  faults.expect(code, 130, text[-2000:])
  left = [path.name for path in cache.iterdir()]
  faults.expect(left, [], 'what is left in the cache of tables')
  faults.expect((folder / 'table').exists(), False, 'the folder of a run that has not begun')
  print(f'Ctrl-C while a table is built: exit 130 after {seconds:.1f} s, nothing is left', flush=True)


def others(folder: pathlib.Path) -> None:
  run, files = folder / 'base', f'--triplets={folder / "triplets.jsonl"}'
  faults.finish(faults.command(folder, 'base', 2))
  out, cache = folder / 'answers.jsonl', f'--set=CACHE_DIR={folder / "tables"}'
  commands = {
    'evaluate': [f'--model_dir={run}', files, cache],
    'generate': [f'--model_dir={run}', files, f'--output={out}', '--set=SAMPLES=100'],
    'arena': ['--suite=exact', f'--model_dir={folder / "arena"}'],
  }
  for name, arguments in commands.items():
    began = time.monotonic()
    code, text, seconds = pressed(
      [sys.executable, *FRONT, name, *arguments], lambda began=began: time.monotonic() - began > 12
    )
    faults.expect(code, 130, f'{name}: {text[-2000:]}')
    # generate goes on from answers.jsonl.partial.
    left = [*folder.glob('*.tmp'), *folder.glob('answers.jsonl')]
    faults.expect(left, [], f'what {name} left')
    print(f'Ctrl-C in {name}: exit 130 after {seconds:.1f} s', flush=True)


def twice(folder: pathlib.Path) -> None:
  code, text, seconds = pressed(run_of(folder, 'twice'), 'starting: ', times=2)
  faults.expect(code, 130, text[-2000:])
  faults.expect(seconds < 5, True, f'{seconds:.1f} s after the second Ctrl-C')
  print(f'Ctrl-C twice while a step compiles: exit 130 after {seconds:.1f} s', flush=True)


def processes(folder: pathlib.Path) -> None:
  arguments = run_of(folder, 'two', steps=100_000)
  runs = faults.start_all(arguments, 2, 2)
  while not (folder / 'two' / 'metrics.jsonl').exists():
    faults.expect([run.poll() for run in runs], [None, None], 'two processes under way')
    time.sleep(0.1)
  for run in runs:
    run.send_signal(signal.SIGINT)
  faults.expect([run.wait(timeout=120) for run in runs], [75, 75], 'exit codes of two processes')
  print(f'Ctrl-C in both of two processes: exit 75, step {faults.newest(folder / "two")} is saved')


def run_of(folder: pathlib.Path, name: str, steps: int = 1000) -> list[str]:
  return faults.command(folder, name, steps, program=FRONT)


def pressed(arguments: list[str], when: str | Callable[[], bool], times: int = 1) -> tuple[int, str, float]:
  """Presses Ctrl-C when a text is printed, or a condition holds: (exit code, text, seconds after)."""
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PYTHONPATH': str(faults.ROOT)}
  with tempfile.TemporaryFile('w+') as log:
    run = subprocess.Popen(arguments, cwd=faults.ROOT, env=environment, stdout=log, stderr=log)

    def said() -> str:
      log.seek(0)
      return log.read()

    holds = (lambda: when in said()) if isinstance(when, str) else when
    while run.poll() is None and not holds():
      time.sleep(0.005)
    for _ in range(times):
      began = time.monotonic()
      run.send_signal(signal.SIGINT)
      time.sleep(0.5)
    code = run.wait(timeout=240)
    seconds, text = time.monotonic() - began, said()
  faults.expect('Traceback' in text, False, text[-3000:])
  return code, text, seconds


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as place:
    main(pathlib.Path(place), sys.argv[1:])
