import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dro_jax.data import scaling
from dro_jax.errors import UsageError

REWARDS = np.random.default_rng(0).normal(3, 5, 500).round(1)


def test_standardised_rewards_have_mean_0_and_variance_1():
  scaled = scaling.fit('standardise', REWARDS).apply(REWARDS)
  assert scaled.mean() == pytest.approx(0, abs=1e-12)
  assert scaled.var() == pytest.approx(1)


def test_minmax_maps_rewards_to_the_unit_interval():
  scaled = scaling.fit('minmax', REWARDS).apply(REWARDS)
  assert (scaled.min(), scaled.max()) == (0, 1)


def test_quantiles_are_mid_ranks():
  scaled = scaling.fit('quantile', REWARDS).apply(REWARDS)
  np.testing.assert_allclose(scaled, (stats.rankdata(REWARDS) - 0.5) / len(REWARDS), atol=1e-12)


def test_quantiles_of_many_values_are_thinned_and_stay_close():
  rewards = np.random.default_rng(1).normal(size=20000)
  fitted = scaling.fit('quantile', rewards)
  assert len(fitted.knots) == 1001
  np.testing.assert_allclose(fitted.apply(rewards), (stats.rankdata(rewards) - 0.5) / 20000, atol=0.002)


def test_rewards_outside_the_training_range_get_its_end_quantiles():
  fitted = scaling.fit('quantile', np.array([1.0, 2.0, 3.0, 4.0]))
  np.testing.assert_allclose(fitted.apply([-9, 2.5, 99]), [0.125, 0.5, 0.875])


@pytest.mark.parametrize('kind', ['standardise', 'minmax', 'quantile'])
@pytest.mark.parametrize('rewards', [np.full(3, 0.7), np.array([0.1 + 0.2, 0.3])])
def test_rewards_that_differ_by_rounding_cannot_be_scaled(kind, rewards):
  with pytest.raises(UsageError, match="pass 'none'"):
    scaling.fit(kind, rewards)
  found = scaling.fit('none', rewards, np.zeros(len(rewards))).statistics
  assert found['sd'] == found['within_prompt_sd'] == 0


def test_rewards_that_differ_by_rounding_have_one_quantile():
  low, high = scaling.fit('quantile', np.array([0.1 + 0.2, 0.3, 1.0])).apply([0.3, 0.1 + 0.2])
  assert low == pytest.approx(1 / 3) and high == pytest.approx(1 / 3)


def test_the_scaling_none_keeps_the_rewards():
  np.testing.assert_array_equal(scaling.fit('none', REWARDS).apply(REWARDS), REWARDS)


def test_a_scaling_fitted_on_training_rewards_is_applied_elsewhere():
  fitted = scaling.fit('standardise', np.array([1.0, 3.0]))
  np.testing.assert_allclose(fitted.apply([2, 4]), [0, 2])


@pytest.mark.parametrize('kind', scaling.KINDS)
def test_a_scaling_survives_json(kind):
  fitted = scaling.fit(kind, REWARDS, np.arange(500) // 4)
  assert scaling.from_json(json.loads(json.dumps(fitted.to_json(0.5)))) == fitted
  assert 'effective_temperature' in fitted.to_json(0.5)


def test_effective_temperature_is_in_reward_units():
  fitted = scaling.fit('standardise', REWARDS)
  assert fitted.effective_temperature(2.0) == pytest.approx(2 * REWARDS.std())
  assert scaling.fit('minmax', REWARDS).effective_temperature(1) == pytest.approx(np.ptp(REWARDS))
  assert scaling.fit('none', REWARDS).effective_temperature(0.1) == 0.1
  assert scaling.fit('quantile', REWARDS).effective_temperature(1) is None


@given(temperature=st.floats(0.01, 10), seed=st.integers(0, 99))
def test_a_temperature_on_scaled_rewards_is_the_effective_one_on_raw_rewards(temperature, seed):
  """DRO's optimum softmax(r / τ) does not change when rewards and temperature are scaled together."""
  rewards = np.random.default_rng(seed).normal(size=6)
  fitted = scaling.fit('standardise', rewards)
  scaled = fitted.apply(rewards) / temperature
  raw = rewards / fitted.effective_temperature(temperature)
  np.testing.assert_allclose(scaled - scaled[0], raw - raw[0], rtol=1e-6, atol=1e-9)


def test_statistics_hold_the_spread_within_prompts():
  rewards = np.array([0.0, 2.0, 10.0, 12.0, 50.0])
  found = scaling.fit('none', rewards, np.array([0, 0, 1, 1, 2])).statistics
  assert found['within_prompt_sd'] == pytest.approx(np.sqrt(4 / 2))
  assert found['mean'] == rewards.mean()
  assert 'within_prompt_sd' not in scaling.fit('none', rewards, np.arange(5)).statistics


@pytest.mark.parametrize('kind', ['standardise', 'minmax', 'quantile'])
def test_equal_rewards_cannot_be_scaled(kind):
  with pytest.raises(UsageError, match=r"all 3 rewards are 1.0; pass 'none'"):
    scaling.fit(kind, np.ones(3))


def test_an_unknown_kind_is_refused():
  with pytest.raises(UsageError, match="'zscore' is unknown; choose from none, standardise"):
    scaling.fit('zscore', REWARDS)


@pytest.mark.parametrize('kind', [kind for kind in scaling.KINDS if kind != 'standardise_within'])
def test_inversion_gives_rewards_in_their_own_units(kind):
  rewards = np.random.default_rng(0).normal(3.0, 20.0, 50)
  fitted = scaling.fit(kind, rewards)
  np.testing.assert_allclose(fitted.invert(fitted.apply(rewards)), rewards, rtol=1e-9)


RATED = np.array([0.0, 2.0, 10.0, 12.0, 50.0, 0.7, 0.7, 0.7])
ASKED = np.array([0, 0, 1, 1, 2, 3, 3, 3])


def within(fitted, rewards, prompts):
  return fitted.apply(rewards, fitted.levels(rewards, prompts))


def test_rewards_standardised_within_prompts_keep_only_what_a_prompts_responses_differ_by():
  fitted = scaling.fit('standardise_within', RATED, ASKED)
  # Four deviations of 1 over 8 − 4 degrees of freedom.
  assert (fitted.shift, fitted.scale) == (0.0, 1.0)
  np.testing.assert_allclose(within(fitted, RATED, ASKED)[:4], [-1, 1, -1, 1])
  # A lone response and equal ones get 0, to the bit.
  assert not within(fitted, RATED, ASKED)[4:].any()
  assert fitted.statistics['lone_prompts'] == 1
  assert scaling.notes(fitted) == ('rewards: 1 prompts have one response, whose scaled reward is 0',)
  assert scaling.notes(scaling.fit('standardise', RATED, ASKED)) == ()


def test_standardising_within_prompts_divides_by_the_spread_within_them():
  rewards, prompts = np.repeat(100 * np.arange(50.0), 4), np.repeat(np.arange(50), 4)
  rewards = rewards + np.random.default_rng(0).normal(scale=3, size=200)
  fitted = scaling.fit('standardise_within', rewards, prompts)
  scaled = within(fitted, rewards, prompts).reshape(50, 4)
  np.testing.assert_allclose(scaled.mean(axis=1), 0, atol=1e-12)
  assert np.sum(scaled**2) / 150 == pytest.approx(1)
  assert fitted.effective_temperature(0.5) == pytest.approx(0.5 * fitted.statistics['within_prompt_sd'])
  assert 2.5 < fitted.scale < 3.5


def test_other_prompts_have_their_own_mean_and_the_training_parts_spread():
  fitted = scaling.fit('standardise_within', RATED, ASKED)._replace(scale=2.0)
  held_out = np.array([7.0, 5.0, 9.0])
  np.testing.assert_allclose(within(fitted, held_out, np.array([8, 8, 9])), [0.5, -0.5, 0])
  np.testing.assert_allclose(fitted.invert([0.5, -0.5, 0]), [1, -1, 0])


@pytest.mark.parametrize('prompts', [None, np.arange(8), np.array([0, 1, 2, 3, 4, 5, 5, 5])])
def test_rewards_without_a_spread_within_prompts_cannot_be_standardised_within(prompts):
  with pytest.raises(UsageError, match="one response or responses of equal reward; pass 'standardise'"):
    scaling.fit('standardise_within', RATED, prompts)


@pytest.mark.parametrize('kind', scaling.KINDS)
def test_only_scaling_within_prompts_has_levels(kind):
  fitted = scaling.fit(kind, RATED, ASKED)
  assert np.any(fitted.levels(RATED, ASKED)) == (kind == 'standardise_within')
