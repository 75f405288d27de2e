"""Strengths of several sides from all their comparisons, by the model of Bradley and Terry. Numpy, float64.

P(i beats j) = σ(β_i − β_j) (Biometrika 39, 1952), fitted by the greatest likelihood

  Σ_p Σ_{i≠j} s_pij log σ(β_i − β_j)

where s_pij is the share of prompt p's comparisons that i won against j, a tie counting half. β is in nats of
odds: log(odds of i against j) = β_i − β_j. The first side has β = 0. Intervals resample prompts.

K sides, P prompts.
"""

from collections.abc import Mapping

import numpy as np
from scipy.sparse import csgraph

from dro_jax.statistics.bootstrap import Estimate, weights

_ITERATIONS, _STEP = 100, 2.0


def strengths(wins_KK: np.ndarray) -> np.ndarray:
  """β, `[K]`, the first 0; ±∞ beside sides that one never lost to or never won against; NaN where not linked.

  Args:
    wins_KK: `[i, j]` how often i won against j, fractions allowed; the diagonal is not read.
  """
  wins_KK = wins_KK * (1 - np.eye(len(wins_KK)))
  parts, part_K = csgraph.connected_components(wins_KK > 0, directed=True, connection='strong')
  beta_K = np.zeros(len(wins_KK))
  for part in range(parts):
    inside = np.flatnonzero(part_K == part)
    if len(inside) > 1:
      beta_K[inside] = _fit(wins_KK[np.ix_(inside, inside)])
  return np.where(part_K == part_K[0], beta_K - beta_K[0], _beyond(wins_KK))


def _beyond(wins_KK: np.ndarray) -> np.ndarray:
  """±∞ for the sides that are only above or only below the first, through any others; else NaN."""
  reaches_KK = np.isfinite(csgraph.shortest_path(wins_KK > 0, unweighted=True))
  above_K, below_K = reaches_KK[:, 0], reaches_KK[0]
  return np.where(above_K & ~below_K, np.inf, np.where(below_K & ~above_K, -np.inf, np.nan))


def _fit(wins_KK: np.ndarray) -> np.ndarray:
  """β of sides each of which won against each other, directly or through others; by Newton's method."""
  games_KK, won_K = wins_KK + wins_KK.T, wins_KK.sum(axis=1)
  beta_K = np.zeros(len(wins_KK))
  for _ in range(_ITERATIONS):
    p_KK = 1 / (1 + np.exp(beta_K[None, :] - beta_K[:, None]))
    gradient_K = won_K - (games_KK * p_KK).sum(axis=1)
    weight_KK = games_KK * p_KK * (1 - p_KK)
    curvature_KK = np.diag(weight_KK.sum(axis=1)) - weight_KK
    step_K = np.zeros(len(beta_K))  # The first stays 0: only differences matter.
    step_K[1:] = np.linalg.solve(curvature_KK[1:, 1:], gradient_K[1:])
    beta_K = beta_K + step_K * min(1.0, _STEP / max(np.abs(step_K).max(), 1e-300))
    if np.abs(step_K).max() < 1e-10:
      break
  return beta_K


def estimates(
  rates: Mapping[tuple[int, int], np.ndarray], num_sides: int, *, resamples: int = 1000, seed: int = 0
) -> list[Estimate]:
  """β of each side with its 95 % interval over prompts.

  Args:
    rates: of pairs (i, j) of sides, the rate of i against j on each prompt, `[P]`; NaN where it has none.
    num_sides: K.
    resamples: draws of prompts.
    seed: of the draws; the same draws as `bootstrap.bootstrap` with these arguments.
  """
  num_prompts = len(next(iter(rates.values())))
  sums = {pair: (np.nan_to_num(of), np.where(np.isfinite(of), 1 - np.nan_to_num(of), 0.0))
          for pair, of in rates.items()}  # fmt: skip

  def fitted(weights_P: np.ndarray) -> np.ndarray:
    wins_KK = np.zeros((num_sides, num_sides))
    for (i, j), (won_P, lost_P) in sums.items():
      wins_KK[i, j] += weights_P @ won_P
      wins_KK[j, i] += weights_P @ lost_P
    return strengths(wins_KK)

  value_K = fitted(np.ones(num_prompts))
  draws_RK = np.array([fitted(weights_P) for weights_P in weights(num_prompts, resamples, seed)])
  return [Estimate(float(value), *_interval(draws_R)) for value, draws_R in zip(value_K, draws_RK.T)]


def _interval(draws_R: np.ndarray) -> tuple[float, float]:
  """The 2.5 % and 97.5 % quantiles; a draw may be infinite, so none is interpolated."""
  known = draws_R[~np.isnan(draws_R)]
  if not len(known):
    return np.nan, np.nan
  low, high = np.quantile(known, 0.025, method='lower'), np.quantile(known, 0.975, method='higher')
  return float(low), float(high)
