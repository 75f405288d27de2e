"""The records of a run: metrics, samples, and lines on the terminal."""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from dro_jax import files
from dro_jax.run.folder import trackers as tracking

SHOWN = ('loss', 'reward', 'log_ratio', 'value_explained_variance', 'time/step_seconds')
# The bar's text until the first step is done.
COMPILING = 'compiling the step'


class RunWriter:
  """Writes one record a step; silent in all processes but the first.

  Args:
    model_dir: the run's folder.
    first_step: steps already done; records of later steps are dropped from the files.
    num_steps: the last step of the run, for the bar.
    primary: whether this process writes.
    trackers: functions that make trackers besides JSON lines and TensorBoard.
  """

  def __init__(
    self,
    model_dir: str,
    *,
    first_step: int,
    num_steps: int,
    primary: bool = True,
    trackers: Sequence[tracking.MakeTracker] = (),
  ):
    self._primary = primary
    if not primary:
      return
    folder, makers = pathlib.Path(model_dir), (tracking.json_lines, tracking.tensorboard)
    self._trackers = [make(folder, first_step) for make in makers]
    self._trackers += [tracking.made(make, folder, first_step) for make in trackers]
    console = Console(file=sys.stderr)
    # A narrow terminal cuts the end of the metrics, not the bar.
    rest = TextColumn('{task.description}', table_column=Column(ratio=1, no_wrap=True, overflow='ellipsis'))
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), rest)
    self._bar = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
    self._task = self._bar.add_task(COMPILING, total=num_steps, completed=first_step)
    self._bar.start()

  def metrics(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records scalars of a step."""
    if not self._primary:
      return
    for tracker in self._trackers:
      tracker.metrics(step, scalars)
    shown = '  '.join(f'{name.split("/")[-1]} {scalars[name]:.4g}' for name in SHOWN if name in scalars)
    if self._bar.disable:
      self.say(f'step {step}  {shown or _line(scalars)}')
    else:
      self._bar.update(self._task, description=shown)

  def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
    """Records generated texts."""
    if not self._primary:
      return
    for tracker in self._trackers:
      tracker.samples(step, samples)
    for sample in samples:
      self.say(f'step {step}  {sample["prompt"]!r} -> {sample["response"]!r}')

  def advance(self, step: int) -> None:
    """Moves the bar, and removes its text once the first step is compiled."""
    if self._primary:
      compiled = {'description': ''} if self._bar.tasks[0].description == COMPILING else {}
      self._bar.update(self._task, completed=step, **compiled)

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    if self._primary:
      self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

  def show(self, renderable: Any) -> None:
    """Prints a table or another renderable above the bar."""
    if self._primary:
      self._bar.console.print(renderable, highlight=False)

  def flush(self) -> None:
    """Writes all records to disk."""
    if self._primary:
      for tracker in self._trackers:
        tracker.flush()

  def close(self) -> None:
    if self._primary:
      self._bar.stop()
      for tracker in self._trackers:
        tracker.close()


def recorded(file: pathlib.Path, step: int) -> dict[str, float]:
  """What a run's metrics.jsonl says of a step, by name; nothing where there is no such file."""
  lines = files.json_lines(file) if file.exists() else ()
  return {name: value for line in lines if line['step'] == step for name, value in line.items()}


def _line(scalars: Mapping[str, float]) -> str:
  return '  '.join(f'{name} {value:.4g}' for name, value in scalars.items())
