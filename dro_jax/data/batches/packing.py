"""How a batch's prompts and responses lie in its rows: padded, packed, or packed with prompts encoded once.

A layout changes speed, never membership and never a number.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dro_jax.data.batches.placement import (
  Capacity,
  Lengths,
  Placement,
  count_tokens,
  place_packed,
  place_padded,
  round_up,
)
from dro_jax.errors import UsageError

_MULTIPLE = 8  # Chosen lengths and slots are multiples of this.
_ROW_LENGTHS = 512, 1024, 2048  # Lengths of a row's side to try, where no text is longer.
_PROMPT_ROOMS = 1.0, 1.25, 1.5  # Least room for a row's prompts, in longest prompts.
_WORTH = 0.9  # Larger rows must save a tenth, because attention in them takes more memory.


class Measured(Protocol):
  """The part of a table that decides its layout: `[N]` each."""

  @property
  def prompt_lengths(self) -> np.ndarray: ...

  @property
  def response_lengths(self) -> np.ndarray: ...

  @property
  def prompt_index(self) -> np.ndarray: ...


class Batches(Protocol):
  """The part of a plan that decides its layout; `num_batches` is None where there is no end."""

  num_batches: int | None

  @property
  def most_responses(self) -> int: ...

  def batch(self, step: int) -> np.ndarray: ...


class Layout(NamedTuple):
  """The shape of a batch of rows, and how to fill it.

  Attributes:
    prompt_length: prompt tokens of a row, S.
    response_length: response tokens of a row, T.
    rows: rows of a batch; a batch that does not fit gets `row_multiple` more, as often as needed.
    slots: responses of a row at most, R.
    packed: many responses a row; otherwise one.
    encode_once: responses to one prompt in one row share one copy of it.
    row_multiple: rows come in multiples of this (the data-parallel ways of the mesh times the microbatches).
  """

  prompt_length: int
  response_length: int
  rows: int
  slots: int
  packed: bool = True
  encode_once: bool = True
  row_multiple: int = 1

  @classmethod
  def fit(
    cls,
    table: Measured,
    plan: Batches,
    *,
    prompt_length: int | None = None,
    response_length: int | None = None,
    packed: bool = True,
    encode_once: bool = True,
    row_multiple: int = 1,
    scan: int = 256,
    coverage: float | int = 1.0,
  ) -> 'Layout':
    """The smallest layout that holds the plan's batches.

    Args:
      table: the texts' lengths and prompts.
      plan: the plan of the batches.
      prompt_length: prompt tokens of a row; None takes the longest prompt (padded) or the length that fills
        the rows best.
      response_length: response tokens of a row; None likewise.
      packed: many responses a row.
      encode_once: share a prompt's copy among its responses in a row.
      row_multiple: the rows' divisor.
      scan: batches to fit.
      coverage: share of the scanned batches that the row count must hold; the rest take more rows (another
        shape, so another compilation). A share below 1 helps where a few prompts have very many or very long
        responses.
    """
    lengths = Lengths(table.prompt_lengths, table.response_lengths, table.prompt_index)
    if not packed:
      return _fit_padded(lengths, plan.most_responses, prompt_length, response_length, row_multiple)
    batches = [plan.batch(step) for step in range(min(scan, plan.num_batches or scan))]
    layout = cls(0, 0, row_multiple, plan.most_responses, True, encode_once, row_multiple)
    if prompt_length is None or response_length is None:
      return _fit_lengths(layout, lengths, batches, prompt_length, response_length, coverage)
    layout = layout._replace(prompt_length=prompt_length, response_length=response_length)
    _check_lengths(layout, lengths)
    return _fit_rows(layout, lengths, batches, coverage)

  @property
  def capacity(self) -> Capacity:
    """What a row holds at most."""
    return Capacity(self.prompt_length, self.response_length, self.slots)

  def place(
    self, prompt_lengths: np.ndarray, response_lengths: np.ndarray, prompt_index: np.ndarray
  ) -> Placement:
    """Places a batch, in `rows` rows or the next multiple that holds it."""
    lengths = Lengths(np.asarray(prompt_lengths), np.asarray(response_lengths), np.asarray(prompt_index))
    _check_lengths(self, lengths)
    if not self.packed:
      return place_padded(lengths, max(self.rows, round_up(len(lengths.prompt), self.row_multiple)))
    for rows in _row_counts(self, lengths):
      placement = place_packed(lengths, self.capacity, rows, self.encode_once)
      if placement is not None:
        return placement
    raise AssertionError('unreachable: one response a row always fits')


class Fill(NamedTuple):
  """How full rows are.

  Attributes:
    prompt, response: share of the prompt and of the response positions that hold tokens.
    total: share of both together.
    rows: batches by their number of rows; each number is a shape to compile.
  """

  prompt: float
  response: float
  total: float
  rows: Mapping[int, int]


def fill(table: Measured, layout: Layout, batches: Iterable[np.ndarray]) -> Fill:
  """How full rows are with batches of record numbers; table as for `Layout.fit`."""
  lengths = Lengths(table.prompt_lengths, table.response_lengths, table.prompt_index)
  tokens, rows = np.zeros(2, np.int64), collections.Counter()
  for batch in batches:
    batch_lengths = lengths.pick(batch)
    placement = layout.place(*batch_lengths)
    tokens += batch_lengths.prompt[placement.prompt_example].sum(), batch_lengths.response.sum()
    rows[placement.rows] += 1
  sides = np.array([layout.prompt_length, layout.response_length])
  area = sum(count * number for count, number in rows.items()) * sides
  prompt, response = (tokens / area).tolist()
  return Fill(prompt, response, float(tokens.sum() / area.sum()), dict(sorted(rows.items())))


def _check_lengths(layout: Layout, lengths: Lengths) -> None:
  longest = int(lengths.prompt.max()), int(lengths.response.max())
  if longest[0] > layout.prompt_length or longest[1] > layout.response_length:
    raise UsageError(
      f'rows hold {layout.prompt_length} prompt and {layout.response_length} response tokens, but the '
      f'longest prompt has {longest[0]} and the longest response {longest[1]}: make the rows at least that '
      'long (ROW_PROMPT_LENGTH, ROW_RESPONSE_LENGTH), or cut the texts (PROMPT_LENGTH, RESPONSE_LENGTH)'
    )


# --- choosing a layout --------------------------------------------------------------------------------------


def _fit_padded(
  lengths: Lengths, batch_size: int, prompt_length: int | None, response_length: int | None, row_multiple: int
) -> Layout:
  layout = Layout(
    prompt_length or round_up(lengths.prompt.max(), _MULTIPLE),
    response_length or round_up(lengths.response.max(), _MULTIPLE),
    round_up(batch_size, row_multiple), 1, packed=False, encode_once=False, row_multiple=row_multiple,
  )  # fmt: skip
  _check_lengths(layout, lengths)
  return layout


def _fit_rows(
  layout: Layout,
  lengths: Lengths,
  batches: Sequence[np.ndarray],
  coverage: float | int,
  placed: Sequence[Placement | None] | None = None,
) -> Layout:
  """The fewest rows that hold the share `coverage` of the batches; `placed` holds earlier placements.

  Slots: a quarter more than the fullest row takes, because slots are cheap and another shape is not.
  """
  placed = [None] * len(batches) if placed is None else placed
  placed = [known or layout.place(*lengths.pick(batch)) for known, batch in zip(placed, batches)]
  needed = sorted(placement.rows for placement in placed)
  fullest = max(int(placement.response_segment.max()) for placement in placed)
  slots = min(round_up(1.25 * fullest, _MULTIPLE), layout.slots)
  return layout._replace(rows=needed[-1 - _misfits(batches, coverage)], slots=slots)


def _misfits(batches: Sequence[np.ndarray], coverage: float | int) -> int:
  """The number of batches that may take more rows."""
  return min(int((1 - coverage) * len(batches) + 1e-9), len(batches) - 1)


def _fit_lengths(
  layout: Layout,
  lengths: Lengths,
  batches: Sequence[np.ndarray],
  prompt_length: int | None,
  response_length: int | None,
  coverage: float | int,
) -> Layout:
  """Rows of about 512 tokens a side, or larger ones where those save a tenth of the work.

  Larger rows save work where texts are so long that few share a row: each response then needs its own copy of
  its prompt, and one long prompt leaves no room for others.
  """
  totals = np.array([count_tokens(lengths.pick(batch), layout.encode_once) for batch in batches])
  totals = np.quantile(totals, coverage, axis=0)
  longest = np.array([lengths.prompt.max(), lengths.response.max()])
  fixed_lengths = prompt_length, response_length
  tried, seen = [], set()
  for length, room in itertools.product(_ROW_LENGTHS, _PROMPT_ROOMS):
    row = np.maximum(longest, [fixed or length for fixed in fixed_lengths])
    rows = round_up(max(totals / row), layout.row_multiple)
    least = longest * [room, 1]
    shortest = np.maximum(least, totals / rows)
    if (rows, *shortest) in seen:  # Where texts are short, many lengths and rooms give the same rows.
      continue
    seen.add((rows, *shortest))
    if tried and _work(rows, shortest) > _WORTH * tried[0][0]:
      continue
    candidate = _shortest_rows(
      layout._replace(rows=rows), lengths, batches, least, totals, fixed_lengths, coverage
    )
    tried.append((_work(candidate.rows, (candidate.prompt_length, candidate.response_length)), candidate))
  least_work, best = min(tried, key=lambda pair: pair[0])
  return best if least_work <= _WORTH * tried[0][0] else tried[0][1]


def _work(rows: int, lengths: Iterable[float]) -> float:
  """The cost of rows, in tokens: attention to 2048 positions costs as much as the rest of the network."""
  prompt, response = map(float, lengths)
  return rows * (prompt + response + (prompt**2 + response**2 + prompt * response) / 2048)


def _shortest_rows(
  layout: Layout,
  lengths: Lengths,
  batches: Sequence[np.ndarray],
  least: np.ndarray,
  totals: np.ndarray,
  fixed_lengths: tuple[int | None, int | None],
  coverage: float | int,
) -> Layout:
  """The shortest rows, at least `least` long, that hold the batches in the layout's number of rows."""
  allowed, rows = _misfits(batches, coverage), layout.rows
  # Texts of one length may fill rows to the last token.
  exact = [1.0] if max(totals / rows) >= _ROW_LENGTHS[0] else []
  for slack in (*exact, *np.arange(1.01, 3.0, 0.02)):
    sizes = np.maximum(least, totals / rows * slack)
    sizes = [fixed or round_up(size, _MULTIPLE) for fixed, size in zip(fixed_lengths, sizes)]
    layout = layout._replace(prompt_length=sizes[0], response_length=sizes[1])
    _check_lengths(layout, lengths)
    placed = _place_all(layout, lengths, batches, allowed)
    if placed is not None:
      break
  return _fit_rows(layout, lengths, batches, coverage, placed)


def _place_all(
  layout: Layout, lengths: Lengths, batches: Sequence[np.ndarray], allowed: int
) -> list[Placement | None] | None:
  """A placement of each batch in the layout's rows, None for a misfit; None if more than `allowed` misfit."""
  placed, misfits = [], 0
  for batch in batches:
    placed.append(place_packed(lengths.pick(batch), layout.capacity, layout.rows, layout.encode_once))
    misfits += placed[-1] is None
    if misfits > allowed:
      return None
  return placed


def _row_counts(layout: Layout, lengths: Lengths) -> Iterator[int]:
  """Row counts to try: the layout's own, then one multiple more each time, up to one response a row."""
  last = max(layout.rows, round_up(len(lengths.prompt), layout.row_multiple))
  return iter(range(layout.rows, last + layout.row_multiple, layout.row_multiple))
