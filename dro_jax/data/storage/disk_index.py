"""A map from texts to numbers: a hash table on disk, which the system may page out.

A dict of a billion ids is larger than a machine's memory. Here an entry takes 24 bytes (a 128-bit hash and a
number) at 30 to 60 % filling. A small table is in memory, a large one in an unnamed file under TMPDIR or
/var/tmp, so that unused parts need not stay in memory.
"""

import errno
import mmap
import os
import struct
import tempfile

from dro_jax.data.storage.hashes import text_digest
from dro_jax.errors import UsageError

_CELLS = 3  # Cells of 64 bits in an entry: two of hash, and the number + 1; 0 is free.
_ENTRY = 8 * _CELLS  # Bytes.
_FILLING = 0.6
_FIRST_BITS = _MEMORY_BITS = 16  # Entries at first, and at most in memory, as powers of two: 1.5 MB.
_NONE = -1
_HALVES = struct.Struct('>QQ').unpack


class DiskIndex:
  """A number for each text: the first that was set."""

  def __init__(self) -> None:
    self._count, self._bits = 0, _FIRST_BITS
    self._map = mapped(2**self._bits * _ENTRY)
    self._cells = memoryview(self._map).cast('Q')
    self._last: tuple[str | None, int, int, int] = (None, 0, 0, 0)

  def __len__(self) -> int:
    return self._count

  def get(self, text: str) -> int | None:
    """The text's number, or None."""
    _, _, _, slot = self._look_up(text)
    number = self._cells[_CELLS * slot + 2] - 1
    return None if number == _NONE else number

  def setdefault(self, text: str, number: int) -> int:
    """The text's number; sets it to this one (0 or more) where it has none."""
    _, high, low, slot = self._look_up(text)
    cell = _CELLS * slot
    if self._cells[cell + 2]:
      return self._cells[cell + 2] - 1
    self._cells[cell], self._cells[cell + 1], self._cells[cell + 2] = high, low, number + 1
    self._count += 1
    if self._count > _FILLING * 2**self._bits:
      self._grow()
    return number

  def _look_up(self, text: str) -> tuple[str | None, int, int, int]:
    """The text, 128 bits of its hash, and its slot; cached, because most texts are read and then set."""
    if self._last[0] != text:
      high, low = _HALVES(text_digest(text))
      self._last = text, high, low, self._slot(high, low)
    return self._last

  def _slot(self, high: int, low: int) -> int:
    """The slot where an entry is or belongs."""
    cells, mask = self._cells, 2**self._bits - 1
    # The leading bits, so that growing reads and writes the disk from front to back.
    slot = high >> (64 - self._bits)
    while cells[_CELLS * slot + 2] and (cells[_CELLS * slot], cells[_CELLS * slot + 1]) != (high, low):
      slot = (slot + 1) & mask
    return slot

  def _grow(self) -> None:
    old, old_map = self._cells, self._map
    self._bits += 1
    self._last = (None, 0, 0, 0)
    self._map = mapped(2**self._bits * _ENTRY)
    self._cells = memoryview(self._map).cast('Q')
    for cell in range(0, len(old), _CELLS):
      if old[cell + 2]:
        target = _CELLS * self._slot(old[cell], old[cell + 1])
        self._cells[target : target + _CELLS] = old[cell : cell + _CELLS]
    old.release()
    old_map.close()


def mapped(size: int) -> mmap.mmap:
  """`size` zero bytes: in memory, or in a file that is deleted when it is closed.

  Raises:
    UsageError: the disk has no room for the file.
  """
  if size <= 2**_MEMORY_BITS * _ENTRY:
    return mmap.mmap(_NONE, size)
  # /tmp is memory on many machines.
  place = os.environ.get('TMPDIR') or ('/var/tmp' if os.access('/var/tmp', os.W_OK) else None)
  try:
    with tempfile.TemporaryFile(dir=place) as file:
      _reserve(file.fileno(), size)
      return mmap.mmap(file.fileno(), size)
  except OSError as error:
    raise UsageError(
      f'{place or tempfile.gettempdir()}: cannot keep {size / 1e6:.0f} MB of hashes there ({error}); set '
      'TMPDIR to a folder on a disk that has room'
    ) from error


def _reserve(descriptor: int, size: int) -> None:
  """Gives a file its size, with all of its blocks on the disk: a full disk would end the process by SIGBUS.

  The blocks are written soon anyway, because tables fill from front to back as they grow.
  """
  os.truncate(descriptor, size)
  if not hasattr(os, 'posix_fallocate'):
    return
  try:
    os.posix_fallocate(descriptor, 0, size)
  except OSError as error:
    if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # Some file systems cannot.
      raise
