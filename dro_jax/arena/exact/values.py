"""The V that each rung of the V ladder takes for V*(x) on the log: one loss, every V proposed since.

The rungs are a batch's mean (DRO-P), E[r given x] by regression, four estimates from the K answers to a
prompt, a learned V (DRO-V) and V* itself. K answers to a prompt, N records; everything is in stars.
"""

import numpy as np
from scipy import special


def group_values(rewards_K: np.ndarray, name: str, tau: float) -> np.ndarray:
  """V̂ of every one of a prompt's K answers from their rewards, `[K]` (see `losses.dro_group_value`).

  An answer that is alone has no other: its V̂ is nan.

  Args:
    rewards_K: in the units of `tau`.
    name: one of `losses.groups.GROUP_VALUES`.
    tau: the temperature.
  """
  count = len(rewards_K)
  own = np.eye(count, dtype=bool) if name.startswith('leave_one_out') else np.zeros((count, count), bool)
  others = count - own.sum(1)
  if not others.all():
    return np.full(count, np.nan)
  rewards_KK = np.broadcast_to(np.asarray(rewards_K, np.float64), (count, count))
  if name.endswith('log_mean_exp'):
    return tau * (special.logsumexp(np.where(own, -np.inf, rewards_KK / tau), axis=1) - np.log(others))
  return np.where(own, 0, rewards_KK).sum(1) / others


def logged_group_values(rewards_N: np.ndarray, prompt_N: np.ndarray, name: str, tau: float) -> np.ndarray:
  """V̂ of every record from the rewards of its prompt's records, `[N]`."""
  found = np.empty(len(rewards_N))
  order = np.argsort(prompt_N, kind='stable')
  for members in np.split(order, np.flatnonzero(np.diff(prompt_N[order])) + 1):
    found[members] = group_values(rewards_N[members], name, tau)
  return found


def error(values_N: np.ndarray, best_N: np.ndarray) -> float:
  """The root mean square of V − V* over the records that have a V."""
  return float(np.sqrt(np.nanmean(np.square(values_N - best_N))))
