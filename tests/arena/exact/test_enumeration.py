import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from dro_jax.arena.exact import enumeration
from dro_jax.data.worlds import toy
from dro_jax.models import scoring
from dro_jax.types import Rows
from tests.examples import init_params

RNG = np.random.default_rng(0)
P, Z = 4, 9
REFERENCE = np.log(RNG.dirichlet(np.ones(Z), P))
REWARDS = RNG.normal(size=(P, Z))


def test_word_logps_are_those_of_scoring_each_word():
  policy, _, params = init_params(readout=None)
  prompts = np.array([[5, 6, 7, 1], [8, 9, 1, 0], [10, 1, 0, 0]] * 3, np.int32)
  letters = np.array([[11, 12, 13], [14, 12, 15]])
  words = np.array([[*word, 1] for word in itertools.product(*letters)], np.int32)
  got = enumeration.word_logps(policy, params['policy'], jnp.asarray(prompts), jnp.asarray(letters), 1)
  assert got.shape == (9, 9)
  B, T = len(prompts) * len(words), words.shape[1]
  xs, ys = np.repeat(prompts, len(words), 0), np.tile(words, (len(prompts), 1))
  ones, positions = np.ones((B, T), np.int32), np.tile(np.arange(T, dtype=np.int32), (B, 1))
  rows = Rows(
    xs, (xs > 0).astype(np.int32), np.zeros_like(xs), ys, ones, positions, ones,
    np.zeros((B, 1), np.float32), np.zeros((B, 1), np.int32), np.ones((B, 1), bool),
  )  # fmt: skip
  expected = jax.jit(scoring.make_score(policy))(params, jax.tree.map(jnp.asarray, rows), None).logps
  np.testing.assert_allclose(got.reshape(-1), expected[:, 0], rtol=1e-4)


def test_measures_of_an_optimum():
  best, _ = toy.optimum(REFERENCE, REWARDS, 0.3)
  found = enumeration.measures(best, REFERENCE, REWARDS, 0.3)
  assert set(found) == set(enumeration.MEASURES)
  for name in ('regret', 'kl_to_optimum', 'below_frontier'):
    np.testing.assert_allclose(found[name], 0, atol=1e-7)
  # Another temperature's optimum is on the frontier, and no optimum here.
  found = enumeration.measures(toy.optimum(REFERENCE, REWARDS, 1.0)[0], REFERENCE, REWARDS, 0.3)
  np.testing.assert_allclose(found['below_frontier'], 0, atol=1e-7)
  assert found['regret'].min() > 0
  np.testing.assert_allclose(found['kl_to_optimum'], found['regret'] / 0.3)


def test_the_distance_to_the_frontier_is_the_reward_missing_at_equal_kl():
  policy = np.log(RNG.dirichlet(np.ones(Z), P))
  missing = enumeration.below_frontier(policy, REFERENCE, REWARDS)
  assert missing.min() >= 0
  kl = toy.kl(policy, REFERENCE).mean()
  excess = lambda t: toy.kl(toy.optimum(REFERENCE, REWARDS, t)[0], REFERENCE).mean() - kl  # noqa: E731
  t = scipy.optimize.brentq(excess, 1e-2, 1e3)
  most = enumeration.expected_reward(toy.optimum(REFERENCE, REWARDS, t)[0], REWARDS).mean()
  assert missing.mean() == pytest.approx(most - enumeration.expected_reward(policy, REWARDS).mean(), rel=1e-4)


def test_the_reference_is_on_the_frontier():
  np.testing.assert_allclose(enumeration.below_frontier(REFERENCE, REFERENCE, REWARDS), 0, atol=1e-3)


def test_a_policy_that_is_no_number_measures_nothing():
  broken = np.where(np.arange(P)[:, None] == 1, np.nan, REFERENCE)
  found = enumeration.measures(broken, REFERENCE, REWARDS, 0.3)
  assert all(np.isnan(values).all() and values.shape == (P,) for values in found.values())


def test_the_best_of_n_is_what_sampling_gives():
  rewards = np.round(REWARDS, 0)  # With ties.
  got = np.exp(enumeration.best_of(REFERENCE, rewards, 3))
  np.testing.assert_allclose(got.sum(-1), 1)
  np.testing.assert_allclose(np.exp(enumeration.best_of(REFERENCE, rewards, 1)), np.exp(REFERENCE))
  draws = RNG.choice(Z, size=(200_000, 3), p=np.exp(REFERENCE[0]))
  score = rewards[0][draws] + RNG.random(draws.shape) * 1e-3
  best = np.take_along_axis(draws, score.argmax(1)[:, None], 1)[:, 0]
  np.testing.assert_allclose(np.bincount(best, minlength=Z) / len(best), got[0], atol=5e-3)


def test_the_frontier_rises_with_kl():
  found = enumeration.frontier(REFERENCE, REWARDS, [2.0, 1.0, 0.5, 0.1])
  assert sorted(found['kl_to_reference']) == found['kl_to_reference']
  assert sorted(found['reward']) == found['reward']
