"""JSON lines that survive a kill at any instant: each record is on disk before the next step is taken."""

import errno
import fcntl
import os
import pathlib
import threading
from collections.abc import Mapping
from typing import IO, Any

from dro_jax import files
from dro_jax.errors import InUse


class Journal:
  """A file of JSON lines that only grows, and that one process writes at a time.

  A line that a kill left half-written is cut off when the file is opened again. Several threads may append.

  Args:
    path: the file; made where it is missing, with its folder.

  Attributes:
    records: those that were there when the file was opened.

  Raises:
    UsageError: another process writes the file, or a line other than the last is no JSON object.
  """

  def __init__(self, path: pathlib.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._lock = threading.Lock()
    self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      lock(self._file, path)
      self.records: list[dict[str, Any]] = list(files.json_lines(path))
      self._cut_torn_line(path)
    except BaseException:
      self.close()
      raise

  def append(self, *records: Mapping[str, Any]) -> None:
    """Writes records; they are on disk when this returns."""
    lines = ''.join(map(files.json_line, records)).encode()
    with self._lock:
      while lines:
        lines = lines[os.write(self._file, lines) :]
      os.fsync(self._file)

  def clear(self) -> None:
    """Removes all records."""
    os.ftruncate(self._file, 0)
    os.lseek(self._file, 0, os.SEEK_SET)
    self.records = []

  def close(self) -> None:
    os.close(self._file)

  def _cut_torn_line(self, path: pathlib.Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b'\n') + 1
    # A last line that lacks nothing but its end has been read as a record, and stays.
    if content[whole:] and files.parsed(content[whole:]) is not None:
      content, whole = content + b'\n', len(content) + 1
      os.pwrite(self._file, b'\n', len(content) - 1)
    if whole < len(content):
      os.ftruncate(self._file, whole)
    os.lseek(self._file, 0, os.SEEK_END)


def lock(file: int | IO[bytes], path: pathlib.Path) -> None:
  """Keeps other processes from writing an open file until it is closed.

  Raises:
    InUse: another process writes it.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    # A mount without locks keeps nobody out.
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      raise InUse(
        f'{path} is being written by another process: wait for it, stop it, or pass another --output.'
      ) from error
