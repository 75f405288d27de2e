import numpy as np
import pytest

from dro_jax.arena import results
from dro_jax.arena.cells import Cell, Finished

RNG = np.random.default_rng(0)


def finished(algorithm, rate, seed, validation, regret, axes=None):
  measured = {'step': 4, 'validation': validation, 'test': {'regret': regret}}
  cell = Cell('exact', algorithm, {'learning_rate': rate}, seed, axes or {'noise': 1})
  return Finished(cell, {'best': measured, 'last': measured | {'validation': 1.0}}, 1.0)


def test_validation_prompts_choose_hyperparameters_and_test_prompts_do_not():
  cells = [
    finished('a', 0.1, 0, 0.5, [9.0]),
    finished('a', 0.2, 0, 0.6, [0.0]),
    finished('a', 0.4, 0, 0.7, [0.0]),
  ]
  chosen = results.choose(cells, ['a', 'nobody'], 'best')['a']
  assert chosen.hyperparameters == {'learning_rate': 0.1}
  assert chosen.trials == 3 and chosen.edges == ['learning_rate ≤ 0.1']
  np.testing.assert_array_equal(results.by_prompt(chosen, 'best', 'regret')[0], [9.0])


def test_a_trial_is_chosen_for_all_seeds_and_incomplete_ones_are_not_compared():
  cells = [finished('a', rate, seed, score, [0.0]) for rate, seed, score in
           ((0.1, 0, 0.1), (0.1, 1, 0.9), (0.2, 0, 0.4), (0.2, 1, 0.4), (0.4, 0, 0.0))]  # fmt: skip
  chosen = results.choose(cells, ['a'], 'best')['a']
  assert chosen.hyperparameters == {'learning_rate': 0.2}
  assert list(chosen.results) == [0, 1] and chosen.trials == 2


def test_further_seeds_of_a_trial_are_reported_and_decide_nothing():
  cells = [finished('a', rate, 0, score, [1.0]) for rate, score in ((0.1, 0.2), (0.2, 0.1), (0.4, 0.3))]
  cells += [finished('a', 0.2, seed, 9.0, [seed]) for seed in (1, 2)]
  chosen = results.choose(cells, ['a'], 'best')['a']
  assert chosen.hyperparameters == {'learning_rate': 0.2}
  assert list(chosen.results) == [0, 1, 2] and chosen.trials == 3


def test_a_diverged_trial_ranks_last():
  cells = [finished('a', 0.1, 0, None, [None]), finished('a', 0.2, 0, 5.0, [1.0])]
  assert results.choose(cells, ['a'], 'best')['a'].hyperparameters == {'learning_rate': 0.2}
  only = results.choose(cells[:1], ['a'], 'best')['a']
  assert np.isnan(results.mean(results.by_prompt(only, 'best', 'regret')).value)


def test_differences_are_paired_by_seed_and_prompt():
  base = {seed: RNG.normal(size=200) for seed in range(4)}
  better = {seed: x - 0.1 + 0.01 * RNG.normal(size=200) for seed, x in base.items()}
  found = results.difference(better, base)
  assert found.value == pytest.approx(-0.1, abs=2e-3)
  assert found.high - found.low < 0.01 < results.mean(better).high - results.mean(better).low
  one = results.difference({2: better[2]}, base)
  assert one.value == pytest.approx(np.mean(better[2] - base[2]))
  assert np.isnan(results.difference({9: base[0]}, base).value)


def test_intervals_cover_the_spread_over_seeds_and_over_prompts():
  seeds, prompts = RNG.normal(size=(40, 1)), RNG.normal(size=(1, 60))
  found = results.crossed_bootstrap(seeds + prompts)
  expected = 2 * 1.96 * np.hypot(seeds.std() / np.sqrt(40), prompts.std() / np.sqrt(60))
  assert found.high - found.low == pytest.approx(expected, rel=0.1)
  assert found.value == pytest.approx((seeds + prompts).mean())


def test_points_lists_every_value_of_the_axes_once():
  cells = [finished('a', 0.1, 0, 0.1, [0.0], {'noise': noise}) for noise in (1, 0, 1)]
  assert results.points(cells) == [{'noise': 0}, {'noise': 1}]
  assert len(results.at(cells, {'noise': 1})) == 2
  several = [finished('a', 0.1, 0, 0.1, [0.0], {'responses': count}) for count in (16, 2, 1)]
  assert results.points(several) == [{'responses': 1}, {'responses': 2}, {'responses': 16}]


def test_unequal_efforts_are_told():
  cells = [finished('a', rate, 0, 0.1, [0.0]) for rate in (0.1, 0.2)] + [finished('b', 0.1, 0, 0.1, [0.0])]
  chosen = results.choose(cells, ['a', 'b'], 'best')
  assert results.unequal(chosen).startswith('Unequal numbers of trials: b 1, others 2.')
  assert results.unequal({'a': chosen['a']}) == ''
