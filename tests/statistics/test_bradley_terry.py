import math

import numpy as np
import pytest
from scipy import optimize

from dro_jax.statistics import bradley_terry


def test_two_sides_have_the_logit_of_their_rate():
  found = bradley_terry.strengths(np.array([[0.0, 30.0], [10.5, 0.0]]))
  np.testing.assert_allclose(found, [0.0, math.log(10.5 / 30.0)], rtol=1e-9)


def test_many_sides_have_the_maximum_that_scipy_finds():
  rng = np.random.default_rng(0)
  wins = rng.integers(1, 20, (5, 5)) + rng.choice([0, 0.5], (5, 5))
  np.fill_diagonal(wins, 99.0)  # Not read.

  def loss(free):
    beta = np.append(0.0, free)
    margin = beta[:, None] - beta[None, :]
    return ((1 - np.eye(5)) * wins * np.logaddexp(0, -margin)).sum()

  expected = optimize.minimize(loss, np.zeros(4), tol=1e-12).x
  np.testing.assert_allclose(bradley_terry.strengths(wins)[1:], expected, atol=1e-5)


def test_strengths_explain_rates_that_follow_the_model():
  beta = np.array([0.0, 1.0, -2.0, 4.0])
  wins = 1 / (1 + np.exp(beta[None, :] - beta[:, None]))
  np.testing.assert_allclose(bradley_terry.strengths(wins), beta, atol=1e-8)


def test_a_side_that_never_lost_has_no_finite_strength():
  wins = np.array([[0.0, 3.0, 0.0], [2.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
  found = bradley_terry.strengths(wins)
  assert found[1] == pytest.approx(math.log(2 / 3)) and found[2] == math.inf
  assert bradley_terry.strengths(wins.T)[2] == -math.inf
  # Two that never met, directly or through others, cannot be compared.
  apart = np.zeros((4, 4))
  apart[0, 1] = apart[1, 0] = apart[2, 3] = apart[3, 2] = 1.0
  assert np.isnan(bradley_terry.strengths(apart)[2:]).all()


@pytest.mark.long
def test_intervals_cover_the_true_strengths():
  rng, hits = np.random.default_rng(0), np.zeros(2)
  beta = np.array([0.0, 0.5, -0.4])
  pairs = [(0, 1), (0, 2), (1, 2)]
  for seed in range(50):
    rates = {
      (i, j): (rng.random(100) < 1 / (1 + math.exp(beta[j] - beta[i]))).astype(float) for i, j in pairs
    }
    found = bradley_terry.estimates(rates, 3, resamples=80, seed=seed)
    assert found[0] == (0.0, 0.0, 0.0)
    hits += [each.low <= truth <= each.high for each, truth in zip(found[1:], beta[1:])]
  assert (hits >= 43).all()


def test_prompts_without_a_rate_count_for_nobody():
  rates = {(0, 1): np.array([1.0, 0.0, math.nan, 1.0])}
  found = bradley_terry.estimates(rates, 2, resamples=20)
  assert found[1].value == pytest.approx(math.log(1 / 2))
  assert found[1].low == -math.inf  # Some draws have no win of the second side.
