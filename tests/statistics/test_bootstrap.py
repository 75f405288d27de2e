"""Intervals over prompts, against textbooks and simulation."""

import math

import numpy as np
import pytest

from dro_jax.statistics import bootstrap


def test_bootstrap_of_a_mean_is_the_textbook_interval():
  x = np.random.default_rng(0).normal(size=400)
  estimate = bootstrap.bootstrap(lambda weights_P: weights_P @ x / 400, 400, resamples=2000, seed=0)
  half = 1.96 * x.std() / 20
  assert estimate.value == pytest.approx(x.mean())
  np.testing.assert_allclose([estimate.low, estimate.high], [x.mean() - half, x.mean() + half], atol=0.01)


def test_each_draw_takes_as_many_prompts_as_there_are_and_the_seed_decides_them():
  one, again, other = ([*bootstrap.weights(7, 50, seed)] for seed in (3, 3, 4))
  assert len(one) == 50 and all(w_P.shape == (7,) and w_P.sum() == 7 for w_P in one)
  np.testing.assert_array_equal(one, again)
  assert not np.array_equal(one, other)


def test_a_difference_on_the_same_draws_is_paired():
  rng = np.random.default_rng(0)
  level, noise = rng.normal(size=100), 0.01 * rng.normal(size=100)
  a, b = bootstrap.mean_of(level), bootstrap.mean_of(level + 0.1 + noise)
  alone = bootstrap.bootstrap(b, 100, 300, 0)
  paired = bootstrap.bootstrap(lambda w_P: b(w_P) - a(w_P), 100, 300, 0)
  assert paired.low > 0.09 and paired.high < 0.11 and alone.high - alone.low > 0.2


def test_means_of_many_columns_are_those_of_each_alone():
  x_PC = np.random.default_rng(0).normal(size=(30, 4))
  found = bootstrap.bootstrap_means(x_PC, 50, 3)
  want = [bootstrap.bootstrap(bootstrap.mean_of(x_P), 30, 50, 3) for x_P in x_PC.T]
  np.testing.assert_allclose(found, want, rtol=1e-12)
  assert np.isnan(bootstrap.bootstrap_means(x_PC[:1], 50, 3)[0][1:]).all()


def test_draws_without_a_value_are_left_out_and_one_prompt_has_no_interval():
  x = np.array([1.0, np.nan, 3.0])
  first = bootstrap.bootstrap(lambda w_P: w_P[0] / w_P[0] if w_P[0] else math.nan, 3, 100, 0)
  assert first == (1, 1, 1)
  for undefined in (bootstrap.bootstrap(bootstrap.mean_of(x), 3, 5, 0), bootstrap.mean_of(x[:0])(x[:0])):
    assert np.isnan(undefined).all()
  alone = bootstrap.bootstrap(bootstrap.mean_of(x[:1]), 1, 5, 0)
  assert alone.value == 1 and np.isnan(alone[1:]).all()


def test_the_jackknife_of_a_mean_is_the_textbook_interval():
  x = np.random.default_rng(1).normal(size=50)
  without_P = (x.sum() - x) / 49
  value, low, high = bootstrap.jackknife(x.mean(), without_P)
  half = 1.959964 * x.std(ddof=1) / math.sqrt(50)
  assert (value, low, high) == pytest.approx((x.mean(), x.mean() - half, x.mean() + half))
  assert math.isnan(bootstrap.jackknife(1.0, np.ones(1)).low)
  # A share is within [0, 1], and so is its interval.
  wide = np.array([0.2, 0.9, 0.5])
  assert bootstrap.jackknife(0.5, wide).low < 0 and bootstrap.jackknife(0.5, wide).high > 1
  assert bootstrap.jackknife(0.5, wide, (0, 1)) == (0.5, 0, 1)
  assert math.isnan(bootstrap.jackknife(1.0, np.array([1.0, np.nan])).low)


def test_the_jackknife_of_a_count_of_distinct_items_is_wide_enough():
  """Each prompt draws four of 200 items: the count's spread over worlds, and what one world says of it."""
  rng = np.random.default_rng(0)
  probabilities = 1 / np.arange(1, 201)
  probabilities /= probabilities.sum()
  counts, spreads, drawn_again = [], [], []
  for _ in range(200):
    items = rng.choice(200, size=(60, 4), p=probabilities)
    count = len(np.unique(items))
    without_P = np.array([len(np.unique(np.delete(items, p, 0))) for p in range(60)])
    _, low, high = bootstrap.jackknife(count, without_P)
    counts.append(count)
    spreads.append((high - low) / (2 * 1.959964))
    drawn_again.append(len(np.unique(items[rng.integers(60, size=60)])) - count)
  ratio = np.sqrt(np.mean(np.square(spreads))) / np.std(counts)
  assert 1 <= ratio < 1.5
  assert max(drawn_again) < 0  # A draw with replacement lies below the count itself.


def test_a_ratio_of_nothing_is_undefined():
  assert math.isnan(bootstrap.ratio(0.0, 0.0)) and bootstrap.ratio(1.0, 4.0) == 0.25
