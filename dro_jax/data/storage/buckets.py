"""Files and token tables in a bucket: copied once, and read from this machine's disk.

Tables are memory-mapped and read at random, which buckets do not support. A copy is verified by its
checksums. A run uploads a table that it built for other runs, with the description last, so that the bucket
has it whole or not at all.
"""

import glob
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from dro_jax.data.storage import folders
from dro_jax.data.storage.hashes import text_digest
from dro_jax.errors import UsageError

_BLOCK = 2**23  # Bytes copied at a time.


class _Damaged(Exception):
  """A copied folder does not match its description."""


def default_root() -> str:
  """The default folder of tables and copies."""
  return os.path.expanduser(os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'dro_jax'))


def files(pattern: str) -> list[str]:
  """Local copies of the files in a bucket that a path or glob pattern names, in order.

  A copy is made again when the file's size or time has changed.

  Raises:
    UsageError: the bucket cannot be reached, or there is no such file.
  """
  paths = reach(pattern, lambda: [_copied(file) for file in _named(pattern)])
  if not paths:
    raise UsageError(f"triplets '{pattern}': there is no such file")
  return paths


def names(pattern: str) -> list[str]:
  """The files in a bucket that a path or glob pattern names, in order; errors as `files`."""
  paths = reach(pattern, lambda: [str(file) for file in _named(pattern)])
  if not paths:
    raise UsageError(f"triplets '{pattern}': there is no such file")
  return paths


def _named(pattern: str) -> Iterator[epath.Path]:
  if not glob.has_magic(pattern):
    return iter([epath.Path(pattern)] if epath.Path(pattern).exists() else [])
  parts = pattern.split('/')
  fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
  matches = epath.Path('/'.join(parts[:fixed])).glob('/'.join(parts[fixed:]))
  return iter(sorted(matches, key=str))


def stamp(path: str) -> tuple[int, int]:
  """The length and time of a file in a bucket, which change with it; errors as `files`."""
  stat = reach(path, epath.Path(path).stat)
  return stat.length, stat.mtime


def _copied(file: epath.Path) -> str:
  mark = text_digest(repr((str(file), *stamp(str(file)))), 8).hex()
  target = os.path.join(default_root(), 'files', mark, file.name)
  if not os.path.exists(target):
    logging.getLogger(__name__).info('%s: copied to %s', file, target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    _sweep(os.path.dirname(target))
    descriptor, partial = tempfile.mkstemp(dir=os.path.dirname(target), prefix='.copying-')
    os.close(descriptor)
    try:
      copy(file, epath.Path(partial))
      os.replace(partial, target)
    finally:
      epath.Path(partial).unlink(missing_ok=True)
  return target


def _sweep(folder: str) -> None:
  """Removes unfinished copies that nothing has written to for a day."""
  for partial in pathlib.Path(folder).glob('.copying-*'):
    if folders.is_silent(partial):
      partial.unlink(missing_ok=True)


def copy(source: epath.Path, target: epath.Path) -> None:
  """Copies a file, a block at a time."""
  with source.open('rb') as read, target.open('wb') as written:
    shutil.copyfileobj(read, written, _BLOCK)


def fetch(url: str, directory: str, *, description: str, version: int, what: str) -> bool:
  """Copies a complete folder of arrays to this machine; returns whether an intact copy arrived.

  Args:
    url: its place in a bucket.
    directory: its place on this machine.
    description: the JSON file that completes it (see `folders`).
    version: of the format.
    what: its name in messages.
  """
  folder, log = epath.Path(url), logging.getLogger(__name__)
  meta = reach(url, lambda: _description(folder / description))
  if meta is None or meta.get('version') != version:
    return False
  log.info('%s: copying the %s to %s', url, what, directory)
  try:
    with folders.Replacing(
      directory, what=what, description=description, version=version, mark=meta['fingerprint'],
      elsewhere='another folder in XDG_CACHE_HOME',
    ) as building:  # fmt: skip
      for name in (*meta['files'], description):
        reach(url, lambda name=name: copy(folder / name, epath.Path(building) / name))
      copied = folders.describe(building, description, version)
      if copied is None or folders.damaged(building, copied):
        raise _Damaged
  except _Damaged:
    log.warning('%s: the %s there is damaged and is made again', url, what)
    return False
  return True


def put(directory: str, url: str, *, description: str, always: bool = False) -> None:
  """Copies a complete folder of arrays to a bucket, the description last.

  Args:
    directory: its place on this machine.
    url: its place in the bucket.
    description: the JSON file that completes it (see `folders`).
    always: copy even where the bucket's description has the same checksums.
  """
  folder, own = epath.Path(url), epath.Path(directory)
  meta = json.loads((own / description).read_text())

  def upload() -> None:
    uploaded = _description(folder / description)
    if not always and uploaded is not None and uploaded.get('checksums') == meta['checksums']:
      return
    logging.getLogger(__name__).info('%s: copied there from %s', url, directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / description).unlink(missing_ok=True)
    for name in (*meta['files'], description):
      copy(own / name, folder / name)

  reach(url, upload)


def _description(file: epath.Path) -> dict[str, Any] | None:
  """The contents of a description; None where it cannot be read."""
  try:
    meta = json.loads(file.read_text()) if file.exists() else None
  except ValueError:
    return None
  is_complete = isinstance(meta, dict) and isinstance(meta.get('files'), dict) and 'fingerprint' in meta
  # The names come from outside, and none may lead out of the folder.
  return meta if is_complete and all(os.path.basename(name) == name for name in meta['files']) else None


def reach(url: str, act: Callable[[], Any]) -> Any:
  """Calls a function that accesses a bucket; raises its failures as a UsageError."""
  try:
    return act()
  except UsageError:
    raise
  except Exception as error:  # Every kind of storage has its own exceptions.
    raise UsageError(
      f'{url} cannot be reached from here ({error or type(error).__name__}): log in, or copy it to a disk '
      'and pass the copy'
    ) from error
