import dataclasses
import functools
import json
import math
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from dro_jax import algorithms
from dro_jax.algorithms.next_token_kl import NextTokenKl
from dro_jax.checkpoints import folders, orbax, policy, trees
from dro_jax.checkpoints.metadata import FORMAT, saved_format
from dro_jax.configs import parameters
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import NotFinite, Stopped, UsageError
from dro_jax.models import chunks
from dro_jax.parallel import partitioning
from dro_jax.run import batches as feeds
from dro_jax.run import build, loop, schedule
from dro_jax.run.folder import lock, validation
from dro_jax.run.folder.configs import Recorded
from dro_jax.run.trained import load_run
from dro_jax.statistics import mass
from dro_jax.step import optimizers
from dro_jax.step.reference import Hard
from tests import runs
from tests.examples import CONFIG
from tests.tiers import long

MODEL = dataclasses.replace(CONFIG, vocab_size=None)


def one_device():
  return partitioning.make_mesh(devices=jax.devices()[:1])


def two_devices():
  """Rows are cut as on eight, in a fraction of the time that those take to compile and to save."""
  return partitioning.make_mesh(devices=jax.devices()[:2])


def write_triplets(path, num=60, **changes):
  rng = np.random.default_rng(0)
  with open(path, 'w') as file:
    for i in range(num):
      record = {
        'id': f'r{i}',
        'prompt': f'say {rng.integers(20)}',
        'response': ''.join(rng.choice(list('abc'), rng.integers(1, 6))),
        'reward': float(rng.normal()),
      }
      file.write(json.dumps(record | changes) + '\n')
  return str(path)


@pytest.fixture(scope='module')
def triplets(tmp_path_factory):
  return write_triplets(tmp_path_factory.mktemp('data') / 'triplets.jsonl')


@pytest.fixture(scope='module')
def run(triplets, tmp_path_factory):
  """Trains with small settings; keyword arguments change them."""
  cache = str(tmp_path_factory.mktemp('cache'))

  def run(
    folder, *, steps=4, eval_every=2, checkpoint_every=2, samples=0, files=triplets, data=None, **changes
  ):
    timing = functools.partial(
      schedule.Schedule,
      steps=steps,
      log_every=1,
      eval_every=eval_every,
      checkpoint_every=checkpoint_every,
      sample_prompts=samples,
      kl_prompts=0,
    )
    data = data or functools.partial(
      load_triplets,
      files,
      prompt_length=32,
      response_length=16,
      validation_fraction=0.2,
      cache_dir=cache,
    )
    settings = {
      'model': MODEL,
      'mesh': two_devices,
      'batch_size': 8,
      'policy_optimizer': functools.partial(optimizers.adamw, 1e-3),
      'value_optimizer': functools.partial(optimizers.adafactor, 1e-2),
      'schedule': timing,
    }
    return runs.train(**({'model_dir': str(folder), 'data': data} | settings | changes))

  return run


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
  """An undisturbed run of four steps: (folder, result)."""
  folder = tmp_path_factory.mktemp('whole')
  return folder, run(folder, samples=1)


def records(folder):
  """metrics.jsonl without what a clock says."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if not k.startswith('time/')} for line in lines]


def final_state(folder):
  saved = orbax.Checkpoints(folder / 'checkpoints')
  path = saved._manager.directory / str(saved.latest_step()) / 'state'
  return trees.read_tree(path, (), None)


def assert_same_run(a, b):
  assert records(a) == records(b)
  jax.tree.map(np.testing.assert_array_equal, final_state(a), final_state(b))


def test_a_run_leaves_what_it_is_and_did(whole):
  folder, result = whole
  assert result['step'] == 4
  steps = [record['step'] for record in records(folder)]
  assert steps == [0, 1, 2, 2, 3, 4, 4]
  before, first = records(folder)[:2]
  assert before['examples'] == before['flops'] == 0 and before['eval/log_ratio'] == 0
  assert first['log_ratio_max'] == 0.0
  for name in (
    'loss', 'loss/policy', 'loss/value', 'reward', 'log_ratio', 'log_ratio_std', 'value_explained_variance',
    'gradient_norm/policy', 'gradient_norm/value', 'parameter_norm/policy', 'parameter_norm/value',
    'response_tokens', 'prompt_fill', 'response_fill',
  ):  # fmt: skip
    assert np.isfinite(first[name]), name
  assert {'time/step_seconds', 'time/tokens_per_second'} <= json.loads(
    (folder / 'metrics.jsonl').read_text().splitlines()[1]
  ).keys()
  assert np.isfinite(records(folder)[3]['eval/rank_correlation'])
  samples = [json.loads(line) for line in (folder / 'samples.jsonl').read_text().splitlines()]
  assert [sample['step'] for sample in samples] == [0, 2, 4]
  metadata = json.loads((folder / 'run.json').read_text())
  assert metadata['data']['scaling']['effective_temperature'] == 1.0
  assert any(name.startswith('events') for name in os.listdir(folder))
  assert {'dro_jax', 'jax'} <= set(json.loads((folder / 'versions.json').read_text()))


def cut_back(folder, to, step):
  """A copy of a run as a kill after one of its checkpoints left it."""
  shutil.copytree(folder, to)
  for path in (to / 'checkpoints').iterdir():
    if int(path.name) > step:
      shutil.rmtree(path)
  return to


def test_resume_is_bit_identical(whole, run, tmp_path):
  assert run(cut_back(whole[0], tmp_path / 'cut', 2))['step'] == 4
  assert_same_run(tmp_path / 'cut', whole[0])


def test_sigterm_saves_and_the_same_command_resumes(whole, run, tmp_path, monkeypatch):
  report = loop._report

  def terminate(going, pending, *rest):
    if pending.step == 2 and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
      os.kill(os.getpid(), signal.SIGTERM)
    return report(going, pending, *rest)

  monkeypatch.setattr(loop, '_report', terminate)
  with pytest.raises(Stopped, match='stopped by SIGTERM after step 2'):
    run(tmp_path, checkpoint_every=0, eval_every=2)
  monkeypatch.setattr(loop, '_report', report)
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  run(tmp_path)
  assert_same_run(tmp_path, whole[0])


@pytest.mark.long
def test_ctrl_c_in_python_saves_restores_the_handlers_and_raises_keyboard_interrupt(
  run, tmp_path, monkeypatch
):
  report = loop._report

  def press(going, pending, *rest):
    if pending.step == 1:
      signal.raise_signal(signal.SIGINT)
    return report(going, pending, *rest)

  monkeypatch.setattr(loop, '_report', press)
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt, match='stopped by Ctrl-C after step 2, which is saved'):
      run(tmp_path, checkpoint_every=0, eval_every=0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, before)
  assert folders.newest_step(tmp_path) == 2


def test_a_finished_run_is_left_alone_and_returns_its_last_metrics(whole, run):
  before = records(whole[0])
  again = run(whole[0])
  assert again['step'] == 4 and again['loss'] == before[-1].get('loss', before[-2].get('loss'))
  assert records(whole[0]) == before


@pytest.fixture(scope='module')
def continued(whole, run, tmp_path_factory):
  """A run of one step from the policy of `whole`: (folder, result)."""
  folder = tmp_path_factory.mktemp('continued')
  return folder, run(folder, init_from=str(whole[0]), model=None, steps=1, eval_every=0)


def test_init_from_a_run_starts_at_its_policy_with_a_fresh_reference(whole, continued):
  assert records(continued[0])[0]['log_ratio_max'] == 0.0
  start = orbax.load_params(str(whole[0]))[0]
  reference = final_state(continued[0])['reference']
  jax.tree.map(np.testing.assert_array_equal, start, reference)


@pytest.mark.long
def test_scanned_layers_start_from_an_unrolled_checkpoint(whole, continued, run, tmp_path):
  scanned = run(tmp_path, init_from=str(whole[0]), model=None, scan_layers=True, steps=1, eval_every=0)
  np.testing.assert_allclose(scanned['loss'], continued[1]['loss'], rtol=1e-5)


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_and_names_step_and_examples(run, triplets, tmp_path):
  def data(**kwargs):
    loaded = load_triplets(
      triplets,
      prompt_length=32,
      response_length=16,
      cache_dir=str(tmp_path / 'cache'),
      validation_fraction=0,
      **kwargs,
    )
    loaded.train.rewards[7] = np.nan
    return loaded

  folder = tmp_path / 'run'
  with pytest.raises(FloatingPointError, match=r'loss of step \d is not finite.*: r7\..*--replay') as error:
    run(folder, data=data, steps=12, checkpoint_every=1, eval_every=0)
  step = int(re.search(r'step (\d)', str(error.value))[1])
  assert folders.newest_step(folder) < step
  kept = folder / 'nonfinite' / str(step)
  examples = [json.loads(line) for line in (kept / 'examples.jsonl').read_text().splitlines()]
  assert len(examples) == 8 and [e['id'] for e in examples if not e['finite']] == ['r7']
  written = {json.loads(line)['id']: json.loads(line) for line in Path(triplets).read_text().splitlines()}
  assert all(written[e['id']]['response'] == e['response'] for e in examples)

  before = sorted(folder.rglob('*'))
  found = run(folder, data=data, steps=12, checkpoint_every=1, eval_every=0, replay=str(kept))
  assert (found['step'], found['not_finite']) == (step, True)
  assert list(found['examples']) == ['r7'] and found['examples']['r7']['reward'] == 'nan'
  assert np.isfinite(found['examples']['r7']['logp'])
  assert 'self.rows.rewards' in found['first_nan']
  assert sorted(folder.rglob('*')) == before
  with pytest.raises(UsageError, match='pass a folder MODEL_DIR/nonfinite/STEP'):
    run(folder, data=data, replay=str(folder))


def test_a_second_run_in_the_same_folder_is_refused(whole, run):
  before = records(whole[0])
  with lock.locked(whole[0]), pytest.raises(UsageError, match='in use by another run'):
    run(whole[0], steps=6)
  assert records(whole[0]) == before


def test_a_damaged_newest_checkpoint_costs_its_steps_only(whole, run, tmp_path, caplog):
  folder = tmp_path / 'run'
  shutil.copytree(whole[0], folder)
  (folder / 'checkpoints' / '4' / 'metadata' / 'metadata').write_text('')
  assert run(folder)['step'] == 4
  assert 'DAMAGED' in caplog.text
  assert_same_run(folder, whole[0])


def test_bad_settings_are_refused_before_anything_is_written(run, triplets, tmp_path):
  folder = tmp_path / 'never'
  cases = {
    'no model': {'model': None},
    'does not divide the 8 devices': {'mesh': functools.partial(partitioning.make_mesh, data=3)},
    "reads the column 'label'": {
      'algorithm': functools.partial(algorithms.kto, labels=algorithms.column_labels)
    },
    'no checkpoint in': {'init_from': str(tmp_path / 'absent')},
    'does not divide an axis of size 4': {
      'mesh': functools.partial(partitioning.make_mesh, data=1, fsdp=1, model=8),
      'model': dataclasses.replace(MODEL, num_heads=1),
    },
    'dropout_rate=0.1 is for supervised': {'dropout_rate': 0.1},
    'microbatches=0': {'num_microbatches': 0},
    "readout='scalar' is one learned number": {'value_readout': 'scalar', 'value_shared': True},
    'seed=-1 is out of range: pass a whole number': {'seed': -1},
    'dro_v: tau=-1.0 must be above 0': {'algorithm': functools.partial(algorithms.dro_v, tau=-1.0)},
    'dro_v: tau=nan must be above 0': {'algorithm': functools.partial(algorithms.dro_v, tau=math.nan)},
    'rows hold 8 prompt and 4 response tokens': {
      'rows': functools.partial(feeds.RowOptions, prompt_length=8, response_length=4)
    },
    'local or mounted folder': {'model_dir': 'gs://bucket/run'},
    "model_dir='' is not a folder": {'model_dir': ''},
    'is not a folder: pass a new folder': {'model_dir': triplets},
    'is a file, but a checkpoint is a folder': {'init_from': triplets},
    'log_every=-1: pass 0 or more': {'schedule': functools.partial(schedule.Schedule, log_every=-1)},
    'batch of 4 responses does not divide over the 8 parts': {'batch_size': 4},
    'batch of 12 responses does not': {
      'batch_size': 12,
      'rows': functools.partial(feeds.RowOptions, packed=False),
    },
  }
  for message, changes in cases.items():
    with pytest.raises(UsageError, match=message):
      run(folder, **{'mesh': partitioning.make_mesh} | changes)
    assert not folder.exists()


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path):
  config = dataclasses.replace(MODEL, vocab_size=128)
  metadata = {
    'model': dataclasses.asdict(config),
    'vocabulary': 'gs://somewhere/spiece.model',
    'vocabulary_fingerprint': 'another',
  }
  orbax.save_params(tmp_path / 'imported', {'x': np.zeros(1)}, metadata)
  with pytest.raises(UsageError, match='spiece.model.*bytes'):
    policy.vocabulary_of(str(tmp_path / 'imported'), 'bytes')
  orbax.save_params(tmp_path / 'unnamed', {'x': np.zeros(1)}, {'model': dataclasses.asdict(config)})
  with pytest.raises(UsageError, match='259 ids.*embeds 128'):
    policy.vocabulary_of(str(tmp_path / 'unnamed'), 'bytes')
  with pytest.raises(UsageError, match='does not say which vocabulary'):
    policy.vocabulary_of(str(tmp_path / 'unnamed'))


def test_a_run_is_not_resumed_as_another(whole, run, tmp_path):
  triplets = write_triplets(tmp_path / 'others.jsonl', response='other')
  before = (whole[0] / 'run.json').read_text()
  cases = {
    r'temperature: 1\.0 → 5\.0': {'algorithm': functools.partial(algorithms.dro_v, tau=5.0)},
    "algorithm: 'dro_v' → 'dro_p'": {'algorithm': algorithms.dro_p},
    'seed: 0 → 1': {'seed': 1},
    'batch_size: 8 → 16': {'batch_size': 16},
    r'model\.mlp_dim: \d+ → 8': {'model': dataclasses.replace(MODEL, mlp_dim=8)},
    'train_fingerprint: .*has trained on other records': {'files': triplets},
  }
  for message, changes in cases.items():
    with pytest.raises(UsageError, match=message):
      run(whole[0], **changes)
  assert (whole[0] / 'run.json').read_text() == before


def test_a_run_says_that_its_warmup_is_as_long_as_itself(triplets, tmp_path):
  optimizer = optimizers.adamw(optimizers.warmup_constant(1e-3, warmup_steps=150))
  settings = {'model': MODEL, 'mesh': one_device, 'batch_size': 8, 'policy_optimizer': optimizer}
  sizes = {'prompt_length': 32, 'response_length': 16, 'validation_fraction': 0.2}
  data = load_triplets(triplets, cache_dir=str(tmp_path), **sizes)
  notes = build.build(runs.spec(data, schedule=schedule.Schedule(steps=1), **settings)).notes()
  assert any("the policy network's learning rate still rises when the run ends" in note for note in notes)


def test_a_resumed_run_keeps_its_configuration_and_records_the_next(whole, run, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(whole[0], folder)
  text = 'train.schedule = @Schedule\nSchedule.log_every = {}\ntrain.policy_optimizer = @{}\n'
  (folder / 'config.gin').write_text(text.format(1, 'adamw'))

  def recorded(*settings):
    effects = {'Schedule': parameters.effects_of({'': parameters.parameters(schedule.Schedule)})['']}
    return lambda: Recorded({'config.gin': text.format(*settings)}, effects)

  with pytest.raises(UsageError, match='Optimizers.policy: @adamw → @adafactor'):
    run(folder, configs=recorded(1, 'adafactor'))
  assert run(folder, configs=recorded(2, 'adamw'))['step'] == 4
  assert (folder / 'config.gin').read_text() == text.format(1, 'adamw')
  assert (folder / 'config.4.gin').read_text() == text.format(2, 'adamw')


def listed_metrics(error):
  """The metrics that a refusal of another names."""
  return set(re.search(r'pass one of (.*), as Keep', str(error))[1].split(', '))


@pytest.fixture(scope='module')
def trust_region(run):
  """Runs whose reference becomes the policy after every step."""

  def train_it(folder, *, steps, scheme=Hard, **changes):
    timing = functools.partial(
      schedule.Schedule,
      steps=steps,
      log_every=1,
      eval_every=1,
      checkpoint_every=2,
      sample_prompts=0,
      kl_prompts=3,
    )
    settings = {
      'reference': functools.partial(scheme, every=1), 'schedule': timing, 'mesh': one_device,
    }  # fmt: skip
    return run(folder, **settings | changes)

  return train_it


@pytest.mark.long
def test_a_run_that_trains_its_value_first_resumes_in_the_middle_of_that(run, tmp_path):
  settings = {
    'value_warmup_steps': 2,
    'eval_every': 0,
    'checkpoint_every': 1,
    'keep_last': 4,
    'mesh': one_device,
  }
  run(tmp_path / 'whole', steps=4, **settings)
  cut_back(tmp_path / 'whole', tmp_path / 'parts', 1)
  with pytest.raises(UsageError, match='value_warmup_steps: 2 → 3'):
    run(tmp_path / 'parts', steps=4, **settings | {'value_warmup_steps': 3})
  run(tmp_path / 'parts', steps=4, **settings)
  assert_same_run(tmp_path / 'parts', tmp_path / 'whole')

  def policy_moved(step):
    state = trees.read_tree(tmp_path / 'whole/checkpoints' / str(step) / 'state', (), None)
    same = jax.tree.map(np.array_equal, state['params']['policy'], state['reference'])
    return not all(jax.tree.leaves(same))

  assert [policy_moved(step) for step in (1, 2, 3, 4)] == [False, False, True, True]


@pytest.mark.long
def test_a_trust_region_run_is_measured_against_the_initial_policy(trust_region, tmp_path):
  trust_region(tmp_path / 'whole', steps=4)
  trust_region(cut_back(tmp_path / 'whole', tmp_path / 'parts', 2), steps=4)
  assert_same_run(tmp_path / 'parts', tmp_path / 'whole')
  trained, validated = (
    [r for r in records(tmp_path / 'whole') if name in r] for name in ('loss', 'eval/loss')
  )
  for record in trained:
    assert record['log_ratio_max_moving'] == 0.0
    assert (record['log_ratio_max'] > 0) == (record['step'] > 1)
  assert validated[0]['step'] == validated[0]['eval/kl'] == validated[0]['eval/log_ratio_std'] == 0
  for record in validated[1:]:
    assert record['eval/kl_moving'] == record['eval/log_ratio_std_moving'] == 0.0
    assert abs(record['eval/kl']) > 1e-5 and record['eval/log_ratio_std'] > 1e-4
    assert record['eval/criterion'] == record['eval/loss/value'] != record['eval/criterion_moving']
    assert 'eval/within_prompt_accuracy/log_ratio_moving' in record
  best = min((2, 4), key=lambda step: validated[step]['eval/criterion'])
  assert folders.load_metadata(tmp_path / 'whole')['step'] == best
  with pytest.raises(UsageError, match='is not measured') as error:
    trust_region(tmp_path / 'wrong', steps=4, best_metric='eval/lost')
  assert {name for name in validated[-1] if name.startswith('eval/')} == listed_metrics(error.value)
  loaded = load_run(str(tmp_path / 'whole'), one_device())
  state, kept = final_state(tmp_path / 'whole'), validation.load(tmp_path / 'whole', 4)
  jax.tree.map(np.testing.assert_array_equal, state['initial'], loaded.state.reference)
  jax.tree.map(np.testing.assert_array_equal, state['reference'], state['params']['policy'])
  np.testing.assert_array_equal(kept.moving_reference_logps, kept.logps)
  assert np.abs(kept.reference_logps - kept.logps).max() > 1e-4


@pytest.mark.long
def test_a_run_with_next_token_kl_resumes_and_measures_it_apart_from_its_criterion(trust_region, tmp_path):
  """Against the initial policy, and against the moving reference, which the policy is after each step."""
  settings = {'algorithm': algorithms.dpo, 'next_token_kl': NextTokenKl(2.0), 'chunk_size': 5}
  trust_region(tmp_path, steps=2, **settings)
  for other in (NextTokenKl(), NextTokenKl(1.0), NextTokenKl(2.0, 'forward')):
    with pytest.raises(UsageError, match='next_token_kl'):
      trust_region(tmp_path, steps=4, **settings | {'next_token_kl': other})
  trust_region(tmp_path, steps=4, **settings)
  validated = [r for r in records(tmp_path) if 'eval/loss' in r]
  assert [record['step'] for record in validated] == [0, 1, 2, 3, 4]
  assert validated[0]['eval/next_token_kl'] == 0.0
  for record in validated[1:]:
    assert record['eval/next_token_kl'] > 1e-6 and record['eval/next_token_kl_moving'] == 0.0
    np.testing.assert_allclose(record['eval/criterion'], record['eval/loss/policy'], rtol=1e-6)
    added = record['eval/loss'] - record['eval/criterion']
    np.testing.assert_allclose(added, record['eval/loss/next_token_kl'], rtol=1e-3)
  described = json.loads((tmp_path / 'run.json').read_text())
  assert described['next_token_kl'] == {'weight': 2.0, 'direction': 'reverse'}


def test_a_run_from_before_next_token_kl_resumes_without_it(whole, run, tmp_path):
  shutil.copytree(whole[0], tmp_path / 'copy')
  for file in [tmp_path / 'copy/run.json', *(tmp_path / 'copy/checkpoints').glob('*/metadata/metadata')]:
    saved = json.loads(file.read_text())
    del saved['next_token_kl']
    file.write_text(json.dumps(saved))
  with pytest.raises(UsageError, match='next_token_kl.weight: 0.0 → 1.0'):
    run(tmp_path / 'copy', next_token_kl=NextTokenKl(1.0))
  assert run(tmp_path / 'copy')['step'] == 4


@pytest.mark.long
def test_a_trust_region_run_of_an_earlier_version_is_measured_as_before(trust_region, tmp_path, caplog):
  class Earlier(Hard):
    def build(self, score):
      return super().build(score)._replace(initial=None)

  trust_region(tmp_path, steps=2, scheme=Earlier)
  assert 'initial' not in final_state(tmp_path)
  trust_region(tmp_path, steps=4)
  assert 'measured against the moving reference, as before' in caplog.text
  last = records(tmp_path)[-1]
  assert last['eval/kl'] == last['eval/log_ratio_std'] == 0.0
  assert 'eval/kl_moving' not in last and 'initial' not in final_state(tmp_path)


def as_an_earlier_version_wrote(folder):
  """Metadata without a format, in which `batch` was one learned number."""
  for file in [folder / 'run.json', *(folder / 'checkpoints').glob('*/metadata/metadata')]:
    saved = json.loads(file.read_text())
    assert saved.pop('format') == FORMAT
    file.write_text(json.dumps(saved | {'value': saved['value'] | {'readout': 'batch'}}))


@pytest.mark.long
def test_a_run_of_an_earlier_version_keeps_its_batch_value(run, tmp_path, caplog):
  settings = {'mesh': one_device, 'eval_every': 0}
  run(tmp_path, steps=1, value_readout='scalar', **settings)
  with pytest.raises(UsageError, match="readout: 'scalar' → 'batch'"):
    run(tmp_path, steps=2, value_readout='batch', **settings)
  as_an_earlier_version_wrote(tmp_path)
  assert run(tmp_path, steps=2, value_readout='batch', **settings)['step'] == 2
  assert 'was one learned number, now called scalar' in caplog.text
  assert list(final_state(tmp_path)['params']['value']['head']) == ['value']
  assert load_run(str(tmp_path), one_device()).networks.value.readout == 'scalar'
  assert saved_format(folders.run_metadata(tmp_path)) == 1


def test_a_best_metric_that_is_not_measured_is_refused_before_anything_is_written(whole, run, tmp_path):
  said = r"best_metric='lost' is not measured \(did you mean eval/loss\?\): pass one of "
  with pytest.raises(UsageError, match=said) as error:
    run(tmp_path / 'wrong', best_metric='lost')
  assert not (tmp_path / 'wrong').exists()
  [measured] = [record for record in records(whole[0]) if record['step'] == 4 and 'eval/loss' in record]
  assert {name for name in measured if name.startswith('eval/')} == listed_metrics(error.value)
  with pytest.raises(UsageError, match="best_mode is 'least'"):
    run(tmp_path / 'wrong', best_mode='least')
  assert not (tmp_path / 'wrong').exists()


@pytest.mark.long
def test_a_loaded_run_compiles_for_its_first_calls_only(whole, triplets, tmp_path, caplog):
  loaded = load_run(str(whole[0]), one_device())
  data = load_triplets(triplets, cache_dir=str(tmp_path), validation_fraction=0)

  def calls(prompt, seed):
    caplog.clear()
    with jax.log_compiles():
      [answer] = loaded.generate(prompt, max_length=4, seed=seed)
      loaded.generate(prompt, max_length=4, temperature=0.0, beams=2)
      loaded.score(data)
    return answer, [record.message for record in caplog.records if 'Compiling' in record.message]

  first, compiled = calls('say 1', 1)
  assert compiled
  other, compiled = calls('say no', 2)
  assert not compiled and other.logp != first.logp
  again, compiled = calls('say 1', 1)
  assert not compiled and (again.logp, again.text) == (first.logp, first.text)


OWN_METRICS = """
def letters(prompts, responses, rewards):
  return {'letters': sum(map(ord, ''.join(responses))), 'prompts': len(prompts)}
"""


@pytest.mark.long
def test_the_best_checkpoint_is_chosen_by_a_metric_of_ones_own(run, tmp_path, monkeypatch, capsys):
  (tmp_path / 'own.py').write_text(OWN_METRICS)
  timing = schedule.Schedule(steps=3, eval_every=1, checkpoint_every=1, sample_prompts=0, kl_prompts=4)
  settings = {'schedule': timing, 'metrics': f'{tmp_path / "own.py"}:letters'}
  settings['policy_optimizer'] = functools.partial(optimizers.adamw, 0.3)
  said = r"best_metric='eval/leters' is not measured \(did you mean eval/letters\?\): .*eval/prompts"
  with pytest.raises(UsageError, match=said):
    run(tmp_path / 'wrong', best_metric='eval/leters', **settings)
  assert not (tmp_path / 'wrong').exists()
  with pytest.raises(UsageError, match="best_metric='eval/letters' is not measured"):
    run(tmp_path / 'wrong', best_metric='eval/letters', **settings | {'metrics': None})
  with pytest.raises(
    UsageError, match=r"best_bound='eval/promts' is not measured \(did you mean eval/prompts"
  ):
    run(tmp_path / 'wrong', best_bound='eval/promts<=4', **settings)
  # Half of a policy's probability counts as little here: the run says once that mass has left.
  monkeypatch.setattr(mass, 'LEAST', 2.0)
  monkeypatch.setattr(mass, 'EFFECTIVE', 0.0)
  run(tmp_path / 'own', best_metric='eval/letters', best_mode='max', best_bound='eval/prompts<=4', **settings)
  said = capsys.readouterr().err
  assert said.count('of its probability on answers that its reference gives') == 1
  assert 'the largest eval/letters of those with eval/prompts<=4' in said
  letters = {r['step']: r['eval/letters'] for r in records(tmp_path / 'own') if 'eval/letters' in r}
  assert len({*letters.values()}) == len(letters) == 4
  assert folders.load_metadata(tmp_path / 'own')['step'] == max((1, 2, 3), key=letters.get)
  run(tmp_path / 'own', best_metric='eval/letters', best_mode='max', best_bound='eval/prompts<=0', **settings)
  assert 'note: no checkpoint keeps the bound eval/prompts<=0' in capsys.readouterr().err


@pytest.mark.long
def test_a_run_that_goes_on_without_validations_keeps_its_best(whole, run, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(whole[0], folder)
  best = folders.load_metadata(folder)['step']
  run(folder, steps=5, eval_every=0, keep_last=1)
  assert sorted(path.name for path in (folder / 'checkpoints').iterdir()) == [str(best), '5']
  assert folders.load_metadata(folder)['step'] == best
  assert validation.steps(folder) == sorted({0, best, 4})


def test_a_run_whose_checkpoints_were_removed_is_left_as_it_is(whole, run, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(whole[0], folder)
  shutil.rmtree(folder / 'checkpoints')
  with pytest.raises(UsageError, match='up to step 4, but its checkpoints are missing'):
    run(folder)
  assert records(folder) == records(whole[0])
  assert not (folder / 'checkpoints').exists()


def test_the_best_checkpoint_is_the_criterions(run, tmp_path):
  run(tmp_path / 'right', eval_every=3, checkpoint_every=2)
  measured = {r['step']: r for r in records(tmp_path / 'right') if 'eval/criterion' in r}
  assert sorted(measured) == [0, 2, 3, 4]  # What is saved is measured, too.
  assert all(r['eval/criterion'] == r['eval/loss/value'] for r in measured.values())
  best = min((2, 4), key=lambda step: measured[step]['eval/criterion'])
  assert folders.load_metadata(tmp_path / 'right')['step'] == best


def test_a_validation_loss_that_is_not_finite_stops_before_the_checkpoint(run, triplets, tmp_path):
  def data(**kwargs):
    cache = str(tmp_path / 'cache')
    loaded = load_triplets(
      triplets, prompt_length=32, response_length=16, cache_dir=cache, validation_fraction=0.2, **kwargs
    )
    loaded.eval.rewards[:] = np.nan
    return loaded

  with pytest.raises(
    NotFinite, match='criterion of the held-out responses is not finite before the first step, in .*: r'
  ):
    run(tmp_path / 'run', data=data, steps=1)
  assert folders.newest_step(tmp_path / 'run') is None
  for path in (tmp_path / 'run').rglob('*.json*'):
    for line in path.read_text().splitlines() if path.suffix == '.jsonl' else [path.read_text()]:
      json.loads(line, parse_constant=pytest.fail)


@pytest.mark.long
def test_a_last_update_that_is_not_finite_is_not_saved(run, tmp_path):
  with pytest.raises(NotFinite, match=r'parameter_norm/policy of step 1 is not finite.*--replay'):
    run(tmp_path, steps=1, eval_every=0, policy_optimizer=functools.partial(optax.scale, math.nan))
  assert folders.newest_step(tmp_path) is None
  assert not (tmp_path / 'metrics.jsonl').exists()


def test_a_step_that_would_move_arrays_unasked_fails(run, tmp_path, monkeypatch):
  def on_host(self, state, step, rows):
    return jax.device_get(rows), {}

  monkeypatch.setattr(build.Run, 'with_responses', on_host)
  with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-device transfer'):
    run(tmp_path, steps=1, eval_every=0)


def test_a_step_lasts_as_long_as_the_wait_for_it(monkeypatch):
  moments = iter([10.0, 10.5, 11.5])
  monkeypatch.setattr(schedule.time, 'monotonic', lambda: next(moments))
  clock = schedule.Clock()
  assert [clock.lap(), clock.lap()] == [0.5, 1.0]


@pytest.mark.parametrize('name', ['kto', *long('bco', 'filtered_sft', 'dro_v_binary')])
def test_a_runs_first_lines_say_what_made_the_labels(run, tmp_path, name):
  """The reward is a file's boolean `label`, as in README."""
  thumbs = tmp_path / 'thumbs.jsonl'
  records = [{'prompt': f'p{i}', 'response': f'r{i}', 'label': i < 5} for i in range(8)]
  thumbs.write_text(''.join(json.dumps(record) + '\n' for record in records))

  def data(**options):
    cache = str(tmp_path / 'cache')
    return load_triplets(
      str(thumbs), columns='reward=label', validation_fraction=0, cache_dir=cache, **options
    )

  built = build.build(runs.spec(data, getattr(algorithms, name), model=MODEL, mesh=one_device, batch_size=8))
  table = built.loaders.train.table
  np.testing.assert_array_equal(table.columns['derived_label'], table.raw_rewards)
  notes = built.notes()
  assert notes[0] == 'labels: the rewards 0 and 1 are labels themselves; 5 of 8 responses are desirable'


def test_a_run_says_where_it_projects_in_chunks_unasked(triplets, tmp_path, monkeypatch):
  lengths = {'prompt_length': 32, 'response_length': 16, 'validation_fraction': 0.2}
  loaded = load_triplets(triplets, cache_dir=str(tmp_path), **lengths)
  built = build.build(runs.spec(loaded, model=MODEL, mesh=one_device, batch_size=8))
  assert built.chunk_size is None and not any('CHUNK_SIZE' in note for note in built.notes())
  monkeypatch.setattr(chunks, 'MOST_BYTES', 1)
  assert built.chunk_size == 1
  assert any(note.startswith('note: 1 of the ') and 'CHUNK_SIZE=0' in note for note in built.notes())
  asked = build.build(runs.spec(loaded, model=MODEL, mesh=one_device, batch_size=8, chunk_size=0))
  assert asked.chunk_size is None and not any('CHUNK_SIZE' in note for note in asked.notes())


def test_triplets_of_another_vocabulary_than_the_policys_are_refused(triplets, tmp_path):
  lengths = {'prompt_length': 32, 'response_length': 16, 'validation_fraction': 0.2}
  loaded = load_triplets(triplets, cache_dir=str(tmp_path), **lengths)
  other = vocabularies.vocabulary('bytes')._replace(fingerprint='other')
  build.build(runs.spec(loaded, model=MODEL, mesh=one_device, batch_size=8))
  with pytest.raises(UsageError, match="vocabulary=policy.vocabulary\\), the policy's own"):
    build.build(runs.spec(loaded, model=MODEL, mesh=one_device, batch_size=8, vocabulary=other))


def test_a_batch_of_one_is_refused_where_it_is_compared_with_its_mean(run, tmp_path):
  for algorithm in (algorithms.kto, algorithms.dro_p, algorithms.reinforce):
    with pytest.raises(UsageError, match='the mean of its batch.*--set BATCH=32'):
      run(tmp_path / 'run', algorithm=algorithm, batch_size=1, mesh=one_device)


def test_a_batch_of_very_many_epochs_is_refused_before_it_is_dealt(run, tmp_path):
  for algorithm, unit in ((algorithms.dro_v, 'response'), (algorithms.dpo, 'pair')):
    with pytest.raises(UsageError, match=f'a batch of 100000 {unit}s would hold each of the .* --set BATCH='):
      run(tmp_path / 'run', algorithm=algorithm, batch_size=100_000, mesh=one_device)


def test_a_thread_can_train(run, tmp_path):
  """Signals belong to the main thread; a notebook's worker may train too."""
  thread = threading.Thread(target=run, args=(tmp_path,), kwargs={'steps': 1, 'eval_every': 0})
  thread.start()
  thread.join()
  assert records(tmp_path)


@pytest.mark.long
def test_a_run_dealt_uniformly_says_so_and_is_not_resumed_otherwise(run, tmp_path, capsys):
  run(tmp_path, deal='uniform', steps=1, eval_every=0)
  assert 'dealt uniformly' in capsys.readouterr().err
  assert json.loads((tmp_path / 'run.json').read_text())['deal'] == 'uniform'
  with pytest.raises(UsageError, match="deal: 'uniform' → 'together'"):
    run(tmp_path, steps=2, eval_every=0)
  with pytest.raises(UsageError, match="deal 'even' is unknown"):
    run(tmp_path / 'other', deal='even')
  assert not (tmp_path / 'other').exists()


@pytest.mark.long
def test_a_run_that_kept_the_start_of_prompts_goes_on_with_it(run, triplets, tmp_path):
  """Runs of before KEEP did."""
  reading = {'prompt_length': 5, 'response_length': 16, 'validation_fraction': 0.2}
  data = functools.partial(load_triplets, triplets, cache_dir=str(tmp_path / 'cache'), **reading)
  run(tmp_path / 'run', steps=1, data=functools.partial(data, keep='start'), eval_every=0)
  run(tmp_path / 'run', steps=2, data=data, eval_every=0)
  described = json.loads((tmp_path / 'run' / 'run.json').read_text())
  assert described['data']['options']['keep'] == 'start'


@pytest.mark.long
def test_memory_that_does_not_suffice_leaves_nothing_that_looks_like_a_run(run, tmp_path):
  # All scores of attention over 2¹⁸ prompt tokens: terabytes.
  rows = functools.partial(feeds.RowOptions, prompt_length=2**18, response_length=16)
  with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED'):
    run(tmp_path / 'run', rows=rows, model=dataclasses.replace(MODEL, attention='dense'))
  assert not (tmp_path / 'run').exists()
