"""Folders of arrays that are there whole or not at all: built beside their place, put there by one rename."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping

from dro_jax.errors import UsageError


class Replacing:
  """A temporary directory that takes `directory`'s place when the block ends well, and vanishes if not.

  What holds something else than such a folder is never replaced.

  Args:
    directory: the folder's place.
    what: how errors call it.
    description: the JSON file that every such folder has, with `version`, `fingerprint` and `files`.
    version: of the format.
    mark: the new folder's fingerprint: where another process has put the same meanwhile, that stays.
    elsewhere: what to pass where nothing can be written.
  """

  def __init__(self, directory: str, *, what: str, description: str, version: int, mark: str, elsewhere: str):
    self._directory, self._what, self._elsewhere = directory, f'{what} {directory}', elsewhere
    self._description, self._version, self._mark = description, version, mark

  def __enter__(self) -> str:
    parent = os.path.dirname(self._directory)
    try:
      os.makedirs(parent, exist_ok=True)
      self._building = tempfile.mkdtemp(prefix='.building-', dir=parent)
    except OSError as error:
      raise UsageError(f'{self._what}: cannot write there ({error}); pass {self._elsewhere}') from error
    return self._building

  def __exit__(self, kind, error, trace) -> None:
    try:
      if kind is None:
        self._take_place()
    finally:
      shutil.rmtree(self._building, ignore_errors=True)
    if isinstance(error, OSError):
      raise UsageError(f'{self._what}: cannot write it ({error})') from error

  def _is_there(self) -> bool:
    found = describe(self._directory, self._description, self._version)
    return (found or {}).get('fingerprint') == self._mark

  def _take_place(self) -> None:
    os.chmod(self._building, 0o755)
    if os.path.isdir(self._directory):
      if self._is_there():
        return
      if os.listdir(self._directory) and not os.path.exists(os.path.join(self._directory, self._description)):
        raise UsageError(f'{self._what}: the directory holds something else; pass another one')
      old = tempfile.mkdtemp(prefix='.building-', dir=os.path.dirname(self._directory))
      os.rename(self._directory, os.path.join(old, 'old'))
      os.rename(self._building, self._directory)
      shutil.rmtree(old, ignore_errors=True)
      return
    try:
      os.rename(self._building, self._directory)
    except OSError:
      if not self._is_there():
        raise


def sizes(directory: str) -> dict[str, int]:
  """Bytes of each file, by name."""
  return {name: os.path.getsize(os.path.join(directory, name)) for name in sorted(os.listdir(directory))}


def describe(directory: str, description: str, version: int) -> Mapping | None:
  """The description of a complete folder of this version, or None."""
  try:
    with open(os.path.join(directory, description)) as file:
      meta = json.load(file)
    there = sizes(directory)
    intact = all(there.get(name) == size for name, size in meta['files'].items())
    return meta if meta['version'] == version and intact else None
  except (OSError, ValueError, KeyError):
    return None
