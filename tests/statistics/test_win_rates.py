import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dro_jax.statistics import win_rates

NAN = math.nan


def test_both_orders_are_averaged_and_one_alone_counts_for_nobody():
  scores_N2 = np.array([[1.0, 0.0], [1.0, 0.5], [NAN, 1.0], [1.0, NAN]])
  np.testing.assert_array_equal(win_rates.of_comparisons(scores_N2), [0.5, 0.75, NAN, NAN])


def test_a_prompt_with_many_comparisons_weighs_as_much_as_one_with_a_single():
  scores_N, prompt_N = np.array([1.0, 1.0, 1.0, 0.0, NAN]), np.array([0, 0, 0, 1, 2])
  rates_P = win_rates.by_prompt(scores_N, prompt_N, 4)
  np.testing.assert_array_equal(rates_P, [1.0, 0.0, NAN, NAN])
  assert win_rates.win_rate(rates_P, resamples=10).value == 0.5


def test_the_interval_is_that_of_all_resamples():
  """With four prompts all 4⁴ draws can be enumerated."""
  rates_P = np.array([0.0, 0.5, 1.0, 1.0])
  means = [np.mean(draw) for draw in itertools.product(rates_P, repeat=4)]
  found = win_rates.win_rate(rates_P, resamples=4000)
  assert found.value == 0.625
  np.testing.assert_allclose(found[1:], np.quantile(means, (0.025, 0.975)), atol=1e-12)


def test_the_interval_covers_the_true_rate_in_95_percent_of_samples():
  rng, hits = np.random.default_rng(0), 0
  for seed in range(300):
    # Ties, two correlated orders, three comparisons on each prompt: what a prompt shares does not shrink.
    level_P = rng.normal(0.4, 1.0, 80)
    scores = (level_P[:, None, None] + rng.normal(0, 1, (80, 3, 2)) > 0).astype(float)
    rates_P = win_rates.by_prompt(scores.mean(2).ravel(), np.repeat(np.arange(80), 3), 80)
    found = win_rates.win_rate(rates_P, resamples=200, seed=seed)
    hits += found.low <= stats.norm.cdf(0.4 / math.sqrt(2)) <= found.high
  assert 0.92 <= hits / 300 <= 0.98


def test_where_all_prompts_agree_the_interval_is_wilsons():
  found = win_rates.win_rate(np.ones(20))
  expected = stats.binomtest(20, 20).proportion_ci(method='wilson')
  assert found.value == 1.0
  np.testing.assert_allclose(found[1:], (expected.low, expected.high), rtol=1e-9)
  expected = stats.binomtest(3, 11).proportion_ci(method='wilson')
  np.testing.assert_allclose(win_rates.wilson(3 / 11, 11), (expected.low, expected.high), rtol=1e-9)


def test_without_any_verdict_there_is_no_rate():
  found = win_rates.win_rate(np.full(3, NAN))
  assert all(map(math.isnan, found))
  assert all(map(math.isnan, win_rates.orders(np.full((3, 2), NAN))))
  assert win_rates.folds(np.full(3, NAN), 2) is None


def test_a_paired_difference_is_surer_than_its_parts():
  rng = np.random.default_rng(1)
  level_P = rng.random(100)
  one_P, other_P = level_P, np.clip(level_P - 0.1, 0, 1)
  found = win_rates.difference(one_P, other_P)
  assert found.value == pytest.approx((one_P - other_P).mean())
  alone = win_rates.win_rate(one_P)
  assert found.high - found.low < 0.2 * (alone.high - alone.low)
  # Prompts that lack one of the two are left out.
  one_P[0], other_P[1] = NAN, NAN
  assert win_rates.difference(one_P, other_P).value == pytest.approx((one_P - other_P)[2:].mean())


def test_orders_tell_a_preference_for_a_place_from_one_for_an_answer():
  by_place = np.array([[1.0, 0.0]] * 3)  # The answer shown first always wins.
  by_answer = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
  assert win_rates.orders(by_place) == (1.0, 0.0, 1.0)
  assert win_rates.orders(by_answer) == (0.0, 0.0, 0.5)
  mixed = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.0], [1.0, NAN]])
  flips, tied, first = win_rates.orders(mixed)
  assert (flips, tied) == (pytest.approx(1 / 3), pytest.approx(0.5))
  assert first == pytest.approx((1 + 0.5 + 0.75) / 3)
  assert win_rates.orders(np.array([[0.6, 0.1]])).flips == 1.0  # Probabilities decide by ½.


def test_the_sd_of_folds_estimates_the_error_of_one_fold():
  """DRO's table has mean ± sd over 5 folds of 1,000; the error of the whole rate is smaller, by √5."""
  rng = np.random.default_rng(0)
  found = [win_rates.folds((rng.random(1003) < 0.7).astype(float), 5, seed) for seed in range(200)]
  assert {(each.folds, each.prompts) for each in found} == {(5, 200)}
  sds = math.sqrt(np.mean([each.sd**2 for each in found]))
  assert sds == pytest.approx(math.sqrt(0.7 * 0.3 / 200), rel=0.06)
  assert found[0].binomial_error == pytest.approx(math.sqrt(0.7 * 0.3 / 1003), rel=0.05)
  assert np.std([each.mean for each in found]) == pytest.approx(found[0].binomial_error, rel=0.15)


def test_folds_are_equal_parts_of_the_shuffled_prompts():
  rates_P = np.array([1.0, 1.0, 0.0, 0.0, NAN])
  found = win_rates.folds(rates_P, 2, seed=3)
  assert (found.mean, found.prompts) == (0.5, 2)
  assert math.isnan(win_rates.folds(rates_P, 1).sd)
