"""Comparisons of numbers up to rounding: .1 + .2 equals .3, and .7 equals the mean of three times .7.

Labels, pairs, ranks and explained variance ask whether rewards are equal, and the last bit of a sum must not
answer. Float64, numpy.
"""

import numpy as np

TOLERANCE = 1e-9  # Relative to the largest number in a comparison.


def exceeds(
  x: np.ndarray | float | int, y: np.ndarray | float | int, made_of: np.ndarray | float | int = 0.0
) -> np.ndarray | np.bool:
  """Whether x > y by more than rounding, element by element.

  Args:
    x: numbers.
    y: others, of a shape that fits.
    made_of: the numbers that x and y were computed from, where these are larger: a mean of 0 has the rounding
      of its terms.
  """
  return np.subtract(x, y) > _rounding(x, y, made_of)


def is_constant(x: np.ndarray) -> bool:
  """Whether all numbers are equal, as no numbers and one number are."""
  return len(x) == 0 or bool(np.max(x) - np.min(x) <= _rounding(x))


def distinct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Like `np.unique`, (values, first index, inverse, counts), with numbers equal up to rounding as one."""
  values, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
  begins = np.diff(values, prepend=-np.inf) > _rounding(values)
  starts, number = np.flatnonzero(begins), np.cumsum(begins) - 1
  if len(starts) == len(values):
    return values, first, inverse, counts
  return values[starts], np.minimum.reduceat(first, starts), number[inverse], np.add.reduceat(counts, starts)


def varies(x: np.ndarray, group: np.ndarray) -> np.ndarray:
  """For each number, whether the numbers of its group differ."""
  unique, group = np.unique(group, return_inverse=True)
  low, high = np.full(len(unique), np.inf), np.full(len(unique), -np.inf)
  np.minimum.at(low, group, x)
  np.maximum.at(high, group, x)
  return np.asarray(exceeds(high, low))[group]


def deviations(x: np.ndarray, group: np.ndarray) -> np.ndarray:
  """Each number minus the mean of its group; 0 where that group's numbers are equal."""
  _, number, counts = np.unique(group, return_inverse=True, return_counts=True)
  return np.where(varies(x, group), x - (np.bincount(number, x) / counts)[number], 0.0)


def spread(x: np.ndarray) -> float:
  """The population's standard deviation; 0 where all numbers are equal."""
  return 0.0 if is_constant(x) else float(np.std(x))


def _rounding(*numbers: np.ndarray | float | int) -> float:
  return TOLERANCE * max(float(np.max(np.abs(x), initial=0.0)) for x in numbers)
