"""What is saved comes back bit for bit, on any mesh, whole or not at all."""

import json
import math
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dro_jax.checkpoints import folders, orbax
from dro_jax.checkpoints.bound import parse as parse_bound
from dro_jax.checkpoints.metadata import upgrade_metadata
from dro_jax.errors import UsageError


class State(NamedTuple):
  step: Any
  params: Any
  opt_state: Any
  reference: Any


def _mesh(*shape):
  return jax.make_mesh(shape, ('data', 'model'), axis_types=(AxisType.Auto,) * 2)


def _sharded(mesh):
  return NamedSharding(mesh, PartitionSpec('data', 'model'))


def _state(mesh, seed=0):
  """A state with everything that has ever been awkward: empty optimiser states, None, bfloat16, scalars."""
  kernel = jax.random.normal(jax.random.key(seed), (8, 16))
  policy = {'encoder': {'kernel': jax.device_put(kernel, _sharded(mesh))}, 'scale': jnp.ones(3, jnp.bfloat16)}
  params = {'policy': policy, 'value': {'head': {'bias': jnp.float32(seed + 0.1)}}}
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adafactor(1e-3), optax.scale_by_schedule(lambda step: 1.0)
  )
  opt_state = {name: optimizer.init(tree) for name, tree in params.items()}
  return State(jnp.int32(seed), params, opt_state, reference=None)


def _abstract(state, mesh):
  def leaf(array):
    sharding = _sharded(mesh) if array.shape == (8, 16) else NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

  return jax.tree.map(leaf, state)


def _assert_identical(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def run(tmp_path):
  """A run's folder with steps 1 to 5, whose metric is best at step 2."""
  saver = orbax.Checkpoints(
    tmp_path / 'checkpoints',
    keep_last=2,
    keep_best=1,
    best_metric='accuracy',
    metadata={'vocabulary': 'bytes'},
  )
  for step, accuracy in enumerate((0.5, 0.9, 0.7, 0.6, float('nan')), start=1):
    saver.save(step, _state(_mesh(4, 2), step), {'accuracy': accuracy, 'loss': 1.0})
  saver.close()
  return tmp_path


@pytest.mark.parametrize('shape', [(4, 2), (2, 4), (8, 1)])
def test_a_state_returns_bit_for_bit_on_any_mesh(tmp_path, shape):
  state = _state(_mesh(4, 2))
  saver = orbax.Checkpoints(tmp_path / 'checkpoints')
  saver.save(3, state)
  saver.wait()
  restored = saver.restore(3, _abstract(state, _mesh(*shape)))
  saver.close()
  _assert_identical(state, restored)
  assert restored.params['policy']['encoder']['kernel'].sharding == _sharded(_mesh(*shape))


def test_saving_survives_donation_of_what_is_saved(tmp_path):
  state = {'x': jnp.arange(2.0**20)}
  want = np.array(state['x'], copy=True)
  step = jax.jit(lambda state: jax.tree.map(lambda x: 2 * x - 1, state), donate_argnums=0)
  saver = orbax.Checkpoints(tmp_path / 'checkpoints')
  saver.save(0, state)
  for _ in range(5):
    state = step(state)
  saver.wait()
  restored = saver.restore(0, {'x': jax.ShapeDtypeStruct(want.shape, want.dtype)})
  saver.close()
  np.testing.assert_array_equal(restored['x'], want)


def test_the_newest_and_the_best_are_kept(run):
  saver = orbax.Checkpoints(run / 'checkpoints', best_metric='accuracy')
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['2', '4', '5']
  assert (saver.latest_step(), saver.best_step()) == (5, 2)
  saver.close()


def test_the_smallest_metric_is_best_with_mode_min(tmp_path):
  saver = orbax.Checkpoints(tmp_path, keep_last=1, keep_best=1, best_metric='loss', best_mode='min')
  for step, loss in enumerate((3.0, 1.0, 2.0)):
    saver.save(step, {'x': jnp.float32(step)}, {'loss': loss})
  assert (saver.latest_step(), saver.best_step()) == (2, 1)
  saver.close()
  assert folders.load_metadata(tmp_path)['step'] == 1


def test_a_checkpoint_of_another_best_metric_is_never_best(tmp_path):
  for step, name in ((1, 'loss'), (2, 'accuracy')):
    saver = orbax.Checkpoints(tmp_path, keep_last=2, best_metric=name, best_mode='min')
    saver.save(step, {'x': jnp.zeros(1)}, {name: 0.5})
    saver.wait()
    assert saver.best_step() == step
    saver.close()


KL = parse_bound('kl<=2')


def save_each(folder, metrics, **changes):
  """Saves steps 0, 1, ... with (loss, KL); the steps that are kept, and the best after each."""
  settings = {'keep_last': 1, 'best_metric': 'loss', 'best_mode': 'min', 'best_bound': KL}
  saver, best = orbax.Checkpoints(folder, **settings | changes), []
  for step, (loss, kl) in metrics.items():
    saver.save(step, {'x': jnp.float32(step)}, {'loss': loss, 'kl': kl})
    best.append(saver.best_step())
  saver.close()
  return sorted(int(path.name) for path in folder.iterdir()), best


def test_a_checkpoint_that_breaks_the_bound_is_never_best(tmp_path):
  """Step 2 has the smallest loss, and steps 0 and 2 break the bound."""
  metrics = {0: (2.0, 5.0), 1: (3.0, 1.0), 2: (1.0, 2.5), 3: (4.0, 2.0)}
  kept, best = save_each(tmp_path, metrics)
  assert (kept, best) == ([1, 3], [None, 1, 1, 1])
  saved = folders.load_metadata(tmp_path)
  assert (saved['step'], saved['best_bound']) == (1, 'kl<=2.0')


def test_where_no_checkpoint_keeps_the_bound_the_newest_is_kept_alone(tmp_path):
  kept, best = save_each(tmp_path, {0: (1.0, 5.0), 1: (2.0, 5.0), 2: (3.0, math.nan)})
  assert (kept, best) == ([2], [None] * 3)
  assert folders.load_metadata(tmp_path)['step'] == 2


def test_a_resumed_run_ranks_its_earlier_checkpoints_by_the_bound_of_today(tmp_path):
  save_each(tmp_path, {0: (1.0, 5.0), 1: (2.0, 1.0)}, keep_last=3, best_bound=None)
  _, best = save_each(tmp_path, {2: (3.0, 1.0)}, keep_last=3)
  assert best == [1] and folders.load_metadata(tmp_path)['step'] == 1


def test_an_unmeasured_checkpoint_is_never_best(tmp_path):
  saver = orbax.Checkpoints(tmp_path, best_metric='loss', best_mode='min')
  saver.save(0, {'x': jnp.float32(0)}, {})
  assert saver.best_step() is None
  saver.save(1, {'x': jnp.float32(1)}, {'loss': 2.0})
  saver.save(2, {'x': jnp.float32(2)}, {'loss': float('-inf')})
  assert saver.best_step() == 1
  saver.close()


def test_a_step_saved_twice_stays_as_it_was(tmp_path):
  saver = orbax.Checkpoints(tmp_path)
  for value in (1.0, 2.0):
    saver.save(7, {'x': jnp.float32(value)})
  saver.wait()
  assert saver.restore(7, {'x': jax.ShapeDtypeStruct((), jnp.float32)})['x'] == 1.0
  saver.close()


def test_an_interrupted_save_is_not_a_checkpoint(run):
  partial = run / 'checkpoints' / '6.orbax-checkpoint-tmp'
  (partial / 'state').mkdir(parents=True)
  (run / 'checkpoints' / '7').mkdir()
  (run / 'checkpoints' / '7' / 'state').mkdir()
  assert folders.load_metadata(run / 'checkpoints')['step'] == 2
  (run / 'checkpoints' / '7' / 'state').rmdir()
  (run / 'checkpoints' / '7').rmdir()
  saver = orbax.Checkpoints(run / 'checkpoints')
  assert saver.latest_step() == 5
  saver.save(6, _state(_mesh(4, 2), 6))
  saver.close()
  assert folders.load_metadata(run / 'checkpoints' / '6')['step'] == 6
  assert not partial.exists()


def _save_and_wait(saver):
  saver.save(0, {'x': jnp.float32(1)})
  saver.wait()


def test_a_failure_to_write_is_raised(tmp_path):
  saver = orbax.Checkpoints(tmp_path / 'checkpoints', metadata={'model': object()})
  with pytest.raises(TypeError, match='not JSON serializable'):
    _save_and_wait(saver)
  assert not (tmp_path / 'checkpoints' / '0').exists()


def test_the_policy_of_a_run_starts_another(run):
  params, metadata = orbax.load_params(run)
  assert metadata.pop('digest')
  expected = {'vocabulary': 'bytes', 'best_metric': 'accuracy', 'best_mode': 'max', 'step': 2}
  assert metadata == expected | {'family': 't5'}
  _assert_identical(params, _state(_mesh(4, 2), 2).params['policy'])
  newest, metadata = orbax.load_params(run / 'checkpoints' / '5')
  assert metadata['step'] == 5
  _assert_identical(newest, _state(_mesh(4, 2), 5).params['policy'])


def test_imported_parameters_are_created_sharded(tmp_path):
  policy = jax.tree.map(np.asarray, _state(_mesh(4, 2)).params['policy'])
  orbax.save_params(tmp_path / 'imported', policy, {'model': {'emb_dim': 16}})
  metadata = folders.load_metadata(tmp_path / 'imported')
  assert metadata.pop('digest')
  assert metadata == {'family': 't5', 'model': {'emb_dim': 16}}
  params, _ = orbax.load_params(tmp_path / 'imported', _abstract(policy, _mesh(2, 4)))
  _assert_identical(params, policy)
  assert params['encoder']['kernel'].sharding == _sharded(_mesh(2, 4))
  with pytest.raises(UsageError, match='exists already'):
    orbax.save_params(tmp_path / 'imported', policy, {})


def test_the_digest_of_a_start_depends_on_its_parameters_and_not_its_name(tmp_path, run):
  for name, seed in (('a', 0), ('b', 1)):
    orbax.save_params(tmp_path / name, _numbers(seed), {'model': name})
  one, other = (folders.init_digest(tmp_path / name) for name in 'ab')
  assert one != other
  (tmp_path / 'a').rename(tmp_path / 'c')
  orbax.save_params(tmp_path / 'a', _numbers(0), {'model': 'again'})
  assert folders.init_digest(tmp_path / 'a') == folders.init_digest(tmp_path / 'c') == one


def test_a_run_that_continued_still_matches_the_step_that_another_run_started_from(run):
  best, newest = (folders.init_digest(run / 'checkpoints' / step) for step in ('2', '5'))
  assert folders.init_digest(run) == best != newest
  assert folders.init_digest(run, started=newest) == newest
  assert folders.init_digest(run, started='gone') == best
  assert folders.init_digest(run / 'checkpoints' / '2', started=newest) == best


def test_another_model_is_refused_with_the_first_difference(run):
  policy = _abstract(_state(_mesh(4, 2)).params['policy'], _mesh(4, 2))
  larger = {**policy, 'encoder': {'kernel': jax.ShapeDtypeStruct((8, 32), jnp.float32)}}
  with pytest.raises(UsageError, match=r'encoder/kernel is of shape \[8, 16\] there and of shape \[8, 32\]'):
    orbax.load_params(run, larger)
  with pytest.raises(UsageError, match=r'scale is of shape \[3\] there and absent'):
    orbax.load_params(run, {'encoder': policy['encoder']})
  with pytest.raises(UsageError, match=r'decoder is absent there and of shape \[2\]'):
    orbax.load_params(run, {**policy, 'decoder': jax.ShapeDtypeStruct((2,), jnp.float32)})


def test_a_folder_without_a_checkpoint_is_refused_with_a_remedy(tmp_path):
  with pytest.raises(UsageError, match='it does not exist'):
    orbax.load_params(tmp_path / 'nowhere')
  (tmp_path / 'notes.txt').write_text('')
  with pytest.raises(UsageError, match=r'it holds notes.txt. .*import_checkpoint'):
    orbax.load_params(tmp_path)


def test_a_missing_step_and_bad_settings_are_refused(run):
  saver = orbax.Checkpoints(run / 'checkpoints', best_metric='accuracy')
  with pytest.raises(UsageError, match=r'no checkpoint of step 3 .* it has \[2, 4, 5\]'):
    saver.restore(3, {})
  saver.close()
  with pytest.raises(UsageError, match='keep_last is 0'):
    orbax.Checkpoints(run, keep_last=0)
  with pytest.raises(UsageError, match="best_mode is 'largest'"):
    orbax.Checkpoints(run, best_mode='largest')


def _largest_file(step):
  """Of arrays' bytes."""
  return max((step / 'state').rglob('d/*'), key=lambda file: file.stat().st_size)


def _truncated(step):
  file = _largest_file(step)
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _one_bit_flipped(step):
  file = _largest_file(step)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def _without_description(step):
  (step / 'metadata' / 'metadata').write_text('')


def _of_other_numbers(step):
  file = step / 'metadata' / 'metadata'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'digest': 'another'}))


def _emptied(step):
  shutil.rmtree(step / 'state')


# One array: of several, reads still under way when the first fails would complain in threads of their own.
def _numbers(step):
  return {'x': jax.random.normal(jax.random.key(step), (2**15,))}


_ABSTRACT = jax.eval_shape(_numbers, 0)


@pytest.mark.parametrize(
  'damage', [_truncated, _one_bit_flipped, _without_description, _of_other_numbers, _emptied]
)
def test_a_damaged_newest_checkpoint_is_moved_aside_for_the_one_before(tmp_path, damage, caplog):
  saver = orbax.Checkpoints(tmp_path / 'checkpoints')
  for step in (4, 5):
    saver.save(step, _numbers(step))
  saver.wait()
  damage(tmp_path / 'checkpoints' / '5')
  assert folders.run_metadata(tmp_path)['step'] == (4 if damage is _without_description else 5)
  _assert_identical(_numbers(4), saver.restore_newest(_ABSTRACT))
  assert 'DAMAGED' in caplog.text and 'continues from step 4' in caplog.text
  assert (tmp_path / 'damaged' / '5').is_dir() and saver.latest_step() == 4
  saver.save(5, _numbers(5))
  saver.wait()
  _assert_identical(_numbers(5), saver.restore_newest(_ABSTRACT))
  saver.close()


def test_damaged_checkpoints_stay_in_place_where_none_is_intact(run):
  for step in (2, 4, 5):
    _emptied(run / 'checkpoints' / str(step))
  saver = orbax.Checkpoints(run / 'checkpoints')
  with pytest.raises(UsageError, match=r'no intact checkpoint in .*: .*5 cannot be read.*Restore a copy'):
    saver.restore_newest(_abstract(_state(_mesh(4, 2)), _mesh(4, 2)))
  saver.close()
  assert sorted(path.name for path in run.iterdir()) == ['checkpoints']


def test_a_damaged_start_is_refused_by_name(tmp_path):
  orbax.save_params(tmp_path / 'start', _numbers(0), {})
  for file in (tmp_path / 'start' / 'params').rglob('*'):
    if file.is_file() and not file.name.startswith('_'):
      file.write_bytes(b'')
  with pytest.raises(UsageError, match=r'start cannot be read: .*Pass another'):
    orbax.load_params(tmp_path / 'start')


def test_files_of_other_projects_are_refused_with_the_import_command(tmp_path):
  transformers, adapter = tmp_path / 'flan', tmp_path / 'lora'
  transformers.mkdir()
  adapter.mkdir()
  (transformers / 'config.json').write_text('{}')
  (transformers / 'pytorch_model.bin').write_bytes(b'')
  (adapter / 'adapter_config.json').write_text('{}')
  command = f'dro_jax import_checkpoint --init_from={transformers} --model_dir=checkpoints/flan'
  for path in (transformers, transformers / 'pytorch_model.bin'):
    with pytest.raises(UsageError, match=f'^{path} .*{command}$'):
      folders.find_checkpoint(path)
  with pytest.raises(
    UsageError,
    match='an adapter .*import its base, and then .*import_checkpoint --init_from=.*lora.*LORA_BASE',
  ):
    folders.find_checkpoint(adapter)
  with pytest.raises(UsageError, match='import_checkpoint --init_from=google/flan-t5-small'):
    folders.find_checkpoint('google/flan-t5-small')
  for path in ('~/absent-run', './absent-run', '/absent-run'):
    with pytest.raises(UsageError, match=r"it does not exist\. Pass a run's model_dir"):
      folders.find_checkpoint(path)


def test_metadata_of_an_earlier_version_is_upgraded():
  saved = {
    'value': {'readout': 'batch'},
    'online': {'reward': 'dro_jax.rewards:contains', 'samples': 2},
  }
  now = upgrade_metadata(saved)
  assert now == {
    'family': 't5', 'value': {'readout': 'scalar'}, 'online': {'reward': 'contains', 'samples': 2}
  }  # fmt: skip
  assert upgrade_metadata(now | {'format': 2}) == now | {'format': 2}
  own = {'online': {'reward': 'mine:contains'}, 'decoding': {'reward': None}, 'format': 2, 'family': 't5'}
  assert upgrade_metadata(own) == own
