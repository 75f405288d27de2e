"""How well a reward model's scores predict which of two responses was preferred. Numpy, float64.

A pair's margin is R_c − R_r, in logits; σ of it is the chance that the model gives to what was judged. Each
statistic is a function of how often each prompt was drawn, because one prompt's pairs are not independent.
"""

import numpy as np

from dro_jax.statistics.bootstrap import Statistic, mean_of, ratio

BINS = 10
# What `statistics` measures.
NAMES = ('pair_accuracy', 'pair_margin', 'pair_brier', 'pair_calibration_error')


def statistics(margins: np.ndarray, prompt_P: np.ndarray) -> dict[str, Statistic]:
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

  return {
    'pair_accuracy': mean_of(wins, prompt_P), 'pair_margin': mean_of(margins, prompt_P),
    'pair_brier': mean_of(brier, prompt_P),
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
  confidences, wins = chance(np.abs(margins)), np.where(margins == 0, 0.5, margins > 0)
  bins = np.minimum(((confidences - 0.5) * 2 * BINS).astype(int), BINS - 1)
  gaps = np.bincount(bins, weights * (wins - confidences), BINS)  # n_b (acc_b − conf_b)
  return ratio(np.abs(gaps).sum(), weights.sum())


def chance(margins: np.ndarray) -> np.ndarray:
  """σ(margin), without overflow."""
  return np.asarray(np.exp(-np.logaddexp(0.0, -np.asarray(margins, np.float64))))
