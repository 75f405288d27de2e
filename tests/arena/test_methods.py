import numpy as np
import pytest

from dro_jax.arena import trials
from dro_jax.arena.human import suite as human
from dro_jax.arena.methods import methods
from dro_jax.arena.text.methods import METHODS as OF_TEXT
from dro_jax.arena.trials import Range

METHODS = methods(Range(1e-4, 1e-3))


@pytest.mark.parametrize('name', METHODS)
def test_every_method_takes_its_temperature(name):
  method = METHODS[name]
  algorithm = method.algorithm(0.25)
  assert method.grid['learning_rate'] == Range(1e-4, 1e-3)
  assert 'temperature' not in method.grid or float(np.asarray(algorithm.temperature)) == 0.25


@pytest.mark.parametrize('competing', [OF_TEXT, human.methods((1e-4, 1e-3))])
def test_every_method_has_as_many_trials(competing):
  tried = trials.make_trials({name: method.grid for name, method in competing.items()}, 2)
  assert {len(of_method) for of_method in tried.values()} == {4}


def test_names_with_kl_have_next_token_kl():
  directions = {name: method.algorithm(0.2).kl_direction for name, method in METHODS.items()}
  assert {name for name, direction in directions.items() if direction == 'reverse'} == {
    'dro_v+kl1', 'dro_v+kl3', 'kto+kl.3', 'dpo+kl.3',
  }  # fmt: skip
