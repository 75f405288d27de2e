"""Rows for this host: any batch, any range of its rows, also loaded in the background."""

import functools
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from dro_jax.data.batches import packing
from dro_jax.data.batches.mismatched import Mismatch, mismatch
from dro_jax.data.batches.placement import Placement
from dro_jax.data.batches.plan import Plan, SequentialPlan, UnitPlan
from dro_jax.data.table.flat import Ragged
from dro_jax.data.table.table import TokenTable
from dro_jax.types import Mismatched, Rows, Units

# A step, its rows and no error; the error alone; or nothing, at the end.
_Loaded = tuple[int | None, Rows | None, BaseException | None]


class _Batch(NamedTuple):
  examples: np.ndarray
  placement: Placement
  mismatch: Mismatch | None


class MismatchedPairs(NamedTuple):
  """Records of the responses and of the prompts `[n]`, and the rows and slots in which they are scored."""

  response: np.ndarray
  prompt: np.ndarray
  row: np.ndarray
  slot: np.ndarray


class Loader:
  """Batches of a token table as rows.

  Every host computes the placement of the whole batch from lengths, and reads only the tokens of its own rows
  (and of the rows whose responses these decode, for mismatched pairs).

  Args:
    table: of the records.
    plan: over its records.
    layout: of the rows.
    mismatched: add KTO's mismatched decoder side to the rows.
  """

  def __init__(
    self,
    table: TokenTable,
    plan: Plan | SequentialPlan | UnitPlan,
    layout: packing.Layout,
    *,
    mismatched: bool = False,
  ):
    if plan.num_examples != len(table):
      raise ValueError(f'the plan is for {plan.num_examples} records, and the table has {len(table)}')
    self.table, self.plan, self.layout, self.mismatched = table, plan, layout, mismatched
    self._batch = functools.lru_cache(maxsize=4)(self._place)
    self._seen = {layout.rows}

  def num_rows(self, step: int) -> int:
    """Rows of batch `step`: the layout's, or more where the batch does not fit them."""
    return self._batch(step).placement.rows

  def rows(self, step: int, start: int = 0, stop: int | None = None) -> Rows:
    """Rows [start, stop) of batch `step`, numpy, padding 0; `example_id` is a record's number."""
    batch = self._batch(step)
    stop = batch.placement.rows if stop is None else stop
    if not 0 <= start <= stop <= batch.placement.rows:
      raise ValueError(f'rows {start}..{stop} of batch {step}: it has the rows 0..{batch.placement.rows}')
    here = np.arange(start, stop)
    rewards, example_id, valid, columns = self._per_response(batch, here)
    return Rows(  # type: ignore[call-arg]
      *self._prompts(batch, here),
      *self._responses(batch, here, here, batch.placement.response_prompt),
      *(rewards, example_id, valid, columns | self._per_pair(batch, here)),
      mismatched=self._mismatched(batch, here) if self.mismatched else None,
      token_columns=self._per_token(batch, here),
      units=self._units(step, batch),
    )

  def mismatched_pairs(self, step: int) -> 'MismatchedPairs':
    """The responses that batch `step` scores under other prompts."""
    return self._pairs(self._batch(step))

  def places(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(record, row, first position in the row) of batch `step`'s responses, `[n]` each."""
    batch = self._batch(step)
    return batch.examples, batch.placement.response_row, batch.placement.response_start

  def slots(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(`example_id`, `valid`) of batch `step`, `[rows, slots]`, without reading a token."""
    batch = self._batch(step)
    _, example_id, valid, _ = self._per_response(batch, np.arange(batch.placement.rows))
    return example_id, valid

  def fill(self, step: int) -> tuple[float, float]:
    """Shares of batch `step`'s prompt and response positions that hold tokens."""
    batch = self._batch(step)
    prompt = self.table.prompt_lengths[batch.examples[batch.placement.prompt_example]].sum()
    response = self.table.response_lengths[batch.examples].sum()
    rows = batch.placement.rows
    return prompt / (rows * self.layout.prompt_length), response / (rows * self.layout.response_length)

  def _place(self, step: int) -> _Batch:
    examples = self.plan.batch(step)
    index = self.table.prompt_index[examples]
    placement = self.layout.place(
      self.table.prompt_lengths[examples], self.table.response_lengths[examples], index
    )
    if placement.rows not in self._seen:
      self._seen.add(placement.rows)
      logging.getLogger(__name__).info(
        'batch %d takes %d rows instead of %d, which needs one more compilation',
        step,
        placement.rows,
        self.layout.rows,
      )
    return _Batch(examples, placement, mismatch(placement, index) if self.mismatched else None)

  def _prompts(self, batch: _Batch, here: np.ndarray) -> tuple[np.ndarray, ...]:
    """Tokens, segments and positions of the prompts of some rows, each `[B, S]`."""
    place = batch.placement
    mine = np.flatnonzero(np.isin(place.prompt_row, here))
    texts = self.table.prompt_tokens(batch.examples[place.prompt_example[mine]])
    rows = place.prompt_row[mine] - (here[0] if len(here) else 0)
    shape = len(here), self.layout.prompt_length
    return tuple(_spread(texts, rows, place.prompt_start[mine], shape, place.prompt_segment[mine]))

  def _responses(
    self, batch: _Batch, here: np.ndarray, sources: np.ndarray, prompts: np.ndarray
  ) -> np.ndarray:
    """Tokens, segments, positions and prompts of responses of rows `sources`, in rows `here`, `[B, T]`."""
    place = batch.placement
    row_of = np.full(place.rows, -1)
    row_of[sources] = np.arange(len(sources))
    rows = row_of[place.response_row]
    mine = np.flatnonzero(rows >= 0)
    texts = self.table.response_tokens(batch.examples[mine])
    shape = len(here), self.layout.response_length
    segments = place.response_segment[mine], prompts[mine]
    return _spread(texts, rows[mine], place.response_start[mine], shape, *segments)

  def _per_response(
    self, batch: _Batch, here: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Rewards, example ids, validity and columns, each `[B, R]`."""
    place = batch.placement
    mine = np.flatnonzero(np.isin(place.response_row, here))
    where = place.response_row[mine] - (here[0] if len(here) else 0), place.response_segment[mine] - 1
    examples = batch.examples[mine]

    def spread(values: np.ndarray, dtype: DTypeLike) -> np.ndarray:
      values_BR = np.zeros((len(here), self.layout.slots), dtype)
      values_BR[where] = values
      return values_BR

    columns = {name: spread(column[examples], np.float32) for name, column in self.table.columns.items()}
    rewards = spread(self.table.rewards[examples], np.float32)
    return rewards, spread(examples, np.int32), spread(np.ones(len(mine)), np.bool_), columns

  def _per_token(self, batch: _Batch, here: np.ndarray) -> dict[str, np.ndarray]:
    """The table's numbers by token, `[B, T]` each."""
    place = batch.placement
    filled = {
      name: np.zeros((len(here), self.layout.response_length), np.float32)
      for name in self.table.token_columns
    }
    for name, values_BT in filled.items():
      for i in np.flatnonzero(np.isin(place.response_row, here)):
        values = self.table.token_column(name, int(batch.examples[i]))
        start = place.response_start[i]
        values_BT[place.response_row[i] - here[0], start : start + len(values)] = values
    return filled

  def _per_pair(self, batch: _Batch, here: np.ndarray) -> dict[str, np.ndarray]:
    """The table's numbers of mismatched pairs, `[B, R]` each, in the slots of the rows that decode them."""
    if not (self.mismatched and self.table.pair_columns):
      return {}
    pairs = self._pairs(batch)
    pairs = MismatchedPairs(*(x[np.isin(pairs.row, here)] for x in pairs))
    digests = self.table.prompt_digests[pairs.prompt], self.table.response_digests(pairs.response)
    filled = {}
    for name, lookup in self.table.pair_columns.items():
      filled[name] = np.zeros((len(here), self.layout.slots), np.float32)
      if len(pairs.row):
        filled[name][pairs.row - here[0], pairs.slot] = lookup(*digests)
    return filled

  def _pairs(self, batch: _Batch) -> MismatchedPairs:
    place, mismatch = batch.placement, batch.mismatch
    paired = np.flatnonzero(mismatch.prompt > 0)
    row = np.argsort(mismatch.source_row)[place.response_row[paired]]
    copies = {at: i for i, at in enumerate(zip(place.prompt_row.tolist(), place.prompt_segment.tolist()))}
    copy = [copies[at] for at in zip(row.tolist(), mismatch.prompt[paired].tolist())]
    prompts = batch.examples[place.prompt_example[np.asarray(copy, np.int64)]]
    return MismatchedPairs(batch.examples[paired], prompts, row, place.response_segment[paired] - 1)

  def _units(self, step: int, batch: _Batch) -> Units | None:
    """The places of each pair's or group's members in the whole batch; the same on every host."""
    records_UK = self.plan.units(step)
    if records_UK is None:
      return None
    place, present = batch.placement, records_UK >= 0
    number_UK = np.zeros_like(records_UK)
    order = np.argsort(batch.examples)
    number_UK[present] = order[np.searchsorted(batch.examples, records_UK[present], sorter=order)]
    slots_UK = place.response_row[number_UK] * self.layout.slots + place.response_segment[number_UK] - 1
    short = ((0, self.plan.batch_size - len(records_UK)), (0, 0))
    index_UK = np.pad(np.where(present, slots_UK, 0), short).astype(np.int32)
    return Units(index_UK, np.pad(present, short))

  def _mismatched(self, batch: _Batch, here: np.ndarray) -> Mismatched:
    place, prompts = batch.placement, batch.mismatch.prompt
    sources = batch.mismatch.source_row[here]
    valid = np.zeros((len(here), self.layout.slots), np.bool_)
    for row, source in enumerate(sources):
      for i in np.flatnonzero(place.response_row == source):
        valid[row, place.response_segment[i] - 1] = prompts[i] > 0
    return Mismatched(*self._responses(batch, here, sources, prompts), valid)  # type: ignore[call-arg]


def _spread(
  texts: Ragged, rows: np.ndarray, starts: np.ndarray, shape: tuple[int, int], *segments: np.ndarray
) -> np.ndarray:
  """Tokens, the first segments, positions and other segments, each in its place in a row: int32.

  Args:
    texts: n of them, one after the other.
    rows: of each, `[n]`.
    starts: first position of each in its row, `[n]`.
    shape: rows and positions.
    segments: numbers that every token of a text has, `[n]` each.
  """
  lengths = np.diff(texts.starts)
  positions = np.arange(texts.starts[-1]) - np.repeat(texts.starts[:-1], lengths)
  at = np.repeat(rows * shape[1] + starts, lengths) + positions
  filled = np.zeros((2 + len(segments), shape[0] * shape[1]), np.int32)
  first, *others = (np.repeat(numbers, lengths) for numbers in segments)
  for values, numbers in zip(filled, (texts.flat, first, positions, *others)):
    values[at] = numbers
  return filled.reshape(len(filled), *shape)


def prefetch(
  loader: Loader,
  steps: Iterable[int],
  host_rows: Callable[[int], tuple[int, int]] | None = None,
  size: int = 2,
) -> Iterator[tuple[int, Rows]]:
  """Yields (step, rows) for `steps`, loaded up to `size` batches ahead in a background thread.

  An exception of the loader is raised here, at its step. Closing the generator ends the thread.

  Args:
    loader: of the batches.
    steps: of the batches, in order.
    host_rows: from the number of rows of a batch to the range [start, stop) that this host holds; None: all.
    size: batches loaded ahead.
  """
  ready: queue.Queue[_Loaded] = queue.Queue(maxsize=size)
  closed = threading.Event()

  def put(item: _Loaded) -> None:
    while not closed.is_set():
      try:
        return ready.put(item, timeout=0.1)
      except queue.Full:
        continue

  def work() -> None:
    try:
      for step in steps:
        if closed.is_set():
          return
        here = host_rows(loader.num_rows(step)) if host_rows else (0, None)
        put((step, loader.rows(step, *here), None))
      put((None, None, None))
    except BaseException as error:
      put((None, None, error))

  thread = threading.Thread(target=work, name='prefetch', daemon=True)
  thread.start()
  try:
    while True:
      step, rows, error = ready.get()
      if error is not None:
        raise error
      if rows is None:
        return
      yield step, rows
  finally:
    closed.set()
    thread.join(timeout=5)
