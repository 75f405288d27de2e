"""The mass that a policy keeps, on policies that can be enumerated."""

import numpy as np
import pytest

from dro_jax.statistics import mass

ANSWERS = 12


def policies(lost, seed=0):
  """(π_ref over 12 answers, the log-ratios of a policy that moved a share of its mass off all of them)."""
  rng = np.random.default_rng(seed)
  reference = rng.dirichlet(np.ones(ANSWERS))
  tilted = reference * np.exp(rng.normal(size=ANSWERS) / 2)
  return reference, np.log((1 - lost) * tilted / tilted.sum() / reference)


def measured(log_ratios_MK, draws=None):
  found = mass.statistics(log_ratios_MK)
  draws = np.ones(len(log_ratios_MK)) if draws is None else draws
  return tuple(found[name](draws) for name in (mass.KEPT, mass.SIZE))


@pytest.mark.parametrize('lost', [0.0, 0.3, 0.9])
def test_what_the_weights_miss_is_the_mass_that_left(lost):
  reference, log_ratios = policies(lost)
  assert reference @ np.exp(log_ratios) == pytest.approx(1 - lost)
  drawn = np.random.default_rng(1).choice(ANSWERS, p=reference, size=(20_000, 4))
  assert measured(log_ratios[drawn])[0] == pytest.approx(1 - lost, rel=0.02)


def test_equal_policies_keep_all_and_rest_on_every_answer():
  assert measured(np.zeros((5, 4))) == (1.0, 20.0)


def test_the_numbers_are_those_of_the_weights_and_draws_are_repetitions():
  rho = np.random.default_rng(0).normal(size=(6, 4))
  draws = np.array([0.0, 2.0, 1.0, 3.0, 1.0, 0.0])
  weights = np.exp(np.repeat(rho, draws.astype(int), axis=0))
  kept, size = measured(rho, draws)
  assert kept == pytest.approx(weights.mean())
  assert size == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_one_heavy_answer_is_one_effective_answer():
  rho = np.full((64, 4), -9.0)
  rho[3, 1] = 3.0
  kept, size = measured(rho)
  assert size == pytest.approx(1.0, abs=0.01)
  assert kept < 0.1 and not mass.has_left(kept, size)


def test_weights_that_round_to_nothing_still_have_an_effective_size():
  assert measured(np.full((3, 2), -2000.0)) == (0.0, 6.0)


@pytest.mark.parametrize(
  'kept, size, left', [(0.49, 20.0, True), (0.5, 200.0, False), (0.1, 19.0, False), (1.0, 256.0, False)]
)
def test_mass_has_left_where_half_of_it_has_and_enough_answers_say_so(kept, size, left):
  assert mass.has_left(kept, size) == left
