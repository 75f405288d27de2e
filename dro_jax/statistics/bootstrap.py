"""Intervals over prompts, by drawing prompts anew or by leaving each out. Numpy, float64.

Responses to one prompt are not independent, so whole prompts are drawn: a statistic is a function of how
often each of P prompts was drawn, `weights_P`. Differences are paired where both sides are taken on the same
draws: the difference of two statistics is a statistic, and the same seed gives the same draws.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], float]  # Of `weights_P`, which are all 1 in the data themselves.
NORMAL = 1.959963984540054  # The normal distribution's 97.5 % quantile.


class Estimate(NamedTuple):
  """A statistic and its 95 % interval over prompts; `nan` where the data cannot give it."""

  value: float
  low: float
  high: float


def weights(num_prompts: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
  """How often each prompt is drawn, float64 `[P]`, for each of `resamples` draws of P prompts.

  Drawn with replacement: multinomial, each prompt with probability 1/P.
  """
  rng = np.random.default_rng(seed)
  even = np.full(num_prompts, 1 / num_prompts)
  for _ in range(resamples):
    yield rng.multinomial(num_prompts, even).astype(np.float64)


def quantiles(value: float, draws: np.ndarray) -> np.ndarray:
  """The 2.5 % and 97.5 % quantiles of the draws, without those that are `nan`."""
  return np.asarray(np.nanquantile(draws, (0.025, 0.975)))


def bootstrap(
  statistic: Statistic,
  num_prompts: int,
  resamples: int,
  seed: int,
  interval: Callable[[float, np.ndarray], np.ndarray] = quantiles,
) -> Estimate:
  """A statistic and its 95 % interval over prompts drawn with replacement.

  Efron & Tibshirani 1993, Sect. 13.3. Draws on which the statistic is undefined are left out; one prompt
  alone has no interval.

  Args:
    statistic: of how often each prompt was drawn.
    num_prompts: P.
    resamples: draws.
    seed: of the draws.
    interval: from the value and the draws' values to (low, high).
  """
  value = float(statistic(np.ones(num_prompts)))
  if num_prompts < 2 or not math.isfinite(value):
    return Estimate(value, math.nan, math.nan)
  draws = np.asarray([statistic(weights_P) for weights_P in weights(num_prompts, resamples, seed)])
  low, high = interval(value, draws)
  return Estimate(value, float(low), float(high))


def bootstrap_means(x_PC: np.ndarray, resamples: int, seed: int) -> list[Estimate]:
  """The mean of each column over prompts, and its interval: `bootstrap` of `mean_of`, with the draws shared.

  Args:
    x_PC: a number for each prompt, in C columns.
    resamples: draws.
    seed: of the draws.
  """
  num_prompts = len(x_PC)
  values_C = x_PC.mean(axis=0)
  if num_prompts < 2:
    return [Estimate(float(value), math.nan, math.nan) for value in values_C]
  draws_RC = np.stack([weights_P @ x_PC for weights_P in weights(num_prompts, resamples, seed)]) / num_prompts
  low_C, high_C = np.quantile(draws_RC, (0.025, 0.975), axis=0)
  return [
    Estimate(float(value), float(low), float(high)) for value, low, high in zip(values_C, low_C, high_C)
  ]


def jackknife(
  value: float, without_P: np.ndarray, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
  """A statistic and its 95 % interval over prompts, from its values without each prompt.

  value ± 1.96 s,  s² = (P − 1)/P Σ_p (without_p − mean)²

  Tukey 1958. For statistics that a draw with replacement misjudges: a count of distinct items is lower in
  every draw, for what is drawn twice is not distinct. On average s² is too large rather than too small (Efron
  & Stein, Ann. Statist. 9, 1981).

  Args:
    value: of all P prompts.
    without_P: the value without prompt p.
    bounds: the least and the largest value that the statistic can have; the interval is cut to them.
  """
  num_prompts = len(without_P)
  if num_prompts < 2 or not np.isfinite(without_P).all():
    return Estimate(float(value), math.nan, math.nan)
  half = NORMAL * math.sqrt((num_prompts - 1) * float(np.var(without_P)))
  return Estimate(float(value), max(float(value) - half, bounds[0]), min(float(value) + half, bounds[1]))


def mean_of(x: np.ndarray, prompt_N: np.ndarray | slice = slice(None)) -> Statistic:
  """The mean of `x` as a function of how often each prompt was drawn; `prompt_N` numbers their prompts."""
  return lambda weights_P: ratio(weights_P[prompt_N] @ x, weights_P[prompt_N].sum())


def ratio(numerator: float, denominator: float) -> float:
  """The ratio; `nan` where the denominator is not positive."""
  return float(numerator / denominator) if denominator > 0 else math.nan
