"""The `exact` suite: a real T5 whose responses can all be listed, so that every method meets π* itself.

A toy world (`data.toy`) with a thousand words to answer, a log by a policy unlike the reference, and three
kinds of prompts that share no word: logged, to validate on, to report on. By enumeration every policy's
regret, divergences and distance to the frontier are exact; only the log and the training are random.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dro_jax import algorithms
from dro_jax.arena.cells import Cell
from dro_jax.arena.exact import enumeration
from dro_jax.arena.exact import in_memory as inmemory
from dro_jax.arena.exact import world as exact_world
from dro_jax.arena.exact.methods import (
  COMPARING,
  DEFAULT_GROUP,
  Hyperparameters,
  Method,
  methods,
  value_error,
)
from dro_jax.arena.exact.report import report
from dro_jax.arena.exact.world import ExactSettings, Place, Point
from dro_jax.arena.suite import Suite
from dro_jax.arena.trials import steps_within
from dro_jax.data.worlds import toy
from dro_jax.errors import UsageError
from dro_jax.files import to_json
from dro_jax.types import Params

# --- a cell -------------------------------------------------------------------------------------------------


def run_cell(
  settings: ExactSettings, competing: Mapping[str, Method], shared: pathlib.Path, cell: Cell
) -> dict[str, Any]:
  """Trains a cell's policy from the reference and measures it on the way."""
  place = Place(settings, Point(**cell.axes), cell.seed, shared)
  method = competing[cell.algorithm]
  if method.algorithm is None:
    checkpoints, cost = _best_of_n(place, int(cell.hyperparameters['number'])), {'steps': 0, 'flops': 0.0}
  else:
    checkpoints, cost = _train(place, method, cell.hyperparameters)
  # The earliest of the best; one that is not a number is the worst.
  best = min(checkpoints, key=lambda found: np.nan_to_num(found['validation'], nan=np.inf))
  return {
    **cost,
    'curve': [{name: found[name] for name in ('step', 'validation')} for found in checkpoints],
    'best': best,
    'last': checkpoints[-1],
    'value_error': value_error(place, method, cell.hyperparameters),
    'world': _landmarks(place),
  }


def _best_of_n(place: Place, number: int) -> list[dict[str, Any]]:
  lab = exact_world.laboratory(place)
  policies = [
    enumeration.best_of(reference_PZ, prompts.rewards_PZ, number)
    for reference_PZ, prompts in (
      (lab.validation_reference_PZ, lab.validation),
      (lab.test_reference_PZ, lab.test),
    )
  ]
  return [_measured(place, 0, *policies)]


def _measured(
  place: Place, step: int, validation_PZ: np.ndarray, test_PZ: np.ndarray, **more: Any
) -> dict[str, Any]:
  """A checkpoint: its regret on validation prompts, and every measure of each test prompt."""
  lab, tau = exact_world.laboratory(place), place.settings.tau
  validation = enumeration.measures(
    validation_PZ, lab.validation_reference_PZ, lab.validation.rewards_PZ, tau
  )
  test = enumeration.measures(test_PZ, lab.test_reference_PZ, lab.test.rewards_PZ, tau)
  return {'step': step, 'validation': float(validation['regret'].mean()), 'test': test | more}


def _train(
  place: Place, method: Method, hyperparameters: Hyperparameters
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Checkpoints on the way, and the FLOPs: as many as for every other method."""
  settings, lab = place.settings, exact_world.laboratory(place)
  nets, algorithm = exact_world.networks_of(settings), method.algorithm(1.0)
  per_step = _flops_per_step(place, method.algorithm, tuple(column.name for column in method.columns))
  before = sum(column.flops(place) for column in method.columns)
  steps = _whole(steps_within(_budget(place), per_step, before), settings.measurements)
  source = exact_world.log_feed(place, algorithm.unit)
  columns = {column.name: column.make(place, source, hyperparameters) for column in method.columns}
  rows = inmemory.fitted_to(algorithm, source, steps, columns)
  stretch = inmemory.make_stretch(nets, method.algorithm, inmemory.Recipe(steps, min(30, steps // 4)))
  temperature = hyperparameters.get('temperature', 1.0)
  scaled = temperature / lab.triplets.scaling.scale if method.in_rewards else temperature
  traced = jnp.asarray(scaled, jnp.float32), jnp.asarray(hyperparameters['learning_rate'], jnp.float32)
  state, checkpoints, every = (
    inmemory.start(nets, lab.reference, algorithm),
    [],
    steps // settings.measurements,
  )
  for begin in range(0, steps, every):
    state = stretch(state, inmemory.part(rows, begin, begin + every), *traced)
    # A value of thumbs is in no unit of V*.
    has_value = algorithm.uses_value and method.in_rewards
    checkpoints.append(_checkpoint(place, begin + every, state.params, temperature, has_value))
  return checkpoints, {'steps': steps, 'flops': steps * per_step + before, 'flops_per_step': per_step}


def _whole(steps: int, parts: int) -> int:
  return max(steps // parts, 1) * parts


def _checkpoint(
  place: Place, step: int, params: Mapping[str, Params], temperature: float, has_value: bool
) -> dict[str, Any]:
  lab, settings = exact_world.laboratory(place), place.settings
  validation_PZ, test_PZ = (
    exact_world.enumerate_words(settings, params['policy'], prompts) for prompts in (lab.validation, lab.test)
  )
  more = {}
  if has_value:
    values_P = inmemory.prompt_values(
      exact_world.networks_of(settings).value, params['value'], jnp.asarray(lab.test.tokens)
    )
    scaling = lab.triplets.scaling
    more['value'] = np.asarray(values_P, np.float64) * scaling.scale + scaling.shift
    # V* at the method's own temperature: that is what it fits.
    more['best_value'] = toy.optimum(lab.test_reference_PZ, lab.test.rewards_PZ, temperature)[1]
  return _measured(place, step, validation_PZ, test_PZ, **more)


@functools.lru_cache(maxsize=64)
def _flops_per_step(place: Place, factory: inmemory.Factory, columns: tuple[str, ...] = ()) -> float:
  """FLOPs of a step; only the names of columns matter, so that a value is one that some rewards exceed."""
  nets, algorithm = exact_world.networks_of(place.settings), factory(1.0)
  source = exact_world.log_feed(place, algorithm.unit)
  rewards = source.triplets.train.raw_rewards
  anything = {name: np.full(len(rewards), rewards.mean() if name == 'value' else 1.0) for name in columns}
  rows = inmemory.fitted_to(algorithm, source, 1, anything)
  state = inmemory.start(nets, exact_world.laboratory(place).reference, algorithm)
  return inmemory.flops_per_step(nets, factory, state, rows)


def _budget(place: Place) -> float:
  """FLOPs that every method may spend: DRO-V's for its steps."""
  return place.settings.steps * _flops_per_step(place, algorithms.dro_v)


@functools.lru_cache(maxsize=4)
def _landmarks(place: Place) -> dict[str, Any]:
  """Landmarks on the test prompts: the reference, the logging policy, the optimum; and the frontier."""
  lab, tau = exact_world.laboratory(place), place.settings.tau
  reference_PZ, rewards_PZ = lab.test_reference_PZ, lab.test.rewards_PZ
  best_PZ, values_P = toy.optimum(reference_PZ, rewards_PZ, tau)
  policies = {
    'reference': reference_PZ,
    'logging policy': toy.complete(toy.logging_logps(lab.world, lab.test.texts)),
    'optimum': best_PZ,
  }
  found = {
    name: enumeration.means(enumeration.measures(logps_PZ, reference_PZ, rewards_PZ, tau))
    for name, logps_PZ in policies.items()
  }
  curve = enumeration.frontier(reference_PZ, rewards_PZ, (tau * np.geomspace(0.3, 60, 40)).tolist())
  return {'policies': found, 'frontier': curve, 'best_value_sd': float(values_P.std())}


# --- the suite ----------------------------------------------------------------------------------------------


Axis = float | int | Sequence[float | int]


def exact(
  folder: str,
  spread: Axis = 1.0,
  noise: Axis = 1.0,
  responses: int | Sequence[int] = 4,
  coverage: Axis = 1.0,
  settings: Callable[[], ExactSettings] = ExactSettings,
) -> Suite:
  """A T5 that must find a known optimum, at every combination of points of four axes.

  Args:
    folder: the arena's: what cells share is kept there.
    spread: of V* across prompts, as a factor.
    noise: of the ratings, as a factor; 0 says what is expected.
    responses: K logged for a prompt, at fixed N·K.
    coverage: of the log; 0 always says the same.
    settings: the world's size and the budgets.

  Raises:
    UsageError: a setting is outside its range.
  """
  axes = [
    Point(float(a), float(b), int(c), float(d))
    for a, b, c, d in itertools.product(*map(_several, (spread, noise, responses, coverage)))
  ]
  fewest = min(point.responses for point in axes)
  if fewest < 1:
    raise UsageError(f'exact.responses={responses}: pass 1 or more responses a prompt (--set RESPONSES=4).')
  chosen = settings()
  shared = pathlib.Path(folder).expanduser().absolute() / 'shared'
  competing = methods(chosen.tau)
  return Suite(
    name='exact',
    settings=to_json(chosen.to_json()),
    grids={name: method.grid for name, method in competing.items()},
    axes=[point._asdict() for point in axes],
    run=functools.partial(run_cell, chosen, competing, shared),
    report=functools.partial(report, {name: method.about for name, method in competing.items()}),
    cost='About 10 s a cell on two cores, and a minute for each seed and point.',
    skips=lambda cell: cell.algorithm in COMPARING and cell.axes['responses'] < 2,
    checkpoint='best',
    usual=[name for name in competing if not name.startswith('dro_group_') or name == DEFAULT_GROUP],
  )


def _several(axis: Axis) -> Sequence[float | int]:
  return axis if isinstance(axis, Sequence) else (axis,)


__all__ = ['exact']
