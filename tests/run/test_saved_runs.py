"""Runs that an earlier version made and saved: resumed, loaded, compared and reported on by this one.

tests/saved_runs/make.sh says how they were made. Where a later version means another thing by a setting, a
saved run keeps the meaning that it was made with.
"""

import json
import pathlib
import shutil
import tarfile

import pytest

from dro_jax import main
from dro_jax.checkpoints import folders
from tests.tiers import long

ARCHIVE = pathlib.Path(__file__).with_name('saved_runs') / '9c2e7b0.tar.gz'
_TINY = {
  'PROMPT_LENGTH': 16, 'RESPONSE_LENGTH': 16, 'BATCH': 8, 'LOG_EVERY': 1, 'KEEP_LAST': 1, 'WARMUP_STEPS': 2,
  'VALIDATION_FRACTION': 0.25, 'KL_PROMPTS': 2, 'SAMPLE_PROMPTS': 1, 'CACHE_DIR': 'table', 'EVAL_EVERY': 4,
  'CHECKPOINT_EVERY': 4,
}  # fmt: skip
_TRIPLETS = '--triplets=triplets.jsonl'
# What each run was made with beside `_TINY`: the flags of make.sh.
RUNS = {
  'dro_v': (_TRIPLETS, '--gin_file=references/cached.gin', '--set=REFERENCE_STORE=store'),
  'kto': ('--triplets=thumbs.jsonl', '--set=ALGORITHM=kto', '--columns=response=completion,reward=label'),
  'batch_value': (_TRIPLETS, '--set=VALUE_READOUT=batch'),
  'tr_dpo': (
    _TRIPLETS, '--set=ALGORITHM=dpo', '--gin_file=references/soft.gin', '--set=TRUST_REGION_EVERY=3',
  ),
  'online': (
    _TRIPLETS, '--set=ALGORITHM=rloo_online', '--set=REWARD=reward.py:vowels', '--set=SAMPLE_LENGTH=8',
    '--set=GROUP_SAMPLES=2',
  ),
}  # fmt: skip


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved')
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(folder, filter='data')
  return folder


@pytest.fixture
def folder(unpacked, tmp_path, monkeypatch):
  """A copy of the saved runs, which is the working folder."""
  copy = shutil.copytree(unpacked, tmp_path / 'saved')
  monkeypatch.chdir(copy)
  return copy


# A clock's, and ranks, which swap where scores are equal but for rounding.
_UNSTABLE = ('time/', 'eval/rank_correlation', 'eval/within_prompt_accuracy')


def records(path):
  """A run's records of metrics by step: those of training, and those of validation."""
  lines = [json.loads(line) for line in path.read_text(encoding='utf-8').split('\n') if line]
  training = {line['step']: line for line in lines if 'loss' in line}
  return training, {line['step']: line for line in lines if 'eval/criterion' in line}


def train(name, steps, *more):
  settings = [f'--set={macro}={value}' for macro, value in _TINY.items()]
  arguments = (f'--model_dir={name}', '--init_from=start', *settings, f'--set=STEPS={steps}', *RUNS[name])
  return main.main(['train', *arguments, *more])


@pytest.mark.parametrize('name', ['dro_v', *long('tr_dpo', 'batch_value', 'online')])
def test_a_saved_run_resumes_to_the_numbers_of_its_own_version(name, folder):
  assert folders.newest_step(name) == 4
  assert train(name, 8) == 0
  training, validations = records(folder / name / 'metrics.jsonl')
  expected_training, expected_validations = records(folder / 'expected' / f'{name}.jsonl')
  assert sorted(training) == sorted(expected_training) == list(range(1, 9))
  found = [training[step] for step in range(5, 9)] + [validations[8]]
  wanted = [expected_training[step] for step in range(5, 9)] + [expected_validations[8]]
  for record, expected in zip(found, wanted):
    expected = {key: x for key, x in expected.items() if not key.startswith(_UNSTABLE)}
    assert {key: record.get(key) for key in expected} == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.long
def test_a_saved_run_that_trained_against_thumbs_ups_is_refused_in_words_and_left_as_it_was(folder, capsys):
  """Its labels were the minibatch mean's; now binary rewards are labels themselves."""
  before = {path: path.read_bytes() for path in (folder / 'kto').rglob('*') if path.is_file()}
  assert train('kto', 8) == 2
  message = capsys.readouterr().err
  assert 'labels: by a mean, whatever the rewards → the rewards 0 and 1 are labels themselves' in message
  assert (
    'count thumbs-ups and ties as bad' in message and 'train into another folder (--model_dir)' in message
  )
  assert 'PAIRS' not in message  # It forms none.
  assert {path: path.read_bytes() for path in before} == before
  assert main.main(['evaluate', '--model_dir=kto', *RUNS['kto'][:1], RUNS['kto'][2], '--json']) == 0


def test_saved_runs_are_loaded_compared_and_reported_on(folder, capsys):
  def answer(*arguments):
    assert main.main([*arguments, '--json']) == 0
    return json.loads(capsys.readouterr().out)

  evaluated = answer('evaluate', '--model_dir=dro_v', _TRIPLETS, '--init_from=start', '--set=CACHE_DIR=table')
  assert 'log_ratio' in str(evaluated)
  generate = ('generate', '--model_dir=online', '--set=PROMPT=name a lamp', '--set=MAX_LENGTH=4')
  assert answer(*generate, '--set=OUTPUT=answers.jsonl')['responses'] == 1
  compared = answer('configs', 'diff', 'dro_v', 'batch_value')
  assert "'setting': 'VALUE_READOUT'" in str(compared)
  answer('report', 'dro_v', 'batch_value')
