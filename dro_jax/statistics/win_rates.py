"""Win rates of answers that a judge compared two at a time, with intervals over prompts. Numpy, float64.

Two sides answer the same prompts, and a judge sees the two answers in both orders. A score is 1 where the
first side wins, 0 where the other does, ½ for a tie, between for a judge that gives probabilities, and NaN
where the verdict could not be read. The two orders of one comparison, and several comparisons on one prompt,
are not independent, so the prompt is the unit: scores are averaged within a prompt, and intervals resample
prompts.

N comparisons, each in 2 orders: the first side's answer is shown first, then second. P prompts.
"""

import math
from typing import NamedTuple

import numpy as np

from dro_jax.statistics import ties
from dro_jax.statistics.bootstrap import NORMAL, Estimate, bootstrap, mean_of


class Orders(NamedTuple):
  """What the order of the answers does to verdicts, as shares.

  flips  comparisons that both orders decide, for different sides: the judge chose a place and not an answer.
  ties   verdicts that are ties.
  first  verdicts for the answer shown first, a tie counting half; ½ is no preference for a place.
  """

  flips: float
  ties: float
  first: float


class Folds(NamedTuple):
  """A rate over folds of prompts, beside its binomial error.

  mean            mean of the folds' rates.
  sd              their standard deviation (n − 1), which estimates the error of *one fold's* rate.
  folds, prompts  the number of folds, and of prompts in each.
  binomial_error  √(r (1 − r) / P) of the rate over all P prompts.
  """

  mean: float
  sd: float
  folds: int
  prompts: int
  binomial_error: float


def of_comparisons(scores_N2: np.ndarray) -> np.ndarray:
  """The mean of both orders, `[N]`; NaN where a verdict of either order is missing.

  One order alone would bring the judge's preference for a place into the rate.
  """
  mean_N: np.ndarray = np.asarray(scores_N2, np.float64).mean(axis=1)
  return mean_N


def by_prompt(scores_N: np.ndarray, prompt_N: np.ndarray, num_prompts: int) -> np.ndarray:
  """The mean score of each prompt's comparisons, `[P]`; NaN where none has a score.

  Args:
    scores_N: of each comparison.
    prompt_N: the number of its prompt, from 0.
    num_prompts: P.
  """
  scored_N = np.isfinite(scores_N)
  count_P = np.bincount(prompt_N[scored_N], minlength=num_prompts)
  total_P = np.bincount(prompt_N[scored_N], scores_N[scored_N], minlength=num_prompts)
  return np.where(count_P > 0, total_P / np.maximum(count_P, 1), np.nan)


def win_rate(rates_P: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Estimate:
  """The mean of the prompts' rates and its 95 % interval over prompts.

  Prompts without a rate (NaN) are left out. Equal arguments `resamples`, `seed` and P draw the same prompts,
  so that the intervals of several rates go together. Where all prompts agree, resampling cannot tell how sure
  that is, and the interval is Wilson's.
  """
  found = rates_P[np.isfinite(rates_P)]
  if len(found) and ties.is_constant(found):
    return Estimate(float(found[0]), *wilson(float(found[0]), len(found)))
  return _mean(rates_P, resamples, seed)


def difference(
  rates_P: np.ndarray, others_P: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
  """The mean difference of two rates on the prompts that have both, with its paired 95 % interval."""
  return _mean(rates_P - others_P, resamples, seed)


def _mean(x_P: np.ndarray, resamples: int, seed: int) -> Estimate:
  """The mean over the prompts that have a number; all prompts are drawn."""
  known = np.flatnonzero(np.isfinite(x_P))
  return bootstrap(mean_of(x_P[known], known), len(x_P), resamples, seed)


def wilson(rate: float, num: int) -> tuple[float, float]:
  """Wilson's 95 % interval of a share of `num` independent trials (JASA 22, 1927).

  (r + z²/2n ± z √(r (1 − r)/n + z²/4n²)) / (1 + z²/n), z = 1.96.
  """
  z = NORMAL
  shift, spread = z**2 / (2 * num), z * math.sqrt(rate * (1 - rate) / num + z**2 / (4 * num**2))
  low, high = ((rate + shift + sign * spread) / (1 + z**2 / num) for sign in (-1, 1))
  return max(low, 0.0), min(high, 1.0)


def binomial_error(rate: float, num: int) -> float:
  """√(r (1 − r) / n): the standard error of a share of n independent trials; a tie counts as half of one."""
  return math.sqrt(rate * (1 - rate) / num) if num else math.nan


def orders(scores_N2: np.ndarray) -> Orders:
  """The effect of the order, over comparisons that have both verdicts; NaN where none has."""
  both_M2 = scores_N2[np.isfinite(scores_N2).all(axis=1)]
  if not len(both_M2):
    return Orders(math.nan, math.nan, math.nan)
  winner_M2 = np.where(np.abs(both_M2 - 0.5) <= ties.TOLERANCE, 0.0, np.sign(both_M2 - 0.5))
  flips = winner_M2[:, 0] * winner_M2[:, 1] < 0
  # The column's second order shows the first side's answer second.
  first = (both_M2[:, 0] + 1 - both_M2[:, 1]) / 2
  return Orders(float(flips.mean()), float((winner_M2 == 0).mean()), float(first.mean()))


def folds(rates_P: np.ndarray, num: int, seed: int = 0) -> Folds | None:
  """The rate as mean ± sd over folds of prompts, as DRO's paper reports it (arXiv 2405.19107).

  The folds are equal parts of the shuffled prompts; up to `num − 1` prompts that are left over are in none.

  Returns:
    `None` where a fold would have no prompt.
  """
  rated = rates_P[np.isfinite(rates_P)]
  size = len(rated) // num
  if not size:
    return None
  shuffled = np.random.default_rng(seed).permutation(rated)[: size * num].reshape(num, size)
  rate_F = shuffled.mean(axis=1)
  sd = float(rate_F.std(ddof=1)) if num > 1 else math.nan
  return Folds(float(rate_F.mean()), sd, num, size, binomial_error(float(rated.mean()), len(rated)))
