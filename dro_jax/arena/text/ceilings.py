"""What the reference's own answers say of what there is to win, without training: numpy, float64.

P prompts, K answers of the reference to each, all drawn from it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

BEST_OF = (4, 16, 64)
TAUS = (0.1, 0.2, 0.3, 1.0)  # Of rewards with variance 1.


def best_of(rewards_PK: np.ndarray, number: int) -> np.ndarray:
  """E[max of `number` of the K rewards, drawn without replacement], `[P]`.

  The i-th least of K is the greatest of the drawn ones in C(i−1, n−1) of C(K, n) draws.
  """
  rank = np.arange(rewards_PK.shape[1])
  weights = special.comb(rank, number - 1) / special.comb(len(rank), number)
  return np.sort(rewards_PK, 1) @ weights


def best_of_kl(number: int) -> float:
  """log n − (n−1)/n, in nats: an upper bound of KL(best of n‖π_ref), and equal to it without ties."""
  return float(np.log(number) - (number - 1) / number)


def optimum(rewards_PK: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
  """Reward of π* = π_ref·e^{r/τ}/Z and KL(π*‖π_ref), `[P]` each, self-normalised over the K answers.

  With weights w = softmax(r/τ) they are Σ w r and Σ w log(K w), which K bounds by log K.
  """
  weights_PK = special.softmax(rewards_PK / tau, 1)
  log_ratios_PK = special.log_softmax(rewards_PK / tau, 1) + np.log(rewards_PK.shape[1])
  return np.sum(weights_PK * rewards_PK, 1), np.sum(weights_PK * log_ratios_PK, 1)


def ceilings(
  rewards_PK: np.ndarray,
  greedy_P: np.ndarray,
  greedy_logps_P: np.ndarray,
  scale: float,
  taus: Sequence[float] = TAUS,
) -> dict[str, Mapping[str, Any]]:
  """Policies that need no training, by name: `reward` by prompt, `[P]`, and their mean `kl`, nats.

  Args:
    rewards_PK: of the reference's answers, as they are.
    greedy_P: the rewards of its most probable answers.
    greedy_logps_P: the log-probs of these: KL of a policy that always says the same is −log π_ref of it.
    scale: the rewards' standard deviation in the log: a temperature τ of scaled rewards is τ·scale in theirs.
    taus: temperatures of rewards with variance 1.
  """
  greedy = {'reward': greedy_P, 'kl': float(-greedy_logps_P.mean())}
  found: dict[str, Mapping[str, Any]] = {'greedy decoding': greedy}
  for number in BEST_OF:
    if number <= rewards_PK.shape[1]:
      found[f'best of {number}'] = {'reward': best_of(rewards_PK, number), 'kl': best_of_kl(number)}
  for tau in taus:
    reward_P, kl_P = optimum(rewards_PK, tau * scale)
    found[f'π* at τ = {tau:g}'] = {'reward': reward_P, 'kl': float(kl_P.mean())}
  return found
