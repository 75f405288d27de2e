"""What scored a file of triplets: `FILE.scores.json` beside it, which `dro_jax score` writes.

A run that trains on such rewards records it, so that a model does not judge what it trained, unnoticed.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dro_jax import files

_ENDING = '.scores.json'


def place(path: str | pathlib.Path) -> pathlib.Path:
  """Where the record of a file lies."""
  path = pathlib.Path(path)
  return path.with_name(path.name + _ENDING)


def write(path: pathlib.Path, rewards: Mapping[str, Mapping[str, Any]], **others: Any) -> None:
  """Records the rewards of a file, by the columns that they fill, and others on which its scores depend."""
  files.write_atomically(place(path), files.json_text({'rewards': rewards, **others}, indent=2) + '\n')


def settings_of(path: pathlib.Path) -> dict[str, Any] | None:
  """On what the scores of a file depend; `None` where that is not recorded."""
  beside = place(path)
  return files.parsed(beside.read_bytes()) if beside.is_file() else None


def read(paths: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
  """The rewards that filled some columns of files, each once; nothing of files without a record."""
  found: list[dict[str, Any]] = []
  for path in paths:
    beside = place(path)
    if files.is_remote(path) or not os.path.isfile(beside):
      continue
    rewards = (files.parsed(beside.read_bytes()) or {}).get('rewards', {})
    found += [reward for column, reward in rewards.items() if column in columns and reward not in found]
  return found


__all__ = ['place', 'read', 'settings_of', 'write']
