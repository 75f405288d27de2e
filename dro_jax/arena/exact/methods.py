"""Who competes in the `exact` suite, and the V that each method takes."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dro_jax import algorithms
from dro_jax.arena.exact import in_memory as inmemory
from dro_jax.arena.exact import values
from dro_jax.arena.exact import world as exact_world
from dro_jax.arena.exact.world import Lab, Place
from dro_jax.arena.trials import Grid, Range, by_temperature
from dro_jax.data.worlds import toy
from dro_jax.losses.groups import GROUP_VALUES
from dro_jax.types import Scalar

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
  vary = functools.partial(by_temperature, rates=rates)
  stars = vary(tau, 2 * tau)
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
