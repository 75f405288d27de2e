"""The note of a stage, `stage.json` in its folder: its command, its inputs, and whether it is done."""

import os
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax import files
from dro_jax.errors import UsageError
from dro_jax.recipes.reproduce.stages import ROOT, Stage

NOTE, LOG, RESULT = 'stage.json', 'log.txt', 'result.json'
BEGUN, DONE = 'begun', 'done'
# Settings of `judge` that change no verdict: a greater budget must not throw away what was paid for.
FREE = (
  'CONCURRENCY', 'TIMEOUT', 'RETRIES', 'REQUESTS_PER_MINUTE', 'TOKENS_PER_MINUTE', 'REQUEST_BUDGET',
  'TOKEN_BUDGET', 'INPUT_PRICE', 'OUTPUT_PRICE', 'RESEND', 'API_KEY_VARIABLE',
)  # fmt: skip


class State(NamedTuple):
  """How a stage stands: '' where it has not begun, `BEGUN`, `DONE`; and why it cannot go on, if it cannot."""

  name: str
  changed: str = ''


def identities(stages: Sequence[Stage]) -> dict[str, str]:
  """A hash of all that decides a stage's files, by its name.

  These are its command but for `FREE` settings, the files outside of the root that this names, and the
  stages that it needs.
  """
  found: dict[str, str] = {}
  for stage in stages:
    parts = [_deciding(stage.command), [found[name] for name in stage.needs], _own_files(stage)]
    found[stage.name] = files.hash_parts([files.json_text(parts).encode()])
  return found


def _deciding(command: Sequence[str]) -> list[str]:
  free = tuple(f'--set={name}=' for name in FREE)
  return [argument for argument in command if not argument.startswith(free)]


def _own_files(stage: Stage) -> dict[str, str]:
  """The hashes of the files outside of the root that a command's flags name, as FILE.py:FUNCTION."""
  found = {}
  for argument in stage.command[1:]:
    for word in re.split(r'[=,\s:]', argument)[argument.startswith('--') :]:
      path = os.path.expanduser(word)
      # A word without an ending, as a setting's value, may be the name of some file by chance.
      if ROOT not in word and re.search(r'\.[a-z]|/', word) and os.path.isfile(path):
        found[word] = files.hash_file(path)
  return found


def state(root: pathlib.Path, stage: Stage, known: Mapping[str, str]) -> State:
  """How a stage stands, by its note.

  Args:
    root: the folder of the stages.
    stage: to look at.
    known: the identities of all stages.
  """
  note = read(root, stage)
  if note is None:
    return State('')
  if note['identity'] != known[stage.name]:
    return State(note['state'], _difference(stage, note, known))
  if note['state'] == DONE:
    for name, digest in note['files'].items():
      path = root / stage.name / name
      if not path.is_file() or files.hash_file(path) != digest:
        gone = 'was changed' if path.is_file() else 'is gone'
        return State(DONE, f'its file {path} {gone} since the stage wrote it')
  return State(note['state'])


def _difference(stage: Stage, note: Mapping[str, Any], known: Mapping[str, str]) -> str:
  before, now = map(_deciding, (note['command'], stage.command))
  if before != now:
    gone = shlex.join(text for text in before if text not in now) or 'nothing'
    new = shlex.join(text for text in now if text not in before) or 'nothing'
    return f'its command had {gone}, and has {new} instead'
  if others := [name for name in stage.needs if note['needs'].get(name) != known[name]]:
    return f'the stage {others[0]}, whose files it reads, has another command or other inputs'
  own, noted = _own_files(stage), note['own']
  names = sorted(name for name in own.keys() | noted.keys() if own.get(name) != noted.get(name))
  return f'{", ".join(names)}, which its command names, has other contents'


def read(root: pathlib.Path, stage: Stage) -> dict[str, Any] | None:
  """The note of a stage; `None` where it has not begun.

  Raises:
    UsageError: the folder holds files without a note, or with a damaged one.
  """
  path = root / stage.name / NOTE
  if not path.exists():
    if path.parent.exists() and any(path.parent.iterdir()):
      raise UsageError(
        f'{path.parent} holds files, and no {NOTE} says which stage made them: move the folder away, or pass '
        'another --model_dir.'
      )
    return None
  note = files.parsed(path.read_bytes())
  if note is None or not note.keys() >= {'state', 'command', 'needs', 'identity', 'seconds', 'own', 'files'}:
    raise UsageError(f'{path} is damaged: remove the folder {path.parent}, and the stage runs anew.')
  return note


def write(
  root: pathlib.Path, stage: Stage, known: Mapping[str, str], name: str, seconds: float = 0.0
) -> None:
  """Notes that a stage begins, or that it is done; the seconds of all its attempts add up."""
  before = read(root, stage) or {'seconds': 0.0}
  folder = root / stage.name
  note = {
    'state': name, 'command': stage.command, 'needs': {need: known[need] for need in stage.needs},
    'identity': known[stage.name], 'seconds': round(before['seconds'] + seconds, 1),
    'own': _own_files(stage),
    'files': {made: files.hash_file(folder / made) for made in stage.written} if name == DONE else {},
  }  # fmt: skip
  folder.mkdir(parents=True, exist_ok=True)
  files.write_atomically(folder / NOTE, files.json_text(note, indent=2) + '\n')
