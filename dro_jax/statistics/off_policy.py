"""Off-policy estimates: the reward a policy would earn, from another policy's log. Numpy, float64.

The log was sampled: y_i ~ μ(·|x_i), rewarded r_i. With w_i = π(y_i|x_i) / μ(y_i|x_i), a reward model q(x, y)
and q̄(x) = E_{y~π}[q(x, y)], the estimates of E[r] under π are

  IPS             (1/N) Σ w_i r_i                          Horvitz & Thompson 1952
  self-normalised Σ w_i r_i / Σ w_i                        Swaminathan & Joachims, NeurIPS 2015
  direct          (1/N) Σ q̄(x_i)                           arXiv 1103.4601
  doubly robust   (1/N) Σ q̄(x_i) + w_i (r_i − q(x_i, y_i)) arXiv 1103.4601

Each response counts `counts` times, by which `bootstrap.bootstrap` resamples whole prompts. Rewards are in
any unit, log-probs in nats. N responses, F features.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dro_jax.errors import UsageError
from dro_jax.statistics import ties
from dro_jax.statistics.bootstrap import Estimate, bootstrap


class Log(NamedTuple):
  """A log as the estimates read it, `[N]` each.

  ratios    w, of the evaluated policy to the policy that wrote the log.
  rewards   r, as logged.
  predicted q(x, y) of the logged response; the model must not have seen this log, or q̄ is biased.
  expected  q̄(x) of the logged prompt, such as a mean over the policy's own responses.
  prompts   the number of the prompt that each response answers.
  """

  ratios: np.ndarray
  rewards: np.ndarray
  predicted: np.ndarray
  expected: np.ndarray
  prompts: np.ndarray


def ratios(policy_logps: np.ndarray, behaviour_logps: np.ndarray) -> np.ndarray:
  """w = π(y|x) / μ(y|x) of whole responses, `[N]`.

  Raises:
    UsageError: a propensity is not a log-prob, so that ratios to it mean nothing.
  """
  behaviour = np.asarray(behaviour_logps, np.float64)
  if not np.all(np.isfinite(behaviour)) or np.any(behaviour > 1e-4):
    raise UsageError(
      'a logged response has a log-prob above 0, or none at all, so it has no importance weight: pass '
      'log μ(y|x) in nats of the policy that sampled it at temperature 1, summed over the response.'
    )
  return np.exp(np.asarray(policy_logps, np.float64) - behaviour)


def ips(ratios: np.ndarray, rewards: np.ndarray, counts: np.ndarray) -> float:
  """(1/N) Σ w r: unbiased where μ > 0 wherever π > 0; its variance grows with w's."""
  return float(counts @ (ratios * rewards) / counts.sum())


def self_normalised(ratios: np.ndarray, rewards: np.ndarray, counts: np.ndarray) -> float:
  """Σ w r / Σ w: consistent, within the rewards' range; a constant added to the rewards is added to it."""
  total = counts @ ratios
  return float(counts @ (ratios * rewards) / total) if total > 0 else np.nan


def direct(expected: np.ndarray, counts: np.ndarray) -> float:
  """(1/N) Σ q̄(x): as accurate as the reward model is on the policy's responses."""
  return float(counts @ expected / counts.sum())


def doubly_robust(
  ratios: np.ndarray,
  rewards: np.ndarray,
  predicted: np.ndarray,
  expected: np.ndarray,
  counts: np.ndarray,
) -> float:
  """(1/N) Σ q̄ + w (r − q): unbiased if either the propensities or the reward model are right."""
  return direct(expected, counts) + ips(ratios, rewards - predicted, counts)


def effective_sample_size(ratios: np.ndarray) -> float:
  """(Σ w)² / Σ w²: how many of the N responses the estimates rest on, in [1, N] (Kong 1992)."""
  total = np.sum(np.square(ratios))
  return float(np.square(np.sum(ratios)) / total) if total > 0 else 0.0


def estimates(log: Log, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
  """Every estimate of the policy's value, with intervals over prompts."""
  unique, prompt_N = np.unique(log.prompts, return_inverse=True)

  def resampled(estimate: Callable[[np.ndarray], float]) -> Estimate:
    return bootstrap(lambda weights_P: estimate(weights_P[prompt_N]), len(unique), resamples, seed)

  return {
    'ips': resampled(lambda counts: ips(log.ratios, log.rewards, counts)),
    'self_normalised': resampled(lambda counts: self_normalised(log.ratios, log.rewards, counts)),
    'direct': resampled(lambda counts: direct(log.expected, counts)),
    'doubly_robust': resampled(
      lambda counts: doubly_robust(log.ratios, log.rewards, log.predicted, log.expected, counts)
    ),
  }


def ridge(
  features: np.ndarray, rewards: np.ndarray, penalty: float | int = 1.0
) -> Callable[[np.ndarray], np.ndarray]:
  """A reward model by least squares: from features `[N, F]` to q, `[N]`.

  q(f) = r̄ + β·z(f), β = (ZᵀZ + penalty · I)⁻¹ Zᵀ(r − r̄), where z centres each feature and scales it to
  variance 1 (one that never varies is left out).
  """
  features, rewards = np.asarray(features, np.float64), np.asarray(rewards, np.float64)
  mean_F, spread_F = features.mean(0), np.array([ties.spread(feature) for feature in features.T])
  scale_F = np.where(spread_F > 0, 1 / np.where(spread_F > 0, spread_F, 1.0), 0.0)
  z_NF = (features - mean_F) * scale_F
  gram_FF = z_NF.T @ z_NF + penalty * np.eye(features.shape[1])
  beta_F = np.linalg.solve(gram_FF, z_NF.T @ (rewards - rewards.mean()))
  return lambda others: rewards.mean() + (np.asarray(others, np.float64) - mean_F) * scale_F @ beta_F
