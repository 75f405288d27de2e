"""Refusals of settings that are numbers out of their range.

A number that jax traces is not known yet, and passes: a grid that is compiled once looks at its own.
"""

import math
import numbers
from typing import Any

from dro_jax.errors import UsageError

LARGEST_SEED = 2**63 - 1  # Of jax's random keys.


def above_zero(owner: str, why: str, /, **values: Any) -> None:
  """Refuses 0, what is below it, and what is not finite.

  Args:
    owner: of the settings, as gin calls it.
    why: why 0 cannot work, to end a sentence.
    values: by name.
  """
  for name, value in values.items():
    if _is_known(value) and not 0 < value < math.inf:
      raise UsageError(f'{owner}: {name}={value} must be above 0, for {why}; {_remedy(owner, name)}.')


def at_least_zero(owner: str, **values: Any) -> None:
  """Refuses what is below 0 or not finite."""
  for name, value in values.items():
    if _is_known(value) and not 0 <= value < math.inf:
      raise UsageError(f'{owner}: {name}={value} must be 0 or more; {_remedy(owner, name)}.')


def within(owner: str, low: float | int, high: float | int, why: str, /, **values: Any) -> None:
  """Refuses what is not in [low, high)."""
  for name, value in values.items():
    if _is_known(value) and not low <= value < high:
      raise UsageError(
        f'{owner}: {name}={value} must be at least {low} and below {high}, for {why}; {_remedy(owner, name)}.'
      )


def seed(value: Any) -> None:
  """Refuses what jax's random keys cannot be made of."""
  if (
    isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= int(value) <= LARGEST_SEED
  ):
    raise UsageError(f'seed={value}: pass a whole number from 0 to 2⁶³ − 1 (--set SEED=0).')


def _is_known(value: Any) -> bool:
  return isinstance(value, numbers.Real)


def _remedy(owner: str, name: str) -> str:
  return f'pass another with --gin.{owner}.{name}=NUMBER (or --set TAU=NUMBER where a run binds it to TAU)'
