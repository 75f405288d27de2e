"""Fingerprints: hashes of values, and of files by their contents and names."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from dro_jax.errors import UsageError
from dro_jax.files import hash_parts


def fingerprint(*parts: Any) -> str:
  """A hash of values by their `repr`, which must describe them completely."""
  texts = (repr(part).encode('utf-8', 'surrogatepass') for part in parts)
  return hash_parts(b'%d:' % len(text) + text for text in texts)


def files_fingerprint(paths: Iterable[str]) -> str:
  """A hash of files' contents and base names (which name their records).

  Raises:
    UsageError: a file cannot be read.
  """
  return fingerprint(*map(file_hash, paths))


def file_hash(path: str) -> tuple[str, str]:
  """The base name of a file, on a disk or in a bucket, and a hash of its contents."""
  digest = hashlib.blake2b()  # Longer than `files.hash_parts`: tables that are there already are found by it.
  try:
    with epath.Path(path).open('rb') as file:
      while block := file.read(2**20):
        digest.update(block)
  except OSError as error:
    raise UsageError(f'{path}: cannot read it ({error})') from error
  return os.path.basename(path), digest.hexdigest()


def differences(ours: Mapping[str, Any], stored: Mapping[str, Any]) -> Iterable[str]:
  """The differences between two fingerprints, each as `name: STORED there, OURS here`."""
  for name in sorted(ours.keys() | stored.keys()):
    here, there = ours.get(name), stored.get(name)
    if isinstance(here, Mapping) and isinstance(there, Mapping):
      yield from (f'{name}.{line}' for line in differences(here, there))
    elif here != there:
      yield f'{name}: {there!r} there, {here!r} here'


def mixed(
  path: os.PathLike[str], held: str, ours: Mapping[str, Any], stored: Mapping[str, Any]
) -> UsageError:
  """The error of an unfinished file whose records others would be mixed with.

  Args:
    path: the file's.
    held: how many records it holds and what made them, in words.
    ours: what decides the records that would be added.
    stored: what decided those that are there.
  """
  return UsageError(
    f'{path} holds {held} ({"; ".join(differences(ours, stored))}), and the new ones would be mixed with '
    'them: pass those settings to go on, remove the file to begin anew, or pass another --output.'
  )
