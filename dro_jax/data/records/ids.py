"""The ids of records: the file's own, or FILE:LINE; no two records have the same."""

import os
from collections.abc import Mapping
from typing import Any

from dro_jax.data.records import field_paths, fields
from dro_jax.data.storage.disk_index import DiskIndex
from dro_jax.errors import UsageError, shown

_LINES = 2**40  # More than a file has.


class Ids:
  """The ids so far and where each stands, in memory that does not grow with their number."""

  def __init__(self) -> None:
    self._places, self._files = DiskIndex(), {}

  def __contains__(self, text: str) -> bool:
    return self._places.get(text) is not None

  def add(self, text: str, where: str) -> str | None:
    """Where the same id stood before, or None."""
    path, _, line = where.rpartition(':')
    number = self._files.setdefault(path, len(self._files)) * _LINES + int(line)
    if (first := self._places.setdefault(text, number)) == number:
      return None
    file, earlier = divmod(first, _LINES)
    return f'{list(self._files)[file]}:{earlier}'


def read_id(record: Mapping[str, Any], names: Mapping[str, str], where: str, ids: Ids) -> str:
  """The record's own id, or else file:line; adds it to `ids`."""
  value = field_paths.value(record, names, 'id')
  if value is None and names.get('id'):
    raise fields.missing(record, names, 'id', where)
  if value is None:
    short = os.path.basename(where)
    value = where if short in ids else short
  if not isinstance(value, str | int) or isinstance(value, bool):
    raise fields.wrong(
      'id', names, where, f'is {shown(value)}; an id must be text or a whole number. If the field is not an '
      'id, ignore it with --columns id=, and ids will be FILE:LINE'
    )  # fmt: skip
  text = str(value)
  if reason := fields.why_unusable(text):
    raise fields.wrong('id', names, where, reason)
  if before := ids.add(text, where):
    raise UsageError(
      f'{where}: id {shown(value)} (field {fields.described("id", names)}) was used before at {before}; give '
      'every record its own id, or remove the field and ids will be FILE:LINE'
    )
  return text
