"""Estimates of a policy's value against enumeration on a bandit of two prompts and three responses."""

import itertools

import numpy as np
import pytest

from dro_jax.errors import UsageError
from dro_jax.statistics import off_policy

# [x, y]: the log's policy, the policy in question, the reward's two equally likely values.
MU = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
PI = np.array([[0.2, 0.2, 0.6], [0.3, 0.1, 0.6]])
REWARDS = np.array([[[0.0, 1.0], [2.0, 3.0], [-1.0, 0.0]], [[5.0, 7.0], [1.0, 1.0], [0.0, 2.0]]])
Q = REWARDS.mean(-1)
TRUTH = (PI * Q).sum(1).mean()


def expectation(estimate, size=2):
  """E[estimate] over every log of `size` triplets: prompts even, responses from MU, either reward."""
  outcomes = list(itertools.product(range(2), range(3), range(2)))
  total = 0.0
  for log in itertools.product(outcomes, repeat=size):
    x, y, z = np.array(log).T
    total += np.prod(MU[x, y] / 4) * estimate(x, y, REWARDS[x, y, z])
  return total


def doubly_robust(model, mu):
  """DR with a reward model `[x, y]`, and with what is believed to be the log's policy."""
  return lambda x, y, r: off_policy.doubly_robust(
    PI[x, y] / mu[x, y], r, model[x, y], (PI * model).sum(1)[x], np.ones(len(x))
  )


def test_ips_is_unbiased():
  estimate = lambda x, y, r: off_policy.ips(PI[x, y] / MU[x, y], r, np.ones(len(x)))  # noqa: E731
  assert expectation(estimate) == pytest.approx(TRUTH, abs=1e-12)
  assert expectation(lambda x, y, r: r.mean()) != pytest.approx(TRUTH, abs=0.1)


@pytest.mark.parametrize(
  'model, mu, unbiased',
  [
    (Q, MU, True),
    (np.zeros((2, 3)), MU, True),
    (Q + [[1.0, -2.0, 0.5]] * 2, MU, True),
    (Q, np.full((2, 3), 1 / 3), True),
    (np.zeros((2, 3)), np.full((2, 3), 1 / 3), False),
  ],
)
def test_doubly_robust_needs_either_the_propensities_or_the_model(model, mu, unbiased):
  off = abs(expectation(doubly_robust(model, mu)) - TRUTH)
  assert off < 1e-12 if unbiased else off > 0.1


def test_a_good_model_takes_variance_off_ips():
  def variance(model):
    estimate = doubly_robust(model, MU)
    return expectation(lambda *log: (estimate(*log) - TRUTH) ** 2)

  assert variance(Q) < 0.5 * variance(np.zeros((2, 3)))


def test_self_normalised_moves_with_the_rewards_and_stays_among_them():
  w, r, ones = np.array([0.1, 3.0, 9.0]), np.array([1.0, 2.0, 4.0]), np.ones(3)
  estimate = off_policy.self_normalised(w, r, ones)
  assert estimate == pytest.approx((0.1 + 6 + 36) / 12.1)
  assert off_policy.self_normalised(w, r + 5, ones) == pytest.approx(estimate + 5)
  assert off_policy.ips(w, r, ones) > r.max() > estimate
  assert np.isnan(off_policy.self_normalised(0 * w, r, ones))


def test_self_normalised_converges():
  rng = np.random.default_rng(0)
  x = rng.integers(2, size=40_000)
  y = (rng.random((len(x), 1)) > np.cumsum(MU, 1)[x]).sum(1)
  r = REWARDS[x, y, rng.integers(2, size=len(x))]
  assert off_policy.self_normalised(PI[x, y] / MU[x, y], r, np.ones(len(x))) == pytest.approx(TRUTH, abs=0.05)


def test_direct_is_the_models_mean():
  assert off_policy.direct(np.array([1.0, 4.0]), np.array([3.0, 1.0])) == 1.75


def test_effective_sample_size_is_between_one_and_all_responses():
  assert off_policy.effective_sample_size(np.full(7, 0.3)) == pytest.approx(7)
  assert off_policy.effective_sample_size(np.array([1e9, 1.0, 1.0])) == pytest.approx(1)
  assert off_policy.effective_sample_size(np.zeros(3)) == 0


def test_on_its_own_log_every_estimate_is_the_mean_reward():
  rng = np.random.default_rng(0)
  rewards, logps = rng.normal(size=40), -rng.exponential(size=40)
  log = off_policy.Log(
    off_policy.ratios(logps, logps), rewards, np.zeros(40), np.zeros(40), np.arange(40) // 4 * 3
  )
  made = off_policy.estimates(log, resamples=50)
  for name in ('ips', 'self_normalised', 'doubly_robust'):
    assert made[name].value == pytest.approx(rewards.mean())
    assert made[name].low < made[name].value < made[name].high
  assert made['direct'].value == 0


def test_counts_repeat_responses():
  rng = np.random.default_rng(1)
  w, r, q, e = rng.exponential(size=(4, 5))
  counts = np.array([0.0, 1, 2, 1, 3])
  again = np.repeat(np.arange(5), counts.astype(int))
  for estimate, arrays in (
    (off_policy.ips, (w, r)),
    (off_policy.self_normalised, (w, r)),
    (off_policy.direct, (e,)),
    (off_policy.doubly_robust, (w, r, q, e)),
  ):
    repeated = estimate(*(x[again] for x in arrays), np.ones(len(again)))
    assert estimate(*arrays, counts) == pytest.approx(repeated)


@pytest.mark.parametrize('logged', [[0.5, -1.0], [np.nan, -1.0], [-np.inf, -1.0]])
def test_numbers_that_are_not_propensities_are_refused(logged):
  with pytest.raises(UsageError, match='log-prob above 0, or none'):
    off_policy.ratios(np.array([-1.0, -1.0]), np.array(logged))


def test_ridge_finds_a_linear_reward_and_shrinks_to_the_mean():
  rng = np.random.default_rng(0)
  features = np.concatenate([rng.normal(size=(200, 3)) * [1, 10, 0.1] + 5, np.ones((200, 1))], 1)
  rewards = features @ [2.0, -0.3, 4.0, 9.0] + 1
  np.testing.assert_allclose(off_policy.ridge(features, rewards, 1e-9)(features), rewards, rtol=1e-6)
  np.testing.assert_allclose(off_policy.ridge(features, rewards, 1e12)(features), rewards.mean(), rtol=1e-6)


def test_ridge_leaves_out_a_feature_that_never_varies():
  features = np.stack([np.random.default_rng(0).normal(size=10), np.full(10, 0.1)], 1)
  model = off_policy.ridge(features, features[:, 0])
  np.testing.assert_array_equal(model(features + np.array([0.0, 0.5])), model(features))
