import dataclasses
import functools
import inspect
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dro_jax import algorithms
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.next_token_kl import NextTokenKl
from dro_jax.data.batches import loader, packing, plan
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import UsageError
from dro_jax.models import scoring
from dro_jax.parallel import partitioning
from dro_jax.run import networks, schedule
from dro_jax.run.sampling import rollouts as online
from dro_jax.step import optimizers, train_step
from dro_jax.step import reference as step_reference
from dro_jax.step import state as train_state
from tests import runs
from tests.examples import CONFIG
from tests.run.test_train import assert_same_run, records, two_devices

MODEL = dataclasses.replace(CONFIG, vocab_size=None)
NETS = networks.build(
  dataclasses.replace(CONFIG, vocab_size=384), uses_value=True, readout='token', shared=False
)
WORDS = vocabularies.vocabulary('bytes')
LENGTH = 3


class OfTheLogOnly(step_reference.Frozen):
  def build(self, score):
    return super().build(score)._replace(is_kept=False, policy=None)


def low_letters(prompts, responses):
  """Share of a response's bytes that are among the first half of ASCII's letters."""
  return [sum(c in 'abcdefghijklmABCDEFGHIJKLM' for c in response) / LENGTH for response in responses]


@pytest.fixture(scope='module')
def triplets(tmp_path_factory):
  """Thirteen prompts, each logged twice; a run must not look at what was logged."""
  path = tmp_path_factory.mktemp('data') / 'triplets.jsonl'
  with open(path, 'w') as file:
    for i in range(26):
      record = {'id': f'r{i}', 'prompt': f'say {i % 13}', 'response': 'zz', 'reward': -1.0 - i}
      file.write(json.dumps(record) + '\n')
  return str(path)


@pytest.fixture(scope='module')
def data(triplets, tmp_path_factory):
  cache = str(tmp_path_factory.mktemp('cache'))
  return functools.partial(
    load_triplets, triplets, prompt_length=16, validation_fraction=0.3, cache_dir=cache
  )


@pytest.fixture(scope='module')
def run(data):
  def run(folder, algorithm, *, steps, eval_every=0, **changes):
    timing = functools.partial(
      schedule.Schedule,
      steps=steps,
      log_every=1,
      eval_every=eval_every,
      checkpoint_every=0,
      sample_prompts=0,
      kl_prompts=0,
    )
    settings = {
      'model': MODEL, 'batch_size': 8, 'value_readout': 'token', 'schedule': timing, 'mesh': two_devices,
      'policy_optimizer': functools.partial(optimizers.adamw, 2e-2),
      'value_optimizer': functools.partial(optimizers.adamw, 2e-2),
      'rollouts': functools.partial(online.RolloutOptions, reward=low_letters, max_length=LENGTH),
    }  # fmt: skip
    return runs.train(str(folder), **{'data': data, 'algorithm': algorithm} | settings | changes)

  return run


# --- training -----------------------------------------------------------------------------------------------


LEARNERS = {
  'rloo': functools.partial(algorithms.rloo_online, samples=8),
  'copg': functools.partial(algorithms.copg_online, samples=8),
  'ppo': functools.partial(algorithms.ppo_online, samples=8, epochs=2),
}


@pytest.mark.long
@pytest.mark.parametrize('algorithm', LEARNERS.values(), ids=LEARNERS)
def test_online_algorithms_raise_the_reward_within_twenty_steps(run, algorithm, tmp_path):
  result = run(tmp_path, algorithm, steps=20, eval_every=20)
  history = [record for record in records(tmp_path) if 'reward' in record]
  assert np.mean([record['reward'] for record in history[:3]]) < 0.25
  assert np.mean([record['reward'] for record in history[-3:]]) > 0.6
  assert history[0]['responses'] == 64
  assert result['step'] == 20
  assert result['eval/reward'] > 0.6
  assert result['eval/kl'] > 0.6
  assert result['eval/response_tokens'] <= LENGTH
  beta = algorithm().temperature
  assert result['eval/criterion'] == pytest.approx(beta * result['eval/kl'] - result['eval/reward'])
  assert result['time/generate_seconds'] > 0


def test_the_best_checkpoint_is_chosen_by_a_measure_of_fresh_samples(run, tmp_path):
  result = run(tmp_path / 'run', LEARNERS['rloo'], steps=1, eval_every=1, best_metric='eval/reward')
  assert 'eval/reward' in result
  with pytest.raises(UsageError, match="best_metric='eval/lost' is not measured.*eval/reward"):
    run(tmp_path / 'wrong', LEARNERS['rloo'], steps=1, eval_every=1, best_metric='eval/lost')


@pytest.mark.long
def test_a_trust_region_run_is_measured_against_the_initial_policy_and_may_choose_its_best_by_the_moving_one(
  run, tmp_path
):
  changes = {'reference': functools.partial(step_reference.Hard, every=1), 'best_metric': 'eval/kl_moving'}
  result = run(tmp_path, LEARNERS['rloo'], steps=1, eval_every=1, **changes)
  assert abs(result['eval/kl_moving']) < 1e-5 < abs(result['eval/kl'])
  beta = LEARNERS['rloo']().temperature
  assert result['eval/criterion'] == pytest.approx(beta * result['eval/kl'] - result['eval/reward'])


@pytest.mark.long
def test_next_token_kl_is_taken_on_fresh_responses_too(run, tmp_path):
  result = run(tmp_path, LEARNERS['ppo'], steps=1, next_token_kl=NextTokenKl(1.0))
  # Of the second epoch on the samples, when the policy has left its reference.
  assert result['next_token_kl'] > 1e-5
  np.testing.assert_allclose(result['loss/next_token_kl'], 0.05 * result['next_token_kl'], rtol=1e-5)


@pytest.mark.long
def test_resume_is_bit_identical(run, tmp_path):
  algorithm, file = LEARNERS['ppo'], tmp_path / 'rewards_of_mine.py'
  file.write_text(inspect.getsource(low_letters).replace('LENGTH', '3'))
  rollouts = functools.partial(online.RolloutOptions, reward=f'{file}:low_letters', max_length=LENGTH)
  run(tmp_path / 'whole', algorithm, steps=4, rollouts=rollouts)
  run(tmp_path / 'parts', algorithm, steps=2, rollouts=rollouts)
  run(tmp_path / 'parts', algorithm, steps=4, rollouts=rollouts)
  assert_same_run(tmp_path / 'whole', tmp_path / 'parts')
  hot = functools.partial(rollouts, temperature=0.5)
  with pytest.raises(UsageError, match=r'online\.temperature: 1.0 → 0.5'):
    run(tmp_path / 'whole', algorithm, steps=4, rollouts=hot)
  file.write_text(file.read_text().replace('/ 3', '* 100'))
  with pytest.raises(UsageError, match=r"online\.reward_code: .*the reward function's file"):
    run(tmp_path / 'whole', algorithm, steps=4, rollouts=rollouts)


# --- rollouts -----------------------------------------------------------------------------------------------


def mesh_of(count: int) -> partitioning.Mesh:
  return partitioning.make_mesh(devices=jax.devices()[:count])


@functools.cache
def params():
  """Larger than at initialisation, so that every position's distribution differs."""
  rng = np.random.default_rng(0)
  shapes = networks.nn.unbox(networks.abstract_params(NETS))
  return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def rollout(data, algorithm, mesh, batch_size=8, reward=low_letters, step=3, asked=3):
  """The prompts of batch `asked`, answered at `step`: (state, rows, loader)."""
  table = online.prompts_only(data()).train
  batches = plan.Plan.from_table(table, batch_size, 0)
  source = loader.Loader(
    table, batches, packing.Layout.fit(table, batches, packed=False, row_multiple=len(mesh.devices))
  )
  reference = step_reference.Frozen().build(scoring.make_score(NETS.policy))
  responder = online.make_rollouts(
    NETS, algorithm, reference, mesh, WORDS, online.RolloutOptions(reward=reward), max_length=LENGTH
  )
  state = train_state.TrainState(
    jnp.asarray(step), params(), {}, jax.tree.map(lambda x: x * 1.1, params()['policy'])
  )
  state = jax.device_put(state, partitioning.replicated(mesh))
  rows = partitioning.global_batch(mesh, source.rows(asked), source.num_rows(asked))
  return state, responder.respond(state, source, step, rows), source


PPO = algorithms.ppo_online(samples=3)


def test_fresh_rows_score_as_they_were_sampled(data):
  state, rows, _ = rollout(data, PPO, mesh_of(1))
  scores = jax.jit(scoring.make_score(NETS.policy, NETS.value))(state.params, rows, None)
  np.testing.assert_allclose(scores.logps, rows.columns['behaviour_logps'], rtol=1e-5)
  behaviour = rows.token_columns['behaviour_logps']
  np.testing.assert_allclose(scores.token_logps, behaviour, atol=1e-5)
  np.testing.assert_allclose(behaviour.sum(1), rows.columns['behaviour_logps'].sum(1), rtol=1e-5)
  assert np.abs(behaviour).max() > 1


def test_advantages_and_returns_of_a_rollout(data):
  """GAE with γ = 1, λ = .95, by its definition, on every response."""
  state, rows, _ = rollout(data, PPO, mesh_of(1))
  scores = jax.jit(scoring.make_score(NETS.policy, NETS.value))(state.params, rows, None)
  theirs = jax.jit(scoring.make_score(NETS.policy))({'policy': state.reference}, rows, None)
  batch = Batch(scores, theirs, rows)
  arrays = scores.token_logps, theirs.token_logps, scores.token_values
  arrays += rows.token_columns['advantages'], rows.token_columns['returns']
  policy, reference, values, advantages, returns = (np.asarray(batch.tokens(x), np.float64) for x in arrays)
  for n, length in enumerate(np.asarray(batch.lengths, int)):
    gained = -PPO.temperature * (policy[n] - reference[n])[:length]
    gained[-1] += np.asarray(batch.rewards)[n]
    after = np.append(values[n, 1:length], 0.0)
    deltas = gained + after - values[n, :length]
    expected = [sum(0.95 ** (i - t) * deltas[i] for i in range(t, length)) for t in range(length)]
    np.testing.assert_allclose(advantages[n, :length], expected, atol=1e-5)
    np.testing.assert_allclose(returns[n, :length], expected + values[n, :length], atol=1e-5)
    assert not advantages[n, length:].any() and not returns[n, length:].any()


def test_rows_hold_the_samples_and_their_rewards(data):
  asked = []

  def reward(prompts, responses):
    asked.extend(zip(prompts, responses))
    return [float(len(response)) for response in responses]

  _, rows, source = rollout(data, algorithms.rloo_online(samples=3), mesh_of(1), batch_size=4, reward=reward)
  rows = jax.device_get(rows)
  assert len(asked) == 12
  for (b, k), (prompt, response) in zip(itertools.product(range(4), range(3)), asked, strict=True):
    record = int(rows.example_id[b, k])
    assert source.table.prompts[record] == prompt
    tokens = rows.response_tokens[b][rows.response_segments[b] == k + 1]
    assert WORDS.decode(tokens) == response
    assert rows.rewards[b, k] == len(response)
    positions = rows.response_positions[b][rows.response_segments[b] == k + 1]
    np.testing.assert_array_equal(positions, np.arange(len(tokens)))
    assert (tokens[:-1] != WORDS.special.eos).all()
    assert tokens[-1] == WORDS.special.eos or len(tokens) == LENGTH
  np.testing.assert_array_equal(rows.response_prompt, rows.response_segments > 0)
  np.testing.assert_array_equal(rows.units.index, np.arange(12).reshape(4, 3))
  assert rows.units.mask.all() and rows.valid.all()
  assert len({response for _, response in asked}) > 6


@pytest.mark.long
def test_microbatches_change_no_number(data):
  """Groups of fresh rows may lie in several."""
  algorithm, score = algorithms.rloo_online(samples=3), scoring.make_score(NETS.policy)
  state, rows, _ = rollout(data, algorithm, mesh_of(1))
  params = {'policy': state.params['policy']}

  def gradient(parts, rows):
    batch = Batch(None, score({'policy': state.reference}, rows, None), rows)
    return train_step.make_gradient(score, algorithm, parts)(params, batch, None)[-1]

  one, two = (jax.jit(functools.partial(gradient, parts))(rows) for parts in (1, 2))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)
  assert optax.tree.norm(one) > 0.1


@pytest.mark.long
def test_the_mesh_and_rows_of_padding_change_no_sample(data):
  for algorithm in (PPO, algorithms.copg_online(samples=3)):
    one = jax.device_get(rollout(data, algorithm, mesh_of(1), batch_size=6)[1])
    eight = jax.device_get(rollout(data, algorithm, mesh_of(8), batch_size=6)[1])
    assert len(eight.valid) == 8 and not eight.valid[6:].any() and not eight.rewards[6:].any()
    if one.units is not None:
      np.testing.assert_array_equal(eight.units.mask, eight.valid)
    one, eight = one._replace(units=None), eight._replace(units=None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:6], atol=2e-5), one, eight)
    assert not eight.response_segments[6:].any()


def test_another_step_is_another_sample(data):
  def tokens(step):
    return np.asarray(
      rollout(data, algorithms.rloo_online(samples=2), mesh_of(1), step=step)[1].response_tokens
    )

  np.testing.assert_array_equal(tokens(3), tokens(3))
  assert (tokens(3) != tokens(4)).mean() > 0.5


# --- refusals -----------------------------------------------------------------------------------------------


def test_impossible_online_settings_are_refused_before_any_file_is_written(run, data, tmp_path):
  folder = tmp_path / 'never'
  cases = {
    'there is no reward function': (algorithms.rloo_online, {'rollouts': online.RolloutOptions}),
    'rewards are scaled': (algorithms.rloo_online, {'data': functools.partial(data, scaling='minmax')}),
    "readout='prompt' does not give one": (algorithms.ppo_online, {'value_readout': 'prompt'}),
    'a batch of 3 prompts does not divide': (algorithms.rloo_online, {'batch_size': 3}),
    'rloo compares the samples of a prompt': (functools.partial(algorithms.rloo_online, samples=1), {}),
    'samples=1, epochs=0': (functools.partial(algorithms.ppo_online, epochs=0), {}),
    'has log-probs of logged ones only': (
      algorithms.rloo_online,
      {'reference': OfTheLogOnly},
    ),
  }
  for message, (algorithm, changes) in cases.items():
    with pytest.raises(UsageError, match=message):
      run(folder, algorithm, steps=1, **changes)
    assert not folder.exists()


@pytest.mark.parametrize('settings', [{'temperature': 0}, {'temperature': -1.0}, {'max_length': 0}])
def test_a_temperature_or_length_out_of_range_is_refused(settings):
  with pytest.raises(UsageError, match=next(iter(settings))):
    online.RolloutOptions(**settings)


def test_a_bad_reward_stops_the_run(data):
  with pytest.raises(UsageError, match='returned nan for the response'):
    rollout(data, PPO, mesh_of(1), reward=lambda prompts, responses: [float('nan')] * len(responses))
