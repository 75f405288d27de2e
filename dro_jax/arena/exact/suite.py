"""The `exact` suite: a real T5 whose responses can all be listed, so that every method meets π* itself.

A toy world (`data.toy`) with a thousand words to answer, a log by a policy unlike the reference, and three
kinds of prompts that share no word: logged, to validate on, to report on. By enumeration every policy's
regret, divergences and distance to the frontier are exact; only the log and the training are random.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dro_jax import algorithms
from dro_jax.arena.cells import Cell
from dro_jax.arena.exact import enumeration, values
from dro_jax.arena.exact import in_memory as inmemory
from dro_jax.arena.exact import world as exact_world
from dro_jax.arena.exact.report import report
from dro_jax.arena.exact.values import GROUP_VALUES
from dro_jax.arena.exact.world import ExactSettings, Lab, Place, Point
from dro_jax.arena.suite import Suite
from dro_jax.arena.trials import Grid, Range, steps_within
from dro_jax.data.worlds import toy
from dro_jax.errors import UsageError
from dro_jax.files import to_json
from dro_jax.types import Params, Scalar

# --- who competes -------------------------------------------------------------------------------------------


Hyperparameters = Mapping[str, float]


class Column(NamedTuple):
  """A column that a method reads.

  name   in the data.
  make   its values by record of a feed's table.
  flops  what making it costs.
  """

  name: str
  make: Callable[[Place, inmemory.Feed, Hyperparameters], np.ndarray]
  flops: Callable[[Place], float] = lambda place: 0.0


class Method(NamedTuple):
  """A method, or a step of the ladder that takes DRO-V apart.

  Attributes:
    algorithm: from its temperature to the algorithm; None where nothing is trained.
    grid: what it varies.
    in_rewards: its temperature is in stars per nat, and follows the scaling of the rewards.
    columns: what it reads of the data besides rewards.
    about: one line.
    values: its V by record of the log in stars, where V is neither learned with the policy nor a column.
  """

  algorithm: Callable[[Scalar], algorithms.Algorithm] | None
  grid: Grid
  in_rewards: bool = False
  columns: tuple[Column, ...] = ()
  about: str = ''
  values: Callable[[Place, Hyperparameters], np.ndarray] | None = None


def regressed_value(place: Place, source: inmemory.Feed, hyperparameters: Hyperparameters) -> np.ndarray:
  """V(x) = E_μ[r|x] in stars, by regression on other prompts."""
  return _regressed(place)[0][_prompts_of_records(exact_world.laboratory(place), source)]


@functools.lru_cache(maxsize=2)
def _regressed(place: Place) -> tuple[np.ndarray, float]:
  lab, settings = exact_world.laboratory(place), place.settings
  logged = exact_world.logged_prompts(lab.world, lab.triplets.train)
  source = exact_world.log_feed(place, 'response')
  found = inmemory.regress_values(
    exact_world.networks_of(settings).value, lab.reference,
    inmemory.with_columns(inmemory.first(source, settings.value_steps), {}),
    logged.prompts.tokens, logged.of_record,
    learning_rate=settings.value_learning_rate, seed=place.seed,
  )  # fmt: skip
  scaling = lab.triplets.scaling
  return found.values * scaling.scale + scaling.shift, found.flops


def oracle_value(place: Place, source: inmemory.Feed, hyperparameters: Hyperparameters) -> np.ndarray:
  """V*(x) in stars at the method's temperature, from the true rewards and the reference."""
  lab = exact_world.laboratory(place)
  logged = exact_world.logged_prompts(lab.world, lab.triplets.train)
  reference_PZ = exact_world.reference_on_log(place)
  _, values_P = toy.optimum(reference_PZ, logged.prompts.rewards_PZ, hyperparameters['temperature'])
  return values_P[_prompts_of_records(lab, source)]


def _prompts_of_records(lab: Lab, source: inmemory.Feed) -> np.ndarray:
  """Which of the log's prompts, in their order, the records of a feed's table answer."""
  ours = np.unique(lab.triplets.train.prompt_index)
  return np.searchsorted(ours, source.triplets.train.prompt_index)


def best_share(place: Place, source: inmemory.Feed, hyperparameters: Hyperparameters) -> np.ndarray:
  """A label for the responses whose rewards are among the highest of the log."""
  rewards = source.triplets.train.raw_rewards
  lowest = np.quantile(rewards, max(1 - hyperparameters['share'], 0))
  return (rewards >= lowest).astype(np.float64)


def group_value(name: str, place: Place, hyperparameters: Hyperparameters) -> np.ndarray:
  """V̂(x) of the log's records in stars, from the rewards of each prompt's answers."""
  logged = exact_world.laboratory(place).triplets.train
  return values.logged_group_values(
    logged.raw_rewards, logged.prompt_index, name, hyperparameters['temperature']
  )


def constant_value(place: Place, hyperparameters: Hyperparameters) -> np.ndarray:
  """The one number that is nearest to the V* of all of the log's records: a batch's mean can be no better."""
  best = oracle_value(place, exact_world.log_feed(place, 'response'), hyperparameters)
  return np.full(len(best), best.mean())


REGRESSED = Column('value', regressed_value, lambda place: _regressed(place)[1])
ORACLE = Column('value', oracle_value)
SHARE = Column('label', best_share)


def methods(tau: float) -> dict[str, Method]:
  """All methods by name. `tau` is the objective's temperature in stars per nat.

  Where a temperature has the objective's units its range begins at the objective's own. Other ranges were
  placed after a pilot on one seed, by validation regret and with test numbers in sight.
  """
  rates = Range(2e-4, 6e-4)
  stars = {'temperature': Range(tau, 2 * tau), 'learning_rate': rates}

  def vary(low: float, high: float) -> Grid:
    return {'temperature': Range(low, high), 'learning_rate': rates}

  a = algorithms
  return {
    'dro_v': Method(lambda t: a.dro_v(tau=t), stars, True, about='V learned with the policy'),
    'dro_v+kl1': Method(_dro_held, stars, True, about='and next-token KL'),
    'dro_oracle_value+kl1': Method(_dro_fixed_held, stars, True, (ORACLE,), 'V = V*, and next-token KL'),
    'dro_oracle_value': Method(_dro_fixed, stars, True, (ORACLE,), 'V = V*, which nobody knows'),
    'dro_regressed_value': Method(_dro_fixed, stars, True, (REGRESSED,), 'V = E[r|x], frozen'),
    'dro_p': Method(lambda t: a.dro_p(tau=t), stars, True, (), 'a batch’s mean for V', constant_value),
    **{f'dro_group_{name}': _dro_group(name, stars) for name in GROUP_VALUES},
    'dro_v_binary': Method(_dro_binary, vary(0.08, 0.16), about='thumbs for rewards'),
    'kto_value': Method(_kto_value, vary(1.0, 3.0), False, (REGRESSED,), 'thumbs: r > E[r|x]'),
    'kto': Method(lambda t: a.kto(beta=t), vary(1.0, 3.0), about='thumbs: r > the batch’s mean'),
    'awr': Method(lambda t: a.awr(beta=t), stars, True, (REGRESSED,), 'exp((r − E[r|x])/β)'),
    'filtered_sft': Method(_filtered, {'share': Range(0.05, 0.3), 'learning_rate': rates}, False, (SHARE,),
                           'the best-rated share'),
    'sft': Method(lambda t: a.sft(), {'learning_rate': rates}, about='all of the log'),
    'best_of_n': Method(None, {'number': Range(2, 16, whole=True)}, about='by the true reward: no training'),
    'dpo': Method(lambda t: a.dpo(beta=t), vary(0.3, 1.0), about='all pairs of a prompt'),
    'copg': Method(lambda t: a.copg(beta=t), stars, True, about='groups of a prompt'),
    'agro': Method(lambda t: a.agro(beta=t), stars, True, about='groups of a prompt'),
  }  # fmt: skip


def _dro_fixed(temperature: Scalar) -> algorithms.Algorithm:
  return algorithms.dro_fixed_value(tau=temperature)


def _dro_held(temperature: Scalar) -> algorithms.Algorithm:
  return algorithms.with_next_token_kl(algorithms.dro_v(tau=temperature))


def _dro_fixed_held(temperature: Scalar) -> algorithms.Algorithm:
  return algorithms.with_next_token_kl(_dro_fixed(temperature))


def _dro_group(name: str, grid: Grid) -> Method:
  return Method(
    lambda t: algorithms.dro_group_value(tau=t, value=name), grid, True, (),
    f'V̂ = {name.replace("_", " ")} of a prompt’s rewards', functools.partial(group_value, name),
  )  # fmt: skip


def _dro_binary(temperature: Scalar) -> algorithms.Algorithm:
  return algorithms.dro_v_binary(tau=temperature)


def _kto_value(temperature: Scalar) -> algorithms.Algorithm:
  return algorithms.kto(beta=temperature, labels=algorithms.value_labels)


def _filtered(temperature: Scalar) -> algorithms.Algorithm:
  return algorithms.filtered_sft(labels=algorithms.column_labels)


DEFAULT_GROUP = 'dro_group_leave_one_out_log_mean_exp'
# They compare answers to one prompt, so one answer to each leaves them nothing.
COMPARING = ('dpo', 'copg', 'agro', *(f'dro_group_{name}' for name in GROUP_VALUES))


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


def value_error(place: Place, method: Method, hyperparameters: Hyperparameters) -> float | None:
  """The root mean square of V − V* on the log, of a V that is not learned with the policy; else `None`."""
  source = exact_world.log_feed(place, 'response')
  if method.values is not None:
    found = method.values(place, hyperparameters)
  elif method.in_rewards and any(column.name == 'value' for column in method.columns):
    (column,) = method.columns
    found = column.make(place, source, hyperparameters)
  else:
    return None
  return values.error(found, oracle_value(place, source, hyperparameters))


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
  """FLOPs of a step; only the names of columns matter."""
  nets, algorithm = exact_world.networks_of(place.settings), factory(1.0)
  source = exact_world.log_feed(place, algorithm.unit)
  anything = dict.fromkeys(columns, np.ones(len(source.triplets.train)))
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
    UsageError: a setting makes no world.
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
