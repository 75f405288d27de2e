"""Writes a token table, chunk by chunk, in memory that does not grow with the number of records.

Every array is a file that grows. A prompt that occurred before is found by its hash, in a table of hashes
that the system may page out (see `disk_index`).
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from dro_jax.data.records.triplets import NUMERIC, Record
from dro_jax.data.storage import folders, hashes
from dro_jax.data.storage.disk_index import DiskIndex
from dro_jax.data.text import chat, lost_text, templates, tokenise
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError

DESCRIPTION = 'table.json'
VERSION = 4
NAMED = 5  # Examples of each kind that the report names.
_HEADER = 128  # Bytes of a one-dimensional array's .npy header, which leaves room for its length.
_BLOCK = 2**17  # Entries read at a time: four arrays of 1 MB at once, less than a chunk of records takes.

# Arrays by the names of their files, in the order of the description.
ARRAYS = {
  'prompt_index': 'int64', 'rewards': 'float64', 'source': 'int64', 'truncated': 'bool',
  'prompt_digests': 'uint64', 'prompt_offsets': 'int64', 'response_offsets': 'int64',
  'prompt_text_offsets': 'int64', 'id_offsets': 'int64', 'response_text_offsets': 'int64',
}  # fmt: skip
OFFSETS = {
  'prompt_tokens': 'prompt_offsets', 'response_tokens': 'response_offsets',
  'prompt_texts': 'prompt_text_offsets', 'response_texts': 'response_text_offsets', 'ids': 'id_offsets',
}  # fmt: skip


class Growing:
  """A one-dimensional .npy file to which values are added; its bytes equal those of `np.save`."""

  def __init__(self, path: str, dtype: str):
    self.path, self.dtype, self.length = path, np.dtype(dtype), 0
    with open(path, 'wb') as file:
      file.write(bytes(_HEADER))

  def add(self, values: Any) -> None:
    """Adds numbers `[n]`."""
    values = np.asarray(values, self.dtype)
    with open(self.path, 'ab') as file:
      file.write(values.tobytes())
    self.length += len(values)

  def fill(self, value: float, count: int) -> None:
    """Adds one number `count` times."""
    for start in range(0, count, _BLOCK):
      self.add(np.full(min(_BLOCK, count - start), value))

  def finish(self) -> None:
    """Writes the header, which completes the array."""
    header = {'descr': np.lib.format.dtype_to_descr(self.dtype), 'fortran_order': False}
    with open(self.path, 'r+b') as file:
      np.lib.format.write_array_header_1_0(file, header | {'shape': (self.length,)})
      if file.tell() != _HEADER:
        raise RuntimeError(
          f'{self.path}: the header takes {file.tell()} bytes, and {_HEADER} are reserved for it'
        )


class Flat:
  """A file of concatenated items, and a file of the offsets where each begins."""

  def __init__(self, directory: str, name: str):
    self._path, self.end = os.path.join(directory, f'{name}.bin'), 0
    open(self._path, 'wb').close()
    self.offsets = Growing(os.path.join(directory, f'{OFFSETS[name]}.npy'), 'int64')
    self.offsets.add([0])

  def add(self, items: list[bytes]) -> None:
    with open(self._path, 'ab') as file:
      file.write(b''.join(items))
    self._mark([len(item) for item in items])

  def extend(self, flat: np.ndarray, lengths: np.ndarray) -> None:
    """Adds items that are already concatenated."""
    with open(self._path, 'ab') as file:
      file.write(flat.tobytes())
    self._mark(lengths)

  def _mark(self, lengths: Any) -> None:
    ends = self.end + np.cumsum(lengths, dtype=np.int64)
    self.offsets.add(ends)
    self.end = int(ends[-1]) if len(ends) else self.end


class Columns:
  """Columns of numbers by name; any record may lack some."""

  def __init__(self, directory: str):
    self._directory, self._files = directory, {}
    self._partial: set[str] = set()

  def add(self, records: list[Record], before: int) -> None:
    """Adds the columns of some records, after `before` earlier records."""
    for name in sorted({name for record in records for name in record.columns} | set(self._files)):
      if name not in self._files:
        path = os.path.join(self._directory, f'unnamed.{len(self._files)}.npy')
        self._files[name] = Growing(path, 'float64')
        self._files[name].fill(np.nan, before)
        self._partial |= {name} if before else set()
      values = np.array([record.columns.get(name, np.nan) for record in records], np.float64)
      lacking = np.isnan(values)
      if lacking.any():
        self._partial.add(name)
      self._files[name].add(values)
      if name in NUMERIC and name in self._partial:  # Every record has such a column, or none.
        raise incomplete(name, records[int(lacking.argmax())].where)

  def finish(self) -> tuple[list[str], list[str]]:
    """Names the files; returns the columns that every record has, and those that some lack."""
    complete = sorted(set(self._files) - self._partial)
    for i, name in enumerate(complete):
      self._files[name].finish()
      # Numbered, because a column's name may not be a valid name of a file.
      os.rename(self._files[name].path, os.path.join(self._directory, f'column.{i}.npy'))
    for name in self._partial:
      os.remove(self._files[name].path)
    return complete, sorted(self._partial)


def incomplete(name: str, where: str) -> UsageError:
  """The error for a column with a meaning that some records lack."""
  return UsageError(
    f"{where}: field '{name}' is in some records and missing in others; give it to every record, or to none"
  )


class Tally:
  """The number of examples of a kind, and the first few."""

  def __init__(self) -> None:
    self.count, self.first = 0, []

  def add(self, ids: list[str]) -> None:
    self.count += len(ids)
    self.first += ids[: NAMED - len(self.first)]


class Writer:
  """Tokenises records chunk by chunk into a directory."""

  def __init__(self, directory: str, vocabulary: Vocabulary, options: Mapping[str, Any]):
    self._directory, self._vocabulary, self._options = directory, vocabulary, options
    self._dtype = np.dtype(token_dtype(vocabulary))
    self._by_chat = bool(options.get('chat'))
    self._flat = {name: Flat(directory, name) for name in OFFSETS}
    self._arrays = {
      name: Growing(os.path.join(directory, f'{name}.npy'), dtype)
      for name, dtype in ARRAYS.items()
      if name not in OFFSETS.values()
    }
    self._columns, self._prompts, self._sources = Columns(directory), DiskIndex(), {}
    self._cut_prompts, self._cut, self._dropped = Tally(), Tally(), Tally()
    self._read = self._kept = self._unrewarded = self._apart = 0
    self._reward_problem = ''
    self._began = time.perf_counter()

  def add(self, records: list[Record]) -> None:
    self._read += len(records)
    for record in records:
      self._reward_problem = self._reward_problem or record.reward_problem
    encoded = tokenise.responses(
      [self._framed(record) for record in records], [record.response for record in records],
      self._vocabulary, by_chat=self._by_chat, places=[record.where for record in records],
    )  # fmt: skip
    self._apart += encoded.apart
    pairs = zip(records, encoded.ids)
    length = self._options['response_length']
    cut = [(record, *templates.cut_response(ids, length)) for record, ids in pairs]
    self._cut.add([record.id for record, _, over in cut if over])
    if self._options['overlong'] == 'drop':
      self._dropped.add([record.id for record, _, over in cut if over])
      cut = [entry for entry in cut if not entry[2]]
    kept = [record for record, _, _ in cut]
    self._add_prompts(kept)
    self._add_tokens('response_tokens', [ids for _, ids, _ in cut])
    self._flat['response_texts'].add([record.response.encode() for record in kept])
    self._flat['ids'].add([record.id.encode() for record in kept])
    self._arrays['truncated'].add([over for _, _, over in cut])
    self._add_numbers(kept)

  def _add_tokens(self, name: str, items: list[np.ndarray]) -> None:
    flat = np.concatenate([np.zeros(0, np.int32), *items]).astype(self._dtype)
    self._flat[name].extend(flat, np.array([len(ids) for ids in items], np.int64))

  def _add_prompts(self, records: list[Record]) -> None:
    """Numbers the prompts; tokenises and stores the new ones."""
    new, numbers = [], []
    for record in records:
      count = len(self._prompts)
      numbers.append(self._prompts.setdefault(record.prompt, count))
      if numbers[-1] == count:
        new.append(record)
    self._arrays['prompt_index'].add(numbers)
    texts = [self._framed(record) for record in new]
    keeps = [templates.kept_end(self._options['keep'], chat.is_rendered(record.prompt)) for record in new]
    tokens = tokenise.prompts(
      texts, self._vocabulary, by_chat=self._by_chat, length=self._options['prompt_length'], keeps=keeps,
      places=[record.where for record in new],
    )  # fmt: skip
    self._note(new, [over for _, over in tokens])
    self._add_tokens('prompt_tokens', [ids for ids, _ in tokens])
    self._flat['prompt_texts'].add([text.encode() for text in texts])
    self._arrays['prompt_digests'].add(hashes.digests(record.prompt for record in new))

  def _framed(self, record: Record) -> str:
    return tokenise.framed(record.prompt, self._options['template'], self._by_chat)

  def _note(self, records: list[Record], cut: list[bool]) -> None:
    """Counts the cut prompts among records with new prompts."""
    self._cut_prompts.add([record.id for record, over in zip(records, cut) if over])

  def _add_numbers(self, records: list[Record]) -> None:
    self._arrays['rewards'].add([np.nan if record.reward is None else record.reward for record in records])
    self._unrewarded += sum(record.reward is None for record in records)
    self._arrays['source'].add(
      [self._sources.setdefault(record.source, len(self._sources)) for record in records]
    )
    self._columns.add(records, self._kept)
    self._kept += len(records)

  def finish(self, meta: Mapping[str, Any]) -> None:
    """Completes the arrays, and then writes the description."""
    refuse_none(self._kept, self._read)
    for array in (*self._arrays.values(), *(flat.offsets for flat in self._flat.values())):
      array.finish()
    columns, partial = self._columns.finish()
    counts = {
      'without_reward': self._unrewarded, 'reward_problem': self._reward_problem,
      'truncated_prompts': self._cut_prompts.count, 'tokenised_apart': self._apart,
      'overlong_responses': self._cut.count, 'dropped_responses': self._dropped.count,
      'truncated_prompt_examples': self._cut_prompts.first, 'overlong_response_examples': self._cut.first,
    }  # fmt: skip
    seconds = time.perf_counter() - self._began
    seal(self._directory, meta, self._dtype.name, list(self._sources), columns, partial, counts, seconds)


def token_dtype(vocabulary: Vocabulary) -> str:
  """The smallest type that holds every id."""
  return 'uint16' if vocabulary.size <= 2**16 else 'int32'


def refuse_none(kept: int, read: int) -> None:
  """Raises a UsageError where no record is left for the table."""
  if kept:
    return
  reason = f'all {read} records were dropped as overlong' if read else 'there are no records in the input'
  raise UsageError(f'{reason}: a token table needs at least one')


def seal(
  directory: str,
  meta: Mapping[str, Any],
  dtype: str,
  sources: list[str],
  columns: list[str],
  partial: list[str],
  counts: Mapping[str, Any],
  seconds: float,
) -> None:
  """Describes the files of a complete table; the description makes it a table.

  Args:
    directory: the table's.
    meta: version, fingerprint, vocabulary and options.
    dtype: of the tokens.
    sources: names of the records' tasks.
    columns: that every record has.
    partial: columns that some records lack, which are left out.
    counts: of what was cut, dropped or lacks a reward.
    seconds: that building took.
  """
  tokens = dict.fromkeys(('prompt_tokens.bin', 'response_tokens.bin'), dtype)
  described = {
    **meta, 'columns': columns, 'sources': sources,
    'arrays': [*ARRAYS, *(f'column.{i}' for i in range(len(columns)))],
    'flat': tokens | {f'{name}.bin': 'uint8' for name in ('prompt_texts', 'response_texts', 'ids')},
    'report': {
      **_report(directory, counts),
      'lost': lost_text.count(directory, dtype, meta.get('lost_blanks', ()), meta.get('unknown_id', -1)),
      'columns': columns, 'columns_left_out': partial,
      'text_megabytes': _text(directory), 'seconds': seconds,
    },
  }  # fmt: skip
  folders.seal(directory, DESCRIPTION, described)


def _read(directory: str, name: str) -> np.ndarray:
  return np.load(os.path.join(directory, f'{name}.npy'), mmap_mode='r')


def _text(directory: str) -> float:
  """Megabytes of text."""
  return sum(int(_read(directory, f'{side}_text_offsets')[-1]) for side in ('prompt', 'response')) / 1e6


def _report(directory: str, counts: Mapping[str, Any]) -> dict[str, Any]:
  """The numbers of records and prompts and their lengths, read a block at a time."""
  names = ('prompt_index', 'prompt_offsets', 'response_offsets')
  index, prompts, responses = (_read(directory, name) for name in names)
  total = 0
  for start in range(0, len(index), _BLOCK):
    rows = index[start : start + _BLOCK]
    total += int((prompts[rows + 1] - prompts[rows]).sum())
  return {
    'records': len(index), 'prompts': len(prompts) - 1, **counts,
    'mean_prompt_length': total / len(index), 'mean_response_length': int(responses[-1]) / len(index),
    'max_prompt_length': _longest(prompts), 'max_response_length': _longest(responses),
  }  # fmt: skip


def _longest(offsets: np.ndarray) -> int:
  blocks = range(0, len(offsets) - 1, _BLOCK)
  return max(int(np.diff(offsets[start : start + _BLOCK + 1]).max()) for start in blocks)
