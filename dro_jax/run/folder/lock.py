"""The lock of a run's folder: two runs must not share a folder."""

import contextlib
import fcntl
import json
import os
import pathlib
import platform
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from dro_jax.errors import InUse, UsageError
from dro_jax.files import json_text

LOCK = '.lock'


@contextlib.contextmanager
def locked(folder: pathlib.Path, flag: str = '--model_dir') -> Iterator[None]:
  """Makes the folder if it is missing, and keeps other runs out of it until the block ends.

  The operating system holds the lock (`flock`) on `.lock`, so the lock ends with the process in every case.
  The first of several processes locks for all. On a mount without locks across machines the lock keeps out
  only the runs of this machine. Removes a folder that it made and that got no other file.

  Raises:
    InUse: another run has the folder.
    UsageError: it cannot be written to.
  """
  error, lock, made = None, None, False
  if jax.process_index() == 0:
    try:
      made = not folder.exists()
      lock = _lock(folder, flag)
    except UsageError as refusal:
      error = refusal
  _refuse_together(folder, error)
  try:
    yield
  finally:
    if lock is not None:
      if made and os.listdir(folder) == [LOCK]:
        (folder / LOCK).unlink()
        folder.rmdir()
      os.close(lock)


def _lock(folder: pathlib.Path, flag: str) -> int:
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise UsageError(f'cannot write to {folder}: {error.strerror}. Pass another {flag}.') from error
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    os.close(lock)
    raise InUse(
      f'{folder} is in use by another run{_holder(folder)}. Wait, stop it, or pass another {flag}.'
    ) from error
  os.truncate(lock, 0)
  os.write(lock, json_text({'host': platform.node(), 'process': os.getpid()}).encode())
  return lock


def _holder(folder: pathlib.Path) -> str:
  try:
    return ' (process {process} on {host})'.format(**json.loads((folder / LOCK).read_text(encoding='utf-8')))
  except (OSError, ValueError, KeyError):
    return ''


def _refuse_together(folder: pathlib.Path, error: UsageError | None) -> None:
  """Raises in every process where the first one must."""
  kinds = (type(None), UsageError, InUse)
  kind = kinds.index(type(error))
  if jax.process_count() > 1:
    kind = int(multihost_utils.broadcast_one_to_all(np.asarray(kind)))
  if kind:
    raise error or kinds[kind](f'{folder}: the first process could not lock it. Its message has the cause.')
