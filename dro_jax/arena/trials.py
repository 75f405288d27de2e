"""Trials: the hyperparameters that each method tries, as many for each; and the steps that a budget buys."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.errors import UsageError


class Range(NamedTuple):
  """A hyperparameter's range, ends included; values between are spaced evenly by ratio.

  `whole` rounds them to integers.
  """

  low: float | int
  high: float | int
  whole: bool = False


class Turns(NamedTuple):
  """A choice by name that adds no trials: neighbours on the grid of the ranges take its values in turn.

  So every value of a range is tried with every one of the `values`, in a fraction of all combinations.
  """

  values: tuple[str, ...]


Grid = Mapping[str, Range | Turns]
Trial = dict[str, float | str]


def by_temperature(low: float, high: float, rates: Range) -> Grid:
  """The grid of a method that has a temperature, from `low` to `high`, and a learning rate."""
  return {'temperature': Range(low, high), 'learning_rate': rates}


def make_trials(
  grids: Mapping[str, Grid], points: int, widen: int = 0, most: int | None = None
) -> dict[str, list[Trial]]:
  """Every method's trials, the same number for each.

  A method with as many ranges as any tries `points` values of each. One with a single range tries as many
  values of that as others try combinations.

  Args:
    grids: each method's ranges.
    points: values of a range, 2 or more.
    widen: steps by which every range is extended at both ends; the step stays.
    most: the number of trials at most, spread evenly, the last (the greatest values) among them; `None`
      keeps all.

  Raises:
    UsageError: the ranges cannot give every method as many trials.
  """
  if points < 2 or widen < 0:
    raise UsageError(f'points={points}, widen={widen}: pass 2 points or more, and widen=0 or more.')
  if most is not None and most < 1:
    raise UsageError(f'trials={most}: pass 1 or more (--set TRIALS=2), or None for the whole grid.')
  widest = max(map(len, map(_ranges, grids.values())), default=0)
  per_axis = points + 2 * widen
  result = {}
  for method, grid in grids.items():
    ranges = _ranges(grid)
    if len(ranges) not in (1, widest) and widest:
      raise UsageError(
        f'{method} has {len(ranges)} hyperparameters to try, others have {widest}: pass one, or {widest}, so '
        'that every method gets as many trials.'
      )
    values = per_axis if len(ranges) == widest else per_axis**widest
    axes = [_values(_widened(axis, points, widen), values) for axis in ranges.values()]
    result[method] = _some(list(_combined(grid, axes)), most)
  return result


def _ranges(grid: Grid) -> dict[str, Range]:
  return {name: axis for name, axis in grid.items() if isinstance(axis, Range)}


def _combined(grid: Grid, axes: Sequence[Sequence[float]]) -> Iterator[Trial]:
  """Every combination of the ranges' values, each with the turn of every choice by name."""
  turns = {name: axis.values for name, axis in grid.items() if isinstance(axis, Turns)}
  for places in itertools.product(*(range(len(axis)) for axis in axes)):
    ranged = {name: axis[place] for name, axis, place in zip(_ranges(grid), axes, places)}
    yield ranged | {name: values[sum(places) % len(values)] for name, values in turns.items()}


def _some(trials: list[Trial], most: int | None) -> list[Trial]:
  """At most so many of the trials, evenly spread, the last among them, in their order."""
  if most is None or most >= len(trials):
    return trials
  return [trials[len(trials) - 1 - len(trials) * i // most] for i in reversed(range(most))]


def _widened(axis: Range, points: int, widen: int) -> Range:
  factor = (axis.high / axis.low) ** (widen / (points - 1))
  return axis._replace(low=axis.low / factor, high=axis.high * factor)


def _values(axis: Range, number: int) -> list[float]:
  """Evenly by ratio, rounded so that a value keeps its name however it was computed."""
  ratio = math.log(axis.high / axis.low) / (number - 1)
  values = [axis.low * math.exp(ratio * i) for i in range(number)]
  return [float(max(round(value), 1)) if axis.whole else float(f'{value:.4g}') for value in values]


def edges(chosen: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> list[str]:
  """Hyperparameters of `chosen` that are the least or greatest tried, where several were: '≤' or '≥' each.

  A choice by name has no edge.
  """
  flags = []
  for name, value in chosen.items():
    values = {trial[name] for trial in tried}
    if len(values) > 1 and not isinstance(value, str) and value in (min(values), max(values)):
      flags.append(f'{name} {"≤" if value == min(values) else "≥"} {value:g}')
  return flags


def steps_within(budget: float | int, flops_per_step: float | int, spent: float | int = 0) -> int:
  """The steps that a budget in FLOPs buys after `spent` of it is used.

  Raises:
    UsageError: it buys none.
  """
  steps = round((budget - spent) / flops_per_step)
  if steps < 1:
    raise UsageError(
      f'a budget of {budget:.3g} FLOPs, of which {spent:.3g} are used before the first step, buys no step '
      f'of {flops_per_step:.3g}: pass a larger budget.'
    )
  return steps
