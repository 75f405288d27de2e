"""Columns that algorithms derive from logged feedback before the first step: labels, quantiles, advantages.

Numpy. A `Fit` takes the triplets, whose training part decides every constant, and returns a function from
a table to one number a response; or it refuses data that cannot give the column. Tables have `rewards` (as
losses read them), `raw_rewards` (unscaled), `prompt_index` and `columns`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dro_jax.algorithms import refusals
from dro_jax.errors import UsageError
from dro_jax.names import SAMPLED
from dro_jax.statistics import ties

Column = Callable[[Any], np.ndarray]
Fit = Callable[[Any], Column]
# A column of labels holds 1 (desirable), 0 (undesirable), and:
NO_LABEL = 0.5  # a tie, which is left out;
BY_BATCH = -1.0  # a response whose label its batch decides.


class Labelling(NamedTuple):
  """Labels of a table's responses, `[N]`, and the rule that makes them.

  Attributes:
    make: from a table to 1 (desirable), 0 (undesirable), `NO_LABEL` or `BY_BATCH`.
    rule: its name, recorded with the run.
    description: the rule in words.
    earlier: the labels of versions that recorded no rule.
    least_batch: the smallest batch, in responses.
  """

  make: Column
  rule: str
  description: str
  earlier: Column
  least_batch: int = 1

  def __call__(self, table: Any) -> np.ndarray:
    return self.make(table)

  def report(self, table: Any) -> dict[str, Any]:
    """The rule, its description and how many labels of each kind it made, for JSON."""
    labels = self.make(table)
    known, up = int(np.sum((labels == 0) | (labels == 1))), int(np.sum(labels == 1))
    counts = f'; {up} of {known} responses are desirable' if known else ''
    return {
      'rule': self.rule, 'said': self.description + counts, 'desirable': up, 'labels': known,
      'least_batch': self.least_batch, 'unlike_earlier': int(np.sum(labels != self.earlier(table))),
    }  # fmt: skip


def binary_labels(triplets: Any) -> Labelling | None:
  """Rewards that are labels themselves: thumbs (0 and 1, or ±1, or one of them), or any two values.

  The training part's raw rewards decide. Their mean would not do: no reward exceeds it where all are 1.
  """
  values = ties.distinct(triplets.train.raw_rewards)[0]
  pair = _binary_pair(values)
  if pair is None:
    return None
  listed = ' and '.join(f'{value:.6g}' for value in values)
  subject = 'rewards {} are labels' if len(values) == 2 else 'reward {}, the only one, is a label'
  higher = '' if refusals.pair_of_thumbs(values) else ', the higher desirable'
  description = f'the {subject.format(listed)} {"themselves" if len(values) == 2 else "itself"}{higher}'
  make = lambda table: _float(table.raw_rewards > sum(pair) / 2)  # noqa: E731
  return Labelling(make, 'binary', description, make)


def _binary_pair(values: np.ndarray) -> tuple[float, float] | None:
  """The two of distinct rewards, low and high, that are labels themselves; `None` where they are scalars."""
  return refusals.pair_of_thumbs(values) or (tuple(values) if len(values) == 2 else None)


def _unless_binary(triplets: Any, scalar: Labelling) -> Labelling:
  """Binary rewards as labels, or else the labels of a rule for scalar rewards."""
  refusals.refuse_one_value(triplets, 'do not say which responses are desirable')
  binary = binary_labels(triplets)
  return scalar if binary is None else binary._replace(earlier=scalar.earlier)


def _refuse_alike(labelling: Labelling, triplets: Any) -> Labelling:
  """The labelling; refused where it gives all responses one label, unless binary rewards mean that."""
  labels, binary = labelling(triplets.train), binary_labels(triplets)
  if np.ptp(labels) == 0 and (binary is None or np.any(labels != binary(triplets.train))):
    kind = 'desirable' if labels[0] == 1 else 'undesirable'
    raise UsageError(
      f'labels: {labelling.description}, so all {len(labels)} training responses would be {kind}, and the '
      'algorithm could not tell them apart: pass another threshold, or other labels (such as '
      'dataset_mean_labels).'
    )
  return labelling


def above_minibatch_mean(triplets: Any) -> Labelling:
  """`BY_BATCH`: 1 where the reward exceeds its batch's mean; binary rewards are labels themselves.

  Raises:
    UsageError: all training rewards are one value, which is not a thumb; so do the other means.
  """
  make = lambda table: np.full(len(table.raw_rewards), BY_BATCH)  # noqa: E731
  description = 'a response is desirable where its reward exceeds the mean of its minibatch'
  return _unless_binary(triplets, Labelling(make, 'minibatch mean', description, make, least_batch=2))


def above_dataset_mean(triplets: Any) -> Labelling:
  """1 where the reward exceeds the training responses' mean; binary rewards are labels themselves."""
  raw = triplets.train.raw_rewards
  mean = float(np.mean(raw))
  description = f'a response is desirable where its reward exceeds the training responses’ mean, {mean:.6g}'
  return _unless_binary(
    triplets,
    Labelling(
      lambda table: _float(ties.exceeds(table.raw_rewards, mean, made_of=raw)), 'dataset mean', description,
      lambda table: _float(table.raw_rewards > mean),
    ),
  )  # fmt: skip


def above_prompt_mean(triplets: Any) -> Labelling:
  """1 where the reward exceeds the mean of the responses logged for its prompt.

  Binary rewards are labels themselves. A lone answer, which is its own mean, is compared with the training
  responses' mean; several of equal reward have no label.

  Raises:
    UsageError: every prompt has one response, or none has two of different reward.
  """
  scalar = Labelling(
    lambda table: _by_prompt_mean(table, float(np.mean(triplets.train.raw_rewards))), 'prompt mean', '',
    lambda table: _float(table.raw_rewards > _prompt_means(table.raw_rewards, table.prompt_index)),
  )  # fmt: skip
  labelling = _unless_binary(triplets, scalar)
  if labelling.rule == 'binary':
    return labelling
  refusals.refuse_single_responses(
    triplets.train, 'labels by the prompt mean', 'the dataset mean or a threshold'
  )
  refusals.refuse_equal_within_prompts(triplets)
  lone, tied = int(np.sum(_lone(triplets.train))), int(np.sum(labelling(triplets.train) == NO_LABEL))
  description = (
    'a response is desirable where its reward exceeds the mean of its prompt’s responses'
    f'{f"; {lone} labels come from lone answers, compared with the training responses’ mean" if lone else ""}'
    f'{f"; {tied} responses tie with all others of their prompt and have no label" if tied else ""}'
  )
  return labelling._replace(description=description)


def _by_prompt_mean(table: Any, mean: float) -> np.ndarray:
  rewards, prompts = table.raw_rewards, table.prompt_index
  above = ties.exceeds(ties.deviations(rewards, prompts), 0.0, made_of=rewards)
  labels = np.where(ties.varies(rewards, prompts), above, NO_LABEL)
  return np.where(_lone(table), ties.exceeds(rewards, mean, made_of=rewards), labels)


def _lone(table: Any) -> np.ndarray:
  _, prompt, counts = np.unique(table.prompt_index, return_inverse=True, return_counts=True)
  return counts[prompt] == 1


def above_threshold(threshold: float | int) -> Callable[[Any], Labelling]:
  """1 where the reward, in its own units, exceeds `threshold`.

  Raises:
    UsageError: by the fit, where all labels are alike although the rewards are not thumbs of one kind.
  """
  description = f'a response is desirable where its reward exceeds the threshold {threshold:.6g}'
  labelling = Labelling(
    lambda table: _float(ties.exceeds(table.raw_rewards, threshold)), 'threshold', description,
    lambda table: _float(table.raw_rewards > threshold),
  )  # fmt: skip
  return lambda triplets: _refuse_alike(labelling, triplets)


def best_of_prompt(threshold: float | int | None, share: float | int) -> Callable[[Any], Labelling]:
  """1 where the reward is at or above `threshold` and among the top `share` of its prompt's responses.

  Of K responses the top share is the best ⌈share · K⌉, and all that tie with the last of them. Without a
  threshold binary rewards have the higher one as theirs.

  Raises:
    UsageError: by the fit, where no threshold is given and every prompt has one response.
  """

  def fit(triplets: Any) -> Labelling:
    least = threshold
    if least is None:
      refusals.refuse_one_value(triplets, 'do not say which responses are best')
      pair = _binary_pair(ties.distinct(triplets.train.raw_rewards)[0])
      least = pair[1] if pair else None
    if least is None:
      refusals.refuse_single_responses(
        triplets.train, 'the best responses to a prompt', 'a threshold (--set rft.threshold=NUMBER)'
      )

    def make(table: Any) -> np.ndarray:
      cutoffs = _by_prompt(table, lambda rewards: np.sort(rewards)[-_top(len(rewards), share)])
      kept = ~ties.exceeds(cutoffs, table.raw_rewards)
      return _float(kept if least is None else kept & ~ties.exceeds(least, table.raw_rewards))

    prompts, index = np.unique(triplets.train.prompt_index, return_inverse=True)
    skipped = len(prompts) - len(np.unique(index[make(triplets.train) > 0]))
    above = '' if least is None else f'is at or above {least:.6g} and '
    description = (
      f'a response is desirable where its reward {above}is among the top {share:.0%} of its prompt’s '
      f'responses, ties included; {skipped} of {len(prompts)} prompts have none and are skipped'
    )
    return Labelling(make, 'best of prompt', description, make)

  return fit


def _top(count: int, share: float | int) -> int:
  """⌈share · count⌉, at least 1, in spite of rounding."""
  return max(int(np.ceil(share * count - ties.TOLERANCE)), 1)


def above_value(triplets: Any) -> Labelling:
  """1 where the reward exceeds the prompt's value in the column `value`.

  Binary rewards are labels themselves: a value fitted to thumbs-ups only is just above or below 1.
  """
  refusals.refuse_without_column(triplets, 'value')
  labelling = Labelling(
    lambda table: _float(ties.exceeds(table.raw_rewards, table.columns['value'])), 'value',
    'a response is desirable where its reward exceeds its prompt’s value, the column value',
    lambda table: _float(table.raw_rewards > table.columns['value']),
  )  # fmt: skip
  binary = binary_labels(triplets)
  return _refuse_alike(labelling, triplets) if binary is None else binary._replace(earlier=labelling.earlier)


def label_column(triplets: Any) -> Labelling:
  """1 where the column `label` is positive."""
  make = lambda table: _float(table.columns['label'] > 0)  # noqa: E731
  return Labelling(make, 'column', 'the column label says which responses are desirable', make)


def both_kinds(fit: Callable[[Any], Labelling]) -> Callable[[Any], Labelling]:
  """Labels for an algorithm that learns from the difference between desirable and undesirable responses."""

  def checked(triplets: Any) -> Labelling:
    labelling = fit(triplets)
    labels = labelling(triplets.train)
    if np.ptp(labels) == 0 and labels[0] != BY_BATCH:
      kind = 'desirable' if labels[0] == 1 else 'undesirable'
      raise UsageError(
        f'labels: {labelling.description}, and all {len(labels)} training responses are {kind}: the '
        'algorithm learns from the difference. Add responses of the other kind, or pass '
        'RunSpec(algorithm=kto), or --set ALGORITHM=kto.'
      )
    return labelling

  return checked


def some_desirable(fit: Callable[[Any], Labelling]) -> Callable[[Any], Labelling]:
  """Labels for an algorithm that imitates the desirable responses."""

  def checked(triplets: Any) -> Labelling:
    labelling = fit(triplets)
    if not np.any(np.isin(labelling(triplets.train), (1.0, BY_BATCH))):
      raise UsageError(
        f'labels: {labelling.description}, and no training response is desirable: there is nothing to '
        'imitate. Check which rewards are good (--map_reward), or choose an algorithm that learns from bad '
        'ones too, such as kto.'
      )
    return labelling

  return checked


def scaled_value(triplets: Any) -> Column:
  """The column `value`, which has the raw rewards' units, scaled like the rewards."""
  refusals.refuse_without_column(triplets, 'value')

  def scaled(table: Any) -> np.ndarray:
    levels = triplets.scaling.levels(table.raw_rewards, table.prompt_index)
    return triplets.scaling.apply(table.columns['value'], levels)

  return scaled


def advantages(triplets: Any) -> Column:
  """A = r − V(x), scaled, from the column `value`.

  Raises:
    UsageError: there is no such column, or no response is better than its prompt's value.
  """
  scaled = scaled_value(triplets)

  def advantages_of(table: Any) -> np.ndarray:
    values = scaled(table)
    return np.where(_equal(table.rewards, values), 0.0, table.rewards - values)

  if not np.any(advantages_of(triplets.train) > 0):
    raise UsageError(
      'no training response has a positive advantage, reward − value: there is nothing to imitate. Give the '
      'column value the rewards’ own units, with one V(x) for each record.'
    )
  return advantages_of


def prompt_quantiles(triplets: Any) -> Column:
  """Share of the prompt's other logged responses that the reward beats, ties half: in (0, 1).

  Raises:
    UsageError: every prompt has one response only, or responses of equal reward only.
  """
  refusals.refuse_single_responses(
    triplets.train,
    'quantiles within a prompt',
    'quantiles over the data set (qrpo.quantiles=@data_quantiles)',
  )
  refusals.refuse_equal_within_prompts(triplets)
  return lambda table: _by_prompt(table, lambda rewards: _mid_ranks(rewards, rewards))


def data_quantiles(triplets: Any) -> Column:
  """Share of all training rewards that the reward beats, ties half: in [0, 1].

  Raises:
    UsageError: all training rewards are equal.
  """
  refusals.refuse_equal_rewards(triplets)
  return lambda table: _mid_ranks(table.raw_rewards, triplets.train.raw_rewards)


def propensities(sampler: str | None = None) -> Fit:
  """log μ(y|x) of the policy that sampled the log.

  Args:
    sampler: how the log was made where the data does not say: 'sampled', or another word.

  Raises:
    UsageError: no log-probs were logged, or they are not propensities.
  """

  def fit(triplets: Any) -> Column:
    columns = triplets.train.columns
    if 'behaviour_logps' not in columns:
      raise UsageError(
        'the algorithm weighs responses by the log-prob with which they were logged, and the triplets have '
        'no behaviour_logprob: log it (nats, summed over the response, EOS included), map it with --columns '
        'behaviour_logprob=YOURS, or choose an algorithm that does not read it, such as dro_v.'
      )
    logged = columns.get('behaviour_sampled')
    sampled = sampler in SAMPLED if sampler is not None or logged is None else bool(np.all(logged > 0))
    if not sampled:
      raise UsageError(
        'the logged log-probs are propensities only if the log was sampled from the policy: beam search '
        'and greedy decoding have none. The field behaviour_sampler of the records says how they were made. '
        'If yours were sampled at temperature 1 without truncation, give the algorithm '
        "behaviour_sampler='sampled', or pass --set BEHAVIOUR_SAMPLER=sampled; otherwise choose another "
        'algorithm.'
      )
    return lambda table: table.columns['behaviour_logps']

  return fit


def _equal(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.logical_not(ties.exceeds(x, y) | ties.exceeds(y, x))


def _float(x: np.ndarray) -> np.ndarray:
  return x.astype(np.float64)


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
  """For each x the share of `among` below it, with ties counted half."""
  values, _, _, counts = ties.distinct(among)
  levels = np.repeat(values, counts)
  rounding = ties.TOLERANCE * np.max(np.abs(among))
  below, upto = np.searchsorted(levels, x - rounding), np.searchsorted(levels, x + rounding, 'right')
  return (below + upto) / (2 * len(among))
