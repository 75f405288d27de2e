"""Folders of arrays that exist whole or not at all: built beside their place, and moved there by one rename.

A description, written last, holds the checksum of every file and of itself, so that a torn or damaged folder
is never read as an intact one.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
import pathlib
import platform
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from dro_jax.errors import UsageError
from dro_jax.files import json_text

_BUILDING = '.building-'
_SILENT = 86400  # Seconds without a write after which a builder on another machine counts as dead.


class Replacing:
  """A temporary directory that replaces `directory` when the block succeeds, and is deleted when it fails.

  A directory that holds something else than such a folder is never replaced.

  Args:
    directory: the folder's place.
    what: its name in errors.
    description: the JSON file that every such folder has, with `version`, `fingerprint` and `files`.
    version: of the format.
    mark: the new folder's fingerprint; a folder with the same fingerprint, from another process, stays.
    elsewhere: what to pass where nothing can be written, for errors.
  """

  def __init__(self, directory: str, *, what: str, description: str, version: int, mark: str, elsewhere: str):
    self._directory, self._what, self._elsewhere = directory, f'{what} {directory}', elsewhere
    self._description, self._version, self._mark = description, version, mark

  def __enter__(self) -> str:
    parent = os.path.dirname(self._directory)
    try:
      os.makedirs(parent, exist_ok=True)
      self._refuse_something_else()
      sweep(parent)
      self._building, self._lock = _begin(parent)
    except OSError as error:
      raise UsageError(f'{self._what}: cannot write there ({error}); pass {self._elsewhere}') from error
    return self._building

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    try:
      if kind is None:
        self._take_place()
    except OSError as failure:
      error = failure
    finally:
      shutil.rmtree(self._building, ignore_errors=True)
      _end(self._building, self._lock)
    if isinstance(error, OSError):
      raise UsageError(f'{self._what}: cannot write it ({error}); pass {self._elsewhere}') from error

  def _is_there(self) -> bool:
    meta = describe(self._directory, self._description, self._version)
    return meta is not None and meta['fingerprint'] == self._mark and not damaged(self._directory, meta)

  def _refuse_something_else(self) -> None:
    described = os.path.join(self._directory, self._description)
    if os.path.isdir(self._directory) and os.listdir(self._directory) and not os.path.exists(described):
      raise UsageError(f'{self._what}: the directory holds something else; pass another one')
    if os.path.exists(self._directory) and not os.path.isdir(self._directory):
      raise UsageError(f'{self._what}: a file has that name; pass another one')

  def _take_place(self) -> None:
    os.chmod(self._building, 0o755)
    if os.path.isdir(self._directory):
      if self._is_there():
        return
      self._refuse_something_else()
      old = tempfile.mkdtemp(prefix=_BUILDING, dir=os.path.dirname(self._directory))
      os.rename(self._directory, os.path.join(old, 'old'))
      os.rename(self._building, self._directory)
      shutil.rmtree(old, ignore_errors=True)
      return
    try:
      os.rename(self._building, self._directory)
    except OSError:
      if not self._is_there():
        raise


# --- unfinished folders -------------------------------------------------------------------------------------


def _begin(parent: str) -> tuple[str, int]:
  """A new folder to build in, and the lock beside it, which this process holds until it ends."""
  name = tempfile.mktemp(prefix=_BUILDING, dir=parent)
  lock = os.open(_lock_of(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
  with contextlib.suppress(OSError):  # On a mount without locks only age shows whether a builder is dead.
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  os.write(lock, json_text({'machine': _machine(), 'process': os.getpid()}).encode())
  os.mkdir(name, 0o700)
  return name, lock


def _end(building: str, lock: int) -> None:
  with contextlib.suppress(OSError):
    os.unlink(_lock_of(building))
  os.close(lock)


def _lock_of(building: str) -> str:
  return f'{building}.lock'


@functools.cache
def _machine() -> str:
  """This machine since its last boot; locks of other machines and earlier boots have no meaning here."""
  try:
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    return platform.node()


def sweep(parent: str) -> None:
  """Removes the unfinished folders of dead builders.

  A builder on this machine is dead if its lock is free. A builder on another machine, or of an earlier
  version, counts as dead after a day without a write.
  """
  for building in pathlib.Path(parent).glob(f'{_BUILDING}*'):
    if not building.name.endswith('.lock') and _is_dead(building):
      logging.getLogger(__name__).info(
        '%s: removed, because the process that was building it is dead', building
      )
      shutil.rmtree(building, ignore_errors=True)
      pathlib.Path(_lock_of(str(building))).unlink(missing_ok=True)
  for lock in pathlib.Path(parent).glob(f'{_BUILDING}*.lock'):
    if not lock.with_suffix('').exists() and is_silent(lock):
      lock.unlink(missing_ok=True)


def _is_dead(building: pathlib.Path) -> bool:
  try:
    with open(_lock_of(str(building)), 'rb') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if json.loads(lock.read())['machine'] == _machine():
        return True
  except BlockingIOError:
    return False
  except (OSError, ValueError, KeyError, TypeError):
    pass
  return is_silent(building)


def is_silent(path: pathlib.Path) -> bool:
  """Whether a file, or all files of a folder, were not written for a day; False where it is gone."""
  try:
    newest = max(file.stat().st_mtime for file in (path, *path.rglob('*')))
  except OSError:
    return False
  return time.time() - newest > _SILENT


def seal(directory: str, description: str, meta: Mapping[str, Any]) -> None:
  """Writes the description of a folder whose other files are complete."""
  names = sorted(os.listdir(directory))
  files = {name: os.path.getsize(os.path.join(directory, name)) for name in names}
  checksums = {name: _checksum(os.path.join(directory, name)) for name in names}
  sealed = json.loads(json_text({**meta, 'files': files, 'checksums': checksums}))
  with open(os.path.join(directory, description), 'w') as file:
    file.write(json_text({**sealed, 'seal': _seal(sealed)}, indent=1))


def describe(directory: str, description: str, version: int) -> Mapping[str, Any] | None:
  """The description of a complete folder of this version, or None; does not check the files' bytes."""
  try:
    with open(os.path.join(directory, description)) as file:
      meta = json.load(file)
    intact = meta.pop('seal') == _seal(meta) and meta['version'] == version
    same = all(os.path.getsize(os.path.join(directory, name)) == x for name, x in meta['files'].items())
    return meta if intact and same else None
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return None


def damaged(directory: str, meta: Mapping[str, Any]) -> list[str]:
  """The files of a described folder whose checksums differ."""
  checksums = meta['checksums'].items()
  return [name for name, checksum in checksums if _checksum(os.path.join(directory, name)) != checksum]


def _seal(meta: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _checksum(path: str) -> int | None:
  """The checksum of a file's bytes; None where it cannot be read."""
  checksum = 0
  try:
    with open(path, 'rb') as file:
      while block := file.read(2**20):
        checksum = zlib.crc32(block, checksum)
  except OSError:
    return None
  return checksum
