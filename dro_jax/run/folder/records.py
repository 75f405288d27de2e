"""A run's records: metrics, samples, and what the terminal shows."""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from tensorboardX import SummaryWriter

from dro_jax import files
from dro_jax.files import write_atomically

SHOWN = ('loss', 'reward', 'log_ratio', 'value_explained_variance', 'time/step_seconds')
# What the bar says until the first step is done.
COMPILING = 'compiling the step'


def keep_until(path: pathlib.Path, step: int) -> None:
  """Drops what a JSON-lines file says of later steps, and a torn last line: a resumed run says it again."""
  if not path.exists():
    return
  kept = []
  for line in path.read_bytes().split(b'\n'):
    record = files.parsed(line)
    if record is not None and record['step'] <= step:
      kept.append(line.decode() + '\n')
  write_atomically(path, ''.join(kept))


class RunWriter:
  """Writes one record a step; silent in all processes but the first.

  Args:
    model_dir: the run's folder.
    first_step: steps already done; what the files say of later ones is dropped.
    num_steps: where the run will end, for the bar.
    primary: whether this process writes.
  """

  def __init__(self, model_dir: str, *, first_step: int, num_steps: int, primary: bool = True):
    self._primary = primary
    if not primary:
      return
    self._folder = pathlib.Path(model_dir)
    for name in ('metrics.jsonl', 'samples.jsonl'):
      # A run that saved nothing begins anew, and measures its first policy again.
      keep_until(self._folder / name, first_step if first_step else -1)
    self._events = SummaryWriter(model_dir, purge_step=first_step + 1 if first_step else 0)
    console = Console(file=sys.stderr)
    # What a narrow terminal has no room for is the end of the metrics.
    rest = TextColumn('{task.description}', table_column=Column(ratio=1, no_wrap=True, overflow='ellipsis'))
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), rest)
    self._bar = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
    self._task = self._bar.add_task(COMPILING, total=num_steps, completed=first_step)
    self._bar.start()

  def metrics(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records scalars of a step."""
    if not self._primary:
      return
    self._append('metrics.jsonl', {'step': step, **scalars})
    for name, value in scalars.items():
      self._events.add_scalar(name, value, step)
    shown = '  '.join(f'{name.split("/")[-1]} {scalars[name]:.4g}' for name in SHOWN if name in scalars)
    if self._bar.disable:
      self.say(f'step {step}  {shown or _line(scalars)}')
    else:
      self._bar.update(self._task, description=shown)

  def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
    """Records generated texts."""
    if not self._primary:
      return
    for sample in samples:
      self._append('samples.jsonl', {'step': step, **sample})
      self.say(f'step {step}  {sample["prompt"]!r} -> {sample["response"]!r}')

  def advance(self, step: int) -> None:
    """Moves the bar; what has made a step is compiled."""
    if self._primary:
      compiled = {'description': ''} if self._bar.tasks[0].description == COMPILING else {}
      self._bar.update(self._task, completed=step, **compiled)

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    if self._primary:
      self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

  def show(self, renderable: Any) -> None:
    """Prints a table, or the like, above the bar."""
    if self._primary:
      self._bar.console.print(renderable, highlight=False)

  def flush(self) -> None:
    """What was recorded so far is on disk."""
    if self._primary:
      self._events.flush()

  def close(self) -> None:
    if self._primary:
      self._bar.stop()
      self._events.close()

  def _append(self, name: str, record: Mapping[str, Any]) -> None:
    with open(self._folder / name, 'a', encoding='utf-8') as file:
      file.write(files.json_line(record))


def _line(scalars: Mapping[str, float]) -> str:
  return '  '.join(f'{name} {value:.4g}' for name, value in scalars.items())
