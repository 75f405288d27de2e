"""Reward scaling, fitted once on the training rewards, saved with the run, and applied to every table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.errors import UsageError
from dro_jax.statistics import ties

KINDS = ('none', 'standardise', 'standardise_within', 'minmax', 'quantile')
_KNOTS = 1001


class RewardScaling(NamedTuple):
  """scaled = (reward − shift) / scale, or the reward's quantile in the training data.

  'standardise_within' subtracts the mean reward of the reward's own prompt as well (see `levels`).

  Attributes:
    kind: one of `KINDS`.
    shift: in reward units.
    scale: reward units in one scaled unit: training at temperature τ on scaled rewards equals training at
      τ · scale on the original rewards.
    knots: for quantiles, (reward, quantile) pairs; linear in between.
    statistics: of the training rewards, in reward units; alignment learns from the spread
      `within_prompt_sd`.
  """

  kind: str = 'none'
  shift: float = 0.0
  scale: float = 1.0
  knots: tuple[tuple[float, float], ...] = ()
  statistics: dict[str, float] = {}

  def apply(self, rewards: np.ndarray | Sequence[float], levels: np.ndarray | float = 0.0) -> np.ndarray:
    """Scaled rewards, float64. Quantiles lie in [0, 1]; rewards outside the range get its end's quantile.

    Args:
      rewards: in their own units.
      levels: of their prompts, from `levels`.
    """
    rewards = np.asarray(rewards, np.float64) - levels
    if self.kind == 'quantile':
      values, quantiles = np.asarray(self.knots).T
      return np.interp(rewards, values, quantiles)
    return (rewards - self.shift) / self.scale

  def levels(self, rewards: np.ndarray, prompt_index: np.ndarray) -> np.ndarray | float:
    """The mean of each reward's prompt where rewards are standardised within prompts; else 0."""
    # A lone reward is its own level, and so are equal ones, to the bit.
    return rewards - ties.deviations(rewards, prompt_index) if self.kind == 'standardise_within' else 0.0

  def invert(self, scaled: np.ndarray | Sequence[float]) -> np.ndarray:
    """Rewards in their own units, float64; for quantiles, the reward at each quantile.

    Of rewards that are standardised within prompts these are deviations from their prompt's mean.
    """
    scaled = np.asarray(scaled, np.float64)
    if self.kind == 'quantile':
      values, quantiles = np.asarray(self.knots).T
      return np.interp(scaled, quantiles, values)
    return scaled * self.scale + self.shift

  def effective_temperature(self, temperature: float | int) -> float | None:
    """τ in the reward's own units; None for quantiles, which stretch rewards unevenly."""
    return None if self.kind == 'quantile' else temperature * self.scale

  def to_json(self, temperature: float | int | None = None) -> dict[str, Any]:
    """A plain dict; with a temperature it also holds the effective temperature."""
    fields = self._asdict() | {'knots': [list(knot) for knot in self.knots]}
    if temperature is not None:
      fields['effective_temperature'] = self.effective_temperature(temperature)
    return fields


def from_json(fields: dict[str, Any]) -> RewardScaling:
  """The scaling that `to_json` described."""
  knots = tuple((float(value), float(quantile)) for value, quantile in fields['knots'])
  return RewardScaling(fields['kind'], fields['shift'], fields['scale'], knots, fields['statistics'])


def notes(scaling: RewardScaling) -> tuple[str, ...]:
  """A line on the prompts from which rewards standardised within prompts leave nothing to learn."""
  lone = int(scaling.statistics.get('lone_prompts', 0))
  return (f'rewards: {lone} prompts have one response, whose scaled reward is 0',) if lone else ()


def fit(
  kind: str, rewards: np.ndarray | Sequence[float], prompt_index: np.ndarray | None = None
) -> RewardScaling:
  """Fits a scaling.

  Args:
    kind: 'none'; 'standardise' to mean 0 and variance 1 over the data set; 'standardise_within' to mean 0 for
      each prompt and variance 1 within prompts, where prompts with one response get 0; 'minmax' to [0, 1];
      'quantile' to the share of training rewards below (ties in the middle).
    rewards: training rewards, `[N]`; NaN where a record has none, which is left out.
    prompt_index: equal numbers for equal prompts, for the within-prompt statistics.

  Raises:
    UsageError: an unknown kind, or rewards that are all missing or equal, or equal within every prompt.
  """
  rewards = np.asarray(rewards, np.float64)
  known = ~np.isnan(rewards)
  if not known.all():
    rewards, prompt_index = rewards[known], None if prompt_index is None else prompt_index[known]
  if kind not in KINDS:
    raise UsageError(f"reward scaling '{kind}' is unknown; choose from {', '.join(KINDS)}")
  if not len(rewards):
    return _unrewarded(kind)
  if kind != 'none' and ties.is_constant(rewards):
    raise UsageError(
      f"reward scaling '{kind}' divides by the rewards' spread, but all {len(rewards)} rewards are "
      f"{rewards[0]}; pass 'none'"
    )
  statistics = _statistics(rewards, prompt_index)
  if kind == 'standardise':
    return RewardScaling(kind, statistics['mean'], statistics['sd'], (), statistics)
  if kind == 'standardise_within':
    return _within(statistics, prompt_index)
  if kind == 'minmax':
    return RewardScaling(kind, statistics['min'], statistics['max'] - statistics['min'], (), statistics)
  if kind == 'quantile':
    return RewardScaling(kind, 0.0, 1.0, _quantiles(rewards), statistics)
  return RewardScaling(kind, statistics=statistics)


def _within(statistics: dict[str, float], prompt_index: np.ndarray | None) -> RewardScaling:
  """Rewards less their prompt's mean, over the spread within prompts; the prompts with one are counted."""
  spread = statistics.get('within_prompt_sd', 0.0)
  if prompt_index is None or spread == 0:
    raise UsageError(
      "reward scaling 'standardise_within' divides by the rewards' spread within prompts, but every prompt "
      "has one response or responses of equal reward; pass 'standardise'"
    )
  lone = int(np.sum(np.unique(prompt_index, return_counts=True)[1] == 1))
  return RewardScaling('standardise_within', 0.0, spread, (), statistics | {'lone_prompts': float(lone)})


def _unrewarded(kind: str) -> RewardScaling:
  """The scaling of no rewards at all."""
  if kind != 'none':
    raise UsageError(
      f"reward scaling '{kind}' is fitted on the rewards, but no record has a reward; pass 'none'"
    )
  return RewardScaling(kind, statistics={'count': 0.0})


def _statistics(rewards: np.ndarray, prompt_index: np.ndarray | None) -> dict[str, float]:
  statistics = {
    'count': len(rewards),
    'mean': rewards.mean(),
    'sd': ties.spread(rewards),
    'min': rewards.min(),
    'max': rewards.max(),
  }
  if prompt_index is not None:
    # Prompts with one response have no spread within.
    freedom = len(rewards) - len(np.unique(prompt_index))
    if freedom:
      statistics['within_prompt_sd'] = np.sqrt(
        np.square(ties.deviations(rewards, prompt_index)).sum() / freedom
      )
  return {name: float(value) for name, value in statistics.items()}


def _quantiles(rewards: np.ndarray) -> tuple[tuple[float, float], ...]:
  """Mid-ranks at distinct values, thinned to at most `_KNOTS`."""
  values, _, _, counts = ties.distinct(rewards)
  quantiles = (np.cumsum(counts) - counts / 2) / len(rewards)
  kept = np.unique(np.linspace(0, len(values) - 1, min(_KNOTS, len(values))).round().astype(int))
  return tuple(zip(values[kept].tolist(), quantiles[kept].tolist()))
