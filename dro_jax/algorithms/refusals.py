"""Refusals of logged feedback from which an algorithm cannot learn. Numpy."""

from typing import Any

import numpy as np

from dro_jax.errors import UsageError
from dro_jax.statistics import ties


def refuse_equal_rewards(triplets: Any) -> None:
  """Refuses equal rewards, from which an algorithm that needs differences learns nothing.

  Raises:
    UsageError: all training rewards are equal.
  """
  if ties.is_constant(triplets.train.raw_rewards):
    _refuse_one_reward(triplets.train.raw_rewards, 'the algorithm learns from their differences')


def refuse_equal_within_prompts(triplets: Any) -> None:
  """Refuses equal rewards within prompts, from which an algorithm that compares responses learns nothing.

  Raises:
    UsageError: no prompt has responses of different rewards.
  """
  refuse_equal_rewards(triplets)
  if not np.any(ties.varies(triplets.train.raw_rewards, triplets.train.prompt_index)):
    raise UsageError(
      'the algorithm compares the responses to one prompt, but the responses to each prompt have equal '
      'rewards: choose an algorithm for single responses, such as dro_v, or kto with other labels.'
    )


def refuse_one_value(triplets: Any, why: str) -> None:
  """Refuses training rewards that are all one value, unless that is a thumb.

  Raises:
    UsageError: they are; `why` completes "all rewards are X, and they".
  """
  values = ties.distinct(triplets.train.raw_rewards)[0]
  if len(values) == 1 and pair_of_thumbs(values) is None:
    _refuse_one_reward(triplets.train.raw_rewards, f'they {why}')


def _refuse_one_reward(rewards: np.ndarray, why: str) -> None:
  raise UsageError(
    f'all {len(rewards)} training rewards are {rewards[0]:.6g}, and {why}: add responses with other rewards, '
    'check the number that each reward has (--map_reward), or imitate the responses, as '
    'RunSpec(algorithm=sft) or --set ALGORITHM=sft.'
  )


def refuse_negative_rewards(triplets: Any) -> None:
  """Refuses negative rewards, which an algorithm that weighs by rewards would push away without bound.

  Raises:
    UsageError: a training reward is negative, or all are 0.
  """
  lowest = float(np.min(triplets.train.rewards))
  if lowest < 0:
    raise UsageError(
      f'the algorithm weighs log-probs by rewards, which must not be negative, and the smallest is '
      f"{lowest:.4g}: pass load_triplets(scaling='minmax'), or --set REWARD_SCALING=minmax."
    )
  refuse_zero_rewards(triplets)


def refuse_zero_rewards(triplets: Any) -> None:
  """Refuses rewards of 0 only, from which an algorithm that weighs by rewards learns nothing.

  Raises:
    UsageError: all training rewards are 0.
  """
  if not np.any(triplets.train.rewards):
    _refuse_one_reward(triplets.train.rewards, 'the algorithm weighs log-probs by them')


def refuse_without_column(triplets: Any, column: str) -> None:
  """Refuses triplets without a column of values.

  Raises:
    UsageError: the column is missing.
  """
  if column not in triplets.train.columns:
    raise UsageError(
      f'the algorithm reads V(x) from the column {column!r}, which the triplets lack: fit one with `dro_jax '
      'fit_value` and pass its folder as columns_from (--columns_from=FOLDER), or map your own, in the '
      "rewards' own units, with columns='value=YOURS' (--columns=value=YOURS)."
    )


def refuse_single_responses(table: Any, subject: str, instead: str) -> None:
  """Refuses a table with one response to every prompt.

  Raises:
    UsageError: it has; `subject` begins the message, and `instead` ends it.
  """
  if len(np.unique(table.prompt_index)) == len(table.prompt_index):
    raise UsageError(
      f'{subject} need several responses to a prompt, but every prompt here has one: use {instead}.'
    )


def pair_of_thumbs(values: np.ndarray) -> tuple[float, float] | None:
  """The pair of thumbs, (0, 1) or (−1, 1), that contains all values; `None` where neither does."""
  pairs = ((0.0, 1.0), (-1.0, 1.0))
  return next((pair for pair in pairs if len(ties.distinct(np.append(values, pair))[0]) == 2), None)
