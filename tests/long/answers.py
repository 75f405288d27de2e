"""`dro_jax generate` as a cluster treats it: `python tests/long/answers.py [kill|processes ...]`.

    kill       SIGKILL at 20 random instants (starting, loading, drawing, putting the file in its place), with
               three checkpoints of a run in one command: the file is the undisturbed call's, to the byte,
               and each call draws only what is missing. About 4 minutes on 2 cores; kill=5 kills five times.
    processes  the same file by 1, 2 and 4 processes over the same 4 devices; two processes are killed on the
               way, and two others go on. About 3 minutes.

Without a name it does both.
"""

import json
import pathlib
import random
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import faults
import numpy as np

KILLS = 20
SETTINGS = 'STEPS=all MAX_LENGTH=16 SAMPLES=2 BATCH=32 REFERENCE_LOGP=run'


def main(folder: pathlib.Path, names: list[str]) -> None:
  faults.write_triplets(folder)
  train = faults.command(folder, 'run', 30)
  train += ['--set', 'CHECKPOINT_EVERY=10', '--set', 'KEEP_LAST=3', '--set', 'KEEP_BEST=0']
  faults.finish([*train, '--set', 'BEST_METRIC=None', '--set', 'EVAL_EVERY=0'])
  for text in names or ('kill', 'processes'):
    name, _, times = text.partition('=')
    globals()[name](folder, *([int(times)] if times else []))


def command(folder: pathlib.Path, output: str) -> list[str]:
  paths = [f'--triplets={folder / "triplets.jsonl"}', f'--model_dir={folder / "run"}']
  sets = [word for setting in SETTINGS.split() for word in ('--set', setting)]
  return [sys.executable, '-m', 'dro_jax.main', 'generate', *paths, *sets, f'--output={folder / output}']


def kill(folder: pathlib.Path, times: int = KILLS) -> None:
  """Kills a call over and over; compares its file with that of an undisturbed call."""
  began = time.monotonic()
  faults.finish(command(folder, 'whole.jsonl'))
  took = time.monotonic() - began
  lines = count(folder / 'whole.jsonl')
  print(f'undisturbed: {lines} answers in {took:.0f} s', flush=True)
  chosen, partial, seen = random.Random(0), folder / 'killed.jsonl.partial', []
  for i in range(times):
    run, before = faults.start(command(folder, 'killed.jsonl')), count(partial)
    # Most kills while it draws: after some more answers, of which there must be enough for all kills.
    goal = before + 1 + chosen.randrange(1, max(2 * lines // times, 2)) if i % 4 else None
    deadline = time.monotonic() + (60 if goal else chosen.uniform(0, took))
    while time.monotonic() < deadline and run.poll() is None and not (goal and count(partial) >= goal):
      time.sleep(0.002)
    run.kill()
    run.wait()
    # The first line has the settings. What was there stays.
    faults.expect(count(partial) >= before or (folder / 'killed.jsonl').exists(), True, 'answers so far')
    seen.append(count(partial))
    print(f'kill {i + 1}: {max(seen[-1] - 1, 0)} answers so far', flush=True)
    if (folder / 'killed.jsonl').exists():
      faults.expect((folder / 'killed.jsonl').read_bytes(), (folder / 'whole.jsonl').read_bytes(), 'the file')
      (folder / 'killed.jsonl').unlink()
  faults.finish(command(folder, 'killed.jsonl'))
  same = (folder / 'killed.jsonl').read_bytes() == (folder / 'whole.jsonl').read_bytes()
  faults.expect(same, True, f'the file after {times} kills is the undisturbed one')
  settings = [json.loads((folder / f'{n}.jsonl.settings').read_text()) for n in ('killed', 'whole')]
  faults.expect(settings[0], settings[1], 'what is said of the file')
  left = [path.name for path in folder.iterdir() if '.partial' in path.name or path.name.endswith('.tmp')]
  faults.expect(left, [], 'unfinished files')
  stamp = (folder / 'killed.jsonl').stat().st_mtime_ns
  faults.finish(command(folder, 'killed.jsonl'))
  faults.expect((folder / 'killed.jsonl').stat().st_mtime_ns, stamp, 'a call for answers that are there')
  print(f'{times} kills: the file is that of an undisturbed call, to the byte')


def processes(folder: pathlib.Path) -> None:
  """Several processes write one file, and go on with it."""
  found = {}
  for number in (1, 2, 4):
    faults.finish(command(folder, f'by{number}.jsonl'), number, 4 // number)
    found[number] = records(folder / f'by{number}.jsonl')
  runs = faults.start_all(command(folder, 'moved.jsonl'), 2, 2)
  while count(folder / 'moved.jsonl.partial') < 300 and all(run.poll() is None for run in runs):
    time.sleep(0.01)
  faults.kill_all(runs)
  before = count(folder / 'moved.jsonl.partial') - 1
  faults.expect(before >= 200, True, f'{before} answers before the kill')
  faults.finish(command(folder, 'moved.jsonl'), 2, 2)
  faults.expect((folder / 'moved.jsonl').read_bytes(), (folder / 'by2.jsonl').read_bytes(), 'by two, killed')
  for number in (2, 4):
    same = [a['response'] == b['response'] for a, b in zip(found[1], found[number], strict=True)]
    # Sums over devices round otherwise, which may tip a sample over.
    faults.expect(np.mean(same) > 0.99, True, f'{number} processes: {np.mean(same):.2%} the same answers')
    for name in ('logp', 'reference_logp'):
      pairs = zip(found[1], found[number], same)
      numbers = np.array([(a[name], b[name]) for a, b, alike in pairs if alike])
      np.testing.assert_allclose(*numbers.T, rtol=1e-4, atol=1e-4)
    print(f'{number} processes and 1: {len(same)} answers, {np.mean(same):.2%} the same, log-probs to 1e-4')
  print(f'two processes killed after {before} answers: two others finish the same file, to the byte')


def records(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def count(path: pathlib.Path) -> int:
  """Whole lines of a file, which may not be there."""
  try:
    return path.read_bytes().count(b'\n')
  except FileNotFoundError:
    return 0


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as place:
    main(pathlib.Path(place), sys.argv[1:])
