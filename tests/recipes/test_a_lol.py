import functools
import json

import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.data.table import column_store
from dro_jax.errors import Stopped, UsageError
from dro_jax.recipes import a_lol, fit_value
from dro_jax.step import optimizers
from tests import runs
from tests.recipes.test_fit_value import data, settings
from tests.tiers import long

__all__ = ['data']

VARIANTS = {
  'a_lol_ref_free': functools.partial(algorithms.a_lol_ref_free, priority=True),
  'a_lol_kl': algorithms.a_lol_kl,
  'a_lol_sequence': functools.partial(algorithms.a_lol_sequence, priority=True),
}


def stages(folder, data, algorithm=algorithms.a_lol):
  small = settings(3, policy_optimizer=functools.partial(optimizers.adamw, 1e-3))
  fit = functools.partial(fit_value.fit_value, spec=runs.spec(data, algorithms.regression, **small), folds=2)
  return a_lol.a_lol_stages(str(folder), runs.spec(data, algorithm, **small), fit=fit)


@pytest.fixture(scope='module')
def done(data, tmp_path_factory):
  folder = tmp_path_factory.mktemp('stages')
  return folder, stages(folder, data)


@pytest.mark.long
def test_stages_end_in_a_policy_of_positive_advantages(done, data):
  folder, result = done
  assert sorted(path.name for path in folder.iterdir()) == ['columns', 'policy', 'value']
  table = data(columns_from=str(folder / 'columns')).train
  positive = int((table.raw_rewards > table.columns['value']).sum())
  assert result['advantages']['positive'] == positive
  metadata = json.loads((folder / 'policy' / 'run.json').read_text())
  assert metadata['algorithm'] == 'a_lol'
  assert metadata['data']['selected_records'] == positive < len(table)
  assert metadata['data']['columns_from'] == [column_store.read(folder / 'columns').mark]
  assert result['policy']['step'] == 3 and np.isfinite(result['policy']['loss'])


# The fixture is A-LoL itself.
@pytest.mark.parametrize('name', long(*VARIANTS))
def test_every_variant_takes_the_same_values(name, done, data, tmp_path, monkeypatch):
  for stage in ('value', 'columns'):
    (tmp_path / stage).symlink_to(done[0] / stage)

  def no_fit(*_, **__):
    raise AssertionError('fitted again')

  monkeypatch.setattr(fit_value, 'train', no_fit)
  result = stages(tmp_path, data, VARIANTS[name])
  assert result['value'] == done[1]['value']
  assert json.loads((tmp_path / 'policy' / 'run.json').read_text())['algorithm'] == name


@pytest.mark.long
def test_a_finished_command_trains_nothing(done, data):
  before = (done[0] / 'policy' / 'metrics.jsonl').read_text()
  assert stages(done[0], data)['policy']['step'] == 3
  assert (done[0] / 'policy' / 'metrics.jsonl').read_text() == before


def test_a_stop_in_the_values_stage_starts_no_policy(data, tmp_path, monkeypatch):
  def stop(*_, **__):
    raise Stopped('stopped')

  monkeypatch.setattr(fit_value, 'train', stop)
  with pytest.raises(Stopped):
    stages(tmp_path, data)
  assert not (tmp_path / 'policy').exists()


def test_an_algorithm_without_advantages_is_refused(data, tmp_path):
  with pytest.raises(UsageError, match='dro_v reads no advantages'):
    stages(tmp_path, data, algorithms.dro_v)
