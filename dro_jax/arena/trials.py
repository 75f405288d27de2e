"""Trials: the hyperparameters that each method tries, as many for each; and the steps that a budget buys."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dro_jax.errors import UsageError


class Range(NamedTuple):
  """A hyperparameter's range, ends included; values between are spaced evenly by ratio.

  `whole` rounds them to integers.
  """

  low: float | int
  high: float | int
  whole: bool = False


Grid = Mapping[str, Range]
Trial = dict[str, float]


def make_trials(grids: Mapping[str, Grid], points: int, widen: int = 0) -> dict[str, list[Trial]]:
  """Every method's trials, the same number for each.

  A method with as many hyperparameters as any tries `points` values of each. One with a single hyperparameter
  tries as many values of that as others try combinations.

  Args:
    grids: each method's ranges.
    points: values of a range, 2 or more.
    widen: steps by which every range is extended at both ends; the step stays.

  Raises:
    UsageError: the ranges cannot give every method as many trials.
  """
  if points < 2 or widen < 0:
    raise UsageError(f'points={points}, widen={widen}: pass 2 points or more, and widen=0 or more.')
  most = max(map(len, grids.values()), default=0)
  per_axis = points + 2 * widen
  result = {}
  for method, grid in grids.items():
    if len(grid) not in (1, most) and most:
      raise UsageError(
        f'{method} has {len(grid)} hyperparameters to try, others have {most}: pass one, or {most}, so that '
        'every method gets as many trials.'
      )
    values = per_axis if len(grid) == most else per_axis**most
    axes = [_values(_widened(axis, points, widen), values) for axis in grid.values()]
    result[method] = [dict(zip(grid, combination)) for combination in itertools.product(*axes)]
  return result


def _widened(axis: Range, points: int, widen: int) -> Range:
  factor = (axis.high / axis.low) ** (widen / (points - 1))
  return axis._replace(low=axis.low / factor, high=axis.high * factor)


def _values(axis: Range, number: int) -> list[float]:
  """Evenly by ratio, rounded so that a value keeps its name however it was computed."""
  ratio = math.log(axis.high / axis.low) / (number - 1)
  values = [axis.low * math.exp(ratio * i) for i in range(number)]
  return [float(max(round(value), 1)) if axis.whole else float(f'{value:.4g}') for value in values]


def edges(chosen: Mapping[str, float | int], tried: Sequence[Mapping[str, float | int]]) -> list[str]:
  """Hyperparameters of `chosen` that are the least or greatest tried, where several were: '≤' or '≥' each."""
  flags = []
  for name, value in chosen.items():
    values = {trial[name] for trial in tried}
    if len(values) > 1 and value in (min(values), max(values)):
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
