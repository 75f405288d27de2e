import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import algorithms, losses
from dro_jax.algorithms import columns
from dro_jax.algorithms.batch import Batch
from dro_jax.errors import UsageError
from dro_jax.ops import masked
from dro_jax.types import Mismatched, Scores, Units
from tests.examples import layout, random_examples


def test_a_reward_at_the_mean_is_undesirable_in_every_layout():
  """Scaled stars whose mean is a star: float32 sums of another order must not flip a whole level."""
  stars = np.array([1, 2, 3, 4, 5, 3, 3, 3, 1, 5, 2, 4, 3, 3, 3, 3])
  for shift, scale in ((0.0, 1.0), (2.9, 1.234567), (-0.37, 0.1), (0.64, 2.216), (1.9, 0.108)):
    rewards = (stars - shift) / scale
    for num_rows in (1, 2, 4, 8, 16):
      rows = layout(random_examples(16), num_rows, 16 // num_rows, lengths=(128, 128))
      rows = rows._replace(rewards=jnp.asarray(rewards, jnp.float32)[rows.example_id])
      thumbs = algorithms.minibatch_mean_labels().thumbs(Batch(None, None, rows))
      assert thumbs.known.all()
      np.testing.assert_array_equal(thumbs.up, stars[np.asarray(rows.example_id).reshape(-1)] > 3)


def thumbs_of(algorithm, rewards):
  """An algorithm's labels of a batch that is all of its training data, as a run would make them."""
  rewards = np.asarray(rewards, float)
  data = types.SimpleNamespace(raw_rewards=rewards, rewards=rewards, prompt_index=np.arange(len(rewards)))
  [(name, fit)] = algorithm.columns.items()
  column = fit(types.SimpleNamespace(train=data))(data)
  rows = layout(random_examples(len(rewards)), 1, len(rewards), lengths=(128, 128))
  rows = rows._replace(
    rewards=jnp.asarray(rewards, jnp.float32)[None], columns={name: jnp.asarray(column, jnp.float32)[None]}
  )
  return algorithms.minibatch_mean_labels().thumbs(Batch(None, None, rows))


@pytest.mark.parametrize('maker', [algorithms.kto, algorithms.bco])
def test_a_batch_of_thumbs_ups_is_desirable(maker):
  """Which no minibatch mean could say: none exceeds it."""
  for rewards in ([1, 1, 1, 1], [1], [1, 0, 1, 1]):
    thumbs = thumbs_of(maker(), rewards)
    assert thumbs.known.all() and thumbs.up.tolist() == [reward == 1 for reward in rewards]
  assert not thumbs_of(maker(), [-1, -1, -1]).up.any()


@pytest.mark.parametrize(
  'maker, rewards', [(algorithms.dro_v_binary, [1, 1]), (algorithms.filtered_sft, [-1, -1])]
)
@pytest.mark.parametrize('labels', [algorithms.dataset_mean_labels, algorithms.minibatch_mean_labels])
def test_thumbs_of_one_kind_are_refused_by_the_algorithm_that_needs_the_other(maker, rewards, labels):
  with pytest.raises(UsageError, match='the only one, is a label itself.*training response'):
    thumbs_of(maker(labels=labels), rewards)


@pytest.mark.parametrize('value', [0.7, 0.1, 3.0])
def test_a_batch_of_equal_scalar_rewards_has_no_labels(value):
  rows = layout(random_examples(3), 1, 3)._replace(rewards=jnp.full((1, 3), value))
  assert not algorithms.minibatch_mean_labels().thumbs(Batch(None, None, rows)).known.any()


def test_a_tie_within_a_prompt_is_left_out_of_the_loss():
  rows = layout(random_examples(3), 1, 3)
  rows = rows._replace(columns={'derived_label': jnp.array([[1.0, columns.NO_LABEL, 0.0]])})
  scores = Scores(jnp.array([[-1.0, -2.0, -3.0]]), jnp.zeros(rows.response_tokens.shape))
  batch = Batch(scores, scores, rows, {'shift': jnp.zeros(()), 'count': jnp.zeros(())})
  terms = algorithms.bco(labels=algorithms.prompt_mean_labels).loss(batch).terms
  assert terms['policy'].weights.tolist() == [True, False, True]
  terms = algorithms.filtered_sft(labels=algorithms.prompt_mean_labels).loss(batch).terms
  assert terms['policy'].weights.tolist() == [True, False, False]
  valued = batch._replace(scores=scores._replace(values=jnp.zeros((1, 3))))
  terms = algorithms.dro_v_binary(labels=algorithms.prompt_mean_labels).loss(valued).terms
  assert all(term.weights.tolist() == [True, False, True] for term in terms.values())
  empty = jnp.zeros((1, 0), jnp.int32)
  rows = rows._replace(mismatched=Mismatched(*[empty] * 4, jnp.ones((1, 3), bool)))
  scores = scores._replace(mismatched_logps=jnp.zeros((1, 3)))
  output = algorithms.kto(labels=algorithms.prompt_mean_labels).loss(Batch(scores, scores, rows))
  assert output.terms['policy'].weights.tolist() == [True, False, True]
  assert output.metrics['desirable'] == 0.5


def test_column_labels_need_no_rewards():
  rows = layout(random_examples(4), 2, 2)
  rows = rows._replace(columns={'derived_label': rows.columns['label']})
  thumbs = algorithms.column_labels().thumbs(Batch(None, None, rows))
  np.testing.assert_array_equal(thumbs.up, rows.columns['derived_label'].reshape(-1) > 0)
  assert not algorithms.kto(labels=algorithms.column_labels).uses_rewards
  assert algorithms.kto().uses_rewards


def test_a_missing_column_is_named():
  kto = algorithms.kto(labels=algorithms.column_labels)
  algorithms.check_columns(kto, ['label'])
  with pytest.raises(UsageError, match="reads the column 'label'.*--columns label=YOURS"):
    algorithms.check_columns(kto, ['other'])


@pytest.mark.parametrize(
  'options, expected',
  [
    ({}, [0.0, 0.5, 2.0]),
    ({'priority': True}, [0.0, 1.0, 1.0]),
    ({'priority': True, 'weigh_again': True}, [0.0, 0.5, 2.0]),
  ],
)
def test_priority_takes_the_place_of_the_weight_unless_it_is_to_weigh_again(options, expected):
  rows = layout(random_examples(3), 1, 3)
  rows = rows._replace(columns={'advantage': jnp.array([[-1.0, 0.5, 2.0]])})
  scores = Scores(jnp.full((1, 3), -2.0), jnp.zeros(rows.response_tokens.shape))
  for name in ('a_lol_ref_free', 'a_lol_kl'):
    if name == 'a_lol_kl' and options == {'priority': True}:
      continue
    more = {'kl_weight': 0.0} if name == 'a_lol_kl' else {}
    algorithm = getattr(algorithms, name)(**options, **more)
    losses = algorithm.loss(Batch(scores, scores, rows)).terms['policy'].per_example
    np.testing.assert_allclose(losses, 2.0 * np.array(expected))
    assert (algorithm.weights is not None) == bool(options)


def test_priority_that_cancels_or_weighs_nothing_is_refused():
  with pytest.raises(
    UsageError, match=r'scales the gradient.*the algorithm is a_lol_ref_free.*WEIGH_AGAIN=true'
  ):
    algorithms.a_lol_kl(priority=True)
  for name in ('a_lol', 'a_lol_ref_free', 'a_lol_kl', 'a_lol_sequence'):
    with pytest.raises(UsageError, match='PRIORITY=true as well'):
      getattr(algorithms, name)(weigh_again=True)


# (algorithm, setting): without a pull to the reference these are still methods.
MAY_BE_ZERO = {('reinforce', 'beta'), ('rloo', 'beta'), ('rloo_online', 'beta'), ('ppo_online', 'beta')}
SETTINGS = [
  (name, setting)
  for name in algorithms.__all__
  for setting in inspect.signature(getattr(algorithms, name)).parameters
]
TEMPERATURES = {(name, setting) for name, setting in SETTINGS if setting in ('tau', 'beta', 'eta', 'alpha')}
ABOVE_ZERO = [*sorted(TEMPERATURES - MAY_BE_ZERO), ('ppo_clip', 'epsilon'), ('ppo_online', 'epsilon')]


@pytest.mark.parametrize('name, setting', ABOVE_ZERO)
def test_a_temperature_of_zero_is_refused_by_the_algorithm(name, setting):
  for value in (0.0, -1.0, float('nan')):
    with pytest.raises(UsageError, match=f'{setting}=.*must be above 0, because .*=NUMBER'):
      getattr(algorithms, name)(**{setting: value})


def test_settings_that_may_be_zero_accept_zero():
  assert MAY_BE_ZERO < TEMPERATURES
  for name, setting in MAY_BE_ZERO:
    assert getattr(algorithms, name)(**{setting: 0.0}).temperature == 0.0
    with pytest.raises(UsageError, match=f'{setting}=-0.1 must be 0 or more'):
      getattr(algorithms, name)(**{setting: -0.1})
  algorithms.gold(floor=0.0), algorithms.pro(sft_weight=0.0), algorithms.slic(delta=0.0, sft_weight=0.0)


def defaults(function):
  parameters = inspect.signature(function).parameters.values()
  return {
    parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty
  }


def test_a_setting_defaults_to_the_default_of_its_loss():
  """KTO's β is TAU here, as in DRO's comparison; its loss has the published .1."""
  different = set()
  for name in set(algorithms.__all__) & set(losses.__all__):
    own, of_loss = defaults(getattr(algorithms, name)), defaults(getattr(losses, name))
    different |= {
      (name, setting) for setting in own.keys() & of_loss.keys() if own[setting] != of_loss[setting]
    }
  assert different == {('kto', 'beta')}


@pytest.mark.parametrize(
  'name, settings',
  [
    ('dpo', {'label_smoothing': 0.5}), ('dpo', {'label_smoothing': -0.1}), ('a_lol', {'epsilon': 1.0}),
    ('a_lol_sequence', {'epsilon': -0.1}), ('r_lol', {'epsilon': 1.5}), ('ppo_clip', {'epsilon': 1.0}),
    ('kto', {'desirable_weight': -1.0}), ('kto', {'undesirable_weight': float('inf')}),
    ('a_lol_kl', {'kl_weight': -0.1}), ('gold', {'floor': -0.1}), ('slic', {'delta': -1.0}),
    ('pro', {'sft_weight': -1.0}), ('ppo_online', {'lam': 1.1}),
  ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, settings):
  [(setting, value)] = settings.items()
  with pytest.raises(UsageError, match=f'{setting}={value} must be'):
    getattr(algorithms, name)(**settings)


@pytest.mark.parametrize('name', ['gold', 'weighted_bc', 'r_lol'])
def test_algorithms_that_weigh_by_rewards_refuse_negative_ones(name):
  data = types.SimpleNamespace(train=types.SimpleNamespace(rewards=np.array([-1.0, 1.0])))
  with pytest.raises(UsageError, match='must not be negative.*REWARD_SCALING=minmax'):
    getattr(algorithms, name)().check(data)


@pytest.mark.parametrize('name', ['gold', 'weighted_bc', 'r_lol', 'topr'])
def test_algorithms_that_weigh_by_rewards_refuse_rewards_of_zero_only(name):
  data = types.SimpleNamespace(train=types.SimpleNamespace(rewards=np.zeros(3)))
  with pytest.raises(UsageError, match='all 3 training rewards are 0, and the algorithm weighs'):
    getattr(algorithms, name)().check(data)
  data.train.rewards = np.array([0.0, 0.0, 1.0])
  getattr(algorithms, name)().check(data)


def scored(seed=0, num=6):
  """A batch of responses of several lengths with groups of three, or pairs of the first two of each."""
  rows = layout(random_examples(num, seed), 2, num // 2, lengths=(64, 64))
  index = jnp.arange(num).reshape(-1, 3)
  rows = rows._replace(units=Units(index, jnp.ones(index.shape, bool)))
  rng, shape = np.random.default_rng(seed), rows.response_tokens.shape
  inside = rows.response_segments > 0

  def scores(**more):
    tokens_BT = jnp.where(inside, jnp.asarray(-rng.gamma(1.0, 1.0, shape), jnp.float32), 0.0)
    return Scores(masked.segment_sum(tokens_BT, rows.response_segments, num // 2), tokens_BT, **more)

  return Batch(scores(values=jnp.asarray(rng.normal(size=(2, num // 2)), jnp.float32)), scores(), rows)


def as_pairs(batch):
  units = Units(batch.rows.units.index[:, :2], batch.rows.units.mask[:, :2])
  return batch._replace(rows=batch.rows._replace(units=units))


def loss_of(algorithm, batch):
  return {name: np.asarray(term.per_example) for name, term in algorithm.loss(batch).terms.items()}


def test_length_normalised_losses_read_means_and_are_recorded_by_another_name():
  batch = scored()
  rho = np.asarray((batch.policy_logps - batch.reference_logps) / batch.lengths)
  rewards, values = np.asarray(batch.rewards), np.asarray(batch.values)
  found = loss_of(algorithms.dro_v(0.7, length_normalised=True), batch)
  logp = np.asarray(batch.policy_logps / batch.lengths)
  np.testing.assert_allclose(
    found['policy'], -(rewards - values) * logp + 0.35 * rho**2, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(found['value'], (values - rewards + 0.7 * rho) ** 2 / 2, rtol=1e-4, atol=1e-5)
  residual = rewards - 0.7 * rho
  found = loss_of(algorithms.dro_p(0.7, length_normalised=True), batch)['policy']
  np.testing.assert_allclose(found, (residual - residual.mean()) ** 2 / 2, rtol=1e-4, atol=1e-5)
  chosen, rejected = np.asarray(batch.rows.units.index[:, :2]).T
  margin = 0.7 * (rho[chosen] - rho[rejected])
  output = algorithms.dpo(0.7, length_normalised=True).loss(as_pairs(batch))
  np.testing.assert_allclose(output.terms['policy'].per_example, np.log1p(np.exp(-margin)), rtol=1e-4)
  np.testing.assert_allclose(output.metrics['pair_margin'], margin.mean() / 0.7, rtol=1e-4, atol=1e-5)
  for name in ('dro_v', 'dro_p', 'kto', 'dpo'):
    make = getattr(algorithms, name)
    assert (make().name, make(length_normalised=True).name) == (name, f'{name}_by_length')
    plain, normalised = make(), make(length_normalised=True)
    for setting in ('temperature', 'unit', 'criterion', 'uses_value', 'uses_mismatched', 'couples'):
      assert getattr(normalised, setting) == getattr(plain, setting)


def test_length_normalised_kto_divides_mismatched_log_probs_by_their_own_lengths():
  batch = scored()
  moved = [jnp.flip(x, axis=0) for x in batch.rows[3:7]]
  rows = batch.rows._replace(
    mismatched=Mismatched(*moved, batch.rows.valid),
    columns={'derived_label': jnp.ones_like(batch.rows.rewards)},
  )
  lengths = np.flip(np.asarray(batch.lengths).reshape(2, 3), axis=0)
  own, other = jnp.asarray(4.0 * lengths, jnp.float32), jnp.asarray(1.0 * lengths, jnp.float32)
  batch = batch._replace(
    rows=rows, scores=batch.scores._replace(mismatched_logps=own),
    reference=batch.reference._replace(mismatched_logps=other),
  )  # fmt: skip
  output = algorithms.kto(0.7, length_normalised=True).loss(batch)
  np.testing.assert_allclose(output.metrics['reference_point'], 3.0, rtol=1e-6)
  rho = np.asarray((batch.policy_logps - batch.reference_logps) / batch.lengths)
  expected = 1 / (1 + np.exp(0.7 * (rho - 3.0)))
  np.testing.assert_allclose(output.terms['policy'].per_example, expected, rtol=1e-5)


def test_dpo_without_a_reference_reads_the_policys_margin():
  batch = as_pairs(scored())._replace(reference=None)
  algorithm = algorithms.dpo(0.7, reference_free=True)
  assert not algorithm.uses_reference and algorithm.name == 'dpo_reference_free'
  logps = np.asarray(batch.policy_logps)
  chosen, rejected = np.asarray(batch.rows.units.index).T
  expected = np.log1p(np.exp(-0.7 * (logps[chosen] - logps[rejected])))
  np.testing.assert_allclose(loss_of(algorithm, batch)['policy'], expected, rtol=1e-4)
  both = algorithms.dpo(reference_free=True, length_normalised=True)
  assert both.name == 'dpo_reference_free_by_length' and not both.uses_reference


def test_rpo_takes_its_value_from_all_answers_of_the_group():
  batch = scored()
  index = np.asarray(batch.rows.units.index)
  logps, reference, rewards, lengths = (
    np.asarray(x, np.float64)
    for x in (batch.policy_logps, batch.reference_logps, batch.rewards, batch.lengths)
  )
  mask = jnp.array([[True, True, True], [True, True, False]])
  batch = batch._replace(rows=batch.rows._replace(units=Units(batch.rows.units.index, mask)))
  expected = []
  for group, size in zip(index, (3, 2)):
    members = group[:size]
    value = 5 * np.log(np.sum(np.exp(reference[members] / lengths[members]) * np.exp(rewards[members] / 5)))
    residual = (logps - reference)[members] / lengths[members] - (rewards[members] - value) / 5
    expected.append(np.mean(residual**2) / 2)
  found = loss_of(algorithms.rpo(), batch)['policy']
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # A unit that fills up a batch changes nothing, and gives no NaN.
  filled = Units(
    jnp.zeros((3, 3), int).at[:2].set(batch.rows.units.index), jnp.zeros((3, 3), bool).at[:2].set(mask)
  )

  def total(token_logps):
    scores = batch.scores._replace(logps=token_logps)
    output = algorithms.rpo().loss(batch._replace(scores=scores, rows=batch.rows._replace(units=filled)))
    return jnp.sum(output.terms['policy'].per_example)

  value, slope = jax.value_and_grad(total)(batch.scores.logps)
  np.testing.assert_allclose(value, np.sum(expected), rtol=1e-5)
  assert np.isfinite(slope).all()


def test_dro_token_takes_the_reference_for_the_sampler():
  batch = scored()
  found = loss_of(algorithms.dro_token(0.7), batch)['policy']
  rewards = np.asarray(batch.rewards)
  policy_NT, reference_NT = (np.asarray(batch.tokens(x.token_logps)) for x in (batch.scores, batch.reference))
  advantages = rewards - rewards.mean()
  expected = -advantages * policy_NT.sum(1) + 0.35 * ((policy_NT - reference_NT) ** 2).sum(1)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_groups_value_may_be_weighted_by_propensities():
  batch = scored()
  weighted = algorithms.dro_group_value(importance_weighted=True)
  assert list(weighted.columns) == ['propensity'] and not algorithms.dro_group_value().columns
  plain = loss_of(algorithms.dro_group_value(), batch)['policy']

  def at(propensities):
    rows = batch.rows._replace(columns={'propensity': propensities})
    return loss_of(weighted, batch._replace(rows=rows))['policy']

  np.testing.assert_allclose(at(batch.reference.logps - 3.0), plain, rtol=1e-4)
  assert np.abs(at(jnp.zeros_like(batch.reference.logps)) - plain).max() > 1e-3
  with pytest.raises(
    UsageError, match='value=.median. is unknown: pass one of mean, .*dro_group_value.value=mean'
  ):
    algorithms.dro_group_value(value='median')
  with pytest.raises(UsageError, match='value_temperature=0.0 must be above 0'):
    algorithms.dro_group_value(value_temperature=0.0)


def test_rft_is_filtered_sft_on_the_best_of_each_prompt():
  raw = np.array([1.0, 2.0, 3.0, 4.0, 4.0, 0.0])
  data = types.SimpleNamespace(
    raw_rewards=raw, rewards=raw, prompt_index=np.array([0, 0, 0, 1, 1, 1]), columns={}
  )
  algorithm = algorithms.rft()
  data.columns['derived_label'] = algorithm.columns['derived_label'](types.SimpleNamespace(train=data))(data)
  assert algorithm.select(data).tolist() == [False, False, True, True, True, False]
  batch = scored()
  rows = batch.rows._replace(columns={'derived_label': jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])})
  output = algorithm.loss(batch._replace(rows=rows))
  assert output.terms['policy'].weights.tolist() == [True, False, True, False, True, False]
  np.testing.assert_array_equal(output.terms['policy'].per_example, -batch.policy_logps)
  for share in (0.0, 1.5):
    with pytest.raises(UsageError, match=f'share={share} must be above 0 and at most 1'):
      algorithms.rft(share=share)
