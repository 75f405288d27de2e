import gzip
import json
import math

import numpy as np
import pytest
from scipy import optimize

from dro_jax.statistics import length_control, win_rates


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def sample(rng, num, theta=0.3, phi=1.0, shift=0.0):
  """Verdicts of a judge that likes length, on differences of lengths around `shift` standard deviations."""
  differences = rng.normal(shift, 1.0, num) * 80
  p = sigmoid(theta + phi * np.tanh(differences / differences.std()))
  return (rng.random(num) < p).astype(float), differences


def rate(scores, differences):
  numbers = np.arange(len(scores))
  return length_control.controlled_rate(scores, differences, numbers, np.ones(len(scores)))


def test_the_fit_is_the_maximum_that_scipy_finds():
  rng = np.random.default_rng(0)
  scores, differences = sample(rng, 200)
  scores = np.where(rng.random(200) < 0.3, 0.5, scores)  # Ties.
  weights, x = rng.integers(0, 4, 200).astype(float), None
  mean = weights @ differences / weights.sum()
  x = np.tanh(differences / math.sqrt(weights @ (differences - mean) ** 2 / weights.sum()))

  def loss(beta):
    z = beta[0] + beta[1] * x
    return -weights @ (scores * z - np.logaddexp(0, z)) + beta[1] ** 2 / 2 / 2.5**2

  theta, _ = optimize.minimize(loss, np.zeros(2), tol=1e-10).x
  found = length_control.controlled_rate(scores, differences, np.arange(200), weights)
  assert found == pytest.approx(sigmoid(theta), abs=1e-6)


def test_lengths_that_say_nothing_leave_the_rate_as_it_is():
  scores = np.array([1.0, 0.0, 1.0, 1.0] * 10)
  assert rate(scores, np.zeros(40)) == pytest.approx(0.75)
  balanced = np.repeat([-1.0, 1.0], 40) * 9
  assert rate(np.tile(scores, 2), balanced) == pytest.approx(0.75)


def test_a_rate_that_length_alone_made_is_a_half():
  """The sides are equal but for length: the first is longer in 80 %, and the longer answer wins in 90 %."""
  rng = np.random.default_rng(0)
  longer = rng.random(4000) < 0.8
  wins = np.where(rng.random(4000) < 0.9, longer, ~longer).astype(float)
  differences = np.where(longer, 1.0, -1.0) * 50
  assert wins.mean() > 0.7
  assert rate(wins, differences) == pytest.approx(0.5, abs=0.03)


@pytest.mark.long
def test_the_interval_covers_the_truth_with_the_fits_error_and_not_without():
  rng, hits, hits_of_known = np.random.default_rng(5), 0, 0
  truth, numbers = sigmoid(0.3), np.arange(120)
  for seed in range(100):
    scores, differences = sample(rng, 120, phi=1.5, shift=0.9)
    found = length_control.estimate(scores, differences, numbers, 120, resamples=150, seed=seed)
    hits += found.low <= truth <= found.high
    # An interval that takes the fit for known has the binomial error alone.
    error = math.sqrt(found.value * (1 - found.value) / 120)
    hits_of_known += abs(found.value - truth) <= 1.96 * error
  assert hits >= 89 and hits_of_known <= 82


def test_comparisons_of_one_prompt_weigh_one_together():
  scores, differences = np.array([1.0, 1.0, 1.0, 0.0]), np.zeros(4)
  found = length_control.controlled_rate(scores, differences, np.array([0, 0, 0, 1]), np.ones(2))
  assert found == pytest.approx(0.5)


def test_comparisons_without_a_score_are_left_out():
  rng = np.random.default_rng(0)
  scores, differences = sample(rng, 60)
  holed, numbers = scores.copy(), np.arange(60)
  holed[::3] = math.nan
  kept = ~np.isnan(holed)
  found = length_control.estimate(holed, differences, numbers, 60, resamples=5).value
  assert found == pytest.approx(rate(scores[kept], differences[kept]))


def test_the_longer_always_wins_has_a_finite_fit():
  differences = np.tile([-30.0, 30.0], 20)
  assert rate((differences > 0).astype(float), differences) == pytest.approx(0.5, abs=1e-6)


def test_a_unanimous_rate_has_wilsons_interval():
  found = length_control.estimate(np.ones(20), np.tile([-3.0, 3.0], 10), np.arange(20), 20)
  assert found == (1.0, *win_rates.wilson(1.0, 20))


def test_rates_on_alpaca_evals_public_verdicts_are_the_published_ones(data_dir):
  """Where lengths overlap, within the interval; the published fit has a term for each prompt besides."""
  with gzip.open(data_dir / 'alpaca_eval' / 'preferences.json.gz') as file:
    models = json.load(file)
  controlled = {}
  for model in models:
    scores, published = np.array(model['preferences']), model['published']
    num, numbers = len(scores), np.arange(len(scores))
    found = win_rates.win_rate(scores)
    assert 100 * found.value == pytest.approx(published['win_rate'], abs=1e-4)
    differences = np.subtract(model['length_model'], model['length_baseline']).astype(float)
    if scores.std() > 0:
      width = 100 * (found.high - found.low) / 2 / 1.96
      assert width == pytest.approx(published['standard_error'], rel=0.1)
    if not length_control.refusal(differences):
      rate = length_control.estimate(scores, differences, numbers, num, resamples=100)
      controlled[model['model']] = published['length_controlled'] / 100, rate
  assert len(controlled) >= 7
  assert all(low <= truth <= high for truth, (_, low, high) in controlled.values())


@pytest.mark.parametrize(
  'differences, refused',
  [
    (np.full(50, 7.0), 'the first side has the longer answer in 50 of 50'),
    (np.repeat([-7.0, 7.0], [85, 15]), 'the second side has the longer answer in 85 of 100'),
    (np.repeat([-7.0, 7.0], [75, 25]), ''),
    (np.zeros(30), ''),
    (np.array([-1.0, 1.0]), ''),
  ],
)
def test_lengths_that_hardly_overlap_are_refused(differences, refused):
  found = length_control.refusal(differences)
  assert refused in found and bool(found) == bool(refused)
