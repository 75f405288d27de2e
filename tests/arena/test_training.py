import numpy as np
import pytest

from dro_jax.arena import cells, training
from dro_jax.arena.trials import Range


def finished(algorithm, rate, seed, validation, test=0.0):
  cell = cells.Cell('mine', algorithm, {'learning_rate': rate}, seed, {})
  return cells.Finished(cell, {'validation': validation, 'test': test}, 1.0)


def choose(cells):
  return training.choose(cells, lambda result: result['validation'])


def test_a_trial_is_chosen_by_validation_and_its_edge_told():
  tried = [finished('a', 0.1, 0, 1.0, test=9.0), finished('a', 0.2, 0, 3.0), finished('a', 0.4, 0, 2.0)]
  chosen = choose(tried)['a']
  assert (chosen.hyperparameters, chosen.score, chosen.trials) == ({'learning_rate': 0.2}, 3.0, 3)
  assert chosen.edges == []
  assert choose(tried[:2])['a'].edges == ['learning_rate ≥ 0.2']


def test_trials_of_as_many_seeds_are_compared():
  tried = [finished('a', 0.1, 0, 1.0), finished('a', 0.1, 1, 2.0), finished('a', 0.2, 0, 5.0)]
  chosen = choose(tried)['a']
  assert chosen.hyperparameters == {'learning_rate': 0.1}
  assert chosen.score == 1.5
  assert len(chosen.results) == 2


def test_what_is_not_a_number_is_not_chosen():
  tried = [finished('a', 0.1, 0, float('nan')), finished('a', 0.2, 0, 0.5)]
  assert choose(tried)['a'].hyperparameters == {'learning_rate': 0.2}


@pytest.mark.parametrize('name, method', training.methods(Range(1e-4, 1e-3)).items())
def test_every_method_takes_its_temperature(name, method):
  algorithm = method.algorithm(0.25)
  assert 'learning_rate' in method.grid
  if 'temperature' in method.grid:
    assert float(np.asarray(algorithm.temperature)) == 0.25
