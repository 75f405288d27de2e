"""What algorithms derive from logged feedback before the first step: labels, quantiles, advantages. Numpy.

A `Fit` looks at the triplets (their training part decides every constant) and returns a function from a table
to one number a response; or it says why this data cannot give it. Tables have `rewards` (as losses see them),
`raw_rewards` (as they came), `prompt_index` and `columns`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from dro_jax.errors import UsageError

Column = Callable[[Any], np.ndarray]
Fit = Callable[[Any], Column]

SAMPLED = ('sampled', 'sampling', 'sample')


def above_threshold(threshold: float | int) -> Fit:
  """1 where the reward, in its own units, exceeds `threshold`."""
  return lambda triplets: lambda table: _float(table.raw_rewards > threshold)


def above_dataset_mean(triplets: Any) -> Column:
  """1 where the reward exceeds the training responses' mean."""
  return above_threshold(float(np.mean(triplets.train.raw_rewards)))(triplets)


def above_prompt_mean(triplets: Any) -> Column:
  """1 where the reward exceeds the mean of the responses logged for its prompt.

  Raises:
    UsageError: every prompt has one response, which never exceeds itself.
  """
  _refuse_single_responses(triplets.train, 'labels by the prompt mean', 'the dataset mean or a threshold')
  return lambda table: _float(table.raw_rewards > _prompt_means(table.raw_rewards, table.prompt_index))


def above_value(triplets: Any) -> Column:
  """1 where the reward exceeds the prompt's value in the column `value`."""
  _refuse_without(triplets, 'value')
  return lambda table: _float(table.raw_rewards > table.columns['value'])


def scaled_value(triplets: Any) -> Column:
  """The column `value`, which is in the reward's own units, scaled as the rewards are."""
  _refuse_without(triplets, 'value')
  return lambda table: triplets.scaling.apply(table.columns['value'])


def advantages(triplets: Any) -> Column:
  """A = r − V(x), scaled, from the column `value`.

  Raises:
    UsageError: there is no such column, or no response is better than its prompt's value.
  """
  value = scaled_value(triplets)
  if not np.any(triplets.train.rewards > value(triplets.train)):
    raise UsageError(
      'no training response has a positive advantage, reward − value: there is nothing to imitate. The '
      'column value must be in the rewards’ own units, one V(x) for each record.'
    )
  return lambda table: table.rewards - value(table)


def prompt_quantiles(triplets: Any) -> Column:
  """Share of the prompt's other logged responses that the reward beats, ties half: in (0, 1).

  Raises:
    UsageError: every prompt has one response only.
  """
  _refuse_single_responses(
    triplets.train,
    'quantiles within a prompt',
    'quantiles over the data set (qrpo.quantiles=@data_quantiles)',
  )
  return lambda table: _by_prompt(table, lambda rewards: _mid_ranks(rewards, rewards))


def data_quantiles(triplets: Any) -> Column:
  """Share of all training rewards that the reward beats, ties half: in [0, 1]."""
  return lambda table: _mid_ranks(table.raw_rewards, triplets.train.raw_rewards)


def propensities(sampler: str | None = None) -> Fit:
  """log μ(y|x) of the policy that wrote the log, where the log was sampled.

  Args:
    sampler: what wrote the log where the data does not say: 'sampled', or anything else.

  Raises:
    UsageError: no log-probs were logged, or they are no propensities.
  """

  def fit(triplets: Any) -> Column:
    columns = triplets.train.columns
    if 'behaviour_logps' not in columns:
      raise UsageError(
        'the algorithm weighs responses by the log-prob with which they were logged, and the triplets have '
        'no behaviour_logprob: log it (nats, summed over the response, EOS included), map it with --columns '
        'behaviour_logprob=YOURS, or choose an algorithm that needs none, such as dro_v.'
      )
    said = columns.get('behaviour_sampled')
    sampled = sampler in SAMPLED if sampler is not None or said is None else bool(np.all(said > 0))
    if not sampled:
      raise UsageError(
        'the logged log-probs are propensities only if the log was sampled from the policy: beam search '
        'and greedy decoding have none. Records say so in behaviour_sampler; if yours were sampled at '
        'temperature 1 without truncation, pass --set BEHAVIOUR_SAMPLER=sampled; else take another algorithm.'
      )
    return lambda table: table.columns['behaviour_logps']

  return fit


def refuse_negative_rewards(triplets: Any) -> None:
  """An algorithm that weighs log-probs by rewards would push away what it should ignore.

  Raises:
    UsageError: a training reward is negative.
  """
  lowest = float(np.min(triplets.train.rewards))
  if lowest < 0:
    raise UsageError(
      f'the algorithm weighs log-probs by rewards, which must not be negative, and the least is '
      f'{lowest:.4g}: pass --set REWARD_SCALING=minmax.'
    )


def _float(x: np.ndarray) -> np.ndarray:
  return x.astype(np.float64)


def _refuse_without(triplets: Any, column: str) -> None:
  if column not in triplets.train.columns:
    raise UsageError(
      f'the algorithm reads V(x) from the column {column!r}, which the triplets lack: fit one with `dro_jax '
      'fit_value` and pass its folder as --columns_from, or map your own with --columns value=YOURS (in the '
      'rewards’ own units).'
    )


def _refuse_single_responses(table: Any, what: str, instead: str) -> None:
  if len(np.unique(table.prompt_index)) == len(table.prompt_index):
    raise UsageError(
      f'{what} need several responses to a prompt, and every prompt here has one: use {instead}.'
    )


def _prompt_means(x: np.ndarray, prompt_index: np.ndarray) -> np.ndarray:
  _, group, counts = np.unique(prompt_index, return_inverse=True, return_counts=True)
  return (np.bincount(group, x) / counts)[group]


def _by_prompt(table: Any, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  result = np.zeros(len(table.prompt_index))
  order = np.argsort(table.prompt_index, kind='stable')
  for members in np.split(order, np.flatnonzero(np.diff(table.prompt_index[order])) + 1):
    result[members] = statistic(table.raw_rewards[members])
  return result


def _mid_ranks(x: np.ndarray, among: np.ndarray) -> np.ndarray:
  """Share of `among` below each x, ties half."""
  among = np.sort(among)
  below, upto = np.searchsorted(among, x, 'left'), np.searchsorted(among, x, 'right')
  return (below + upto) / (2 * len(among))
