"""Where a batch's prompts and responses lie in its rows: padded, packed, or packed with prompts encoded once.

A layout changes speed, never membership and never a number. It works on lengths alone, so every host can
compute the placement of a whole batch without reading a token of it.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import scipy.optimize

from dro_jax.errors import UsageError

_MULTIPLE = 8  # Chosen lengths and slots are multiples of this.
_ROW_LENGTHS = 512, 1024, 2048  # Tokens of a row's side that are tried, where no text is longer.
_PROMPT_ROOMS = 1.0, 1.25, 1.5  # Times the longest prompt that a row's prompts take at least.
_WORTH = 0.9  # Larger rows must save a tenth: attention in them takes more memory.
_REPAIRS = 64  # Local swaps before a batch is said not to fit.


class Placement(NamedTuple):
  """Where everything of a batch lies. Segments count from 1 in a row; n responses, m copies of prompts."""

  rows: int
  response_row: np.ndarray  # [n]
  response_segment: np.ndarray  # [n]
  response_start: np.ndarray  # [n], position in the row
  response_prompt: np.ndarray  # [n], the segment of its prompt
  prompt_example: np.ndarray  # [m], which response of the batch (0..n-1) the copy was made for
  prompt_row: np.ndarray  # [m]
  prompt_segment: np.ndarray  # [m]
  prompt_start: np.ndarray  # [m]


class Layout(NamedTuple):
  """The shape of a batch of rows, and how to fill it.

  Attributes:
    prompt_length: prompt tokens of a row, S.
    response_length: response tokens of a row, T.
    rows: rows of a batch; one that does not fit gets `row_multiple` more, as often as needed.
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
    table,
    plan,
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
      table: anything with `prompt_lengths`, `response_lengths` and `prompt_index`.
      plan: whose batches to hold.
      prompt_length: prompt tokens of a row; None takes the longest prompt (padded) or what fills the rows
        best.
      response_length: response tokens of a row; None likewise.
      packed: many responses a row.
      encode_once: share a prompt's copy among its responses in a row.
      row_multiple: the rows' divisor.
      scan: batches to look at.
      coverage: share of the scanned batches that the row count must hold; the rest take more rows (another
        shape, so another compilation). Below 1 pays where a few prompts have very many or very long
        responses.
    """
    lengths = _Lengths(table.prompt_lengths, table.response_lengths, table.prompt_index)
    if not packed:
      return _fit_padded(lengths, plan.most_responses, prompt_length, response_length, row_multiple)
    batches = [plan.batch(step) for step in range(min(scan, plan.num_batches or scan))]
    layout = cls(0, 0, row_multiple, plan.most_responses, True, encode_once, row_multiple)
    if prompt_length is None or response_length is None:
      return _fit_lengths(layout, lengths, batches, prompt_length, response_length, coverage)
    layout = layout._replace(prompt_length=prompt_length, response_length=response_length)
    _check_lengths(layout, lengths)
    return _fit_rows(layout, lengths, batches, coverage)

  def place(
    self, prompt_lengths: np.ndarray, response_lengths: np.ndarray, prompt_index: np.ndarray
  ) -> Placement:
    """Places a batch, in `rows` rows or the next multiple that holds it."""
    lengths = _Lengths(np.asarray(prompt_lengths), np.asarray(response_lengths), np.asarray(prompt_index))
    _check_lengths(self, lengths)
    if not self.packed:
      return _place_padded(lengths, self)
    for rows in _row_counts(self, lengths):
      placement = _place(lengths, self, rows)
      if placement is not None:
        return placement
    raise AssertionError('unreachable: one response a row always fits')


class Fill(NamedTuple):
  """How full rows are: the share of their positions that hold tokens, and how many rows batches take.

  prompt, response  of the encoder's and of the decoder's positions.
  total             of both together.
  rows              batches by their number of rows; each number is a shape to compile.
  """

  prompt: float
  response: float
  total: float
  rows: Mapping[int, int]


def fill(table, layout: Layout, batches: Iterable[np.ndarray]) -> Fill:
  """Places batches of record numbers, and looks how much of the rows they take; table as for `Layout.fit`."""
  lengths = _Lengths(table.prompt_lengths, table.response_lengths, table.prompt_index)
  tokens, rows = np.zeros(2, np.int64), collections.Counter()
  for batch in batches:
    of_batch = lengths.pick(batch)
    placement = layout.place(*of_batch)
    tokens += of_batch.prompt[placement.prompt_example].sum(), of_batch.response.sum()
    rows[placement.rows] += 1
  sides = np.array([layout.prompt_length, layout.response_length])
  area = sum(count * number for count, number in rows.items()) * sides
  prompt, response = (tokens / area).tolist()
  return Fill(prompt, response, float(tokens.sum() / area.sum()), dict(sorted(rows.items())))


class _Lengths(NamedTuple):
  prompt: np.ndarray
  response: np.ndarray
  index: np.ndarray  # type: ignore[assignment]  # Hides the method of tuples.

  def pick(self, examples: np.ndarray) -> '_Lengths':
    return _Lengths(self.prompt[examples], self.response[examples], self.index[examples])


def _check_lengths(layout: Layout, lengths: _Lengths) -> None:
  longest = int(lengths.prompt.max()), int(lengths.response.max())
  if longest[0] > layout.prompt_length or longest[1] > layout.response_length:
    raise UsageError(
      f'rows hold {layout.prompt_length} prompt and {layout.response_length} response tokens, but the '
      f'longest prompt has {longest[0]} and the longest response {longest[1]}: make the rows at least that '
      'long (ROW_PROMPT_LENGTH, ROW_RESPONSE_LENGTH), or cut the texts (PROMPT_LENGTH, RESPONSE_LENGTH)'
    )


# --- choosing a layout --------------------------------------------------------------------------------------


def _round_up(number, multiple: int) -> int:
  return int(-(-number // multiple)) * multiple


def _fit_padded(lengths, batch_size: int, prompt_length, response_length, row_multiple: int) -> Layout:
  layout = Layout(
    prompt_length or _round_up(lengths.prompt.max(), _MULTIPLE),
    response_length or _round_up(lengths.response.max(), _MULTIPLE),
    _round_up(batch_size, row_multiple), 1, packed=False, encode_once=False, row_multiple=row_multiple,
  )  # fmt: skip
  _check_lengths(layout, lengths)
  return layout


def _fit_rows(layout: Layout, lengths: _Lengths, batches: list, coverage: float | int, placed=None) -> Layout:
  """The fewest rows that hold the share `coverage` of the batches; `placed` holds placements made before.

  Slots: room for the fullest row seen and a quarter more, because slots are cheap and another shape is not.
  """
  placed = [None] * len(batches) if placed is None else placed
  placed = [found or layout.place(*lengths.pick(batch)) for found, batch in zip(placed, batches)]
  needed = sorted(placement.rows for placement in placed)
  fullest = max(int(placement.response_segment.max()) for placement in placed)
  slots = min(_round_up(1.25 * fullest, _MULTIPLE), layout.slots)
  return layout._replace(rows=needed[-1 - _misfits(batches, coverage)], slots=slots)


def _misfits(batches: list, coverage: float | int) -> int:
  """How many of the batches may take more rows."""
  return min(int((1 - coverage) * len(batches) + 1e-9), len(batches) - 1)


def _fit_lengths(layout, lengths, batches, prompt_length, response_length, coverage: float | int) -> Layout:
  """Rows of about 512 tokens a side; larger ones where those save a tenth of the work.

  They do where texts are so long that few share a row: its responses then bring a copy of their prompt each,
  and one long prompt keeps all others out.
  """
  totals = np.array([_tokens(lengths.pick(batch), layout.encode_once) for batch in batches])
  totals = np.quantile(totals, coverage, axis=0)
  longest = np.array([lengths.prompt.max(), lengths.response.max()])
  given = prompt_length, response_length
  tried, seen = [], set()
  for length, room in itertools.product(_ROW_LENGTHS, _PROMPT_ROOMS):
    row = np.maximum(longest, [fixed or length for fixed in given])
    rows = _round_up(max(totals / row), layout.row_multiple)
    least = longest * [room, 1]
    shortest = np.maximum(least, totals / rows)
    if (rows, *shortest) in seen:  # Where texts are short, many a length and room come to the same rows.
      continue
    seen.add((rows, *shortest))
    if tried and _work(rows, shortest) > _WORTH * tried[0][0]:
      continue
    found = _shortest_rows(layout._replace(rows=rows), lengths, batches, least, totals, given, coverage)
    tried.append((_work(found.rows, (found.prompt_length, found.response_length)), found))
  best = min(tried, key=lambda one: one[0])
  return best[1] if best[0] <= _WORTH * tried[0][0] else tried[0][1]


def _work(rows: int, lengths: Iterable) -> float:
  """What rows cost, in tokens: attention to 2048 positions counts as all else that a token passes through."""
  prompt, response = map(float, lengths)
  return rows * (prompt + response + (prompt**2 + response**2 + prompt * response) / 2048)


def _shortest_rows(layout, lengths, batches, least, totals, given, coverage: float | int) -> Layout:
  """The shortest rows, `least` or more, of which the layout's number holds the batches."""
  allowed, rows = _misfits(batches, coverage), layout.rows
  # Texts of one length may fill rows to the last token.
  exact = [1.0] if max(totals / rows) >= _ROW_LENGTHS[0] else []
  for slack in (*exact, *np.arange(1.01, 3.0, 0.02)):
    sizes = np.maximum(least, totals / rows * slack)
    sizes = [fixed or _round_up(size, _MULTIPLE) for fixed, size in zip(given, sizes)]
    layout = layout._replace(prompt_length=sizes[0], response_length=sizes[1])
    _check_lengths(layout, lengths)
    placed = _place_all(layout, lengths, batches, allowed)
    if placed is not None:
      break
  return _fit_rows(layout, lengths, batches, coverage, placed)


def _place_all(layout: Layout, lengths: _Lengths, batches: list, allowed: int) -> list | None:
  """Each batch in the layout's rows, None for a misfit; None for all where more than `allowed` misfit."""
  placed, misfits = [], 0
  for batch in batches:
    placed.append(_place(lengths.pick(batch), layout, layout.rows))
    misfits += placed[-1] is None
    if misfits > allowed:
      return None
  return placed


def _tokens(lengths: _Lengths, encode_once: bool) -> tuple[int, int]:
  first = np.unique(lengths.index, return_index=True)[1] if encode_once else slice(None)
  return int(lengths.prompt[first].sum()), int(lengths.response.sum())


# --- padded: one response a row -----------------------------------------------------------------------------


def _place_padded(lengths: _Lengths, layout: Layout) -> Placement:
  n = len(lengths.prompt)
  rows, ones, zeros = np.arange(n), np.ones(n, np.int64), np.zeros(n, np.int64)
  count = max(layout.rows, _round_up(n, layout.row_multiple))
  return Placement(count, rows, ones, zeros, ones, rows, rows, ones, zeros)


# --- packed: two-dimensional vector bin packing -------------------------------------------------------------


class _Units(NamedTuple):
  """What must share a row: a prompt copy and the responses (`members`) at it; loads as shares of a row."""

  members: list
  loads: np.ndarray  # [n, 3]: prompt tokens, response tokens, slots


def _row_counts(layout: Layout, lengths: _Lengths) -> Iterator[int]:
  """Row counts to try: the layout's own, then one multiple more each time, up to one response a row."""
  last = max(layout.rows, _round_up(len(lengths.prompt), layout.row_multiple))
  return iter(range(layout.rows, last + layout.row_multiple, layout.row_multiple))


def _place(lengths: _Lengths, layout: Layout, rows: int) -> Placement | None:
  """A placement in exactly `rows` rows, or None."""
  groups = _groups(lengths.index) if layout.encode_once else [[i] for i in range(len(lengths.prompt))]
  capacity = np.array([layout.prompt_length, layout.response_length, layout.slots], np.float64)
  if any(np.array([*_tokens(lengths, layout.encode_once), len(lengths.prompt)]) > rows * capacity):
    return None
  for parts in (
    1,
    2,
    4,
    len(lengths.prompt),
  ):  # Groups that fit nowhere whole are cut, at the price of a prompt copy.
    units = _units(
      [chunk for group in groups for chunk in _cut(group, parts, lengths, layout)], lengths, capacity
    )
    assignment = _assign(units.loads, rows)
    if assignment is not None:
      return _lay_out(units.members, assignment, lengths, rows)
    if max(map(len, units.members)) == 1:
      return None
  return None


def _groups(index: np.ndarray) -> list[list[int]]:
  """Responses by prompt, in the order in which prompts first occur."""
  groups = {}
  for i, prompt in enumerate(index.tolist()):
    groups.setdefault(prompt, []).append(i)
  return list(groups.values())


def _cut(group: list[int], parts: int, lengths: _Lengths, layout: Layout) -> list[list[int]]:
  """A group in about `parts` chunks, each of which fits a row."""
  room = min(layout.response_length, -(-int(lengths.response[group].sum()) // parts))
  most = min(layout.slots, -(-len(group) // parts))
  chunks, filled = [], 0
  for i in group:
    length = int(lengths.response[i])
    if not chunks or filled + length > max(room, length) or len(chunks[-1]) == most:
      chunks.append([])
      filled = 0
    chunks[-1].append(i)
    filled += length
  return chunks


def _units(members: list, lengths: _Lengths, capacity: np.ndarray) -> _Units:
  sizes = [(lengths.prompt[chunk[0]], lengths.response[chunk].sum(), len(chunk)) for chunk in members]
  return _Units(members, np.asarray(sizes, np.float64) / capacity)


# In which order units are placed, as keys of their loads. Batches are dealt to about the same totals on both
# sides, so the first nearly always succeeds.
_ORDERS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
  lambda loads: loads[:, :2].max(1),
  lambda loads: loads[:, :2].sum(1),
  lambda loads: loads[:, 0],
  lambda loads: loads[:, 1],
)


def _assign(loads: np.ndarray, rows: int) -> np.ndarray | None:
  """The row of each unit, or None: greedy in a few orders, then local swaps from the last try."""
  for key in _ORDERS:
    order = np.argsort(-key(loads), kind='stable')
    for level in (True, False):
      assignment, filled = _greedy(loads, order, rows, level)
      if filled.max() <= 1 + 1e-9:
        return assignment
  return _repair(loads, *_greedy(loads, np.argsort(-loads.max(1), kind='stable'), rows, True))


def _greedy(loads, order, rows: int, level: bool) -> tuple[np.ndarray, np.ndarray]:
  """Each unit to the emptiest row (`level`) or to the fullest with room; where none has, to the emptiest."""
  assignment = np.zeros(len(loads), np.int64)
  filled = np.zeros((rows, loads.shape[1]))
  for unit in order.tolist():
    peak = (filled + loads[unit]).max(1)
    row = int(peak.argmin())
    if not level:
      row = int(np.where(peak <= 1 + 1e-9, peak, -1).argmax()) if peak[row] <= 1 + 1e-9 else row
    assignment[unit] = row
    filled[row] += loads[unit]
  return assignment, filled


def _repair(loads: np.ndarray, assignment: np.ndarray, filled: np.ndarray) -> np.ndarray | None:
  """Moves and swaps units while that takes overflow away; the one that takes most each time."""
  # A unit of no load in every row makes a move a swap with it.
  rows = len(filled)
  loads = np.concatenate([loads, np.zeros((rows, loads.shape[1]))])
  assignment = np.concatenate([assignment, np.arange(rows)])
  for _ in range(_REPAIRS):
    over = np.maximum(filled - 1, 0).sum(1)
    if over.sum() <= 1e-9:
      return assignment[:-rows]
    mine = np.flatnonzero(assignment == over.argmax())
    row = assignment[mine[0]]
    change = loads[None] - loads[mine, None]
    after = np.maximum(filled[row] + change - 1, 0).sum(-1)
    after = after + np.maximum(filled[assignment][None] - change - 1, 0).sum(-1)
    gain = np.where(assignment[None] == row, -1.0, over[row] + over[assignment][None] - after)
    i, j = np.unravel_index(gain.argmax(), gain.shape)
    if gain[i, j] <= 1e-12:
      return None
    filled[row] += change[i, j]
    filled[assignment[j]] -= change[i, j]
    assignment[mine[i]], assignment[j] = assignment[j], row
  return None


def _lay_out(members: list, assignment: np.ndarray, lengths: _Lengths, rows: int) -> Placement:
  """Numbers segments and positions, row by row, in the batch's own order."""
  order = sorted(range(len(members)), key=lambda unit: (assignment[unit], members[unit][0]))
  responses = np.array([i for unit in order for i in members[unit]])
  unit_rows = assignment[order]
  counts = np.array([len(members[unit]) for unit in order])
  copies = np.array([members[unit][0] for unit in order])
  prompt_segment = _counts_within(unit_rows, np.ones(len(order), np.int64)) + 1
  by_response = np.repeat(np.arange(len(order)), counts)
  response_rows = unit_rows[by_response]
  fields = np.empty((4, len(responses)), np.int64)
  fields[:, responses] = (
    response_rows,
    _counts_within(response_rows, np.ones(len(responses), np.int64)) + 1,
    _counts_within(response_rows, lengths.response[responses]),
    prompt_segment[by_response],
  )
  return Placement(  # type: ignore[call-arg]
    rows, *fields, copies, unit_rows, prompt_segment, _counts_within(unit_rows, lengths.prompt[copies])
  )


def _counts_within(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """The running sum of `sizes` before each entry, begun afresh in every row (`rows` ascends)."""
  before = np.cumsum(sizes) - sizes
  return before - before[np.searchsorted(rows, rows)]


# --- mismatched pairs ---------------------------------------------------------------------------------------


class Mismatch(NamedTuple):
  """For every row, the row whose responses it decodes, and for each response the prompt segment it is given.

  0 where no prompt of the row has another text.
  """

  source_row: np.ndarray  # [rows]
  prompt: np.ndarray  # [n], by the batch's responses: a segment of the row that decodes it


def mismatch(placement: Placement, prompt_index: np.ndarray) -> Mismatch:
  """Pairs responses with prompts of another text, in the row that decodes them; each is used once at most.

  Rows with prompts pass their responses round: by the smallest shift that pairs them all, or else by the
  permutation that pairs most. Within a row, responses go through its prompts in turn, past those of their own
  text.
  """
  used, row = np.unique(placement.prompt_row, return_inverse=True)
  texts = [prompt_index[placement.prompt_example[row == b]] for b in range(len(used))]
  only = np.array([found[0] if (found == found[0]).all() else -1 for found in texts])
  pairable = (only[:, None] < 0) | (only[:, None] != prompt_index)
  decoded = _pass_round(pairable, np.searchsorted(used, placement.response_row))
  source_row = np.arange(placement.rows)
  source_row[used] = used[decoded]
  host = np.argsort(decoded)[np.searchsorted(used, placement.response_row)]
  prompt = np.zeros(len(prompt_index), np.int64)
  for i in np.flatnonzero(pairable[host, np.arange(len(host))]):
    offered = texts[host[i]]  # In the order of their segments.
    turns = (placement.response_segment[i] - 1 + np.arange(len(offered))) % len(offered)
    prompt[i] = turns[(offered[turns] != prompt_index[i]).argmax()] + 1
  return Mismatch(source_row, prompt)


def _pass_round(pairable: np.ndarray, source: np.ndarray) -> np.ndarray:
  """Which row each row decodes, a permutation.

  Args:
    pairable: whether row b has a prompt for response i, `[rows, n]`.
    source: each response's row, `[n]`.
  """
  rows = len(pairable)
  counts = np.stack([np.bincount(source, weights, rows) for weights in pairable])
  for shift in (*range(1, rows), 0):
    decoded = (np.arange(rows) + shift) % rows
    if counts[np.arange(rows), decoded].sum() == len(source):
      return decoded
  return scipy.optimize.linear_sum_assignment(counts, maximize=True)[1]
