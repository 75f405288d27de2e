"""What a pod does to a run in its first night: `python tests/long/faults.py [NAME ...]`.

    kill     SIGKILL at 50 random instants (building the table, compiling, stepping, saving): the final state,
             metrics and samples are those of the undisturbed run, to the bit. About 15 minutes on 2 cores;
             kill=10 kills ten times.
    causal   the same with a decoder-only model, 15 times.
    lora     the same with adapters of a decoder-only model, whose reference is the base, 15 times.
    counts   the same with 1, 2 and 4 processes in turn, over 4 devices: the same examples in every batch, and
             numbers to float32's rounding. About 8 minutes; counts=3 kills each number once.
    peer     SIGKILL of one process of two, either one: the other ends by itself, in the time stated.
    disk     a full disk and a read-only one (needs root, for a mount of its own): exit 1 with a sentence, and
             the same command goes on once there is room.

Without a name it does all of them. It prints what it saw, and fails at the first thing that is not so.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from dro_jax.parallel import processes as cluster  # noqa: E402

KILLS, STEPS = 50, 1000
SETTINGS = (
  'BATCH=8 LOG_EVERY=1 EVAL_EVERY=100 KL_PROMPTS=0 CHECKPOINT_EVERY=20 VALIDATION_FRACTION=0.2 '
  'PROMPT_LENGTH=32 RESPONSE_LENGTH=16 POLICY_LEARNING_RATE=1e-3 VALUE_LEARNING_RATE=1e-3'
)


def main(folder: pathlib.Path, names: list[str]) -> None:
  write_triplets(folder)
  for text in names or ('kill', 'causal', 'lora', 'counts', 'peer', 'disk'):
    name, _, times = text.partition('=')
    globals()[name](folder, *([int(times)] if times else []))


def write_triplets(folder: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  with open(folder / 'triplets.jsonl', 'w') as file:
    for i in range(4000):
      words = ' '.join(rng.choice(['good', 'bad', 'fair', 'odd'], rng.integers(1, 4)))
      record = {'id': f'r{i}', 'prompt': f'say {rng.integers(400)}', 'response': words}
      file.write(json.dumps(record | {'reward': float(rng.normal())}) + '\n')


def causal(folder: pathlib.Path, times: int = 15) -> None:
  kill(folder, times, 'causal')


def lora(folder: pathlib.Path, times: int = 15) -> None:
  make_base(folder)
  kill(folder, times, 'lora')


def make_base(folder: pathlib.Path) -> None:
  """A decoder-only model that adapters start from."""
  finish(command(folder, 'base', 10, kind='causal'))


def kill(folder: pathlib.Path, times: int = KILLS, kind: str = 't5') -> None:
  """Kills a run over and over; compares it with an undisturbed one."""
  began, whole, killed = time.monotonic(), f'whole_{kind}', f'killed_{kind}'
  finish(command(folder, whole, STEPS, kind=kind))
  print(f'undisturbed: {STEPS} steps in {time.monotonic() - began:.0f} s', flush=True)
  chosen, seen, kills = random.Random(0), {}, 0
  while kills < times:
    # A new table cache now and then: or tables would be built in the first run alone.
    cache = f'tables_{kind}_{kills // 10}'
    phase = (
      chosen.choice(['anything', 'compiling', 'starting', 'stepping', 'stepping', 'saving'])
      if kills % 10
      else 'building'
    )
    run = start(command(folder, killed, STEPS, cache, kind=kind))
    reached = wait_for(run, PHASES[phase], folder / killed, folder / cache)
    time.sleep(
      chosen.uniform(
        0, {'starting': 2.0, 'stepping': 1.0, 'compiling': 8.0, 'anything': 8.0}.get(phase, 0.05)
      )
    )
    if run.poll() is not None:
      break
    run.send_signal(signal.SIGKILL)
    run.wait()
    kills += 1
    seen[phase if reached else 'anything'] = seen.get(phase if reached else 'anything', 0) + 1
    print(
      f'kill {kills} in {phase}{"" if reached else " (missed)"}: step {newest(folder / killed)}', flush=True
    )
  finish(command(folder, killed, STEPS, kind=kind))
  same_to_the_bit(folder / whole, folder / killed)
  print(f"{kind}: {kills} kills {seen}: state, metrics and samples are the undisturbed run's to the bit")
  expect(kills, times, 'kills before the run was done (raise STEPS)')


# From the run's folder, the tables' and the time when the process was started.
PHASES: dict[str, Callable[[pathlib.Path, pathlib.Path, float], bool]] = {
  'anything': lambda run, cache, since: True,
  'building': lambda run, cache, since: any(cache.glob('.building-*')),
  'compiling': lambda run, cache, since: any(cache.glob('triplets-*')),
  'starting': lambda run, cache, since: has_stepped(run, since),
  'stepping': lambda run, cache, since: any(
    changed(path) > since for path in (run / 'checkpoints').glob('*') if path.name.isdigit()
  ),
  'saving': lambda run, cache, since: any(
    changed(path) > since for path in (run / 'checkpoints').glob('*.orbax-checkpoint-tmp')
  ),
}


def has_stepped(run: pathlib.Path, since: float) -> bool:
  """Whether there are records of a later step than the newest checkpoint's, of this process."""
  file = run / 'metrics.jsonl'
  if not file.exists() or changed(file) < since:
    return False
  whole = file.read_bytes().rpartition(b'\n')[0].splitlines()
  return bool(whole) and json.loads(whole[-1])['step'] > (newest(run) or 0)


def changed(path: pathlib.Path) -> float:
  """When; long ago for what is no more."""
  try:
    return path.stat().st_mtime
  except FileNotFoundError:
    return 0.0


def wait_for(run: subprocess.Popen, reached: Callable, *folders: pathlib.Path) -> bool:
  """Until a phase is reached, or the run ends, or so long that it is not."""
  since = time.time()
  deadline = time.monotonic() + 40
  while time.monotonic() < deadline and run.poll() is None:
    if reached(*folders, since):
      return True
    time.sleep(0.005)
  return False


def counts(folder: pathlib.Path, times: int = 6) -> None:
  """Goes on with other numbers of processes."""
  steps, chosen, numbers = 300, random.Random(1), (2, 4, 1, 2, 1, 4)[:times]
  finish(command(folder, 'four_devices', steps), processes=1, devices=4)
  for kills, processes in enumerate(numbers):
    runs = start_all(command(folder, 'moved', steps), processes, 4 // processes)
    goal = (newest(folder / 'moved') or 0) + 20
    while (newest(folder / 'moved') or 0) < goal and all(run.poll() is None for run in runs):
      time.sleep(0.05)
    time.sleep(chosen.uniform(0, 0.5))
    kill_all(runs)
    print(f'kill {kills + 1} with {processes} processes: step {newest(folder / "moved")}', flush=True)
  finish(command(folder, 'moved', steps), processes=2, devices=2)
  whole, moved = metrics(folder / 'four_devices'), metrics(folder / 'moved')
  for a, b in zip(whole, moved, strict=True):
    expect(
      [a[name] for name in ('step', 'tokens') if name in a], [b[n] for n in ('step', 'tokens') if n in b]
    )
    np.testing.assert_allclose(a.get('reward', 0), b.get('reward', 0), rtol=1e-6, atol=1e-7)
  worst = max(abs(a['loss'] - b['loss']) / (abs(a['loss']) + 1) for a, b in zip(whole, moved) if 'loss' in a)
  expect(worst < 1e-3, True, f'losses agree to {worst:.1e}')
  print(
    f'{len(numbers)} kills at {sorted(set(numbers))} processes: the same examples in all {steps} batches, '
    f'losses to {worst:.1e}'
  )


def peer(folder: pathlib.Path) -> None:
  """Waits for the one that is left; nobody but jax tells it."""
  for victim in (0, 1):
    runs = start_all(command(folder, f'peer{victim}', 100_000), 2, 2)
    while newest(folder / f'peer{victim}') is None:
      expect([run.poll() for run in runs], [None, None], 'two processes under way')
      time.sleep(0.05)
    runs[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    code = runs[1 - victim].wait(timeout=cluster.HEARTBEAT_SECONDS + 20)
    runs[victim].wait()
    expect(code != 0, True, 'a run that lost a process has not done well')
    print(
      f'process {victim} of 2 killed: the other ended in {time.monotonic() - began:.0f} s, exit code {code}'
    )


def disk(folder: pathlib.Path) -> None:
  """Fills a disk of 6 MB, and takes the leave to write away."""
  place = folder / 'disk'
  place.mkdir()
  with mounted(place):
    full = said(command(folder, 'disk/run', 60), code=1)
    expect('No space left on device' in full and 'the same command resumes' in full, True, full)
    saved = newest(place / 'run')
    mount('-o', 'remount,size=60m', str(place))
    finish(command(folder, 'disk/run', 60))
    print(f'a full disk: "{full[:160]}..."; then on from step {saved} to {newest(place / "run")}')
    mount('-o', 'remount,ro', str(place))
    for name in ('disk/run', 'disk/other'):
      refused = said(command(folder, name, 80), code=2)
      expect('Read-only file system' in refused, True, refused)
    print(f'a read-only disk: "{refused[:160]}"')


@contextlib.contextmanager
def mounted(place: pathlib.Path) -> Iterator[None]:
  mount('-t', 'tmpfs', '-o', 'size=6m', 'tmpfs', str(place))
  try:
    yield
  finally:
    subprocess.run(['umount', str(place)], check=True)


def mount(*arguments: str) -> None:
  subprocess.run(['mount', *arguments], check=True)


# A run

KINDS = {
  't5': ['models/t5_1_1_tiny.gin'],
  'causal': ['models/causal_tiny.gin'],
  'lora': ['models/causal_tiny.gin', 'adapters/lora.gin'],
}


def command(
  folder: pathlib.Path,
  name: str,
  steps: int,
  cache: str = 'tables',
  program: Sequence[str] = ('-m', 'dro_jax.main'),
  kind: str = 't5',
) -> list[str]:
  settings = f'{SETTINGS} STEPS={steps} CACHE_DIR={folder / cache}'.split()
  paths = [f'--triplets={folder / "triplets.jsonl"}', f'--model_dir={folder / name}']
  sets = [word for setting in settings for word in ('--set', setting)]
  model = [f'--gin_file={file}' for file in KINDS[kind]]
  start = [f'--init_from={folder / "base"}'] if kind == 'lora' else []
  return [sys.executable, *program, 'train', *model, *start, *paths, *sets]


def start(arguments: list[str], devices: int = 1, cluster: str = '') -> subprocess.Popen:
  """A process whose compilations are kept, for they are most of its time."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices), 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT),
    'JAX_COMPILATION_CACHE_DIR': str(pathlib.Path(tempfile.gettempdir()) / 'faults_compiled'),
    'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }  # fmt: skip
  environment |= {'DRO_JAX_CLUSTER': cluster} if cluster else {}
  with open(pathlib.Path(tempfile.gettempdir()) / 'faults.log', 'a') as log:
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log, stderr=log)


def start_all(arguments: list[str], processes: int, devices: int) -> list[subprocess.Popen]:
  if processes == 1:
    return [start(arguments, devices)]
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  return [start(arguments, devices, f'{i}/{processes}@localhost:{port}') for i in range(processes)]


def kill_all(runs: list[subprocess.Popen]) -> None:
  for run in runs:
    run.send_signal(signal.SIGKILL)
  for run in runs:
    run.wait()


def finish(arguments: list[str], processes: int = 1, devices: int = 1) -> None:
  for run in start_all(arguments, processes, devices):
    expect(run.wait(), 0, 'a run that nothing disturbs')


def said(arguments: list[str], code: int) -> str:
  """A run's last words, on a failure that is expected."""
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
  expect(done.returncode, code, done.stderr[-2000:])
  return next(line for line in done.stderr.splitlines() if line.startswith('dro_jax:'))


# What a run leaves


def newest(run: pathlib.Path) -> int | None:
  return max(
    (int(path.name) for path in (run / 'checkpoints').glob('*') if path.name.isdigit()), default=None
  )


def metrics(run: pathlib.Path, name: str = 'metrics.jsonl') -> list[dict]:
  """Records without what a clock says."""
  lines = (run / name).read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if not k.startswith('time/')} for line in lines]


def same_to_the_bit(a: pathlib.Path, b: pathlib.Path, steps: int | None = None) -> None:
  for name in ('metrics.jsonl', 'samples.jsonl'):
    for x, y in zip(metrics(a, name), metrics(b, name), strict=True):
      expect(y, x, f'{name} of step {x["step"]}')
  digests = [
    json.loads((run / f'checkpoints/{steps or STEPS}/metadata/metadata').read_text())['digest']
    for run in (a, b)
  ]
  expect(digests[1], digests[0], 'parameters and optimiser')


def expect(found, wanted, what: str = '') -> None:
  if found != wanted:
    sys.exit(f'FAILED: {what}: {found!r}, and not {wanted!r}')


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as place:
    main(pathlib.Path(place), sys.argv[1:])
