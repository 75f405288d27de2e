"""Places a batch in a given number of rows: one response a row, or packed by vector bin packing.

It works on lengths alone, so that every host can place a whole batch without reading a token.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_REPAIRS = 64  # Moves and swaps before a batch counts as one that does not fit.


class Placement(NamedTuple):
  """Where a batch's n responses and m copies of prompts lie. Segments count from 1 in a row."""

  rows: int
  response_row: np.ndarray  # [n]
  response_segment: np.ndarray  # [n]
  response_start: np.ndarray  # [n], position in the row
  response_prompt: np.ndarray  # [n], the segment of its prompt
  prompt_example: np.ndarray  # [m], which response of the batch (0..n-1) the copy was made for
  prompt_row: np.ndarray  # [m]
  prompt_segment: np.ndarray  # [m]
  prompt_start: np.ndarray  # [m]


class Lengths(NamedTuple):
  """Tokens of prompts and of responses `[n]`, and equal numbers for equal prompts `[n]`."""

  prompt: np.ndarray
  response: np.ndarray
  index: np.ndarray  # type: ignore[assignment]  # Hides the method of tuples.

  def pick(self, examples: np.ndarray) -> 'Lengths':
    """The lengths of some examples."""
    return Lengths(self.prompt[examples], self.response[examples], self.index[examples])


class Capacity(NamedTuple):
  """What a row holds at most: prompt tokens, response tokens and responses."""

  prompt_length: int
  response_length: int
  slots: int


def round_up(number: float, multiple: int) -> int:
  """The next multiple."""
  return int(-(-number // multiple)) * multiple


def count_tokens(lengths: Lengths, encode_once: bool) -> tuple[int, int]:
  """Prompt tokens, once for each prompt with `encode_once` or once for each response, and response tokens."""
  first = np.unique(lengths.index, return_index=True)[1] if encode_once else slice(None)
  return int(lengths.prompt[first].sum()), int(lengths.response.sum())


# --- padded: one response a row -----------------------------------------------------------------------------


def place_padded(lengths: Lengths, num_rows: int) -> Placement:
  """Response i in row i, with its own copy of its prompt."""
  n = len(lengths.prompt)
  rows, ones, zeros = np.arange(n), np.ones(n, np.int64), np.zeros(n, np.int64)
  return Placement(num_rows, rows, ones, zeros, ones, rows, rows, ones, zeros)


# --- packed: vector bin packing of prompt tokens, response tokens and slots ---------------------------------


class _Units(NamedTuple):
  """Units that must share a row: a prompt copy and its responses (`members`); loads as shares of a row."""

  members: list[list[int]]
  loads: np.ndarray  # [n, 3]: prompt tokens, response tokens, slots


def place_packed(lengths: Lengths, capacity: Capacity, rows: int, encode_once: bool) -> Placement | None:
  """A placement in exactly `rows` rows, or None where the batch does not fit.

  Args:
    lengths: of the batch.
    capacity: of a row.
    rows: of the batch.
    encode_once: responses to one prompt in one row share one copy of it.
  """
  groups = _groups(lengths.index) if encode_once else [[i] for i in range(len(lengths.prompt))]
  totals = np.array([*count_tokens(lengths, encode_once), len(lengths.prompt)])
  if any(totals > rows * np.array(capacity, np.float64)):
    return None
  # A group that does not fit whole is cut, which costs a copy of its prompt.
  for parts in (1, 2, 4, len(lengths.prompt)):
    chunks = [chunk for group in groups for chunk in _cut(group, parts, lengths, capacity)]
    units = _units(chunks, lengths, capacity)
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


def _cut(group: list[int], parts: int, lengths: Lengths, capacity: Capacity) -> list[list[int]]:
  """A group in about `parts` chunks, each of which fits a row."""
  room = min(capacity.response_length, -(-int(lengths.response[group].sum()) // parts))
  most = min(capacity.slots, -(-len(group) // parts))
  chunks, filled = [], 0
  for i in group:
    length = int(lengths.response[i])
    if not chunks or filled + length > max(room, length) or len(chunks[-1]) == most:
      chunks.append([])
      filled = 0
    chunks[-1].append(i)
    filled += length
  return chunks


def _units(members: list[list[int]], lengths: Lengths, capacity: Capacity) -> _Units:
  sizes = [(lengths.prompt[chunk[0]], lengths.response[chunk].sum(), len(chunk)) for chunk in members]
  return _Units(members, np.asarray(sizes, np.float64) / np.array(capacity, np.float64))


# Orders in which units are placed, as keys of their loads. Batches have about the same totals on both sides,
# so that the first order nearly always succeeds.
_ORDERS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
  lambda loads: loads[:, :2].max(1),
  lambda loads: loads[:, :2].sum(1),
  lambda loads: loads[:, 0],
  lambda loads: loads[:, 1],
)


def _assign(loads: np.ndarray, rows: int) -> np.ndarray | None:
  """The row of each unit, or None: greedy in a few orders, then moves and swaps from the last attempt."""
  for key in _ORDERS:
    order = np.argsort(-key(loads), kind='stable')
    for level in (True, False):
      assignment, filled = _greedy(loads, order, rows, level)
      if filled.max() <= 1 + 1e-9:
        return assignment
  return _repair(loads, *_greedy(loads, np.argsort(-loads.max(1), kind='stable'), rows, True))


def _greedy(loads: np.ndarray, order: np.ndarray, rows: int, level: bool) -> tuple[np.ndarray, np.ndarray]:
  """Puts each unit into the emptiest row (`level`), or into the fullest row with room, else the emptiest."""
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
  """Moves and swaps units while that reduces the overflow, by the largest reduction each time."""
  # A unit without load in every row turns a move into a swap.
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


def _lay_out(members: list[list[int]], assignment: np.ndarray, lengths: Lengths, rows: int) -> Placement:
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
  """The running sum of `sizes` before each entry, which starts at 0 in every row (`rows` ascends)."""
  before = np.cumsum(sizes) - sizes
  return before - before[np.searchsorted(rows, rows)]
