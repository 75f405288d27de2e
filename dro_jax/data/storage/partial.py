"""A file of JSON lines that takes hours to make, and whose records so far survive its maker.

    OUTPUT.partial         while it is made: what decides the records on the first line, then the records
    OUTPUT                 all records: there whole or not at all
    OUTPUT.settings        what decided them, and a hash of OUTPUT

A maker that was killed goes on after the last whole record. Records that other settings decided are never
mixed with its own.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from dro_jax import files
from dro_jax.data.storage import journal
from dro_jax.data.storage.fingerprints import differences, mixed
from dro_jax.errors import UsageError

_BLOCK = 2**20
_BEGINS = b'{"settings": '


class Partial:
  """The records of a file that is being made, and what is left to make.

  Args:
    target: the file, on this machine; its folder is made where it is missing.
    settings: all that decides the records, as JSON has it.
    ids: of all records, in their order.
    what: the records' name in messages, such as `answers`.

  Attributes:
    count: records that are there already; all of them where the file was made before, by the same settings.

  Raises:
    UsageError: the records so far are of other settings, another process makes the file, or the file was
      changed after it was made.
  """

  def __init__(
    self, target: pathlib.Path, settings: Mapping[str, Any], ids: Sequence[str], what: str = 'records'
  ):
    self.target, self.count, self._what = target, 0, what
    self._settings = json.loads(files.json_text(settings))
    self._path = _beside(target, 'partial')
    self._file: BinaryIO | None = None
    self._is_empty = False
    if self._is_made():
      self.count = len(ids)
    else:
      self._open(ids)

  def __enter__(self) -> 'Partial':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def add(self, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds records, which are on the disk when this returns."""
    if text := ''.join(map(files.json_line, records)):
      self._write(text.encode())
      self._is_empty = False
      self._sync()

  def finish(self) -> None:
    """Puts the whole file in its place, and removes the partial one."""
    if self._file is None:
      return
    body = len(_header(self._settings))
    digest = files.hash_file(self._path, body)
    if _was_changed(self.target, digest):
      raise self._changed()
    self._file.seek(body)
    place = files.disk_of(self.target.parent), files.replacing(self.target)
    with place[0], place[1] as temporary, open(temporary, 'wb') as whole:
      shutil.copyfileobj(self._file, whole, _BLOCK)
      whole.flush()
      os.fsync(whole.fileno())
    described = {'settings': self._settings, 'digest': digest}
    files.write_atomically(_settings_of(self.target), files.json_text(described, indent=2) + '\n')
    # Last: where it is there, a killed process finishes again.
    self._path.unlink()
    self.close()

  def close(self) -> None:
    """Leaves the records so far to whoever goes on."""
    if self._file is None:
      return
    if self._is_empty and self._path.exists():
      self._path.unlink()
    self._file.close()
    self._file = None

  def _is_made(self) -> bool:
    """Whether the file was made by these settings; says so where others made it, and it is replaced."""
    described = _described(self.target)
    if described is None:
      return False
    is_changed, is_under_way = _was_changed(self.target), self._path.exists()
    if not is_changed and described['settings'] == self._settings:
      return True
    # A process that was killed as it finished has replaced the file, and not yet what is said of it.
    if is_changed and not is_under_way:
      raise self._changed()
    if not is_under_way:
      logging.getLogger(__name__).warning(
        '%s: its %s were made by other settings (%s), and are replaced', self.target, self._what,
        '; '.join(differences(self._settings, described['settings'])),
      )  # fmt: skip
    return False

  def _changed(self) -> UsageError:
    return UsageError(
      f'{self.target} was changed after its {self._what} were made, and would be replaced: pass another '
      f'--output, or remove the file and {_settings_of(self.target).name}.'
    )

  def _open(self, ids: Iterable[str]) -> None:
    header = _header(self._settings)
    with files.disk_of(self.target.parent):
      self.target.parent.mkdir(parents=True, exist_ok=True)
    self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), 'r+b')
    try:
      journal.lock(self._file, self._path)
      first = self._file.readline()
      if not first.endswith(b'\n') and _BEGINS.startswith(first[: len(_BEGINS)]):
        self._begin(header)
      elif first != header:
        self._refuse(first)
        self._begin(header)
      else:
        self._skip(ids)
    except BaseException:
      self.close()
      raise

  def _begin(self, header: bytes) -> None:
    """Begins anew: there is no record yet."""
    self._cut(0)
    self._write(header)
    self._is_empty = True
    self._sync()

  def _skip(self, ids: Iterable[str]) -> None:
    """Counts the records that are there; cuts what is torn, or was never to be there."""
    end = self._file.tell()
    for record_id in ids:
      line = self._file.readline()
      record = files.parsed(line) if line.endswith(b'\n') else None
      if record is None or record.get('id') != record_id:
        break
      self.count, end = self.count + 1, end + len(line)
    self._is_empty = self.count == 0
    self._cut(end)

  def _refuse(self, first: bytes) -> None:
    """Refuses to go on with records that other settings made, if there are any."""
    settings = (files.parsed(first) or {}).get('settings')
    if not isinstance(settings, dict):
      raise UsageError(
        f'{self._path} holds something else than unfinished {self._what}: pass another --output.'
      )
    if count := sum(line.endswith(b'\n') for line in self._file):
      raise mixed(self._path, f'{count} {self._what} that other settings made', self._settings, settings)

  def _cut(self, end: int) -> None:
    self._file.truncate(end)
    self._file.seek(end)

  def _write(self, text: bytes) -> None:
    with files.disk_of(self.target.parent):
      self._file.write(text)
      self._file.flush()

  def _sync(self) -> None:
    with contextlib.suppress(OSError), files.disk_of(self.target.parent):
      os.fsync(self._file.fileno())


def settings_of(target: pathlib.Path) -> dict[str, Any] | None:
  """The settings that made a file, whether or not it was changed since; `None` where that is not known."""
  described = _described(target)
  return None if described is None else described['settings']


def _beside(target: pathlib.Path, ending: str) -> pathlib.Path:
  return target.with_name(f'{target.name}.{ending}')


def _header(settings: Mapping[str, Any]) -> bytes:
  return files.json_line({'settings': settings}).encode()


def _settings_of(target: pathlib.Path) -> pathlib.Path:
  return _beside(target, 'settings')


def _described(target: pathlib.Path) -> dict[str, Any] | None:
  """What is said of a file that is there."""
  path = _settings_of(target)
  described = files.parsed(path.read_bytes()) if path.exists() and target.exists() else None
  return described if described is not None and isinstance(described.get('settings'), dict) else None


def _was_changed(target: pathlib.Path, *others: str) -> bool:
  """Whether a file has neither the hash that is said of it, nor one of the others."""
  described = _described(target)
  return described is not None and files.hash_file(target) not in (described.get('digest'), *others)
