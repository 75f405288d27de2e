"""Texts and numbers one after the other in flat arrays, which may be memory-mapped files."""

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np


class Texts(Sequence[str]):
  """Texts in a memory-mapped file, decoded when they are read."""

  def __init__(self, data: np.ndarray, offsets: np.ndarray, picked: np.ndarray):
    self._data, self._offsets, self._picked = data, offsets, picked

  def __len__(self) -> int:
    return len(self._picked)

  @overload
  def __getitem__(self, i: int) -> str: ...

  @overload
  def __getitem__(self, i: slice) -> list[str]: ...

  def __getitem__(self, i: int | slice) -> str | list[str]:
    if isinstance(i, slice):
      return [self[j] for j in range(*i.indices(len(self)))]
    record = int(self._picked[i])
    return self._data[self._offsets[record] : self._offsets[record + 1]].tobytes().decode()


class Ragged(NamedTuple):
  """One number for each token of N texts; those of text i begin at `starts[i]` of `flat`."""

  flat: np.ndarray
  starts: np.ndarray


def gather(tokens: np.ndarray, offsets: np.ndarray, picked: np.ndarray) -> Ragged:
  """The picked items, one after the other; `starts` has one more entry, the end."""
  begins, lengths = offsets[picked], offsets[picked + 1] - offsets[picked]
  starts = np.concatenate([[0], np.cumsum(lengths)])
  return Ragged(tokens[np.arange(starts[-1]) + np.repeat(begins - starts[:-1], lengths)], starts)


def pick_texts(texts: Texts, picked: np.ndarray) -> Texts:
  """A view of the picked texts."""
  return Texts(texts._data, texts._offsets, texts._picked[picked])
