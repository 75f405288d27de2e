"""The epoch plan: the responses of batch `step`, a pure function of (seed, step).

With the deal `together` an epoch is one pass over the records, prompt by prompt in random order, cut into
windows of a few thousand responses. Inside a window every batch gets one member of each length stratum, the
longest to the lightest batch, and then members of one stratum are swapped until the batches' token totals
agree. So every batch has the data's mix of lengths (and of rewards, which follow length) and almost the same
number of tokens, and packs into a fixed number of rows. The layout, the mesh and the hosts do not change
which responses a batch holds.

With the deal `uniform` an epoch is the records in random order, cut into batches: each batch is a uniform
draw without replacement.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from dro_jax.data.batches import dealing
from dro_jax.data.table.table import TokenTable
from dro_jax.errors import UsageError, did_you_mean

DEALS = ('together', 'uniform')


class Plan:
  """An endless stream of batches of exactly `batch_size` responses: epoch after epoch, random access.

  Without `weights` every response is drawn exactly once an epoch; the batch at a boundary takes the last
  responses of one epoch and the first of the next. With `weights` (on any scale; mixture rates are such
  weights) an epoch is N draws with replacement. Responses to one prompt are dealt to one batch, next to each
  other, and split only where `batch_size` or the end of a window requires it. With `deal='uniform'` a batch
  is any `batch_size` of the responses, with equal chances.

  Args:
    prompt_lengths: tokens of each response's prompt, `[N]`.
    response_lengths: tokens of each response, `[N]`.
    prompt_index: equal numbers for equal prompts, `[N]`.
    batch_size: responses a batch.
    seed: of the shuffle.
    window: about how many batches are balanced with each other; windows of one epoch are equal in size.
    weights: chance of each response to be drawn, `[N]`, up to a common factor.
    deal: 'together' or 'uniform'.

  Raises:
    UsageError: an unknown deal.
  """

  def __init__(
    self,
    prompt_lengths: Sequence[int] | np.ndarray,
    response_lengths: Sequence[int] | np.ndarray,
    prompt_index: Sequence[int] | np.ndarray,
    batch_size: int,
    seed: int,
    *,
    window: int = 128,
    weights: Sequence[float] | np.ndarray | None = None,
    deal: str = 'together',
  ):
    self._prompt_lengths = np.asarray(prompt_lengths, np.int64)
    self._response_lengths = np.asarray(response_lengths, np.int64)
    self._groups = np.unique(np.asarray(prompt_index), return_inverse=True)[1]
    self.num_examples = len(self._groups)
    self.batch_size, self.seed, self._window_size = int(batch_size), int(seed), int(window)
    self.num_batches = None  # The stream never ends.
    self._weights = None if weights is None else _chances(weights, self.num_examples)
    _check(self._prompt_lengths, self._response_lengths, self._groups, batch_size, window)
    self.deal = _checked_deal(deal)
    self._order = functools.lru_cache(maxsize=2)(self._draw_order)
    self._window = functools.lru_cache(maxsize=4)(self._deal_window)

  @classmethod
  def from_table(
    cls, table: TokenTable, batch_size: int, seed: int, *, window: int = 128, deal: str = 'together'
  ) -> 'Plan':
    """The plan of a token table, with the table's sampling weights (mixture rates) if it has any."""
    return cls(
      table.prompt_lengths, table.response_lengths, table.prompt_index, batch_size, seed,
      window=window, weights=table.weights, deal=deal,
    )  # fmt: skip

  @staticmethod
  def sequential(num_examples: int, batch_size: int) -> 'SequentialPlan':
    """Every record once, in order, for evaluation; the last batch may be short."""
    return SequentialPlan(num_examples, batch_size)

  @property
  def batches_per_epoch(self) -> float:
    return self.num_examples / self.batch_size

  @property
  def most_responses(self) -> int:
    """Responses of the largest batch."""
    return self.batch_size

  def units(self, step: int) -> None:
    """The batch's pairs or groups: none."""

  def epoch(self, step: int) -> int:
    """The epoch in which batch `step` begins, from 0."""
    return step * self.batch_size // self.num_examples

  def batch(self, step: int) -> np.ndarray:
    """Record numbers of batch `step`, `[batch_size]`; dealt together, one prompt's are side by side."""
    if step < 0:
      raise ValueError(f'step must be 0 or more, got {step}')
    first, last = step * self.batch_size, (step + 1) * self.batch_size - 1
    epochs = range(first // self.num_examples, last // self.num_examples + 1)
    return np.concatenate([self._share(epoch, step) for epoch in epochs])

  def _share(self, epoch: int, step: int) -> np.ndarray:
    """The responses that batch `step` takes from one epoch."""
    segment = step - epoch * self.num_examples // self.batch_size
    if self.deal == 'uniform':
      start, stop = self._segments(epoch)[segment : segment + 2]
      return self._order(epoch)[start:stop]
    cuts = self._window_cuts(epoch)
    window = int(np.searchsorted(cuts, segment, side='right')) - 1
    return self._window(epoch, window)[segment - int(cuts[window])]

  def _segments(self, epoch: int) -> np.ndarray:
    """The positions where batches cut an epoch, from 0 to N; the first and last segments may be partial."""
    first, end = epoch * self.num_examples, (epoch + 1) * self.num_examples
    cuts = np.arange(first // self.batch_size, -(-end // self.batch_size) + 1) * self.batch_size
    return np.clip(cuts, first, end) - first

  def _window_cuts(self, epoch: int) -> np.ndarray:
    """Segment numbers where windows begin, and the end; equal windows are all large enough to balance."""
    num_segments = len(self._segments(epoch)) - 1
    num_windows = max(1, round(num_segments / self._window_size))
    return np.arange(num_windows + 1) * num_segments // num_windows

  def _draw_order(self, epoch: int) -> np.ndarray:
    """An epoch's records: shuffled, by prompt where they are dealt together, or drawn with replacement."""
    rng = np.random.default_rng([self.seed, epoch])
    if self._weights is not None:
      return rng.choice(self.num_examples, self.num_examples, p=self._weights)
    shuffled = rng.permutation(self.num_examples)
    if self.deal == 'uniform':
      return shuffled
    rank = rng.permutation(self._groups.max() + 1)
    return shuffled[np.argsort(rank[self._groups[shuffled]], kind='stable')]

  def _deal_window(self, epoch: int, window: int) -> list[np.ndarray]:
    """The segments of one window, each an array of record numbers."""
    cuts = self._window_cuts(epoch)
    bounds = self._segments(epoch)[cuts[window] : cuts[window + 1] + 1]
    rng = np.random.default_rng([self.seed, epoch, window])
    records = self._order(epoch)[bounds[0] : bounds[-1]]
    records = records[np.argsort(self._first_seen(records), kind='stable')]
    pieces = dealing.deal(self._runs(records), self._measure(records), np.diff(bounds), rng)
    return [dealing.gather(records, pieces, batch, rng) for batch in range(len(bounds) - 1)]

  def _first_seen(self, records: np.ndarray) -> np.ndarray:
    """Where each record's prompt first occurs: sorting by this joins groups and keeps the order."""
    _, first, inverse = np.unique(self._groups[records], return_index=True, return_inverse=True)
    return first[inverse]

  def _runs(self, records: np.ndarray) -> np.ndarray:
    """Boundaries of the runs of one prompt, none longer than a batch."""
    changes = np.flatnonzero(np.diff(self._groups[records])) + 1
    edges = np.concatenate([[0], changes, [len(records)]])
    if np.diff(edges).max() <= self.batch_size:
      return edges
    parts = [np.arange(a, b, self.batch_size) for a, b in itertools.pairwise(edges)]
    return np.concatenate([*parts, edges[-1:]])

  def _measure(self, records: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function to the loads of pieces `[n, 3]`, in average responses.

    The loads are prompt tokens once, prompt tokens for each response, and response tokens. Both counts of the
    prompt are balanced, because membership must not depend on the layout.
    """
    prompt, response = self._prompt_lengths[records], self._response_lengths[records]
    totals = np.concatenate([[0], np.cumsum(response)])

    def measure(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
      once = prompt[start]
      return np.stack([once, once * (stop - start), totals[stop] - totals[start]], -1) / scale

    scale: float | np.ndarray = 1.0
    edges = self._runs(records)
    means = measure(edges[:-1], edges[1:]).sum(0) / len(records)
    scale = np.where(means > 0, means, 1.0)
    return measure


class SequentialPlan:
  """Every record once, in order; the last batch is short."""

  deal = None  # Nothing is shuffled.

  def __init__(self, num_examples: int, batch_size: int):
    if num_examples < 1 or batch_size < 1:
      raise UsageError(
        f'{num_examples} records in batches of {batch_size}: pass 1 or more, as Batches(size=32) or --set '
        'BATCH=32'
      )
    self.num_examples, self.batch_size = int(num_examples), int(batch_size)
    self.num_batches = -(-self.num_examples // self.batch_size)

  @property
  def batches_per_epoch(self) -> float:
    return self.num_batches

  @property
  def most_responses(self) -> int:
    return self.batch_size

  def units(self, step: int) -> None:
    """The batch's pairs or groups: none."""

  def epoch(self, step: int) -> int:
    return step // self.num_batches

  def batch(self, step: int) -> np.ndarray:
    """Record numbers of batch `step`, `[batch_size]`, or fewer in the last batch."""
    if not 0 <= step < self.num_batches:
      raise ValueError(
        f'{self.num_examples} records make {self.num_batches} batches: there is no batch {step}'
      )
    return np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.num_examples))


class UnitPlan:
  """Batches of exactly `batch_size` pairs or groups, as the responses that make them up.

  A response in several units of a batch occurs once, so that batches differ in their number of responses.

  Args:
    plan: over the units, of any kind.
    members: `[U, K]` record numbers of each unit, −1 where there is none (see `groups.form`).
    num_examples: records of the table.
  """

  def __init__(self, plan: Plan | SequentialPlan, members: np.ndarray, num_examples: int):
    if plan.num_examples != len(members):
      raise ValueError(f'the plan is for {plan.num_examples} units, and there are {len(members)}')
    self._plan, self._members, self.num_examples = plan, members, num_examples
    self.batch_size, self.num_batches, self.deal = plan.batch_size, plan.num_batches, plan.deal

  @classmethod
  def from_table(
    cls, table: TokenTable, members: np.ndarray, batch_size: int, seed: int, *, deal: str = 'together'
  ) -> 'UnitPlan':
    """The endless plan of a table's units, each dealt whole: one prompt's together, or uniformly."""
    mask, best = members >= 0, members[:, 0]
    lengths = np.where(mask, table.response_lengths[members], 0).sum(1)
    weights = None if table.weights is None else np.where(mask, table.weights[members], 0).sum(1)
    plan = Plan(
      table.prompt_lengths[best], lengths, table.prompt_index[best], batch_size, seed,
      weights=weights, deal=deal,
    )  # fmt: skip
    return cls(plan, members, len(table))

  @property
  def batches_per_epoch(self) -> float:
    return self._plan.batches_per_epoch

  @property
  def members(self) -> np.ndarray:
    """Record numbers of every unit, `[U, K]`."""
    return self._members

  @property
  def most_responses(self) -> int:
    return self.batch_size * self._members.shape[1]

  def epoch(self, step: int) -> int:
    return self._plan.epoch(step)

  def units(self, step: int) -> np.ndarray:
    """Record numbers of batch `step`'s units, `[batch_size, K]`; −1 where a unit is smaller.

    A short last batch has fewer units.
    """
    return self._members[self._plan.batch(step)]

  def batch(self, step: int) -> np.ndarray:
    """Record numbers of batch `step`, each once, one unit's next to each other."""
    records = self.units(step).ravel()
    records = records[records >= 0]
    return records[np.sort(np.unique(records, return_index=True)[1])]


def _checked_deal(deal: str) -> str:
  if deal not in DEALS:
    near = did_you_mean(deal, DEALS)
    raise UsageError(
      f"deal '{deal}' is unknown{near}; choose from {', '.join(DEALS)}, as Batches(deal=...) or --set "
      'DEAL=...'
    )
  return deal


def _chances(weights: Sequence[float] | np.ndarray, num_examples: int) -> np.ndarray:
  weights = np.asarray(weights, np.float64)
  if (
    weights.shape != (num_examples,)
    or not np.isfinite(weights).all()
    or (weights < 0).any()
    or not weights.any()
  ):
    raise ValueError(f'weights must be {num_examples} finite numbers of 0 or more, not all 0; got {weights}')
  return weights / weights.sum()


def _check(
  prompt_lengths: np.ndarray, response_lengths: np.ndarray, groups: np.ndarray, batch_size: int, window: int
) -> None:
  if not len(prompt_lengths) == len(response_lengths) == len(groups) > 0:
    raise ValueError(
      'prompt_lengths, response_lengths and prompt_index need one entry for each response, and at least one '
      f'response; got {len(prompt_lengths)}, {len(response_lengths)} and {len(groups)}'
    )
  if batch_size < 1 or window < 1:
    raise ValueError(f'batch_size and window must be positive, got {batch_size} and {window}')
