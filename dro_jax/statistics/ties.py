"""Numbers that are equal but for rounding: .1 + .2 and .3, or .7 and the mean of three times .7.

Labels, pairs, ranks and explained variance ask whether rewards are equal, and the last bit of a sum must not
answer. Float64, numpy.
"""

import numpy as np

TOLERANCE = 1e-9  # Of the largest number that takes part in a comparison.


def exceeds(
  x: np.ndarray | float | int, y: np.ndarray | float | int, made_of: np.ndarray | float | int = 0.0
) -> np.ndarray | np.bool:
  """Whether x > y by more than rounding, element by element.

  Args:
    x: numbers.
    y: others, of a shape that fits.
    made_of: what x and y were computed from, where that is larger than they are: a mean of 0 has the rounding
      of its terms.
  """
  return np.subtract(x, y) > _rounding(x, y, made_of)


def is_constant(x: np.ndarray) -> bool:
  """Whether all numbers are equal; so are none and one."""
  return len(x) == 0 or bool(np.max(x) - np.min(x) <= _rounding(x))


def distinct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """As `np.unique`: (values, first index, inverse, counts), but that equal numbers are one value."""
  values, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
  begins = np.diff(values, prepend=-np.inf) > _rounding(values)
  starts, number = np.flatnonzero(begins), np.cumsum(begins) - 1
  if len(starts) == len(values):
    return values, first, inverse, counts
  return values[starts], np.minimum.reduceat(first, starts), number[inverse], np.add.reduceat(counts, starts)


def varies(x: np.ndarray, group: np.ndarray) -> np.ndarray:
  """Whether the numbers of its group differ, for each number."""
  unique, group = np.unique(group, return_inverse=True)
  low, high = np.full(len(unique), np.inf), np.full(len(unique), -np.inf)
  np.minimum.at(low, group, x)
  np.maximum.at(high, group, x)
  return np.asarray(exceeds(high, low))[group]


def deviations(x: np.ndarray, group: np.ndarray) -> np.ndarray:
  """x less the mean of its group; 0 where that group's numbers are equal."""
  _, number, counts = np.unique(group, return_inverse=True, return_counts=True)
  return np.where(varies(x, group), x - (np.bincount(number, x) / counts)[number], 0.0)


def spread(x: np.ndarray) -> float:
  """The population's standard deviation; 0 where all numbers are equal."""
  return 0.0 if is_constant(x) else float(np.std(x))


def _rounding(*numbers: np.ndarray | float | int) -> float:
  return TOLERANCE * max(float(np.max(np.abs(x), initial=0.0)) for x in numbers)
