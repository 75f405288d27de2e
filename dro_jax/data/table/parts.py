"""A token table from parts, which any machine can tokenise and one machine then assembles in order.

A part is a `Writer`'s output for some records, with its own numbering of prompts. `beam` finds the part in
which each prompt occurs first. The assembled table equals the table of all records, byte for byte.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.data.records.triplets import NUMERIC, Record
from dro_jax.data.storage import disk_index
from dro_jax.data.storage.hashes import text_digest
from dro_jax.data.table.writer import (
  ARRAYS,
  NAMED,
  OFFSETS,
  Flat,
  Growing,
  Writer,
  incomplete,
  refuse_none,
  seal,
)
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError
from dro_jax.files import json_text

_PART = 'part.json'
_PER_PROMPT = ('prompt_tokens', 'prompt_texts')
_TALLIES = ('without_reward', 'overlong_responses', 'dropped_responses', 'tokenised_apart')


class PartWriter(Writer):
  """Writes a part; `keys` holds hashes of its prompts in the order of their numbers."""

  def __init__(self, directory: str, vocabulary: Vocabulary, options: Mapping[str, Any]):
    super().__init__(directory, vocabulary, options)
    self.keys: list[bytes] = []
    self._prompt_cut = Growing(os.path.join(directory, 'prompt_cut.npy'), 'bool')
    self._cut_ids: dict[int, str] = {}
    self._where = ''

  def add(self, records: list[Record]) -> None:
    self._where = self._where or records[0].where
    super().add(records)

  def _note(self, records: list[Record], cut: list[bool]) -> None:
    self._cut_ids |= {len(self.keys) + i: record.id for i, record in enumerate(records) if cut[i]}
    self.keys += [text_digest(record.prompt) for record in records]
    self._prompt_cut.add(cut)

  def finish_part(self) -> None:
    """Completes the arrays, and then writes the description."""
    offsets = (flat.offsets for flat in self._flat.values())
    for array in (self._prompt_cut, *self._arrays.values(), *offsets):
      array.finish()
    columns, partial = self._columns.finish()
    meta = {
      'records': self._kept, 'read': self._read, 'prompts': len(self.keys), 'where': self._where,
      'columns': columns, 'partial': partial, 'cut_ids': self._cut_ids, 'without_reward': self._unrewarded,
      'reward_problem': self._reward_problem,
      'overlong_responses': self._cut.count, 'dropped_responses': self._dropped.count,
      'tokenised_apart': self._apart, 'overlong_response_examples': self._cut.first,
    }  # fmt: skip
    with open(os.path.join(self._directory, _PART), 'w') as file:
      file.write(json_text(meta))


class _Part:
  """A written part, in a folder of this machine."""

  def __init__(self, directory: str):
    self._directory = directory
    with open(os.path.join(directory, _PART)) as file:
      self.meta = json.load(file)

  def array(self, name: str) -> np.ndarray:
    return np.load(os.path.join(self._directory, f'{name}.npy'))

  def column(self, name: str) -> np.ndarray:
    return self.array(f'column.{self.meta["columns"].index(name)}')

  def items(self, name: str, dtype: str, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picked items, concatenated, and their lengths."""
    lengths = np.diff(self.array(OFFSETS[name]))
    flat = np.fromfile(os.path.join(self._directory, f'{name}.bin'), dtype)
    return flat[np.repeat(picked, lengths)], lengths[picked]


class _Numbers:
  """The number in the whole table of every prompt of every part, in a file that the system may page out."""

  def __init__(self, counts: Sequence[int]):
    self._starts = np.concatenate([[0], np.cumsum(counts)])
    self._count = 0
    self._numbers = np.frombuffer(disk_index.mapped(8 * max(int(self._starts[-1]), 1)), np.int64)

  def number(self, part: int, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a part's prompts in the whole table, and which of them are new; parts come in order.

    Args:
      part: its number.
      owners: for each prompt the part where it occurs first, and its number there, `[n, 2]`.
    """
    new, start = owners[:, 0] == part, self._starts[part]
    own = self._numbers[start : start + len(new)]
    own[new] = self._count + np.arange(new.sum())
    own[~new] = self._numbers[self._starts[owners[~new, 0]] + owners[~new, 1]]
    self._count += int(new.sum())
    return np.array(own), new


def assemble(
  directory: str,
  dtype: str,
  metas: Sequence[Mapping[str, Any]],
  read: Callable[[int], tuple[str, np.ndarray]],
  meta: Mapping[str, Any],
  seconds: Callable[[], float],
) -> None:
  """Assembles parts in a folder, in the memory of one part.

  Args:
    directory: of the table.
    dtype: of its tokens.
    metas: the parts' descriptions, in order.
    read: from a part's number to its folder on this machine, and its prompts' owners (see `_Numbers.number`);
      called in order, once for each part.
    meta: version, fingerprint, vocabulary and options of the table.
    seconds: that building took until the call.

  Raises:
    UsageError: no record is left, or only some parts have a column with a meaning.
  """
  refuse_none(sum(part['records'] for part in metas), sum(part['read'] for part in metas))
  complete, partial = _columns([part for part in metas if part['records']])
  whole = _Whole(directory, dtype, complete)
  numbers = _Numbers([part['prompts'] for part in metas])
  for i in range(len(metas)):
    folder, owners = read(i)
    whole.add(_Part(folder), *numbers.number(i, owners))
  whole.finish()
  counts = {name: sum(part[name] for part in metas) for name in _TALLIES}
  overlong = [name for part in metas for name in part['overlong_response_examples']][:NAMED]
  counts = {
    'without_reward': counts['without_reward'],
    'reward_problem': next((part['reward_problem'] for part in metas if part['reward_problem']), ''),
    'truncated_prompts': whole.cut, 'tokenised_apart': counts['tokenised_apart'],
    'overlong_responses': counts['overlong_responses'], 'dropped_responses': counts['dropped_responses'],
    'truncated_prompt_examples': whole.cut_ids, 'overlong_response_examples': overlong,
  }  # fmt: skip
  seal(directory, meta, dtype, [''], complete, partial, counts, seconds())


class _Whole:
  """A table that grows by parts."""

  def __init__(self, directory: str, dtype: str, columns: Sequence[str]):
    self._dtypes = dict.fromkeys(OFFSETS, 'uint8') | dict.fromkeys(
      ('prompt_tokens', 'response_tokens'), dtype
    )
    self._flat = {name: Flat(directory, name) for name in OFFSETS}
    plain = {name: kind for name, kind in ARRAYS.items() if name not in OFFSETS.values()}
    plain |= {f'column.{i}': 'float64' for i in range(len(columns))}
    self._arrays = {
      name: Growing(os.path.join(directory, f'{name}.npy'), kind) for name, kind in plain.items()
    }
    self._columns, self.cut, self.cut_ids = list(columns), 0, []

  def add(self, part: _Part, numbers: np.ndarray, new: np.ndarray) -> None:
    """Adds a part.

    Args:
      part: to add.
      numbers: of its prompts in the whole table.
      new: whether each prompt is new to the whole table.
    """
    everything = np.ones(part.meta['records'], bool)
    for name, flat in self._flat.items():
      flat.extend(*part.items(name, self._dtypes[name], new if name in _PER_PROMPT else everything))
    self._arrays['prompt_index'].add(numbers[part.array('prompt_index')])
    self._arrays['prompt_digests'].add(part.array('prompt_digests')[new])
    for name in ('rewards', 'source', 'truncated'):
      self._arrays[name].add(part.array(name))
    if part.meta['records']:
      for i, name in enumerate(self._columns):
        self._arrays[f'column.{i}'].add(part.column(name))
    cut = np.flatnonzero(new & part.array('prompt_cut'))
    self.cut += len(cut)
    self.cut_ids += [part.meta['cut_ids'][str(i)] for i in cut[: NAMED - len(self.cut_ids)].tolist()]

  def finish(self) -> None:
    for array in (*self._arrays.values(), *(flat.offsets for flat in self._flat.values())):
      array.finish()


def _columns(metas: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
  """Columns that every record of every part has, and columns that some records lack."""
  complete = set.intersection(*(set(part['columns']) for part in metas))
  present = set().union(*(part['columns'] + part['partial'] for part in metas))
  for name in sorted(present - complete):
    if name in NUMERIC:
      raise incomplete(name, next(part['where'] for part in metas if name not in part['columns']))
  return sorted(complete), sorted(present - complete)


def chunks(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
  """Lists of `size` records; the last may be shorter."""
  chunk: list[Record] = []
  for record in records:
    chunk.append(record)
    if len(chunk) == size:
      yield chunk
      chunk = []
  if chunk:
    yield chunk


def repeated(where: str, first: str) -> UsageError:
  """The error for an id that two parts have."""
  return UsageError(
    f'{where}: its id was used before at {first}; give every record its own id, or remove the field and ids '
    'will be FILE:LINE (then files of two folders need different names)'
  )
