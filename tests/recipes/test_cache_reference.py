import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from dro_jax import algorithms, names
from dro_jax.checkpoints import orbax
from dro_jax.data.table import column_store
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import UsageError
from dro_jax.evaluation import evaluate
from dro_jax.models.stacks import convert_layers
from dro_jax.parallel import partitioning
from dro_jax.recipes import cache_reference
from dro_jax.run import batches, networks, reference_store, schedule, trained
from dro_jax.step import optimizers, reference
from tests import runs
from tests.examples import CONFIG
from tests.run.test_train import final_state, records, write_triplets
from tests.tiers import long

WORDS = vocabularies.vocabulary('bytes')
MODEL = dataclasses.replace(CONFIG, vocab_size=384)
ALGORITHMS = {
  'dro_v': algorithms.dro_v,
  'dpo': algorithms.dpo,
  'kto': functools.partial(algorithms.kto, beta=0.5),
}
TIMING = functools.partial(
  schedule.Schedule, steps=3, log_every=1, eval_every=3, sample_prompts=0, kl_prompts=0
)
# Only KTO's validation reads more than its training does.
BRIEF = functools.partial(TIMING, eval_every=0)


def one_device():
  return partitioning.make_mesh(devices=jax.devices()[:1])


ONE = runs.LaidOut(make=one_device)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  return functools.partial(
    load_triplets, write_triplets(folder / 'triplets.jsonl'), prompt_length=32, response_length=16,
    validation_fraction=0.2, cache_dir=str(folder / 'cache'),
  )  # fmt: skip


def save_policy(folder, seed=0):
  nets = networks.build(MODEL, uses_value=False)
  params = networks.initial_params(nets, one_device(), seed, None)['policy']
  metadata = networks.metadata(
    MODEL, vocabulary=WORDS, algorithm=algorithms.sft(), readout='prompt', shared=False
  )
  orbax.save_params(folder, params, metadata)
  return str(folder)


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
  return save_policy(tmp_path_factory.mktemp('policy') / 'reference')


@pytest.fixture(scope='module')
def store(policy, data, tmp_path_factory):
  """A store for any run of three steps, KTO's with batches of 8 too."""
  folder = tmp_path_factory.mktemp('store') / 'store'
  settings = {'init_from': policy, 'schedule': TIMING, 'batch_size': 8, 'mesh': one_device}
  result = cache_reference.cache_reference(str(folder), runs.spec(data, ALGORITHMS['kto'], **settings))
  assert result['responses'] == 60 and result['mismatched_pairs'] >= 20
  return str(folder)


def test_a_place_that_holds_something_else_is_refused_before_anything_is_scored(policy, data, tmp_path):
  (tmp_path / 'thesis.tex').write_text('mine')
  for folder, message in ((tmp_path, 'holds something else'), (tmp_path / 'thesis.tex', 'is a file')):
    with pytest.raises(UsageError, match=f'--model_dir=.*{message}'):
      cache_reference.cache_reference(str(folder), runs.spec(data, init_from=policy, mesh=one_device))


def run(folder, data, policy, name='dro_v', scheme=reference.Frozen, **changes):
  settings = {
    'init_from': policy,
    'mesh': one_device,
    'batch_size': 8,
    'policy_optimizer': functools.partial(optimizers.adamw, 1e-3),
    'value_optimizer': functools.partial(optimizers.adafactor, 1e-2),
    'schedule': TIMING if name == 'kto' else BRIEF,
  }
  return runs.train(str(folder), data, ALGORITHMS[name], reference=scheme, **(settings | changes))


def cached(store, **options):
  return functools.partial(reference.Cached, store=store, **options)


@pytest.fixture(scope='module')
def finished(store, data, policy, tmp_path_factory):
  """The folder of a run with a cached reference, by algorithm."""

  @functools.cache
  def folder(name):
    found = tmp_path_factory.mktemp(name)
    run(found, data, policy, name, cached(store))
    return found

  return folder


@pytest.mark.parametrize('name', ['dro_v', *long('dpo', 'kto')])
def test_a_cached_reference_trains_as_the_live_one(name, finished, data, policy, tmp_path):
  run(tmp_path / 'live', data, policy, name)
  (tmp_path / 'cached').symlink_to(finished(name))
  for live, stored in zip(records(tmp_path / 'live'), records(tmp_path / 'cached'), strict=True):
    shared = live.keys() & stored.keys() - {'flops'}
    if live['step'] <= 1:  # Every log-ratio is 0 to a rounding, whose sign decides each pair.
      shared -= {'pair_accuracy', 'eval/within_prompt_accuracy/log_ratio'}
    assert {'loss'} < shared or {'eval/loss'} < shared
    for metric in shared:
      np.testing.assert_allclose(stored[metric], live[metric], rtol=1e-4, atol=2e-5, err_msg=metric)
  live, stored = (final_state(tmp_path / kind) for kind in ('live', 'cached'))
  assert live['reference'] and not stored['reference']
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), live['params']['policy'],
    stored['params']['policy'],
  )  # fmt: skip
  check = json.loads((tmp_path / 'cached' / 'run.json').read_text())['reference_check']
  assert (0 <= check['largest_difference'] < 1e-5 and check['responses'] == 48) or check['responses'] > 30


@pytest.mark.long
def test_evaluate_has_the_reference_of_a_cached_run(finished, data, policy, tmp_path):
  folder, whole = str(finished('dro_v')), functools.partial(data, validation_fraction=0)
  found = evaluate.evaluate(folder, whole, resamples=2, mesh=ONE)
  assert np.isfinite(found['statistics']['log_ratio'])
  (tmp_path / 'moved').symlink_to(policy)
  moved = trained.load_run(folder, one_device(), init_from=str(tmp_path / 'moved'))
  assert reference_store.digest_of(moved.state.reference) == reference_store.digest_of(
    orbax.load_params(policy)[0]
  )
  with pytest.raises(UsageError, match=r'hold no parameters of the reference[\s\S]*pass --init_from'):
    trained.load_run(folder, one_device(), init_from=str(tmp_path / 'nowhere'))
  other = save_policy(tmp_path / 'other', seed=1)
  with pytest.raises(UsageError, match='holds another policy'):
    trained.load_run(folder, one_device(), init_from=other)


def test_another_policy_is_refused(store, data, tmp_path):
  other = save_policy(tmp_path / 'other', seed=1)
  with pytest.raises(UsageError, match='another reference’s log-probs: parameters'):
    run(tmp_path / 'run', data, other, scheme=cached(store))
  assert not (tmp_path / 'run').exists()


def test_another_way_of_reading_the_data_is_refused(store, data, policy, tmp_path):
  loud = functools.partial(data, template='{prompt}!')
  with pytest.raises(
    UsageError, match=r"does not fit: data.template: '\{prompt\}' there, '\{prompt\}!' here"
  ):
    run(tmp_path / 'run', loud, policy, scheme=cached(store))
  with pytest.raises(UsageError, match="model.dtype: 'float32' there, 'bfloat16' here"):
    run(tmp_path / 'run', data, policy, scheme=cached(store), dtype='bfloat16')


def test_numbers_beyond_the_tolerance_are_refused(store, data, policy, tmp_path):
  good = column_store.read(store)
  flat, offsets = good.token_columns[names.TOKEN_LOGPS]
  bad = column_store.write(
    tmp_path / 'bad', good.keys, fingerprint=good.fingerprint, origin=good.origin,
    token_columns={names.TOKEN_LOGPS: (np.asarray(flat) + 0.01, np.diff(offsets))},
  )  # fmt: skip
  with pytest.raises(UsageError, match=r'differs by 0\.01 nats, more than 0\.001'):
    run(tmp_path / 'run', data, policy, scheme=cached(bad.directory))


def test_another_plan_of_mismatched_pairs_is_refused(store, data, policy, tmp_path):
  for changes, said in (
    ({'seed': 1}, 'seed: 0 there, 1 here'),
    ({'batch_size': 16}, 'train.batch_size: 8 there, 16 here'),
    ({'schedule': functools.partial(TIMING, steps=4)}, 'steps: 3 there, 4 here'),
    ({'rows': functools.partial(batches.RowOptions, packed=False)}, 'train.layout.packed: True there'),
  ):
    with pytest.raises(UsageError, match=said):
      run(tmp_path / 'run', data, policy, 'kto', cached(store), **changes)


def test_kto_needs_a_store_with_mismatched_pairs(data, policy, tmp_path):
  plain = str(tmp_path / 'plain')
  cache_reference.cache_reference(plain, runs.spec(data, init_from=policy, mesh=one_device))
  with pytest.raises(UsageError, match='has no mismatched pairs'):
    run(tmp_path / 'run', data, policy, 'kto', cached(plain))


@pytest.mark.parametrize('scheme', [reference.Soft, reference.Hard, reference.Frozen])
def test_only_a_cached_reference_takes_a_store(scheme):
  with pytest.raises(UsageError, match='REFERENCE_STORE=x holds the log-probs of a reference that stays'):
    scheme(store='x').build(lambda *_: None)
  with pytest.raises(UsageError, match='dro_jax cache_reference'):
    reference.Cached().build(lambda *_: None)


def test_fresh_responses_cannot_be_cached(store, data):
  found, triplets = reference.Cached(store).build(lambda *_: None), data(vocabulary=WORDS)
  with pytest.raises(UsageError, match='fresh responses, which a store cannot hold'):
    reference_store.open_for(found, algorithms.rloo_online(), MODEL, WORDS, triplets)


def test_a_store_needs_the_checkpoint_of_its_reference(data, tmp_path):
  with pytest.raises(UsageError, match='cache_reference needs --init_from=DIR'):
    cache_reference.cache_reference(str(tmp_path / 's'), runs.spec(data))


def test_the_digest_tells_parameters_apart_and_layouts_not():
  rng = np.random.default_rng(0)
  stack = {f'layers_{i}': {'kernel': rng.normal(size=(3, 4)).astype(np.float32)} for i in range(2)}
  params = {'encoder': stack, 'scale': np.ones(4, np.float32)}
  found = reference_store.digest_of(params)
  where = partitioning.rows_sharding(partitioning.make_mesh())
  sharded = jax.device_put({'kernel': np.arange(16.0, dtype=np.float32)}, where)
  assert reference_store.digest_of(sharded) == reference_store.digest_of(jax.device_get(sharded))
  assert reference_store.digest_of(convert_layers(params, scan=True)) == found
  for change in (lambda x: x[::-1], lambda x: x.reshape(4, 3).T, np.negative):
    other = {**params, 'encoder': {**stack, 'layers_1': {'kernel': change(stack['layers_1']['kernel'])}}}
    assert reference_store.digest_of(other) != found
