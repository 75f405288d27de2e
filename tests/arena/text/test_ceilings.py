import itertools

import numpy as np
import pytest

from dro_jax.arena.text import ceilings

RNG = np.random.default_rng(0)
REWARDS = RNG.random((3, 6))


@pytest.mark.parametrize('number', [1, 2, 4, 6])
def test_best_of_n_is_the_mean_over_all_ways_to_draw_n(number):
  expected = [np.mean([max(drawn) for drawn in itertools.combinations(r, number)]) for r in REWARDS.tolist()]
  np.testing.assert_allclose(ceilings.best_of(REWARDS, number), expected)


@pytest.mark.parametrize('tau', [0.05, 0.3, 5.0])
def test_the_optimum_is_the_reference_weighted_by_e_to_the_reward(tau):
  weights = np.exp(REWARDS / tau)
  weights /= weights.sum(1, keepdims=True)
  reward, kl = ceilings.optimum(REWARDS, tau)
  np.testing.assert_allclose(reward, (weights * REWARDS).sum(1))
  np.testing.assert_allclose(kl, (weights * np.log(weights * 6)).sum(1))


def test_the_optimum_lies_between_the_reference_and_its_best_answer():
  cold, warm = ceilings.optimum(REWARDS, 1e-4), ceilings.optimum(REWARDS, 1e4)
  np.testing.assert_allclose(cold[0], REWARDS.max(1))
  np.testing.assert_allclose(cold[1], np.log(6))
  np.testing.assert_allclose(warm[0], REWARDS.mean(1), atol=1e-4)
  np.testing.assert_allclose(warm[1], 0, atol=1e-6)


def test_ceilings_are_in_units_of_the_rewards():
  found = ceilings.ceilings(REWARDS, np.array([0.5, 1.0, 0.0]), np.array([-1.0, -2.0, -3.0]), 0.5, (0.2,))
  assert list(found) == ['greedy decoding', 'best of 4', 'π* at τ = 0.2']
  assert found['greedy decoding']['kl'] == 2.0
  np.testing.assert_array_equal(found['π* at τ = 0.2']['reward'], ceilings.optimum(REWARDS, 0.1)[0])
  assert found['best of 4']['kl'] == pytest.approx(np.log(4) - 0.75)


def test_best_of_ns_divergence_holds_for_answers_without_ties():
  """By enumeration: n draws of a uniform reference over many answers with different rewards."""
  upto = np.arange(1, 20_001) / 20_000
  probs = np.diff(upto**4, prepend=0)
  assert np.sum(probs * np.log(probs * 20_000)) == pytest.approx(ceilings.best_of_kl(4), abs=1e-3)
