import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.checkpoints import orbax
from dro_jax.data import triplets
from dro_jax.errors import UsageError
from dro_jax.evaluation import evaluate
from dro_jax.models.t5.config import T5Config
from dro_jax.parallel import partitioning
from dro_jax.run import schedule, trained
from dro_jax.step import optimizers
from tests import runs

MODEL = T5Config(emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1)
ESTIMATE = {'value', 'low', 'high'}


def one_device():
  """Compiles in a fraction of eight devices' time; tests of the step hold all meshes to each other."""
  return partitioning.make_mesh(devices=jax.devices()[:1])


ONE = runs.LaidOut(make=one_device)


def write_triplets(path, num, seed):
  """Star ratings of responses to few prompts, so that prompts have pairs and rewards have ties."""
  rng = np.random.default_rng(seed)
  with open(path, 'w') as file:
    for _ in range(num):
      response = ''.join(rng.choice(list('abc'), rng.integers(1, 6)))
      record = {'prompt': f'say {rng.integers(8)}', 'response': response, 'reward': int(rng.integers(1, 6))}
      file.write(json.dumps(record) + '\n')
  return str(path)


class Files:
  """Where everything lies; `data` reads the triplets that runs are evaluated on."""

  def __init__(self, folder):
    self.folder = folder
    self.train, self.test = (
      write_triplets(folder / 'a.jsonl', 40, 0),
      write_triplets(folder / 'b.jsonl', 30, 1),
    )
    self.options = {'prompt_length': 16, 'response_length': 8, 'cache_dir': str(folder / 'cache')}
    self.data = functools.partial(triplets.load_triplets, self.test, validation_fraction=0, **self.options)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  return Files(tmp_path_factory.mktemp('evaluate'))


@pytest.fixture(scope='module')
def dro_v(files):
  """A run of two steps."""
  data = functools.partial(
    triplets.load_triplets, files.train, eval_triplets=files.test, scaling='standardise', **files.options
  )
  folder = str(files.folder / 'run')
  runs.train(
    folder, data, functools.partial(algorithms.dro_v, tau=0.5),
    model=MODEL, batch_size=8, mesh=one_device,
    schedule=functools.partial(
      schedule.Schedule, steps=2, log_every=1, eval_every=2, sample_prompts=0, kl_prompts=0
    ),
    policy_optimizer=functools.partial(optimizers.adamw, 0.02),
    value_optimizer=functools.partial(optimizers.adamw, 0.02),
  )  # fmt: skip
  return folder


@pytest.fixture(scope='module')
def result(files, dro_v):
  return evaluate.evaluate(dro_v, files.data, mesh=ONE, resamples=20)


def test_agrees_with_what_training_measured(dro_v, result):
  measured = json.loads(pathlib.Path(dro_v, 'metrics.jsonl').read_text().splitlines()[-1])
  for name in ('reward', 'logp', 'log_ratio', 'log_ratio_std', 'value'):
    assert result['statistics'][name] == pytest.approx(measured[f'eval/{name}'], rel=1e-5, abs=1e-6), name
  for path, name in (
    (result['statistics']['value_explained_variance'], 'value_explained_variance'),
    (result['within_prompts']['accuracy']['tau_rho'], 'within_prompt_accuracy/log_ratio'),
    (result['across_prompts']['value_plus_tau_rho'], 'rank_correlation'),
  ):
    assert path['value'] == pytest.approx(measured[f'eval/{name}'], abs=1e-4), name
    assert path['low'] <= path['value'] <= path['high']


def test_the_result_counts_scored_responses_and_is_json(result):
  assert (result['responses'], result['prompts'], result['step']) == (30, 8, 2)
  assert result['effective_temperature'] != result['temperature'] == 0.5
  assert result['within_prompts']['pairs'] > 0
  assert result['within_prompts']['tied_pairs'] > 0
  assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_ranks_across_prompts_with_the_value_only(result):
  baselines = {'logp', 'logp_per_token', 'length'}
  assert result['within_prompts']['accuracy'].keys() == {'tau_rho', *baselines}
  assert result['across_prompts'].keys() == {'value_plus_tau_rho', *baselines}
  assert all(estimate.keys() == ESTIMATE for estimate in result['across_prompts'].values())


def test_every_response_is_scored_once_whatever_the_batch(files, dro_v):
  mesh = one_device()
  run = trained.load_run(dro_v, mesh)
  table = files.data(vocabulary=run.vocabulary).train.scaled(run.scaling)
  one, other = (trained.score_table(run, table, mesh, batch_size=size) for size in (7, 30))
  assert len(one.logps) == len(table)
  assert (one.logps < 0).all()
  for name in ('logps', 'reference_logps', 'values'):
    np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5)


def test_restores_policy_reference_and_value(dro_v):
  state = trained.load_run(dro_v, one_device()).state
  difference = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), state.params['policy'], state.reference)
  assert max(jax.tree.leaves(difference)) > 0
  assert np.abs(state.params['value']['head']['kernel']).max() > 0


def test_evaluate_reads_files_with_the_runs_options_unless_others_are_passed(files, dro_v, tmp_path, caplog):
  caplog.set_level('INFO', logger='dro_jax')
  params, saved = orbax.load_params(dro_v)
  described = {key: saved[key] for key in ('model', 'vocabulary')}
  read = {'columns': {'prompt': 'question', 'reward': 'thumbs'}, 'map_reward': {'up': 1, 'down': 0}}
  options = {'template': 'Q: {prompt}', 'prompt_length': 16, 'response_length': 8}
  orbax.save_params(tmp_path / 'run', params, described | {'data': {'options': options, 'read': read}})
  (tmp_path / 'theirs.jsonl').write_text(
    ''.join(
      json.dumps({'question': f'p{i // 2}', 'response': f'r{i}', 'thumbs': 'up' if i % 2 else 'down'}) + '\n'
      for i in range(8)
    )
  )
  data = functools.partial(
    triplets.load_triplets, str(tmp_path / 'theirs.jsonl'), validation_fraction=0, cache_dir=str(tmp_path)
  )
  inherited = evaluate.evaluate(str(tmp_path / 'run'), data, mesh=ONE, resamples=2)
  assert inherited['statistics']['reward'] == 0.5
  assert '--columns=prompt=question,reward=thumbs --map_reward=up=1,down=0' in caplog.text
  plain = functools.partial(evaluate.evaluate, str(tmp_path / 'run'), mesh=ONE, resamples=2)
  said = plain(functools.partial(data, map_reward='up=5,down=1'), template='{prompt}')
  assert said['statistics']['reward'] == 3
  assert said['statistics']['logp'] != inherited['statistics']['logp']


def test_an_imported_policy_has_the_baselines(files, dro_v, result, tmp_path):
  """No reference and no value: the same log-probs, and nothing else to rank by."""
  params, saved = orbax.load_params(dro_v)
  orbax.save_params(tmp_path / 'imported', params, {key: saved[key] for key in ('model', 'vocabulary')})
  alone = evaluate.evaluate(str(tmp_path / 'imported'), files.data, mesh=ONE, resamples=5)
  assert alone['statistics']['logp'] == pytest.approx(result['statistics']['logp'], rel=1e-6)
  assert 'log_ratio' not in alone['statistics']
  assert alone['across_prompts'].keys() == {'logp', 'logp_per_token', 'length'}


def test_a_missing_run_is_named(files, tmp_path):
  with pytest.raises(UsageError, match='no checkpoint in'):
    evaluate.evaluate(str(tmp_path / 'nowhere'), files.data)
