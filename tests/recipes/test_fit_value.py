import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from dro_jax.data import triplets
from dro_jax.data.storage import hashes
from dro_jax.data.table import column_store
from dro_jax.errors import UsageError
from dro_jax.parallel import partitioning
from dro_jax.recipes import fit_value
from dro_jax.run import schedule
from dro_jax.run.spec import replace
from dro_jax.step import optimizers
from tests import runs
from tests.examples import CONFIG


def one_device():
  return partitioning.make_mesh(devices=jax.devices()[:1])


def write_triplets(path):
  """Prompts whose mean reward can be read off them: 100 more where they say b."""
  rng = np.random.default_rng(0)
  with open(path, 'w') as file:
    for i in range(96):
      letter = 'ab'[i // 3 % 2]
      record = {'prompt': letter * 4 + f' {i // 3}', 'response': f'r{i}'}
      file.write(json.dumps(record | {'reward': 200.0 + 100 * (letter == 'b') + rng.normal()}) + '\n')
  return str(path)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  return functools.partial(
    triplets.load_triplets, write_triplets(folder / 't.jsonl'), prompt_length=32, response_length=16,
    validation_fraction=0.2, cache_dir=str(folder / 'cache'),
  )  # fmt: skip


def settings(steps=40, **changes):
  return {
    'model': dataclasses.replace(CONFIG, vocab_size=None),
    'mesh': one_device,
    'batch_size': 16,
    'value_readout': 'attention',
    'value_shared': True,
    'value_frozen_trunk': True,
    'value_optimizer': functools.partial(optimizers.adamw, 0.05),
    'schedule': functools.partial(schedule.Schedule, steps=steps, eval_every=0, sample_prompts=0),
    **changes,
  }


def fit(folder, data, steps=40, **options):
  return fit_value.fit_value(str(folder), runs.spec(data, **settings(steps)), **options)


@pytest.fixture(scope='module')
def fitted(data, tmp_path_factory):
  folder = tmp_path_factory.mktemp('fit')
  return folder, fit(folder, data, folds=2)


def test_values_explain_the_rewards_of_prompts_that_were_not_seen(fitted, data):
  folder, report = fitted
  for name in ('fold_0', 'fold_1', 'all', 'eval'):
    assert 0.8 < report[f'explained_variance/{name}'] <= 1.0
  joined = data(columns_from=str(folder), scaling='standardise')
  for table in (joined.train, joined.eval):
    assert np.abs(table.columns['value'] - table.raw_rewards).mean() < 30
    for prompt in np.unique(table.prompt_index):
      assert np.ptp(table.columns['value'][table.prompt_index == prompt]) == 0


def test_each_network_is_fitted_on_the_other_folds(fitted, data):
  folder, _ = fitted
  table = data().train
  fold = hashes.folds(table.prompt_digests, 2)
  for k in range(2):
    metadata = json.loads((folder / f'fold_{k}' / 'run.json').read_text())
    assert metadata['data']['train_records'] == (fold != k).sum()
    assert metadata['algorithm'] == 'regression'
    assert metadata['value'] == {'readout': 'attention', 'shared': True, 'frozen_trunk': True}


def test_the_policy_is_left_as_it_was(fitted):
  folder, _ = fitted
  metrics = [json.loads(line) for line in (folder / 'fold_0' / 'metrics.jsonl').read_text().splitlines()]
  assert {record['gradient_norm/policy'] for record in metrics if 'loss' in record} == {0.0}
  assert len({record['parameter_norm/policy'] for record in metrics if 'loss' in record}) == 1


def fail(*_, **__):
  raise AssertionError('trained again')


def test_a_complete_store_is_not_made_again(fitted, data, monkeypatch):
  folder, report = fitted
  mark = column_store.read(folder).mark
  monkeypatch.setattr(fit_value, 'train', fail)
  assert fit(folder, data, folds=2) == report
  assert column_store.read(folder).mark == mark


def rewritten(path, change):
  lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.mark.long
@pytest.mark.parametrize('field', ['reward', 'label'])
def test_a_complete_store_is_none_of_other_rewards_or_columns(field, tmp_path):
  path = tmp_path / 't.jsonl'
  write_triplets(path)
  rewritten(path, lambda record: record | {'label': 0})
  data = functools.partial(
    triplets.load_triplets, str(path), prompt_length=32, response_length=16, validation_fraction=0.2,
    cache_dir=str(tmp_path / 'cache'),
  )  # fmt: skip
  fit(tmp_path / 'v', data, steps=1, folds=2)
  before = column_store.read(tmp_path / 'v').mark
  rewritten(path, lambda record: record | {field: 1 - record[field]})
  with pytest.raises(UsageError, match='the run has trained on other records|data.train_columns.label: '):
    fit(tmp_path / 'v', data, steps=1, folds=2)
  assert column_store.read(tmp_path / 'v').mark == before


def test_a_store_of_an_earlier_version_is_believed(fitted, data, tmp_path, monkeypatch):
  store = column_store.read(fitted[0])
  origin = {name: x for name, x in store.origin.items() if name != 'made_of'}
  column_store.write(tmp_path / 'columns', store.keys, {'value': store.columns['value']}, origin=origin)
  monkeypatch.setattr(fit_value, 'train', fail)
  assert fit(tmp_path, data, folds=2) == origin['report']


def test_a_killed_fit_resumes(fitted, data, tmp_path, monkeypatch):
  train = fit_value.train

  def killed(model_dir, spec, **options):
    if model_dir.endswith('fold_1'):
      train(model_dir, replace(spec, schedule={'steps': 10}), **options)
      raise KeyboardInterrupt
    return train(model_dir, spec, **options)

  shutil.copytree(fitted[0] / 'fold_0', tmp_path / 'fold_0')
  with monkeypatch.context() as patch:
    patch.setattr(fit_value, 'train', killed)
    with pytest.raises(KeyboardInterrupt):
      fit(tmp_path, data, folds=2)
  assert not column_store.exists(tmp_path)
  fit(tmp_path, data, folds=2)
  whole, resumed = column_store.read(fitted[0]), column_store.read(tmp_path)
  np.testing.assert_array_equal(whole.columns['value'], resumed.columns['value'])
  first = json.loads((tmp_path / 'fold_1' / 'metrics.jsonl').read_text().splitlines()[-1])
  assert first['step'] == 40


@pytest.mark.long
def test_held_out_prompts_get_values_and_the_others_leave_the_data(data, tmp_path):
  report = fit(tmp_path, data, steps=2, held_out=0.5)
  plain, joined = data(), data(columns_from=str(tmp_path))
  assert report['responses'] == len(joined.train) < len(plain.train)
  assert hashes.by_prompt_hash(joined.train.prompt_digests, 0.5, 'fold').sum() == 0
  assert len(joined.eval) == len(plain.eval)
  assert np.isfinite(report['explained_variance/held_out'])


def test_a_value_below_min_explained_variance_is_refused_and_not_written(fitted, data, tmp_path):
  for name in ('fold_0', 'fold_1'):
    (tmp_path / name).symlink_to(fitted[0] / name)
  with pytest.raises(UsageError, match=r'V explains 0\.\d+ .* MIN_EXPLAINED_VARIANCE=1.5'):
    fit(tmp_path, data, folds=2, min_explained_variance=1.5)
  assert not column_store.exists(tmp_path)
  # Values that are there already are looked at likewise.
  with pytest.raises(UsageError, match='MIN_EXPLAINED_VARIANCE=1.5'):
    fit(fitted[0], data, folds=2, min_explained_variance=1.5)
  assert fit(fitted[0], data, folds=2, min_explained_variance=0.8) == fitted[1]


@pytest.mark.parametrize('explained, told', [(0.0, True), (float('nan'), True), (0.049, True), (0.05, False)])
def test_a_value_that_explains_little_is_told(explained, told, caplog):
  report = {'explained_variance/all': explained}
  assert fit_value.refuse_or_warn(report, None) is report
  assert ['almost the same as centred rewards' in text for text in caplog.messages] == [True] * told


@pytest.mark.parametrize('options', [{'folds': 1}, {'held_out': 1.0}, {'folds': 2, 'held_out': 0.0}])
def test_bad_folds_are_refused(options, data, tmp_path):
  with pytest.raises(UsageError, match='2 folds or more, or a share between 0 and 1'):
    fit(tmp_path, data, **options)


def test_too_few_prompts_for_the_folds_are_refused(data, tmp_path):
  with pytest.raises(UsageError, match=r'fold_\d+: .* leaves none to fit on or none to predict'):
    fit(tmp_path, data, steps=0, folds=1000)
