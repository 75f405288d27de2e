import json
import sys
import types

import pytest

from dro_jax.errors import UsageError
from dro_jax.run.folder import records, trackers

OWN = """
from dro_jax.run.folder.trackers import Tracker

def lines(folder, first_step):
  file = open(folder / 'own.txt', 'a')
  return Tracker(
    metrics=lambda step, scalars: file.write(f'{first_step} {step} {sorted(scalars)}\\n'),
    samples=lambda step, samples: file.write(f'{step} {samples[0]["response"]}\\n'),
    close=file.close,
  )
"""


def record(folder, makers, first_step=0, step=1):
  writer = records.RunWriter(str(folder), first_step=first_step, num_steps=2, trackers=makers)
  writer.metrics(step, {'loss': 0.5, 'eval/kl': 1.0})
  writer.samples(step, [{'prompt': 'a', 'response': 'b', 'logp': -1.0}])
  writer.flush()
  writer.close()


def test_a_tracker_of_ones_own_sees_metrics_and_samples(tmp_path):
  (tmp_path / 'own_tracker.py').write_text(OWN)
  record(tmp_path, trackers.find(f'{tmp_path / "own_tracker.py"}:lines'))
  assert (tmp_path / 'own.txt').read_text() == "0 1 ['eval/kl', 'loss']\n1 b\n"
  assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {'step': 1, 'loss': 0.5, 'eval/kl': 1.0}


def test_a_function_is_a_tracker_too_and_leaves_out_what_it_does_not_want(tmp_path):
  seen = []
  record(tmp_path, [lambda folder, first_step: trackers.Tracker(lambda *call: seen.append(call))])
  assert seen == [(1, {'loss': 0.5, 'eval/kl': 1.0})]


def test_a_tracker_that_fails_ends_no_run_and_is_called_no_more(tmp_path, caplog):
  seen = []

  def service(folder, first_step):
    def metrics(step, scalars):
      seen.append(step)
      raise ConnectionError('no route to host')

    return trackers.Tracker(
      metrics, samples=lambda *call: seen.append(call), close=lambda: seen.append('closed')
    )

  record(tmp_path, [service])
  assert seen == [1]
  assert 'TRACKERS: service raised ConnectionError: no route to host' in caplog.text
  assert 'is called no more' in caplog.text
  assert json.loads((tmp_path / 'metrics.jsonl').read_text())['loss'] == 0.5


def test_other_processes_make_no_tracker(tmp_path):
  writer = records.RunWriter(str(tmp_path), first_step=0, num_steps=1, primary=False, trackers=[pytest.fail])
  writer.close()


@pytest.mark.parametrize(
  'name, says',
  [
    ('wandb', 'TRACKERS=wandb: the package wandb is not installed. Install it with `pip install wandb`'),
    ('mlflow', '`pip install mlflow`'),
    ('comet', 'TRACKERS=comet is not a tracker: pass wandb or mlflow, or your own as FILE.py:NAME'),
    ('absent.py:own', 'TRACKERS=absent.py:own: cannot import absent.py ('),
    (f'{__file__}:absent', "has no function 'absent'"),
  ],
)
def test_a_tracker_that_is_not_there_is_refused_in_words(monkeypatch, name, says):
  for package in ('wandb', 'mlflow'):
    monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(UsageError) as error:
    trackers.find(name)
  assert says in str(error.value)


def test_a_function_that_makes_no_tracker_is_refused_before_anything_is_recorded(tmp_path):
  def nothing(folder, first_step):
    pass

  def failing(folder, first_step):
    return 1 / 0

  with pytest.raises(UsageError, match='TRACKERS: nothing returned None.*return dro.Tracker'):
    record(tmp_path, [nothing])
  with pytest.raises(UsageError, match=r'TRACKERS: failing raised ZeroDivisionError.*test_trackers.py, line'):
    record(tmp_path, [failing])
  assert not (tmp_path / 'metrics.jsonl').exists()


def test_optional_packages_are_imported_only_when_named(monkeypatch):
  for package in ('wandb', 'mlflow'):
    monkeypatch.setitem(sys.modules, package, None)
  assert trackers.find(None) == []


@pytest.fixture
def wandb(monkeypatch):
  """A stand-in for the package, which keeps the calls."""
  calls = []

  def init(**options):
    calls.append(('init', options))
    log = lambda scalars, step: calls.append(('log', step, scalars))  # noqa: E731
    return types.SimpleNamespace(log=log, finish=lambda: calls.append(('finish',)))

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  return calls


def test_weights_and_biases_gets_the_run_and_goes_on_in_it(tmp_path, wandb):
  (tmp_path / 'run.json').write_text('{"algorithm": "dro_v"}')
  record(tmp_path, trackers.find('wandb'))
  record(tmp_path, trackers.find('wandb'), first_step=1, step=2)
  (_, first), *rest = wandb
  assert first['config'] == {'algorithm': 'dro_v'} and first['name'] == tmp_path.name
  assert rest[:2] == [('log', 1, {'loss': 0.5, 'eval/kl': 1.0}), ('finish',)]
  assert rest[2][1]['id'] == first['id'] and rest[2][1]['resume'] == 'allow'
  record(tmp_path, trackers.find('wandb'))
  assert wandb[-3][1]['id'] != first['id']  # A run that begins anew is another.


def test_mlflow_gets_the_run_and_goes_on_in_it(tmp_path, monkeypatch):
  calls = []

  def start_run(run_id, run_name):
    calls.append((run_id, run_name))
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or 'new'))

  module = types.SimpleNamespace(
    start_run=start_run, end_run=lambda: calls.append('end'), log_artifact=calls.append,
    log_metrics=lambda scalars, step: calls.append((step, scalars)),
  )  # fmt: skip
  monkeypatch.setitem(sys.modules, 'mlflow', module)
  (tmp_path / 'run.json').write_text('{}')
  record(tmp_path, trackers.find('mlflow'))
  record(tmp_path, trackers.find('mlflow'), first_step=1, step=2)
  scalars = {'loss': 0.5, 'eval/kl': 1.0}
  assert calls == [
    (None, tmp_path.name), str(tmp_path / 'run.json'), (1, scalars), 'end', ('new', None), (2, scalars), 'end'
  ]  # fmt: skip
