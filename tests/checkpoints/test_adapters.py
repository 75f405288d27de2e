"""Runs with adapters: what they save, resume, refuse and start from."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.checkpoints import adapters, folders, orbax, trees
from dro_jax.checkpoints.export_checkpoint import export_checkpoint
from dro_jax.checkpoints.import_checkpoint import import_checkpoint
from dro_jax.costs import roofline
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import UsageError
from dro_jax.evaluation.check import check
from dro_jax.evaluation.generate import generate
from dro_jax.models import lora
from dro_jax.models.lora import Lora
from dro_jax.models.policy import config_metadata
from dro_jax.models.stacks import convert_layers
from dro_jax.parallel import partitioning
from dro_jax.recipes.cache_reference import cache_reference
from dro_jax.run import networks
from dro_jax.run.build import build
from dro_jax.run.sampling.rollouts import RolloutOptions
from dro_jax.run.schedule import Schedule
from dro_jax.run.trained import load_network, load_reference, load_run
from dro_jax.step import optimizers
from dro_jax.step.reference import AdapterOff, Cached, Frozen
from tests import runs
from tests.checkpoints.test_export_checkpoint import CONFIG, random_tree
from tests.run.test_train import cut_back

LORA = Lora(rank=2, alpha=5)


def one_device():
  return partitioning.make_mesh(devices=jax.devices()[:1])


def save_base(folder, change=0.0, config=CONFIG, scan=False):
  params = jax.tree.map(lambda x: x + np.float32(change), random_tree(CONFIG))
  config = dataclasses.replace(config, scan_layers=scan)
  params = jax.tree.map(np.asarray, convert_layers(params, scan=True)) if scan else params
  orbax.save_params(folder, params, config_metadata(config) | {'vocabulary': 'bytes'})
  return str(folder)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return save_base(tmp_path_factory.mktemp('base') / 'base')


@pytest.fixture(scope='module')
def settings(base, tmp_path_factory):
  """Settings of a run, as `tests.runs` takes them; keyword arguments change them."""
  folder, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
  records = [
    {'prompt': f'{i % 6}', 'response': ''.join(rng.choice(list('abc'), 4)), 'reward': rng.normal()}
    for i in range(24)
  ]
  (folder / 'triplets.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  data = functools.partial(
    load_triplets, str(folder / 'triplets.jsonl'), validation_fraction=0.0, cache_dir=str(folder / 'cache'),
    prompt_length=8, response_length=8,
  )  # fmt: skip

  def settings(steps=4, **changes):
    schedule = Schedule(steps=steps, log_every=1, eval_every=0, checkpoint_every=2)
    return {
      'data': data, 'init_from': base, 'lora': LORA, 'mesh': one_device, 'batch_size': 4,
      'schedule': schedule, 'policy_optimizer': optimizers.adamw(0.05),
      'value_optimizer': optimizers.adamw(0.05),
    } | changes  # fmt: skip

  return settings


@pytest.fixture(scope='module')
def trained(settings, tmp_path_factory):
  folder = tmp_path_factory.mktemp('trained') / 'run'
  runs.train(folder, **settings())
  return folder


def saved_state(folder, step=4):
  return trees.read_tree(folders.absolute_path(folder) / 'checkpoints' / str(step) / 'state', (), None)


def test_a_run_saves_adapters_and_heads_alone_and_its_bases_fingerprint(trained, base):
  state, saved = saved_state(trained), adapters.saved_adapter(trained)
  assert {*state} == {'step', 'params', 'opt_state', 'reference', 'statistics'} and state['reference'] is None
  own = jax.tree.leaves(state['params'])
  assert {*state['params']['value']} == {'head', 'trunk'} and max(x.size for x in own) < 24 * 16
  assert saved == adapters.Saved(LORA, base, adapters.fingerprint_of(base))
  assert folders.load_metadata(trained)['reference'] == {'scheme': 'adapter_off'}


@pytest.mark.long
def test_a_policy_and_its_reference_load_alone_as_their_run_has_them(trained):
  """As sides of `judge` load: each with the base, which nobody has loaded before."""
  run = load_run(trained, one_device())
  policy, reference = load_network(trained, one_device()), load_reference(trained, one_device())
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same(policy.variables, run.policy.variables)
  same(reference.variables, lora.variables_of(run.state.policy_of(None)))
  assert [*policy.variables] != [*reference.variables]


def test_a_fingerprint_is_the_same_scanned_or_not_and_another_for_another_base(base, tmp_path):
  scanned, other = save_base(tmp_path / 'scanned', scan=True), save_base(tmp_path / 'other', change=1e-6)
  assert adapters.fingerprint_of(scanned) == adapters.fingerprint_of(base) != adapters.fingerprint_of(other)


@pytest.mark.long
def test_a_run_that_stops_and_resumes_is_the_run_that_did_not_to_the_bit(settings, trained, tmp_path):
  runs.train(cut_back(trained, tmp_path / 'run', 2), **settings())
  jax.tree.map(np.testing.assert_array_equal, saved_state(tmp_path / 'run'), saved_state(trained))
  with pytest.raises(UsageError, match=r'lora.lora.alpha: 5 → 8'):
    runs.train(tmp_path / 'run', **settings(steps=6, lora=Lora(rank=2, alpha=8)))


@pytest.mark.long
def test_a_loaded_run_scores_against_its_base_and_checks_and_answers(trained, settings, base):
  run, plain = load_run(str(trained), one_device()), load_run(base, one_device())
  table = settings()['data'](vocabulary=run.vocabulary).train
  scored = run.score(table)
  np.testing.assert_array_equal(scored.reference_logps, plain.score(table).logps)
  assert np.abs(scored.logps - scored.reference_logps).max() > 0.01
  assert np.isfinite(scored.values).all() and {*run.value.variables} == {'params', 'lora'}
  [answer] = run.generate('say 1', temperature=0.0, max_length=4)
  assert len(answer.tokens) <= 4
  assert check(str(trained), max_length=2, mesh=runs.LaidOut(make=one_device))['log_ratio'] == 0


@pytest.mark.long
def test_several_steps_answer_on_one_base_which_is_their_reference(trained, base, tmp_path, monkeypatch):
  loaded, load_base = [], adapters.load_base
  monkeypatch.setattr(adapters, 'load_base', lambda *args: (loaded.append(args[0]), load_base(*args))[1])

  def records(name, **settings):
    mesh = runs.LaidOut(make=one_device)
    options = {'prompt': '1', 'num_samples': 8, 'max_length': 4, 'mesh': mesh, 'steps': 'all'} | settings
    generate(str(trained), output=str(tmp_path / name), **options)
    return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

  found = records('own', reference_logp='run')
  assert loaded == [base] and [record['step'] for record in found] == [2] * 8 + [4] * 8
  # The adapter off is the base itself.
  assert found == records('base', reference_logp=base)
  assert max(abs(record['logp'] - record['reference_logp']) for record in found) > 0.01


@pytest.mark.long
def test_another_base_is_refused_and_a_moved_one_is_found(settings, trained, base, tmp_path):
  moved, other = tmp_path / 'moved', save_base(tmp_path / 'other', change=1e-6)
  shutil.copytree(trained, moved)
  with pytest.raises(UsageError, match='other parameters than the base that the adapter was trained on'):
    load_run(str(moved), one_device(), init_from=other)
  metadata = moved / 'checkpoints' / '4' / 'metadata' / 'metadata'
  metadata.write_text(metadata.read_text().replace(base, str(tmp_path / 'gone')))
  with pytest.raises(UsageError, match=r'holds an adapter, whose base is missing .*LORA_BASE=DIR'):
    load_run(str(moved), one_device())
  assert load_run(str(moved), one_device(), init_from=base).state.base is not None
  with pytest.raises(UsageError, match='other parameters'):
    runs.train(moved, **settings(steps=6, init_from=other))
  assert runs.train(moved, **settings(steps=6))['step'] == 6
  with pytest.raises(UsageError, match=r'holds a whole model, which is the base of the run itself'):
    runs.train(tmp_path / 'new', **settings(lora=dataclasses.replace(LORA, base=base)))


@pytest.mark.long
def test_a_run_that_trains_on_an_adapter_has_it_as_its_reference_or_the_base(settings, trained):
  first = saved_state(trained)['params']['policy']
  run = build(runs.spec(**settings(init_from=str(trained))))
  state, rows = run.init(), next(run.batches(0, 1))[1]
  jax.tree.map(np.testing.assert_array_equal, state.params['policy'], first)
  jax.tree.map(np.testing.assert_array_equal, state.reference, first)
  assert run.step(state, rows)[1].metrics['log_ratio_max'] == 0
  off = build(runs.spec(**settings(init_from=str(trained), reference=AdapterOff())))
  state = off.init()
  assert state.reference is None
  assert off.step(state, rows)[1].metrics['log_ratio_max'] > 0.01
  with pytest.raises(UsageError, match=r'rank 2 there and 3 here.*LORA_RANK=2'):
    build(runs.spec(**settings(init_from=str(trained), lora=Lora(rank=3)))).init()


@pytest.mark.long
def test_all_parameters_train_from_the_merged_policy_of_an_adapters_checkpoint(settings, trained):
  run = build(runs.spec(**settings(init_from=str(trained), lora=None)))
  merged = networks.load_own(run.networks, str(trained), run.mesh)
  nets = networks.build_policy(str(trained))
  adapted = networks.load_policy(nets, str(trained), run.mesh)
  rows = next(run.batches(0, 1))[1]
  score = jax.jit(lambda policy: run_score(nets, policy, rows))
  np.testing.assert_allclose(score(merged), score(adapted), rtol=1e-5, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, run.init().params['policy'], merged)


def run_score(nets, policy, rows):
  from dro_jax.models import scoring

  return scoring.make_score(nets.policy)({'policy': policy}, rows).logps


@pytest.mark.long
def test_a_store_of_the_bases_log_probs_is_the_adapter_off(settings, trained, tmp_path):
  store = str(tmp_path / 'store')
  cache_reference(store, runs.spec(**settings()))
  reference = Cached(store)
  runs.train(tmp_path / 'run', **settings(reference=reference))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, saved_state(tmp_path / 'run')['params'], saved_state(trained)['params'])
  scored = load_run(str(tmp_path / 'run'), one_device())
  assert scored.state.reference is None and scored.has_reference


@pytest.mark.long
def test_an_online_algorithm_answers_with_its_adapter(settings, tmp_path):
  reward = RolloutOptions(reward=lambda prompts, responses: [float(len(r)) for r in responses], max_length=4)
  run = settings(steps=1, algorithm=functools.partial(algorithms.rloo_online, samples=2), rollouts=reward)
  assert np.isfinite(runs.train(tmp_path / 'run', **run)['loss'])


@pytest.mark.long
def test_a_quantised_base_trains_and_merges_into_what_it_was_trained_on(settings, base, tmp_path):
  folder = tmp_path / 'run'
  run = settings(steps=2, lora=Lora(rank=2, base_kernels='nf4'), algorithm=algorithms.dro_p)
  runs.train(folder, **run)
  adapted = load_run(str(folder), one_device())
  assert adapted.state.base.variables['frozen']
  export_checkpoint(str(folder), str(tmp_path / 'whole'), merged=True)
  import_checkpoint(str(tmp_path / 'whole'), str(tmp_path / 'back'), 'bytes')
  table = run['data'](vocabulary=adapted.vocabulary).train
  back = load_run(str(tmp_path / 'back'), one_device())
  np.testing.assert_allclose(back.score(table).logps, adapted.score(table).logps, rtol=1e-5, atol=1e-4)


def test_memory_has_the_base_once_for_policy_reference_and_value(settings):
  spec = runs.spec(**settings())
  held = roofline.state_memory(build(spec).abstract_state)
  parameters = sum(x.nbytes for x in jax.tree.leaves(random_tree(CONFIG)))
  assert held['frozen_base'] == parameters and held['reference'] == 0
  assert held['parameters'] + held['optimizer'] < parameters
  whole = roofline.state_memory(build(runs.spec(**settings(lora=None, reference=Frozen()))).abstract_state)
  assert whole['reference'] == parameters


def test_adapters_without_a_base_on_disk_and_a_switch_without_adapters_are_refused(settings):
  run = settings(init_from=None, model=dataclasses.replace(CONFIG, vocab_size=None))
  with pytest.raises(UsageError, match=r'a base that lies on disk.*--init_from=DIR'):
    build(runs.spec(**run)).init()
  with pytest.raises(UsageError, match=r'the run has no adapter: pass Policy\(lora=.*--set LORA_RANK=16'):
    runs.spec(**settings(lora=Lora(), reference=AdapterOff()))
