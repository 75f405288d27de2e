"""The scripts beside this file, each in a process of its own, shorter than by default where that is enough.

Two of them start four processes that have to answer each other in time, so that nothing else may compute.
"""

import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent
SKIPPED = 77  # The exit code of a script that lacks what it tries.
# What each is started with, and the minutes after which it hangs.
RUNS = {
  'answers.py': 20,
  'faults.py kill=6': 15,
  'faults.py causal=3': 15,
  'faults.py lora=3': 15,
  'faults.py counts=3': 25,
  'faults.py peer': 10,
  'faults.py disk': 10,
  'interrupts.py': 30,
  'local_launch.py': 10,
  'processes.py sequence': 20,
  'fuzz_readers.py --minutes=2': 6,
  'table_memory.py --megabytes=400': 10,
  'convert_memory.py': 20,
  'sharded_restore.py': 20,
  'stages.py': 20,
  'slurm.py': 30,
  'loss_peers.py': 10,
  'beam_runners.py': 10,
}
ALONE = {'faults.py counts=3', 'processes.py sequence'}


def program(run):
  return run.partition(' ')[0]


@pytest.mark.long
@pytest.mark.parametrize(
  'run', [pytest.param(run, marks=pytest.mark.alone) if run in ALONE else run for run in RUNS]
)
def test_script_finds_no_fault(run, tmp_path):
  if run == 'faults.py disk' and os.geteuid():
    pytest.skip('only root may mount the disk that is filled')
  name, *arguments = run.split()
  # The tests' own settings of XLA are not a run's.
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  environment |= {'TMPDIR': str(tmp_path), 'PYTHONPATH': str(FOLDER.parents[1])}
  done = subprocess.run(
    [sys.executable, FOLDER / name, *arguments], env=environment, cwd=tmp_path, timeout=60 * RUNS[run],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip
  if done.returncode == SKIPPED:
    pytest.skip(done.stdout.strip())
  assert done.returncode == 0, done.stdout[-5000:]


def test_every_script_is_run():
  scripts = {path.name for path in FOLDER.glob('*.py') if not path.name.startswith('test_')}
  assert scripts == set(map(program, RUNS))
