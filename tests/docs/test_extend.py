"""The worked examples of `docs/extend` run as they stand."""

import json
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest

from dro_jax import main
from dro_jax.models import policy
from tests.models import bag

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'extend'
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```', re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
  """An empty folder with two triplet files, from which modules are imported."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  for name, prompts in (('feedback', range(80)), ('heldout', range(80, 100))):
    records = [
      {'prompt': f'Question {i}?', 'response': answer, 'reward': reward}
      for i in prompts
      for answer, reward in ((f'Answer {i}, please.', 1 + i % 2), ('Sorry, no.', -1))
    ]
    pathlib.Path(f'{name}.jsonl').write_text(''.join(f'{json.dumps(record)}\n' for record in records))
  before = set(sys.modules)
  yield tmp_path
  for name in set(sys.modules) - before:
    if getattr(sys.modules[name], '__file__', None) and str(tmp_path) in sys.modules[name].__file__:
      del sys.modules[name]


def files_of(page):
  """The files that a page shows, by name: blocks name their file in the first line, and may share one."""
  texts = {}
  for _, text in BLOCK.findall((FOLDER / f'{page}.md').read_text()):
    if match := re.match(r'# (\w+\.\w+)\n', text):
      texts.setdefault(match[1], []).append(text.removeprefix(match[0]).strip('\n'))
  return {name: '\n\n\n'.join(parts) + '\n' for name, parts in texts.items()}


def write_files(page):
  for name, text in files_of(page).items():
    pathlib.Path(name).write_text(text)


def commands(page):
  """The command lines of a page's shell blocks."""
  blocks = [text for kind, text in BLOCK.findall((FOLDER / f'{page}.md').read_text()) if kind == 'sh']
  return [shlex.split(line) for text in blocks for line in text.replace('\\\n', ' ').splitlines()]


def records(folder):
  return [json.loads(line) for line in pathlib.Path(folder, 'metrics.jsonl').read_text().splitlines()]


def losses_of(record):
  """The loss of a record, on training or on held-out responses."""
  return [value for name, value in record.items() if name in ('loss', 'eval/loss')]


def run_all(page):
  for program, *arguments in commands(page):
    assert program == 'dro_jax'
    # Answers take a compilation of their own: only where the page is about them.
    sampled = any('KL_PROMPTS' in argument for argument in arguments)
    fewer = ['--set', 'SAMPLE_PROMPTS=0', *([] if sampled else ['--set', 'KL_PROMPTS=0'])]
    arguments += fewer if arguments[0] == 'train' else []
    assert main.main(arguments) == 0, arguments


@pytest.mark.long
def test_a_loss(place, capsys):
  write_files('loss')
  import test_my_loss

  test_my_loss.test_huber_residual()
  run_all('loss')
  run = json.loads(pathlib.Path('runs/huber/run.json').read_text())
  assert (run['algorithm'], run['temperature']) == ('huber', 0.3)
  assert run['code']['algorithm_code']
  with open('my_loss.py', 'a') as file:
    file.write('# Changed.\n')
  [[_, *arguments]] = commands('loss')
  assert main.main([*arguments, '--set', 'STEPS=6']) == 2
  assert "the algorithm's file, or a file that it imports, holds other code" in capsys.readouterr().err


@pytest.mark.long
def test_a_data_set(place, capsys):
  write_files('data_set')
  run_all('data_set')
  # The preprocessor left out the apologies.
  assert json.loads(pathlib.Path('runs/support/run.json').read_text())['data']['train_records'] <= 80


@pytest.mark.long
def test_a_metric(place):
  write_files('metric')
  run_all('metric')
  assert all(0 <= record['above_value'] <= 1 for record in records('runs/watched') if 'loss' in record)
  validated = [record for record in records('runs/polite') if 'eval/sample_reward' in record]
  assert [record['step'] for record in validated] == [0, 2, 4]
  assert {'eval/sample_words', 'eval/best_reward', 'eval/worst_reward'} <= validated[-1].keys()
  assert validated[-1]['eval/best_reward'] >= validated[-1]['eval/worst_reward']
  assert '\n4 eval/best_reward ' in pathlib.Path('runs/polite/diary.txt').read_text()
  assert list(pathlib.Path('runs/polite/profile').rglob('*.xplane.pb'))


def test_a_command(place, capsys):
  write_files('command')
  import my_commands

  [[program, script, *arguments]] = commands('command')
  assert (program, script) == ('python', 'my_commands.py')
  assert main.main(arguments, my_commands.COMMANDS) == 0
  assert len(json.loads(capsys.readouterr().out)['longest']) == 2


@pytest.mark.long
def test_a_model(place, capsys, monkeypatch):
  monkeypatch.setattr(policy, 'FAMILIES', dict(policy.FAMILIES))
  write_files('model')
  import test_bag

  test_bag.test_a_score_is_the_sum_over_tokens()
  run_all('model')
  assert json.loads(pathlib.Path('runs/small/run.json').read_text())['model']['emb_dim'] == 24
  packed, apart = ([losses_of(record) for record in records(f'runs/{name}')] for name in ('bag', 'apart'))
  assert len(packed) == 3 and all(packed)
  np.testing.assert_allclose(packed, apart, rtol=1e-5)
  checked = dict(
    re.findall(r'^(log_ratio|sampled_and_scored) +(\S+) *$', capsys.readouterr().out, re.MULTILINE)
  )
  assert float(checked['log_ratio']) == 0 and float(checked['sampled_and_scored']) < 1e-4
  assert len(pathlib.Path('answers.jsonl').read_text().splitlines()) == 20


def test_the_family_of_the_page_is_the_one_that_other_tests_hold():
  assert files_of('model')['bag.py'] == pathlib.Path(bag.__file__).read_text()
