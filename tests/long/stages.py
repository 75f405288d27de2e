"""The stages after a run, killed: `python tests/long/stages.py [generate score judge ...]`.

A LoRA run of a decoder-only model answers prompts, a reward scores answers, and a judge behind an endpoint
compares two files. Each stage is killed by SIGKILL at ten random instants and then finished: thirty kills.

    generate   the file is the undisturbed call's, to the byte, and each call draws only what is missing
    score      the same; no answer is scored again but those of the batch that was in flight at a kill
    judge      no request is sent twice; with RESEND=true those in flight at a kill are, once; the table is
               that of an undisturbed call

Without a name it does all three; generate=5 kills five times. Some six minutes on one core.
"""

import collections
import json
import os
import pathlib
import random
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import answers
import faults

from tests.evaluation.judge import chat_server, kills

KILLS, BATCH, CONCURRENCY, RESAMPLES = 10, 4, 6, 20
REWARD = """
import time


def paid(prompts, responses):
  with open({log!r}, 'a') as file:
    file.writelines(f'{{prompt}}|{{response!r}}\\n' for prompt, response in zip(prompts, responses))
  time.sleep(0.02)
  return [float(len(response) % 5) for response in responses]
"""


def main(folder: pathlib.Path, names: list[str]) -> None:
  train_run(folder)
  for text in names or ('generate', 'score', 'judge'):
    name, _, times = text.partition('=')
    globals()[name](folder, *([int(times)] if times else []))


def train_run(folder: pathlib.Path) -> None:
  """A LoRA run with three checkpoints."""
  faults.write_triplets(folder)
  faults.make_base(folder)
  train = faults.command(folder, 'run', 30, kind='lora')
  train += ['--set', 'CHECKPOINT_EVERY=10', '--set', 'KEEP_LAST=3', '--set', 'KEEP_BEST=0']
  faults.finish([*train, '--set', 'BEST_METRIC=None', '--set', 'EVAL_EVERY=0'])


def generate(folder: pathlib.Path, times: int = KILLS) -> None:
  answers.kill(folder, times)


def called(name: str, *arguments: object) -> list[str]:
  return [sys.executable, '-m', 'dro_jax.main', name, *map(str, arguments)]


def write_answers(path: pathlib.Path, count: int, text: str) -> pathlib.Path:
  rows = [{'id': f'a{i}', 'prompt': f'say {i}', 'response': f'{text} {i}'} for i in range(count)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def score(folder: pathlib.Path, times: int = KILLS) -> None:
  """Kills it after a random number of paid batches, or while it starts."""
  source, chosen = write_answers(folder / 'a.jsonl', 400, 'an answer'), random.Random(1)
  line = {}
  for name in ('whole', 'killed'):
    (folder / f'{name}_reward.py').write_text(REWARD.format(log=str(folder / f'{name}.paid')))
    (folder / name).mkdir()
    # One name for both: the reward is part of what is written beside the output.
    os.replace(folder / f'{name}_reward.py', folder / name / 'reward.py')
    reward = f'--reward={folder / name / "reward.py"}:paid'
    line[name] = called(
      'score', source, reward, f'--output={folder / name / "scored.jsonl"}', f'--set=BATCH={BATCH}'
    )
  faults.finish(line['whole'])
  paid = folder / 'killed.paid'
  for i in range(times):
    run, before = faults.start(line['killed']), answers.count(paid)
    goal = before + BATCH * chosen.randrange(1, 8) if i % 4 else None
    deadline = time.monotonic() + (60 if goal else chosen.uniform(0, 3))
    while time.monotonic() < deadline and run.poll() is None and not (goal and answers.count(paid) >= goal):
      time.sleep(0.002)
    time.sleep(chosen.uniform(0, 0.03))
    faults.expect(run.poll(), None, 'it was killed before its end')
    run.kill()
    run.wait()
    print(f'score, kill {i + 1}: {answers.count(paid)} paid so far', flush=True)
  faults.finish(line['killed'])
  compare_scores(folder, times)


def compare_scores(folder: pathlib.Path, times: int) -> None:
  files = [(folder / name / 'scored.jsonl').read_bytes() for name in ('whole', 'killed')]
  faults.expect(files[1] == files[0], True, 'the scored file is the undisturbed one')
  counted = collections.Counter((folder / 'killed.paid').read_text().splitlines())
  again = sum(counted.values()) - len(counted)
  faults.expect((len(counted), again <= BATCH * times), (400, True), f'{again} answers scored again')
  print(
    f'score, {times} kills: the undisturbed file to the byte; {again} of 400 were in flight and scored again'
  )


def reply(number: int, message: str) -> str:
  """A verdict that depends on the texts alone, after a while."""
  time.sleep(random.Random(number).uniform(0.01, 0.06))
  _, first, second = chat_server.shown(message)
  better = sum(map(ord, first)) % 7 >= sum(map(ord, second)) % 7
  return f'Verdict: {"A" if better else "B"}'


def judge(folder: pathlib.Path, times: int = KILLS) -> None:
  """Kills it at a random instant after a request has arrived."""
  sides = [write_answers(folder / f'{name}.jsonl', 300, name) for name in ('one', 'other')]

  def line(output: str, url: str, *more: str) -> list[str]:
    settings = [
      f'BASE_URL={url}',
      'JUDGE_MODEL=m',
      f'CONCURRENCY={CONCURRENCY}',
      f'RESAMPLES={RESAMPLES}',
      *more,
    ]
    sets = [f'--set={setting}' for setting in settings]
    return called('judge', *sides, f'--output={folder / output}', '--json', *sets)

  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PYTHONPATH': str(faults.ROOT)}
  environment |= {'OPENAI_API_KEY': 'none'}
  os.environ.update(environment)
  with chat_server.serving(reply) as server:
    faults.finish(line('undisturbed', server.url))
    sent = len(server.asked)
  with chat_server.serving(reply) as server:
    kills.kill_often(line('judged', server.url), server, times, random.Random(3), environment, longest=0.3)
    faults.finish(line('judged', server.url))
    lost = kills.check(server, folder / 'judged', CONCURRENCY, times)
    before = kills.counted(server)
    faults.finish(line('judged', server.url, 'RESEND=true'))
    again = kills.counted(server) - before
  faults.expect(
    set(again) <= lost and set(again.values()) <= {1}, True, 'only what was in flight is sent again'
  )
  faults.expect(len(before | again), sent, 'comparisons that were sent')
  tables = [pairs(folder / name) for name in ('undisturbed', 'judged')]
  faults.expect(tables[1], tables[0], 'the table of the undisturbed call')
  print(
    f'judge, {times} kills: {sent} requests, none twice; RESEND sent {len(again)} in flight again; same table'
  )


def pairs(folder: pathlib.Path) -> dict:
  """What a report says of the pairs of sides."""
  return json.loads((folder / 'report.json').read_text())['pairs']


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as place:
    main(pathlib.Path(place), sys.argv[1:])
