"""The sides of a comparison: who answers, and the answers."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dro_jax import files
from dro_jax.checkpoints import folders
from dro_jax.data.records import answers, triplets
from dro_jax.data.text import chat
from dro_jax.errors import UsageError
from dro_jax.evaluation import answering
from dro_jax.run.folder import reading
from dro_jax.run.folder.configs import RUN

FILE, POLICY, REFERENCE = 'file', 'policy', 'reference'
_DIGEST = re.compile('[0-9a-f]{20}')
_NAMED = re.compile(r'([\w.+-]+)=(.+)', re.DOTALL)


class Side(NamedTuple):
  """One who answers.

  Attributes:
    name: as tables call it.
    kind: FILE of answers, POLICY of a run or a checkpoint, or REFERENCE of a run.
    path: the file or folder.
  """

  name: str
  kind: str
  path: str


def parse(sides: str | Sequence[str]) -> list[Side]:
  """The sides that a user named: `PATH`, `NAME=PATH`, `reference` (of the first run) or `reference:RUN`.

  Raises:
    UsageError: there are fewer than two, one is nothing of these, or two are the same.
  """
  texts = [part for part in (sides.split(',') if isinstance(sides, str) else sides) if part]
  if len(texts) < 2:
    raise UsageError(
      f'{len(texts)} side to judge: name two or more (dro_jax judge reference runs/dro_v --output=judged). A '
      'side is a run, a checkpoint, a file of answers, or reference.'
    )
  runs = [path for _, kind, path in map(_parsed, texts) if kind == POLICY]
  found = [_parsed(text, runs[0] if runs else None) for text in texts]
  named = [Side(name, *rest) for name, (_, *rest) in zip(_names(found), found)]
  if repeated := [side for i, side in enumerate(named) if side[1:] in [other[1:] for other in named[:i]]]:
    raise UsageError(f'{repeated[0].path} is named twice: a side is not compared with itself. Name it once.')
  return named


def _parsed(text: str, first_run: str | None = None) -> tuple[str | None, str, str]:
  """The name that the user gave, the kind and the path."""
  match = None if pathlib.Path(text).expanduser().exists() else _NAMED.fullmatch(text)
  name, path = (match[1], match[2]) if match else (None, text)
  if path == REFERENCE and not pathlib.Path(path).exists():
    if first_run is None:
      return name or REFERENCE, REFERENCE, ''
    return name or REFERENCE, REFERENCE, first_run
  if path.startswith(f'{REFERENCE}:'):
    return name or REFERENCE, REFERENCE, path.removeprefix(f'{REFERENCE}:')
  if path.endswith(triplets.FORMATS):
    return name, FILE, path
  return name, POLICY, path


def _names(found: Sequence[tuple[str | None, str, str]]) -> list[str]:
  """The given names; else the last part of each path, or all of it where two would be called the same."""
  short = [name or _stem(path) for name, _, path in found]
  names = [text if short.count(text) == 1 or name else path for text, (name, _, path) in zip(short, found)]
  if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
    raise UsageError(f'two sides are called {repeated[0]}: name them apart, as a={repeated[0]}.')
  return names


def _stem(path: str) -> str:
  name = pathlib.PurePath(path).name
  description = pathlib.Path(path).expanduser() / RUN
  if _DIGEST.fullmatch(name) and description.exists():  # The arena calls its runs so.
    return str(json.loads(description.read_text(encoding='utf-8')).get('algorithm', name))
  return next((name.removesuffix(ending) for ending in triplets.FORMATS if name.endswith(ending)), name)


def check(sides: Sequence[Side]) -> None:
  """Refuses sides that are not there, before anybody answers."""
  for side in sides:
    if side.kind == FILE:
      triplets.expand(side.path)
    elif not side.path:
      raise UsageError('reference: there is no run among the sides. Say of which, as reference:runs/dro_v.')
    else:
      folders.find_checkpoint(side.path)


def read_answers(path: str, columns: str | Mapping[str, str] | None = None) -> dict[str, list[str]]:
  """The answers of a file by prompt, in their order; an answer may be empty.

  Args:
    path: of a file whose records have `prompt` and `response`, such as `generate` writes.
    columns: the file's names of fields; those that the file lacks are passed over.

  Raises:
    UsageError: a record has no response; names file and line.
  """
  found: dict[str, list[str]] = {}
  for answer in answers.read_unchecked(path, columns, chat_template=chat.TEMPLATE):
    found.setdefault(answer.prompt, []).append(answer.response)
  return found


def checkpoint_digest(side: Side) -> str:
  """A hash of all that decides a policy's answers but for the decoding: its parameters, and how it reads."""
  saved = folders.load_metadata(side.path)
  read = {name: saved.get(name) for name in ('model', 'family', 'lora', 'vocabulary_fingerprint')}
  digest = answering.digest_of(side.path)
  described = [side.kind, digest, read, reading.options_of(saved)]
  return files.hash_parts([files.json_text(described, sort_keys=True).encode()])
