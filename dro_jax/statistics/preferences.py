"""How well a reward model's scores predict which of two responses was preferred. Numpy, float64.

A pair's margin is R_c − R_r, in logits; σ of it is the chance that the model gives to what was judged. Each
statistic is a function of how often each prompt was drawn, because one prompt's pairs are not independent.
"""

from collections.abc import Callable

import numpy as np

BINS = 10
# What `statistics` measures.
NAMES = ('pair_accuracy', 'pair_margin', 'pair_brier', 'pair_calibration_error')


def statistics(margins: np.ndarray, prompt_P: np.ndarray) -> dict[str, Callable[[np.ndarray], float]]:
  """Accuracy, mean margin, Brier score and calibration error of pairs, by name.

  Args:
    margins: R_c − R_r of each pair, `[P]`.
    prompt_P: the number of each pair's prompt among the drawn ones, `[P]`.

  Returns:
    Functions of how often each prompt was drawn; `nan` where no pair was.
  """
  margins = np.asarray(margins, np.float64)
  wins = np.where(margins == 0, 0.5, margins > 0)
  brier = chance(-margins) ** 2

  def mean(x: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda weights: _mean(x, weights[prompt_P])

  return {
    'pair_accuracy': mean(wins), 'pair_margin': mean(margins), 'pair_brier': mean(brier),
    'pair_calibration_error': lambda weights: calibration_error(margins, weights[prompt_P]),
  }  # fmt: skip


def calibration_error(margins: np.ndarray, weights: np.ndarray) -> float:
  """The expected calibration error of the predicted winner (Guo et al., arXiv 1706.04599, Eq. 3).

  ECE = Σ_b (n_b / n) |acc_b − conf_b|, over ten bins of equal width of the confidence σ(|margin|) in [½, 1].
  acc_b is the share of bin b whose winner was predicted, ties half, and conf_b the mean confidence. Of few
  pairs it is too large even where the model is calibrated, because |·| of noise is positive.

  Args:
    margins: R_c − R_r of each pair, `[P]`.
    weights: how often each pair counts, `[P]`.
  """
  if not weights.sum() > 0:
    return float('nan')
  confidences, wins = chance(np.abs(margins)), np.where(margins == 0, 0.5, margins > 0)
  bins = np.minimum(((confidences - 0.5) * 2 * BINS).astype(int), BINS - 1)
  gaps = np.bincount(bins, weights * (wins - confidences), BINS)  # n_b (acc_b − conf_b)
  return float(np.abs(gaps).sum() / weights.sum())


def chance(margins: np.ndarray) -> np.ndarray:
  """σ(margin), without overflow."""
  return np.asarray(np.exp(-np.logaddexp(0.0, -np.asarray(margins, np.float64))))


def _mean(x: np.ndarray, weights: np.ndarray) -> float:
  total = weights.sum()
  return float(weights @ x / total) if total > 0 else float('nan')
