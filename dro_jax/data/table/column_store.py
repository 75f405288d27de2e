"""The column store: numbers that were computed once, by example and by token, stored beside the data.

A store is a folder of arrays, memory-mapped when read. Its keys are hashes of an example's texts, prompt and
response, so that equal texts share their numbers, in any file, split or selection. Values that `fit_value`
fitted, or log-probs that `cache_reference` computed, join any table of the same examples.

    DIR/columns.json     names, fingerprint, origin
    DIR/*.npy            sorted keys, columns (float32), numbers by token (one flat array and offsets)
"""

import itertools
import json
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dro_jax import files
from dro_jax.data.storage import folders, hashes
from dro_jax.data.table.table import Ragged, TokenTable
from dro_jax.errors import UsageError

_VERSION = 2
_DESCRIPTION = 'columns.json'
_NAMED = 5  # Examples that an error names.


class Pairs(NamedTuple):
  """Numbers of responses under other prompts than their own: keys `[P]`, and columns `[P]` by name."""

  keys: np.ndarray
  columns: Mapping[str, np.ndarray]


class Store(NamedTuple):
  """A store in memory.

  Attributes:
    directory: the store's folder.
    keys: sorted `[M]`, see `keys_of`.
    columns: float32 `[M]` by name; NaN where an example was left out on purpose.
    token_columns: by name; `starts` has M + 1 entries.
    pairs: of mismatched responses and prompts.
    fingerprint: the inputs of the numbers, by name.
    origin: how the numbers were made, plain JSON.
    mark: a hash of all of these.
  """

  directory: str
  keys: np.ndarray
  columns: Mapping[str, np.ndarray]
  token_columns: Mapping[str, Ragged]
  pairs: Pairs
  fingerprint: Mapping[str, Any]
  origin: Mapping[str, Any]
  mark: str


def keys_of(prompt_digests: np.ndarray, response_digests: np.ndarray) -> np.ndarray:
  """64-bit keys of (prompt, response), from digests of their texts (see `hashes.digests`)."""
  return hashes.mix(response_digests ^ hashes.mix(prompt_digests))


def keys(table: TokenTable) -> np.ndarray:
  """Keys of a table's records, `[N]`."""
  return keys_of(table.prompt_digests, table.response_digests())


def refuse_place(directory: str | os.PathLike[str], flag: str) -> None:
  """Refuses a folder in which no store can be written, before the numbers are computed.

  Raises:
    UsageError: it holds something else, or cannot be written to.
  """
  folder = files.output_folder(directory, flag)
  if folder.is_dir() and os.listdir(folder) and not (folder / _DESCRIPTION).exists():
    raise UsageError(
      f'{flag}={directory}: the folder holds something else than a column store; pass another folder'
    )


def write(
  directory: str | os.PathLike[str],
  keys: np.ndarray,
  columns: Mapping[str, np.ndarray] = {},
  *,
  token_columns: Mapping[str, tuple[np.ndarray, np.ndarray]] = {},
  pairs: Pairs | None = None,
  fingerprint: Mapping[str, Any] = {},
  origin: Mapping[str, Any] = {},
) -> Store:
  """Writes a store whole or not at all; of equal examples the first counts.

  Args:
    directory: the store's own; an existing store is replaced, other files are refused.
    keys: of the examples, `[N]`, see `keys`.
    columns: `[N]` by name.
    token_columns: by name, (flat numbers, each example's number of tokens `[N]`), in the examples' order.
    pairs: numbers of mismatched pairs.
    fingerprint: the inputs of the numbers, plain JSON.
    origin: how the numbers were made, plain JSON.

  Raises:
    UsageError: the folder holds other files, or cannot be written.
  """
  directory = os.path.abspath(os.path.expanduser(directory))
  keys, first = np.unique(keys, return_index=True)
  arrays = {'keys': keys} | {f'column.{name}': x[first].astype(np.float32) for name, x in columns.items()}
  for name, (flat, lengths) in token_columns.items():
    arrays |= {f'{part}.{name}': x for part, x in _ragged(flat, lengths, first).items()}
  if pairs is not None:
    pair_keys, picked = np.unique(pairs.keys, return_index=True)
    arrays |= {f'pair.{name}': x[picked].astype(np.float32) for name, x in pairs.columns.items()}
    arrays['pair_keys'] = pair_keys
  description = json.loads(json.dumps({'fingerprint': fingerprint, 'origin': origin}))
  mark = _mark(arrays, description)
  with folders.Replacing(
    directory, what='column store', description=_DESCRIPTION, version=_VERSION, mark=mark,
    elsewhere='another folder',
  ) as building:  # fmt: skip
    for name, array in arrays.items():
      np.save(os.path.join(building, _file(name)), array)
    meta = {
      'version': _VERSION, 'fingerprint': mark, 'made_of': description['fingerprint'],
      'origin': description['origin'], 'examples': len(keys), 'arrays': list(arrays),
    }  # fmt: skip
    folders.seal(building, _DESCRIPTION, meta)
  return read(directory)


def _file(array: str) -> str:
  """The name of an array's file; a column may have any name."""
  return f'{urllib.parse.quote(array, safe="")}.npy'


def _ragged(flat: np.ndarray, lengths: np.ndarray, picked: np.ndarray) -> dict[str, np.ndarray]:
  """The picked examples' numbers, concatenated, and their offsets."""
  starts = np.concatenate([[0], np.cumsum(lengths)])
  offsets = np.concatenate([[0], np.cumsum(lengths[picked])])
  index = np.arange(offsets[-1]) + np.repeat(starts[picked] - offsets[:-1], lengths[picked])
  return {'token': flat[index].astype(np.float32), 'offsets': offsets.astype(np.int64)}


def _mark(arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> str:
  described = json.dumps(description, sort_keys=True).encode()
  columns = (name.encode() + np.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays))
  return files.hash_parts(itertools.chain([described], columns))


def exists(directory: str | os.PathLike[str]) -> bool:
  """Whether the folder holds a complete store."""
  return _find(directory) is not None


def read(directory: str | os.PathLike[str]) -> Store:
  """The store in a folder, or in its subfolder `columns`, so that a run's folder can be passed.

  Raises:
    UsageError: there is no store, or it is damaged.
  """
  place = _find(directory)
  if place is None:
    raise UsageError(
      f'{directory}: there is no complete column store; pass a folder that `dro_jax fit_value` or '
      '`dro_jax cache_reference` wrote, or make it again'
    )
  folder, meta = place
  if damaged := folders.damaged(folder, meta):
    raise UsageError(f'{folder}: the column store is damaged ({", ".join(damaged)}); make it again')
  arrays = {name: np.load(os.path.join(folder, _file(name)), mmap_mode='r') for name in meta['arrays']}

  def arrays_of_kind(kind: str) -> dict[str, np.ndarray]:
    prefix = f'{kind}.'
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}

  offsets, nothing = arrays_of_kind('offsets'), np.zeros(0, np.uint64)
  return Store(
    folder, np.asarray(arrays['keys']), arrays_of_kind('column'),
    {name: Ragged(flat, offsets[name]) for name, flat in arrays_of_kind('token').items()},
    Pairs(np.asarray(arrays.get('pair_keys', nothing)), arrays_of_kind('pair')),
    meta['made_of'], meta['origin'], meta['fingerprint'],
  )  # fmt: skip


def _find(directory: str | os.PathLike[str]) -> tuple[str, Mapping[str, Any]] | None:
  directory = os.path.abspath(os.path.expanduser(directory))
  for folder in (directory, os.path.join(directory, 'columns')):
    if (meta := folders.describe(folder, _DESCRIPTION, _VERSION)) is not None:
      return folder, meta
  return None


class Joined(NamedTuple):
  """A table with a store's columns, and the records that the store leaves out on purpose."""

  table: TokenTable
  left_out: np.ndarray


def join(table: TokenTable, store: Store) -> Joined:
  """Adds a store's columns to a table; they replace the table's columns of the same name.

  Raises:
    UsageError: examples are missing from the store, or have other tokens there.
  """
  wanted = keys(table)
  places = np.minimum(np.searchsorted(store.keys, wanted), max(len(store.keys) - 1, 0))
  missing = store.keys[places] != wanted if len(store.keys) else np.ones(len(table), bool)
  _refuse(
    table, store, missing, 'are not in it, because it was made from other data. Make it again from these '
    'triplets (training and held-out)',
  )  # fmt: skip
  for _, offsets in store.token_columns.values():
    other = offsets[places + 1] - offsets[places] != table.response_lengths
    _refuse(
      table, store, other, 'have another number of response tokens there: the vocabulary, RESPONSE_LENGTH or '
      'OVERLONG differs. Pass the settings of the store, or make it again',
    )  # fmt: skip
  columns = {name: np.asarray(column[places], np.float64) for name, column in store.columns.items()}
  ragged = {name: Ragged(flat, offsets[places]) for name, (flat, offsets) in store.token_columns.items()}
  pairs = {name: _lookup(store, name) for name in store.pairs.columns}
  joined = table.with_columns(columns, ragged, pairs)
  return Joined(joined, np.any([np.isnan(column) for column in columns.values()] or [[False]], axis=0))


def _refuse(table: TokenTable, store: Store, bad: np.ndarray, reason: str) -> None:
  if bad.any():
    named = ', '.join(table.ids[int(i)] for i in np.flatnonzero(bad)[:_NAMED])
    more = ', ...' if bad.sum() > _NAMED else ''
    raise UsageError(
      f'column store {store.directory}: {int(bad.sum())} of {len(table)} examples ({named}{more}) {reason}.'
    )


class _Lookup(NamedTuple):
  """One number for each stored pair, from digests of its prompt and response, or a UsageError."""

  keys: np.ndarray
  values: np.ndarray
  directory: str

  def __call__(self, prompt_digests: np.ndarray, response_digests: np.ndarray) -> np.ndarray:
    wanted = keys_of(prompt_digests, response_digests)
    places = np.minimum(np.searchsorted(self.keys, wanted), max(len(self.keys) - 1, 0))
    missing = int((self.keys[places] != wanted).sum()) if len(self.keys) else len(wanted)
    if missing:
      raise UsageError(
        f'column store {self.directory}: {missing} of {len(wanted)} mismatched pairs of a batch are not in '
        'it, because it was made for another plan. Run `dro_jax cache_reference` with this run’s settings.'
      )
    return self.values[places]


def _lookup(store: Store, name: str) -> _Lookup:
  return _Lookup(store.pairs.keys, store.pairs.columns[name], store.directory)
