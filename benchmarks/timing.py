"""Several steps timed in turn in one process: medians, and ratios with their spread."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


def interleaved(
  steps: Mapping[str, Callable[[], Any]], rounds: int, *, warmups: int = 1, clock: str = 'wall'
) -> dict[str, list[float]]:
  """Seconds of every call, by step and round; each round calls every step once, from another one on.

  Args:
    steps: called without arguments; each returns when its work is done.
    rounds: timed calls of each.
    warmups: untimed calls of each before, which also compile it.
    clock: `wall`, or `cpu`: seconds of all cores together, the steadier where others use the machine too.
  """
  now = CLOCKS[clock]
  for step in steps.values():
    for _ in range(warmups):
      step()
  names, seconds = list(steps), {name: [] for name in steps}
  for turn in range(rounds):
    first = turn % len(names)
    for name in names[first:] + names[:first]:
      began = now()
      steps[name]()
      seconds[name].append(now() - began)
  return seconds


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
  """Median over rounds of one step's seconds over another's in the same round, and its quartiles.

  What else the machine does in a round slows both, so that a round's ratio is steadier than its seconds.
  """
  ratios = [x / y for x, y in zip(numerator, denominator, strict=True)]
  low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive') if len(ratios) > 1 else ratios * 3
  return {'median': middle, 'low': low, 'high': high}
