"""Deals a window's responses to batches of exact sizes and about equal loads."""

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# From where pieces start and stop to their loads, `[pieces, kinds of load]`.
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
_SWEEPS = 40  # Rounds of swaps at most; they end when a round takes less than 2 % off the squared excess.
_LITTLE = 0.02


class Pieces(NamedTuple):
  """Responses to one prompt that go to one batch together: records start..stop in a window's order."""

  start: np.ndarray
  stop: np.ndarray
  batch: np.ndarray


def deal(edges: np.ndarray, measure: Measure, capacities: np.ndarray, rng: np.random.Generator) -> Pieces:
  """Deals a window's pieces to batches of exact capacities, then balances the batches' loads."""
  dealt = _deal_out(edges, measure(edges[:-1], edges[1:]).sum(1), capacities, rng)
  sizes = dealt.stop - dealt.start
  loads = measure(dealt.start, dealt.stop)
  return dealt._replace(batch=_even_out(dealt.batch, sizes, loads, capacities, rng))


def _deal_out(
  edges: np.ndarray, lengths: np.ndarray, capacities: np.ndarray, rng: np.random.Generator
) -> Pieces:
  """Deals the largest groups first, the longest first within a size, each to the emptiest, lightest batch.

  With single responses this sorts by length, and deals each stratum (as many responses as there are batches)
  one to each batch, the longest to the lightest. A batch that is cut by the window (its first or last) fills
  at the same pace as the others, so that it gets every stratum in proportion.
  """
  starts, stops = edges[:-1].tolist(), edges[1:].tolist()
  pieces = [(a - b, -length, a, b) for a, b, length in zip(starts, stops, lengths.tolist())]
  room = capacities.tolist()
  ties = rng.permutation(len(room)).tolist()
  batches = [(0.5 / c, 0.0, tie, j) for j, (c, tie) in enumerate(zip(room, ties))]
  heapq.heapify(pieces)
  heapq.heapify(batches)
  dealt = []
  while pieces:
    size, length, start, stop = heapq.heappop(pieces)
    passed = []
    while batches and room[batches[0][3]] < -size:
      passed.append(heapq.heappop(batches))
    if batches:
      _, load, tie, j = heapq.heappop(batches)
    else:  # No batch has room for all: the roomiest takes what fits, and the rest is dealt again.
      _, load, tie, j = passed.pop(max(range(len(passed)), key=lambda i: room[passed[i][3]]))
      cut = start + room[j]
      rest = length * (stop - cut) / (stop - start)
      heapq.heappush(pieces, (cut - stop, rest, cut, stop))
      stop, length = cut, length - rest
    for entry in passed:
      heapq.heappush(batches, entry)
    dealt.append((start, stop, j))
    room[j] -= stop - start
    if room[j]:
      filled = capacities[j] - room[j] + 0.5
      heapq.heappush(batches, (filled / capacities[j], load - length / capacities[j], tie, j))
  return Pieces(*np.asarray(dealt, np.int64).T)


def _even_out(
  batch: np.ndarray, sizes: np.ndarray, loads: np.ndarray, capacities: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Swaps pieces of one stratum (same size, neighbours in length) while that balances the batches."""
  batch = batch.copy()
  excess = -np.asarray(capacities, np.float64)[:, None] * np.ones(loads.shape[1])
  np.add.at(excess, batch, loads)
  # Pieces are sorted by size, then by length; a stratum is a stretch of as many pieces as there are batches.
  # Groups differ so much that strata alone cannot balance them: they are swapped across wider stretches too.
  for width in (1, 4) if sizes.max() > 1 else (1,):
    strata = _strata(sizes, width * len(capacities))
    before = np.square(excess).sum()
    for _ in range(_SWEEPS):
      for stratum in strata:
        _swap(batch, excess, loads, stratum, rng)
      after = np.square(excess).sum()
      if after > (1 - _LITTLE) * before:
        break
      before = after
  return batch


def _strata(sizes: np.ndarray, width: int) -> list[np.ndarray]:
  """Stretches of at most `width` pieces of one size."""
  classes = np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(sizes)) + 1)
  return [part for members in classes for part in np.split(members, np.arange(width, len(members), width))]


def _swap(
  batch: np.ndarray, excess: np.ndarray, loads: np.ndarray, members: np.ndarray, rng: np.random.Generator
) -> None:
  """Pairs up pieces of a stratum, one of each batch, and swaps the pairs that gain by it, in place."""
  members = rng.permutation(members)
  members = rng.permutation(members[np.unique(batch[members], return_index=True)[1]])
  half = len(members) // 2
  left, right = members[:half], members[half : 2 * half]
  left_batch, right_batch = batch[left], batch[right]
  change = loads[right] - loads[left]
  gains = (change * (excess[right_batch] - excess[left_batch] - change)).sum(1) > 0
  excess[left_batch[gains]] += change[gains]
  excess[right_batch[gains]] -= change[gains]
  batch[left[gains]], batch[right[gains]] = right_batch[gains], left_batch[gains]


def gather(records: np.ndarray, pieces: Pieces, batch: int, rng: np.random.Generator) -> np.ndarray:
  """One batch's records, piece by piece in random order (pieces are dealt longest first)."""
  mine = rng.permutation(np.flatnonzero(pieces.batch == batch))
  return np.concatenate([records[pieces.start[i] : pieces.stop[i]] for i in mine])
