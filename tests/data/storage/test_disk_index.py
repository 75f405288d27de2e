import errno
import hashlib
import os

import pytest

from dro_jax.data.storage import disk_index
from dro_jax.errors import UsageError


def test_a_text_keeps_its_first_number():
  found = disk_index.DiskIndex()
  assert found.get('a') is None
  assert [found.setdefault(text, i) for i, text in enumerate('abcab')] == [0, 1, 2, 0, 1]
  assert [found.get(text) for text in 'abcd'] == [0, 1, 2, None]
  assert len(found) == 3


@pytest.mark.parametrize('memory_bits', [20, 3])  # In memory, and in a file.
def test_a_growing_index_keeps_all_entries(monkeypatch, memory_bits):
  monkeypatch.setattr(disk_index, '_FIRST_BITS', 2)
  monkeypatch.setattr(disk_index, '_MEMORY_BITS', memory_bits)
  found, expected = disk_index.DiskIndex(), {}
  for i in range(500):
    text = str(i * i % 301)
    assert found.setdefault(text, i) == expected.setdefault(text, i)
    assert found.get(text) == expected[text]
  assert len(found) == len(expected)
  assert all(found.get(text) == number for text, number in expected.items())


def test_texts_with_equal_leading_hash_bits_stay_separate(monkeypatch):
  """All in one slot, so that every one is found by looking on, also beyond the end."""

  class Alike:
    def __init__(self, text, **_):
      self._text = text

    def digest(self):
      return b'\xff' * 15 + self._text[:1]

  monkeypatch.setattr(hashlib, 'blake2b', Alike)
  found = disk_index.DiskIndex()
  assert [found.setdefault(text, i) for i, text in enumerate('abcabc')] == [0, 1, 2, 0, 1, 2]
  assert len(found) == 3


@pytest.mark.parametrize('code, full', [(errno.ENOSPC, True), (errno.EOPNOTSUPP, False)])
def test_a_full_disk_is_an_error_before_the_first_write(monkeypatch, tmp_path, code, full):
  def refused(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setenv('TMPDIR', str(tmp_path))
  monkeypatch.setattr(disk_index, '_MEMORY_BITS', 3)
  monkeypatch.setattr(os, 'posix_fallocate', refused, raising=False)
  assert len(disk_index.mapped(8 * 24)) == 8 * 24
  if not full:
    assert bytes(disk_index.mapped(16 * 24)) == bytes(16 * 24)
    return
  with pytest.raises(UsageError, match=rf'{tmp_path}: cannot keep .*No space left.*set TMPDIR'):
    disk_index.mapped(16 * 24)
