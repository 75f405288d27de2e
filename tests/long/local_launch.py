"""A real `train` over two processes through the launcher: undisturbed, stopped, and with a dead peer.

`python tests/long/local_launch.py [FOLDER]` takes three minutes on 2 cores. It fails unless the run that was
stopped (SIGTERM to the launcher, exit 75) and resumed has the undisturbed run's metrics to the bit, and a run
one of whose processes is killed ends within the launcher's stated time.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 40
SETTINGS = (
  f'STEPS={STEPS} BATCH=4 LOG_EVERY=1 EVAL_EVERY=0 KL_PROMPTS=0 CHECKPOINT_EVERY=0 VALIDATION_FRACTION=0 '
  'PROMPT_LENGTH=16 RESPONSE_LENGTH=16 CACHE_DIR=tables'
)
PEER_SECONDS, GRACE_SECONDS = 5, 5


def main(folder: pathlib.Path) -> None:
  rows = [{'prompt': f'say {i % 10}', 'response': f'word {i}', 'reward': i % 3} for i in range(40)]
  (folder / 'triplets.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  whole = started(folder, 'whole')
  began = time.monotonic()
  expect(whole.wait(), 0, 'an undisturbed run')
  print(f'undisturbed: {STEPS} steps, exit 0, {time.monotonic() - began:.0f} s')
  stop_and_resume(folder)
  kill_a_peer(folder)


def started(folder: pathlib.Path, name: str) -> subprocess.Popen:
  """A launched run, under way."""
  job = ['--job=local', '--job.platform=cpu', '--job.devices=2', f'--job.peer_seconds={PEER_SECONDS}']
  job += [f'--job.grace_seconds={GRACE_SECONDS}', '--']
  train = ['train', '--triplets=triplets.jsonl', f'--model_dir={name}', '--gin_file=models/t5_1_1_tiny.gin']
  train += [f'--set={setting}' for setting in SETTINGS.split()]
  return subprocess.Popen(
    [sys.executable, str(ROOT / 'launch' / 'launch.py'), *job, *train],
    cwd=folder,
    env={**os.environ, 'XLA_FLAGS': ''},
    stdout=subprocess.DEVNULL,
    stderr=open(folder / f'{name}.log', 'a'),
  )


def stop_and_resume(folder: pathlib.Path) -> None:
  run = started(folder, 'stopped')
  wait_for_steps(folder / 'stopped', run, 3)
  began = time.monotonic()
  run.send_signal(signal.SIGTERM)
  expect(run.wait(), 75, 'a run that got SIGTERM')
  at = len(metrics(folder / 'stopped'))
  print(f'SIGTERM: exit 75 in {time.monotonic() - began:.1f} s, after step {at} of {STEPS}')
  expect(at < STEPS, True, 'it was stopped before its end')
  expect(started(folder, 'stopped').wait(), 0, 'the resumed run')
  same = metrics(folder / 'stopped') == metrics(folder / 'whole')
  print(f'resumed: exit 0, {STEPS} records equal to the undisturbed run: {same}')
  expect(same, True, 'a resumed run is the undisturbed one')


def kill_a_peer(folder: pathlib.Path) -> None:
  run = started(folder, 'killed')
  wait_for_steps(folder / 'killed', run, 3)
  children = subprocess.run(['pgrep', '-P', str(run.pid)], capture_output=True, text=True).stdout.split()
  expect(len(children), 2, 'the processes of a run')
  began = time.monotonic()
  os.kill(int(children[1]), signal.SIGKILL)
  code, seconds = run.wait(), time.monotonic() - began
  print(f'a peer killed: exit {code} in {seconds:.1f} s, of {PEER_SECONDS + GRACE_SECONDS} s stated')
  expect(code, 137, 'a run whose process was killed')
  expect(seconds < PEER_SECONDS + GRACE_SECONDS + 2, True, 'the others end in time')


def wait_for_steps(model_dir: pathlib.Path, run: subprocess.Popen, count: int) -> None:
  while len(metrics(model_dir)) < count:
    if run.poll() is not None:
      sys.exit(f'{model_dir.name} ended with {run.returncode}: see {model_dir}.log')
    time.sleep(0.1)


def metrics(model_dir: pathlib.Path) -> list[dict]:
  """A run's records, but for how long things took."""
  file = model_dir / 'metrics.jsonl'
  records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
  return [{k: v for k, v in record.items() if not k.startswith('time/')} for record in records]


def expect(found: object, wanted: object, what: str) -> None:
  if found != wanted:
    sys.exit(f'{what}: {found}, not {wanted}')


if __name__ == '__main__':
  if len(sys.argv) > 1:
    main(pathlib.Path(sys.argv[1]))
  else:
    with tempfile.TemporaryDirectory() as scratch:
      main(pathlib.Path(scratch))
