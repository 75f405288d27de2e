"""A bound that the best checkpoint keeps: eval/kl<=2."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from dro_jax.errors import UsageError


class Bound(NamedTuple):
  """A metric's largest (`<=`) or smallest (`>=`) value."""

  metric: str
  comparison: str
  limit: float

  def keeps(self, metrics: Mapping[str, float]) -> bool:
    """Whether metrics keep the bound; a metric that was not measured does not."""
    value = metrics.get(self.metric, math.nan)
    return value <= self.limit if self.comparison == '<=' else value >= self.limit

  def __str__(self) -> str:
    return f'{self.metric}{self.comparison}{self.limit!r}'


def parse(text: str) -> Bound:
  """The bound that a text such as 'eval/kl<=2' names.

  Raises:
    UsageError: the text is no metric, comparison and number.
  """
  found = re.fullmatch(r'\s*([^\s<>=]+)\s*(<=|>=)\s*(\S+)\s*', text)
  try:
    limit = float(found[3]) if found else math.nan
  except ValueError:
    limit = math.nan
  if found is None or math.isnan(limit):
    raise UsageError(
      f'bound={text!r} is not a bound: pass a metric of validations, <= or >=, and a number, as in --set '
      "BEST_BOUND='eval/kl<=2' (None sets no bound)."
    )
  return Bound(found[1], found[2], limit)
