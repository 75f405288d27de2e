"""JSON lines that survive a kill at any instant: each record is on disk before the next step is taken."""

import os
import pathlib
import threading
from collections.abc import Mapping
from typing import Any

from dro_jax import files


class Journal:
  """A file of JSON lines that only grows, and the records that it holds.

  A line that a kill left half-written is cut off when the file is opened again. Several threads may append.

  Args:
    path: the file; made where it is missing, with its folder.

  Raises:
    UsageError: a line other than the last is no JSON object.
  """

  def __init__(self, path: pathlib.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._lock = threading.Lock()
    self.records: list[dict[str, Any]] = list(files.json_lines(path)) if path.exists() else []
    self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    self._cut_torn_line(path)

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes a record; it is on disk when this returns."""
    line = files.json_line(record).encode()
    with self._lock:
      self.records.append(dict(record))
      while line:
        line = line[os.write(self._file, line) :]
      os.fsync(self._file)

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
