"""The recipe of A*-PO on the page of value networks runs as it stands."""

import json
import math
import pathlib
import shlex

import pytest

from dro_jax import main
from tests.docs.test_extend import BLOCK

PAGE = pathlib.Path(__file__).resolve().parents[2] / 'docs/guides/values.md'


def read(file):
  return [json.loads(line) for line in pathlib.Path(file).read_text(encoding='utf-8').splitlines()]


@pytest.mark.long
def test_a_value_from_the_references_samples(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  prompts = [{'prompt': f'say {i}', 'response': 'ab', 'reward': 1} for i in range(8)]
  pathlib.Path('prompts.jsonl').write_text(''.join(f'{json.dumps(prompt)}\n' for prompt in prompts))
  pathlib.Path('my_reward.py').write_text(
    'def score(prompts, responses):\n  return [len(response) / 4 for response in responses]\n'
  )
  tiny = ['--gin_file=models/t5_1_1_tiny.gin', '--set=STEPS=1', '--set=BATCH=8']
  short = ['--set=PROMPT_LENGTH=16', '--set=RESPONSE_LENGTH=16', '--set=VALIDATION_FRACTION=0']
  sft = ['train', '--triplets=prompts.jsonl', '--model_dir=CHECKPOINT', '--gin_file=algorithms/sft.gin']
  assert main.main([*sft, *tiny, *short]) == 0
  section = PAGE.read_text().partition('## A value from the reference')[2]
  blocks = BLOCK.findall(section)
  script = next(text for kind, text in blocks if kind == 'python')
  lines = [line for kind, text in blocks if kind == 'sh' for line in text.replace('\\\n', ' ').splitlines()]
  generate, run, train = map(shlex.split, lines)
  assert run == ['python', 'value_of_samples.py'] and script.startswith('# value_of_samples.py\n')
  assert main.main([*generate[1:], '--set', 'MAX_LENGTH=4']) == 0
  # Bytes of an untrained model may be NUL, which no triplet may hold.
  drawn = pathlib.Path('samples.jsonl')
  drawn.write_text(drawn.read_text(encoding='utf-8').replace('\\u0000', '0'), encoding='utf-8')
  exec(compile(script, 'value_of_samples.py', 'exec'), {})
  samples, records = map(read, ('samples.jsonl', 'log.jsonl'))
  assert len(samples) == 64
  assert [record['id'] for record in records] == [each['id'] for each in samples if each['response'].strip()]
  for record in records:
    rewards = [len(each['response']) / 4 for each in samples if each['prompt'] == record['prompt']]
    expected = 0.5 * math.log(sum(math.exp(reward / 0.5) for reward in rewards) / len(rewards))
    assert record['value'] == pytest.approx(expected)
  assert main.main([*train[1:], '--set=STEPS=2', '--set=BATCH=8', *short]) == 0
  run = json.loads(pathlib.Path('runs/a_star/run.json').read_text())
  assert (run['algorithm'], run['temperature']) == ('dro_fixed_value', 0.001)
