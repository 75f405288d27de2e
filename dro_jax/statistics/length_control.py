"""Length-controlled win rates: the rate that two sides would have at equal lengths. Numpy, float64.

A judge that prefers long answers lets the longer side win. With Δ the difference of two answers' lengths, the
probability that the first side wins is modelled as

  P(win) = σ(θ + φ tanh(Δ / sd(Δ)))

and the controlled rate is σ(θ), the model's rate at Δ = 0 (Dubois et al. 2024, arXiv 2404.04475).
Their third term, the difficulty of each prompt, is fitted on the verdicts of many models; here it is left
out. A weak prior N(0, 2.5²) on φ keeps the fit finite where the longer answer always wins.

The fit is made anew on each draw of prompts, so that the interval has its error. AlpacaEval's own interval
takes the fit for known.

N comparisons, P prompts.
"""

import numpy as np

from dro_jax.statistics import ties, win_rates
from dro_jax.statistics.bootstrap import Estimate, bootstrap

# Each side must have an answer that is not the shorter one in this share of comparisons, and in this
# number of them: the rate at Δ = 0 would else be read off a curve beyond the data. On AlpacaEval's public
# verdicts, rates of models with a share of .2 or more are the published ones within the intervals; with .1
# the prior and the curve decide, and rates differ by up to 9 points.
LEAST_SHARE, LEAST = 0.2, 10
_PRECISION = 2.5**-2  # Of the prior on φ.
_LARGEST = 20.0  # σ of it is 1 up to rounding, as of a side that always wins.
_ITERATIONS, _STEP = 100, 2.0


def refusal(differences_N: np.ndarray) -> str:
  """Why lengths cannot be controlled for, or ''.

  Args:
    differences_N: the first side's length less the other's.
  """
  num = len(differences_N)
  equal = int((differences_N == 0).sum())
  longer, shorter = int((differences_N > 0).sum()), int((differences_N < 0).sum())
  fewest = min(longer, shorter) + equal
  if fewest >= max(LEAST_SHARE * num, min(LEAST, num / 2)):
    return ''
  side, count = ('first', longer) if longer > shorter else ('second', shorter)
  return (
    f'lengths hardly overlap: the {side} side has the longer answer in {count} of {num} comparisons, so no '
    'rate at equal lengths can be read off them'
  )


def controlled_rate(
  scores_N: np.ndarray, differences_N: np.ndarray, prompt_N: np.ndarray, weights_P: np.ndarray
) -> float:
  """σ(θ), fitted to prompts that count `weights_P` times each; NaN where no comparison counts.

  Args:
    scores_N: each comparison's score in [0, 1], the mean of both orders.
    differences_N: the first side's length less the other's.
    prompt_N: the number of each comparison's prompt; the comparisons of one prompt weigh 1 together.
    weights_P: how often each prompt was drawn.
  """
  size_P = np.bincount(prompt_N, minlength=len(weights_P))
  weights_N = weights_P[prompt_N] / size_P[prompt_N]
  total = weights_N.sum()
  if total <= 0:
    return np.nan
  centred_N = differences_N - weights_N @ differences_N / total
  spread = np.sqrt(weights_N @ centred_N**2 / total)
  x_N = np.tanh(differences_N / spread) if spread > 0 else np.zeros(len(differences_N))
  return float(_sigmoid(_fit(x_N, scores_N, weights_N)[0]))


def estimate(
  scores_N: np.ndarray, differences_N: np.ndarray, prompt_N: np.ndarray, num_prompts: int, *,
  resamples: int = 1000, seed: int = 0,
) -> Estimate:  # fmt: skip
  """The controlled rate and its 95 % interval over prompts, the fit's error included.

  Comparisons without a score (NaN) are left out. Call `refusal` first. Where all scores are equal, lengths
  explain nothing, and the rate and its interval are those of `win_rates.win_rate`.
  """
  scored_N = np.isfinite(scores_N)
  if ties.is_constant(scores_N[scored_N]):
    rates_P = win_rates.by_prompt(scores_N, prompt_N, num_prompts)
    return win_rates.win_rate(rates_P, resamples=resamples, seed=seed)
  kept = scores_N[scored_N], np.asarray(differences_N, np.float64)[scored_N], prompt_N[scored_N]
  return bootstrap(lambda weights_P: controlled_rate(*kept, weights_P), num_prompts, resamples, seed)


def _fit(x_N: np.ndarray, y_N: np.ndarray, weights_N: np.ndarray) -> tuple[float, float]:
  """(θ, φ) of the greatest penalised likelihood, by Newton's method with bounded steps."""
  design_N2 = np.stack([np.ones_like(x_N), x_N], axis=1)
  precision_2, beta_2 = np.array([1e-9, _PRECISION]), np.zeros(2)
  for _ in range(_ITERATIONS):
    p_N = _sigmoid(design_N2 @ beta_2)
    gradient_2 = design_N2.T @ (weights_N * (y_N - p_N)) - precision_2 * beta_2
    curvature_22 = (design_N2.T * (weights_N * p_N * (1 - p_N))) @ design_N2 + np.diag(precision_2)
    step_2 = np.linalg.solve(curvature_22, gradient_2)
    beta_2 = beta_2 + step_2 * min(1.0, _STEP / np.abs(step_2).max(initial=1e-300))
    if np.abs(step_2).max() < 1e-10 or abs(beta_2[0]) > _LARGEST:
      break
  return float(np.clip(beta_2[0], -_LARGEST, _LARGEST)), float(beta_2[1])


def _sigmoid(x: np.ndarray | float) -> np.ndarray:
  p: np.ndarray = 1 / (1 + np.exp(-np.asarray(x)))
  return p
