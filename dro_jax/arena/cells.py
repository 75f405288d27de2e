"""Cells: the smallest unit that runs once. Each is a file, written whole or not at all."""

import contextlib
import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from dro_jax import files
from dro_jax.errors import InUse, UsageError
from dro_jax.files import json_text, to_json
from dro_jax.run.folder import lock

_FORMAT = 1


class Cell(NamedTuple):
  """A method with its hyperparameters, in the world of a suite at a point of its axes, with a seed."""

  suite: str
  algorithm: str
  hyperparameters: Mapping[str, Any]
  seed: int
  axes: Mapping[str, Any]


class Finished(NamedTuple):
  """A cell, its result (plain JSON), and the seconds that it took."""

  cell: Cell
  result: Mapping[str, Any]
  seconds: float


def plan(
  suite: str,
  trials: Mapping[str, Sequence[Mapping[str, Any]]],
  seeds: int,
  axes: Sequence[Mapping[str, Any]],
) -> list[Cell]:
  """All cells of the trials of some methods; cells with the same world and seed stay together."""
  return [
    Cell(suite, algorithm, dict(trial), seed, dict(point))
    for point in axes
    for seed in range(seeds)
    for algorithm, of_algorithm in trials.items()
    for trial in of_algorithm
  ]


def file_of(folder: pathlib.Path, cell: Cell) -> pathlib.Path:
  """The file of a cell's result, named by the cell's digest."""
  return folder / 'cells' / f'{digest(cell._asdict())[:20]}.json'


def write(folder: pathlib.Path, finished: Finished) -> None:
  """Writes a result; numbers that are not finite become null."""
  content = to_json({'format': _FORMAT, **finished._asdict(), 'cell': finished.cell._asdict()})
  file = file_of(folder, finished.cell)
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(file, json_text(content | {'checksum': digest(content)}) + '\n')


def read(folder: pathlib.Path, cell: Cell) -> Finished | None:
  """The result of a cell; `None` where it has not run, or where its file is damaged, which is logged."""
  file = file_of(folder, cell)
  if not file.exists():
    return None
  found = _parse(file)
  if found is not None and to_json(found.cell._asdict()) == to_json(cell._asdict()):
    return found
  logging.getLogger(__name__).warning(
    '%s is damaged: it is not what was written there. The cell is run again: %s', file, describe(cell)
  )
  return None


def read_all(folder: pathlib.Path) -> list[Finished]:
  """Every finished cell, in a fixed order; damaged files are left out."""
  found = filter(None, map(_parse, (folder / 'cells').glob('*.json')))
  return sorted(found, key=lambda finished: json.dumps(finished.cell._asdict(), sort_keys=True))


def _parse(file: pathlib.Path) -> Finished | None:
  """The content of a file; `None` if it is damaged."""
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
    if content.pop('checksum') != digest(content) or content['format'] != _FORMAT:
      return None
    return Finished(Cell(**content['cell']), content['result'], content['seconds'])
  except (ValueError, KeyError, TypeError, AttributeError):
    return None


def running(folder: pathlib.Path, cell: Cell) -> AbstractContextManager[None]:
  """Keeps other commands from a cell while this one runs it.

  Raises:
    InUse: another command runs it.
  """
  return lock.locked(folder / 'running' / file_of(folder, cell).stem)


def describe(cell: Cell) -> str:
  """One line of text about a cell."""
  settings = {**cell.axes, **cell.hyperparameters, 'seed': cell.seed}
  told = ', '.join(
    f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}'
    for name, value in settings.items()
  )
  return f'{cell.algorithm} ({told})'


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
  """Waits for its turn, and keeps other commands from the files that all on this arena's folder share."""
  with contextlib.ExitStack() as stack:
    while True:
      try:
        stack.enter_context(lock.locked(folder))
        break
      except InUse:
        time.sleep(0.05)
    yield


def claim(folder: pathlib.Path, suite: str, settings: Mapping[str, Any]) -> None:
  """Marks a folder as this suite's, with the settings that all of its cells share.

  A setting that an earlier version did not record is passed over.

  Raises:
    UsageError: it holds cells of another suite, world or budget.
  """
  mark, wanted = folder / 'arena.json', to_json({'suite': suite, **settings})
  # Looks at the files before the mark: a command that begins now writes the mark before all other files.
  others = folder.exists() and any(not path.name.startswith('.') for path in folder.iterdir())
  if others and not mark.exists():
    raise UsageError(f'{folder} holds other files, and no arena: pass another --model_dir.')
  with alone(folder):
    saved = json.loads(mark.read_text(encoding='utf-8')) if mark.exists() else {}
    for name in sorted(saved.keys() | wanted.keys(), key=lambda name: name != 'suite'):
      if name in saved and saved[name] != wanted.get(name):
        raise UsageError(
          f'{folder} holds cells whose {name} is {saved.get(name)!r}, and now it is {wanted.get(name)!r}: '
          'results would not compare. Set it back, or pass another --model_dir.'
        )
    files.write_atomically(mark, json_text(wanted, indent=2) + '\n')


def missing(folder: pathlib.Path, cells: Iterable[Cell]) -> list[Cell]:
  """The cells that have no result yet."""
  return [cell for cell in cells if read(folder, cell) is None]


def digest(value: Any) -> str:
  """A hash (SHA-256) of plain JSON; finished cells are found by it, so that no other can take its place."""
  return hashlib.sha256(json.dumps(to_json(value), sort_keys=True).encode()).hexdigest()
