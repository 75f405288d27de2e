"""Sweeps: one job for each cell, the same command line as a user would type, in a process of its own.

The run of a cell has its own folder in the `--model_dir` of the sweep, named by its settings. A run that
succeeds leaves a note there, and the same command does not repeat it as long as the files that it names have
not changed. Where the folder is only on other machines, the note is in `launched/` here.
"""

import collections
import hashlib
import itertools
import json
import pathlib
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from dro_jax import files
from dro_jax.errors import UsageError
from dro_jax.names import SAME_STEP
from launch import arguments as words
from launch import checks, children, commands, outcomes, signals
from launch.say import say

NOTE = 'launched.json'
_PROGRAM = pathlib.Path(__file__).resolve().parent / 'launch.py'
_ELSEWHERE = pathlib.Path('launched')
_TICK = 0.1  # Seconds between looks at the cells.
_ADDED = ('gin_file', 'gin_binding', 'set')  # Flags that a command may have several times.


def spec() -> config_dict.ConfigDict:
  """The fields of a sweep. A setting is named as in `--set NAME=VALUE`; in small letters it is a flag."""
  sweep = config_dict.ConfigDict()
  sweep.product = config_dict.ConfigDict()  # settings and their values; every combination is a cell
  sweep.together = config_dict.ConfigDict()  # settings whose values go together, the first with the first
  return sweep


class Cell(NamedTuple):
  """One job of a sweep.

  name      the name of its folder
  settings  its own settings
  """

  name: str
  settings: Mapping[str, Any]

  @property
  def arguments(self) -> list[str]:
    """The settings as arguments of dro_jax."""
    pairs = self.settings.items()
    return [f'--set={name}={value}' if name.isupper() else f'--{name}={value}' for name, value in pairs]


def cells(sweep: config_dict.ConfigDict) -> list[Cell]:
  """The cells of a sweep, in order.

  Raises:
    UsageError: a setting has no values, one value twice, or more or fewer values than its companions.
  """
  for name, values in (*sweep.product.items(), *sweep.together.items()):
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
      raise UsageError(f'the sweep sets {name} to {values!r}: pass a tuple of values, ({values!r},) for one')
  lengths = {name: len(values) for name, values in sweep.together.items()}
  if len(set(lengths.values())) > 1:
    raise UsageError(f'settings in `together` need the same number of values, and have {lengths}')
  if both := {*sweep.product} & {*sweep.together}:
    raise UsageError(f'{", ".join(sorted(both))}: pass values in `product` or in `together`, not in both')
  settings = [*_combinations(sweep)]
  found = [Cell(_name(own), own) for own in settings]
  for cell, count in collections.Counter(cell.name for cell in found).items():
    if count > 1:
      raise UsageError(f'{count} cells of the sweep have the name {cell}: pass values with different names')
  if found == [Cell('', {})]:
    raise UsageError('the sweep has no settings: set sweep.product.NAME to a tuple of values')
  return found


def _combinations(sweep: config_dict.ConfigDict) -> Iterator[dict[str, Any]]:
  together = [dict(zip(sweep.together, values)) for values in zip(*sweep.together.values())] or [{}]
  for one, *values in itertools.product(together, *sweep.product.values()):
    yield {**one, **dict(zip(sweep.product, values))}


def _name(settings: Mapping[str, Any]) -> str:
  """Such as tau_0.1-seed_2; a path counts by its last part, without .gin."""
  return '-'.join(f'{name.lower()}_{_word(value)}' for name, value in settings.items())


def _word(value: Any) -> str:
  text = pathlib.PurePath(value).name.removesuffix('.gin') if isinstance(value, str) else str(value)
  return re.sub(r'[^\w.+-]', '_', text)


def run(
  job: config_dict.ConfigDict, sweep: config_dict.ConfigDict, launcher: Sequence[str], command: Sequence[str],
  *, refuse: Callable[[config_dict.ConfigDict, Sequence[str]], object] | None = None, dry_run: bool = False,
) -> int:  # fmt: skip
  """Runs every cell that is not done, `job.at_once` at a time.

  Args:
    job: the spec of the job.
    sweep: the spec of the sweep.
    launcher: the launcher's arguments, without those of the sweep.
    command: the command of dro_jax and its arguments.
    refuse: raises `UsageError` where a cell cannot start.
    dry_run: whether to print the command of each cell only.

  Returns:
    0 if all are done; 1 if one failed; 75 if some stopped after saving and none failed.
  """
  if job.at_once < 1:
    raise UsageError(f'--job.at_once={job.at_once}: pass 1 or more')
  found, notes = cells(sweep), {}
  for cell in found:
    folder = f'{_base(command)}/{cell.name}'
    arguments = _arguments(command, cell, folder)
    notes[cell.name] = Note(_note_file(job, folder), arguments, checks.contents(arguments))
  todo = {}
  for i, (name, note) in enumerate(notes.items()):
    if not note.is_there():
      own = [f'--job.name={job.name}-{i}'] if 'name' in job else []
      own += ['--job.preflight=False'] if job.get('preflight') else []  # The sweep does it.
      todo[name] = ([sys.executable, str(_PROGRAM), *launcher, *own, '--', *note.arguments], note)
  states = ['to do' if cell.name in todo else 'done' for cell in found]
  rows = [[cell.name, *map(str, cell.settings.values()), state] for cell, state in zip(found, states)]
  _show([['cell', *found[0].settings, ''], *rows])
  for _, note in todo.values() if refuse else ():
    refuse(job, note.arguments)
  is_checked = job.get('preflight') and command[0] == 'train'
  steps = _steps([cell for cell in found if cell.name in todo], notes) if is_checked else {}
  if dry_run:
    _preflight(job, steps, commands.dry(), dry_run=True)
    for line, _ in todo.values():
      say(shlex.join(line), stream=sys.stdout)
    return outcomes.DONE
  with signals.watching() as watch:
    _preflight(job, steps, commands.real(watch), dry_run=False)
    codes = _Runs(job.at_once, todo, watch).all()
  return _judge(codes, len(todo))


def _base(command: Sequence[str]) -> str:
  """The folder of the runs of a sweep."""
  base = words.value(command, 'model_dir')
  if base is None:
    raise UsageError('a sweep needs --model_dir. Pass --model_dir=FOLDER, in which each run gets a folder')
  return base.rstrip('/')


def _arguments(command: Sequence[str], cell: Cell, folder: str) -> list[str]:
  """The arguments of a cell. Those that it sets leave the sweep's, where a flag would win over a setting."""
  own = [name.lower() for name in cell.settings if name not in _ADDED]
  kept = command if not any(any(words.values(command, name)) for name in own) else words.without(command, own)
  return [*kept, *cell.arguments, f'--model_dir={folder}']


def _steps(todo: Sequence[Cell], notes: Mapping[str, 'Note']) -> dict[str, list[str]]:
  """The first cell of each training step, with its arguments."""
  first: dict[str, str] = {}
  for cell in todo:
    first.setdefault(str({k: v for k, v in cell.settings.items() if k not in SAME_STEP}), cell.name)
  return {name: notes[name].arguments for name in first.values()}


def _preflight(
  job: config_dict.ConfigDict, steps: Mapping[str, list[str]], how: commands.Commands, *, dry_run: bool
) -> None:
  """Checks every step once, before any cell starts; raises `UsageError` where one does not fit."""
  for name, arguments in steps.items():
    say(f'launch: preflight of {name}, for every cell with the same step:')
    checks.preflight(job, arguments, checks.topology(job), how, dry_run=dry_run)


def _show(table: Sequence[Sequence[str]]) -> None:
  """Prints rows in columns on standard output."""
  widths = [max(map(len, column)) for column in zip(*table)]
  for row in table:
    say('  '.join(text.ljust(width) for text, width in zip(row, widths)).rstrip(), stream=sys.stdout)


# --- what is done -------------------------------------------------------------------------------------------


class Note(NamedTuple):
  """The note that a cell is done: a file with its arguments and hashes of the files that they name."""

  file: pathlib.Path
  arguments: list[str]
  contents: Mapping[str, str] = {}

  def is_there(self) -> bool:
    try:
      saved = json.loads(self.file.read_text(encoding='utf-8'))
      if saved['arguments'] != self.arguments:
        return False
      before = saved.get('contents', {})  # Notes of earlier versions have none.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      return False
    changed = [path for path, mark in self.contents.items() if before.get(path, mark) != mark]
    if changed:
      say(f'launch: {self.file.parent} was done before {", ".join(changed)} changed, and runs again')
    return not changed

  def write(self) -> None:
    try:
      self.file.parent.mkdir(parents=True, exist_ok=True)
      note = {'arguments': self.arguments, 'contents': dict(self.contents)}
      files.write_atomically(self.file, files.json_text(note) + '\n')
    except OSError as error:
      say(f'launch: {error}: the same command would repeat this cell')


def _note_file(job: config_dict.ConfigDict, folder: str) -> pathlib.Path:
  """The file of a note: in the folder of the run, or here where that is on other machines."""
  if '://' not in folder and not words.is_in(folder, job.get('shared_dir', '')):
    return pathlib.Path(folder).expanduser() / NOTE
  digest = hashlib.sha256(folder.encode()).hexdigest()[:16]  # By which notes of earlier versions are found.
  return _ELSEWHERE / f'{digest}.json'


# --- running ------------------------------------------------------------------------------------------------


class _Runs:
  """The cells that run, and those that wait."""

  def __init__(self, at_once: int, todo: Mapping[str, tuple[list[str], Note]], watch: signals.Watch):
    self._at_once, self._waiting, self._watch = at_once, collections.deque(todo.items()), watch
    self._running: dict[str, tuple[children.Process, Note, float]] = {}
    self._codes: dict[str, int] = {}
    self._told = False  # Whether all cells were asked to stop.

  def all(self) -> dict[str, int]:
    """Runs all cells; returns the exit codes of those that started."""
    try:
      while self._waiting or self._running:
        self._step()
    finally:
      # Never SIGKILL: a launcher that is killed leaves its machines behind.
      self._stop()
      for process, _, _ in self._running.values():
        children.finish(process)
    return self._codes

  def _step(self) -> None:
    try:
      while self._waiting and len(self._running) < self._at_once:
        name, (command, note) = self._waiting.popleft()
        say(f'launch: {name} starts')
        self._running[name] = (children.start(name, command), note, time.monotonic())
      self._collect()
      self._watch.pause(_TICK)
    except signals.Interrupted as interrupted:
      # The launcher of each cell handles the first signal and the second.
      counts = f'{len(self._running)} cells are asked to stop, {len(self._waiting)} have not started'
      say(f'launch: {interrupted}; {counts}')
      self._waiting.clear()
      self._stop()

  def _stop(self) -> None:
    self._told = True
    children.send([process for process, _, _ in self._running.values()], signal.SIGTERM)

  def _collect(self) -> None:
    for name, (process, note, began) in list(self._running.items()):
      if process.popen.poll() is None:
        continue
      code = self._codes[name] = outcomes.plain(children.finish(process))
      del self._running[name]
      if self._told and code == 128 + signal.SIGTERM:
        self._codes[name] = outcomes.STOPPED  # It had not started, and has nothing to save.
      if code == outcomes.DONE:
        note.write()
      said = 'is done' if code == outcomes.DONE else f'ended with {outcomes.in_words(code)}'
      say(f'launch: {name} {said} after {time.monotonic() - began:.0f} s')


def _judge(codes: Mapping[str, int], count: int) -> int:
  """The exit code of the sweep; prints which cells are not done."""
  failed = [name for name, code in codes.items() if outcomes.is_failure(code)]
  stopped = count - sum(code == outcomes.DONE for code in codes.values()) - len(failed)
  if failed:
    say(f'launch: {len(failed)} of {count} cells failed: {", ".join(failed)}')
  if stopped:
    say(f'launch: {stopped} of {count} cells stopped or never started: the same command continues')
  return outcomes.FAILED if failed else outcomes.STOPPED if stopped else outcomes.DONE
