"""How well the scores of a policy and its value agree with rewards, with intervals from resampling prompts.

Numpy, float64. Responses to one prompt are not independent, so every interval resamples whole prompts; a
statistic is therefore a function of how often each prompt was drawn.

Axes: N responses, P prompts. `prompts` numbers the prompt of each response, in any order and with any gaps.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dro_jax.statistics import bootstrap as resampling
from dro_jax.statistics import ties
from dro_jax.statistics.bootstrap import Estimate, Statistic, mean_of, quantiles, ratio

_LARGEST_CORRELATION = 1 - 1e-12  # Of which arctanh is finite.


class PairCounts(NamedTuple):
  """Pairs of responses to one prompt, counted by prompt, `[P]` each.

  pairs  pairs whose rewards differ.
  wins   pairs of these that the score orders as the reward does; a tied score wins half.
  ties   pairs of equal reward, which are not counted.
  """

  pairs: np.ndarray
  wins: np.ndarray
  ties: np.ndarray


def count_pairs(scores: np.ndarray, rewards: np.ndarray, prompts: np.ndarray) -> PairCounts:
  """Compares every two responses to one prompt: does the higher reward have the higher score?"""
  order_N = np.argsort(prompts, kind='stable')
  scores, rewards = scores[order_N], ties.distinct(rewards)[2][order_N]  # Equal rewards, equal levels.
  _, starts_P, sizes_P = np.unique(prompts[order_N], return_index=True, return_counts=True)
  counts_P3 = np.zeros((len(starts_P), 3))
  for p in np.flatnonzero(sizes_P > 1):
    end = starts_P[p] + sizes_P[p]
    for i in range(starts_P[p], end - 1):  # a row at a time: one prompt may have 10,000 responses
      by_reward = np.sign(rewards[i] - rewards[i + 1 : end])
      by_score = np.sign(scores[i] - scores[i + 1 : end])
      tied = by_reward == 0
      wins = np.where(tied, 0.0, (1 + by_reward * by_score) / 2)
      counts_P3[p] += (~tied).sum(), wins.sum(), tied.sum()
  return PairCounts(*counts_P3.T)


def pairwise_accuracy(counts: PairCounts, weights_P: np.ndarray) -> float:
  """Share of pairs with different rewards that the score orders as the reward does; .5 is chance."""
  return ratio(weights_P @ counts.wins, weights_P @ counts.pairs)


def rank_correlation(scores: np.ndarray, rewards: np.ndarray, weights: np.ndarray) -> float:
  """Spearman's rank correlation, ties at their mean rank; each response counts `weights` times."""
  x, y = _mean_ranks(scores, weights), _mean_ranks(rewards, weights)
  x, y = x - weights @ x / weights.sum(), y - weights @ y / weights.sum()
  return ratio(weights @ (x * y), np.sqrt((weights @ x**2) * (weights @ y**2)))


@dataclasses.dataclass(frozen=True, eq=False)
class RankCorrelation:
  """`rank_correlation` of N responses as a function of how often each prompt was drawn; see `bootstrap`."""

  scores: np.ndarray
  rewards: np.ndarray
  prompt_N: np.ndarray

  def __call__(self, weights_P: np.ndarray) -> float:
    return rank_correlation(self.scores, self.rewards, weights_P[self.prompt_N])


def explained_variance(values: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
  """1 − Var(target − value) / Var(target): 1 is perfect, 0 a constant; `nan` where targets are equal."""
  if ties.is_constant(targets[weights > 0]):
    return np.nan
  return 1 - ratio(_variance(targets - values, weights), _variance(targets, weights))


def within_prompt_explained_variance(
  advantages: np.ndarray, rewards: np.ndarray, prompts: np.ndarray
) -> Callable[[np.ndarray], float]:
  """1 − Var_within(r − A) / Var_within(r), as a function of how often each prompt was drawn.

  Var_within is the mean squared distance from the mean of the own prompt, so a prompt's level counts for
  nothing, and neither do prompts with one response. With A = τρ it is 1 at DRO's optimum, 0 for a policy that
  has not moved, and less for one that moved too far or the wrong way. `nan` where rewards are equal within
  prompts.
  """
  prompt_N, _ = _number(prompts)
  total_P, unexplained_P = (
    np.bincount(prompt_N, ties.deviations(x, prompts) ** 2) for x in (rewards, rewards - advantages)
  )
  return lambda w_P: 1 - ratio(float(w_P @ unexplained_P), float(w_P @ total_P))


def within_prompt_correlation(
  scores: np.ndarray, rewards: np.ndarray, prompts: np.ndarray
) -> Callable[[np.ndarray], float]:
  """Pearson's correlation of scores and rewards, each less its prompt's mean, as a function of draws, `[P]`.

  Its square is the explained variance within prompts at the best multiple of the scores. It is 0 where these
  are equal within prompts, and `nan` where the rewards are.
  """
  prompt_N, _ = _number(prompts)
  x, y = (ties.deviations(each, prompts) for each in (scores, rewards))
  xx_P, xy_P, yy_P = (np.bincount(prompt_N, product) for product in (x * x, x * y, y * y))

  def correlation(w_P: np.ndarray) -> float:
    xx, xy, yy = (float(w_P @ x_P) for x_P in (xx_P, xy_P, yy_P))
    return ratio(xy, math.sqrt(xx * yy) if xx > 0 else yy)

  return correlation


def bootstrap(statistic: Statistic, num_prompts: int, resamples: int, seed: int) -> Estimate:
  """A statistic of `weights_P` and its 95 % interval over prompts (see `statistics.bootstrap`).

  A prompt that is drawn twice has the same ranks twice, so the responses that it ties with are more than in
  the data, and all draws of a rank correlation are too low (or too high) by about 1/P. Its interval is
  therefore moved so that the median of the draws lies at the estimate, on Fisher's scale arctanh, where no
  end passes ±1.
  """
  interval = _around if isinstance(statistic, RankCorrelation) else quantiles
  return resampling.bootstrap(statistic, num_prompts, resamples, seed, interval)


def _around(value: float, draws: np.ndarray) -> np.ndarray:
  """The quantiles of correlations, moved so that the median of the draws is the value."""
  z = np.arctanh(np.clip(np.append(draws, value), -_LARGEST_CORRELATION, _LARGEST_CORRELATION))
  low, median, high = np.nanquantile(z[:-1], (0.025, 0.5, 0.975))
  ends = np.tanh(z[-1] + np.array([low - median, high - median]))
  return np.array([min(ends[0], value), max(ends[1], value)])  # The value itself, not what rounding made.


def baselines(logps: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
  """Scores that a useful score has to beat: the policy's log-prob, the same by token, and the length."""
  return {'logp': logps, 'logp_per_token': logps / lengths, 'length': lengths.astype(np.float64)}


def score_statistics(
  logps: np.ndarray,
  lengths: np.ndarray,
  rewards: np.ndarray,
  prompts: np.ndarray,
  *,
  reference_logps: np.ndarray | None = None,
  values: np.ndarray | None = None,
  temperature: float | int = 1.0,
) -> dict[str, Callable[[np.ndarray], float]]:
  """Statistics of scored responses by name, each a function of how often each prompt was drawn, `[P]`.

  Prompts are in the order of their numbers. Within a prompt responses are ranked by ρ, which at DRO's optimum
  is an advantage over τ; across prompts only by V(x) + τρ. Statistics that the scores cannot give are left
  out.
  """
  prompt_N, _ = _number(prompts)
  result = {'reward': mean_of(rewards, prompt_N), 'logp': mean_of(logps, prompt_N)}
  scores = baselines(logps, lengths)
  if values is not None:
    result['value'] = mean_of(values, prompt_N)
    result['value_explained_variance'] = lambda w_P: explained_variance(values, rewards, w_P[prompt_N])
  if reference_logps is not None:
    rho = logps - reference_logps
    scores = {'log_ratio': rho} | scores
    result['log_ratio'] = mean_of(rho, prompt_N)
    result['log_ratio_std'] = lambda w_P: float(np.sqrt(_variance(rho, w_P[prompt_N])))
    result['within_prompt_explained_variance'] = within_prompt_explained_variance(
      temperature * rho, rewards, prompts
    )
    result['within_prompt_correlation'] = within_prompt_correlation(rho, rewards, prompts)
    if values is not None:
      result['rank_correlation'] = RankCorrelation(values + temperature * rho, rewards, prompt_N)
  counts = {name: count_pairs(score, rewards, prompts) for name, score in scores.items()}
  return result | {
    f'within_prompt_accuracy/{name}': functools.partial(pairwise_accuracy, pairs)
    for name, pairs in counts.items()
  }


def within_prompts(
  scores: Mapping[str, np.ndarray],
  rewards: np.ndarray,
  prompts: np.ndarray,
  *,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """Pairwise accuracy of each score within prompts, and how many pairs there were.

  Returns:
    `pairs`, `tied_pairs` (equal rewards, dropped) and `accuracy`, an Estimate of each score.
  """

  def accuracy(counts: PairCounts) -> Estimate:
    return bootstrap(functools.partial(pairwise_accuracy, counts), len(counts.pairs), resamples, seed)

  counts = {name: count_pairs(score, rewards, prompts) for name, score in scores.items()}
  first = next(iter(counts.values()))
  return {
    'pairs': int(first.pairs.sum()),
    'tied_pairs': int(first.ties.sum()),
    'accuracy': {name: accuracy(pairs) for name, pairs in counts.items()},
  }


def across_prompts(
  scores: Mapping[str, np.ndarray],
  rewards: np.ndarray,
  prompts: np.ndarray,
  *,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Estimate]:
  """Rank correlation of each score with the logged reward, over all responses to all prompts.

  Pass V(x) + τρ, not τρ alone: at DRO's optimum that is an advantage, r − V(x), without the prompt's level.
  """
  prompt_N, num_prompts = _number(prompts)

  def correlation(score: np.ndarray) -> Estimate:
    return bootstrap(RankCorrelation(score, rewards, prompt_N), num_prompts, resamples, seed)

  return {name: correlation(score) for name, score in scores.items()}


def value_fit(
  values: np.ndarray, rewards: np.ndarray, prompts: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
  """Explained variance of the rewards by V(x)."""
  prompt_N, num_prompts = _number(prompts)
  return bootstrap(
    lambda weights_P: explained_variance(values, rewards, weights_P[prompt_N]), num_prompts, resamples, seed
  )


def _number(prompts: np.ndarray) -> tuple[np.ndarray, int]:
  unique, prompt_N = np.unique(prompts, return_inverse=True)
  return prompt_N, len(unique)


def _mean_ranks(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Ranks in a sample where x_i occurs weights_i times; equal values share their mean rank."""
  class_N = ties.distinct(x)[2]
  count_C = np.bincount(class_N, weights)
  ranks_N: np.ndarray = (np.cumsum(count_C) - (count_C - 1) / 2)[class_N]
  return ranks_N


def _variance(x: np.ndarray, weights: np.ndarray) -> float:
  mean = weights @ x / weights.sum()
  return float(weights @ (x - mean) ** 2 / weights.sum())
