"""The `arena` command: runs the missing cells, then reports on all finished ones."""

import collections
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from dro_jax import files
from dro_jax.arena import cells, results
from dro_jax.arena import trials as arena_trials
from dro_jax.arena.suite import Report, Suite
from dro_jax.errors import InUse, UsageError, did_you_mean
from dro_jax.files import json_text
from dro_jax.printing import tables
from dro_jax.run.folder.configs import Recorded

# Until a command whose remaining cells all wait for other commands tries them again.
_WAIT_SECONDS = 5.0


def arena(
  model_dir: str,
  suite: Callable[[], Suite],
  *,
  algorithms: str | Sequence[str] | None = None,
  seeds: int = 2,
  points: int = 2,
  widen: int | bool = 0,
  trials: int | None = None,
  repeats: int = 0,
  dry_run: bool = False,
  configs: Callable[[], Recorded] = Recorded,
) -> dict[str, Any]:
  """Compares algorithms on equal budgets, against each other and a known optimum.

  Every method gets as many trials and as many FLOPs as any other. A finished cell is never run again: more
  algorithms, seeds, points of an axis or a wider grid run what is missing.

  Args:
    model_dir: the arena's folder: cells, tables, plots.
    suite: the world and who competes in it.
    algorithms: some of the suite's methods, 'dro_v,kto'; None takes its usual ones.
    seeds: repetitions, numbered from 0.
    points: values of each hyperparameter's range.
    widen: steps by which every method's ranges are extended at both ends.
    trials: the number of trials of each method at most, evenly drawn from its grid; `None` is the whole grid.
    repeats: more seeds, of the trial alone that validation chose for each method: cheaper than more `seeds`.
    dry_run: tells which cells would run, and about how long, and runs none.
    configs: how the arena is configured, saved with the results.

  Returns:
    Where the results are, and how many cells there were.

  Raises:
    UsageError: there is no such method, or the folder is another world's.
  """
  folder = files.output_folder(model_dir, '--model_dir').absolute()
  world = suite()
  # Of the whole suite, so that the number of trials is the same whoever competes.
  tried = arena_trials.make_trials(world.grids, points, int(widen), trials)
  chosen = {name: tried[name] for name in _names(world, algorithms)}
  if repeats and world.checkpoint is None:
    raise UsageError(f'repeats={repeats}: the suite {world.name} chooses no trial. Pass --seeds instead.')
  if seeds < 1:
    raise UsageError(f'seeds={seeds}: pass 1 or more (--seeds=2).')
  planned = [cell for cell in cells.plan(world.name, chosen, seeds, world.axes) if not world.skips(cell)]
  if not dry_run:
    cells.claim(folder, world.name, world.settings)
  console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
  if dry_run:
    _tell_plan(folder, world, planned, console)
    return {'model_dir': str(folder), 'cells': len(planned), 'cells_run': 0, 'files': ''}
  ran = _run(folder, world, planned, console)
  if repeats:
    again = _repeated(folder, world, list(chosen), seeds, repeats)
    ran, planned = ran + _run(folder, world, again, console), planned + again
  report = world.report(cells.read_all(folder))
  with cells.alone(folder):
    written = save(folder, world.name, report)
    for name, text in configs().texts.items():
      files.write_atomically(folder / name, text)
  wide = Console(file=sys.stderr, highlight=False, width=console.width if console.is_terminal else 160)
  for table in report.tables:
    wide.print(tables.for_terminal(table))
  return {'model_dir': str(folder), 'cells': len(planned), 'cells_run': ran, 'files': ', '.join(written)}


def _names(world: Suite, algorithms: str | Sequence[str] | None) -> list[str]:
  """The named methods, or the usual ones without a name.

  Raises:
    UsageError: a name is no method's.
  """
  if algorithms is None:
    algorithms = list(world.usual or world.grids)
  names = algorithms.split(',') if isinstance(algorithms, str) else list(algorithms)
  for name in names:
    if name not in world.grids:
      hint = did_you_mean(name, world.grids)
      raise UsageError(
        f'the suite {world.name} has no method {name!r}{hint}: choose from {", ".join(world.grids)}.'
      )
  return list(dict.fromkeys(names))


def _repeated(
  folder: pathlib.Path, world: Suite, names: Sequence[str], seeds: int, repeats: int
) -> list[cells.Cell]:
  """Cells of further seeds of every method's chosen trial, at each point of the axes."""
  assert world.checkpoint is not None
  found = []
  for axes in world.axes:
    chosen = results.choose(results.at(cells.read_all(folder), axes), names, world.checkpoint)
    tried = {name: [each.hyperparameters] for name, each in chosen.items()}
    planned = cells.plan(world.name, tried, seeds + repeats, [axes])
    found += [cell for cell in planned if cell.seed >= seeds]
  return found


def _tell_plan(folder: pathlib.Path, world: Suite, planned: Sequence[cells.Cell], console: Console) -> None:
  """Prints every missing cell, and how long they will take if they are like the finished ones."""
  todo = cells.missing(folder, planned)
  for cell in todo:
    console.print(cells.describe(cell))
  seconds, told = [finished.seconds for finished in cells.read_all(folder)], world.cost
  if seconds:
    each = np.mean(seconds)
    told = f'About {each * len(todo) / 60:.0f} min at {each:.0f} s a cell, the mean so far.'
  console.print(f'{world.name}: {len(planned)} cells, {len(todo)} of them missing. {told}')


def _run(folder: pathlib.Path, world: Suite, planned: Sequence[cells.Cell], console: Console) -> int:
  """Runs the missing cells and prints progress; returns their number.

  A cell waits while another command on the folder runs it or makes its world; the other cells run first.
  """
  todo, began, ran = cells.missing(folder, planned), time.monotonic(), 0
  console.print(
    f'{world.name}: {len(planned)} cells, {len(planned) - len(todo)} of them done'
    + (f'. {world.cost}' if todo and world.cost else '')
  )
  waiting, told, refused = collections.deque(todo), set[str](), 0
  while waiting:
    cell, start = waiting.popleft(), time.monotonic()
    try:
      with cells.running(folder, cell):
        if cells.read(folder, cell) is not None:  # Another command was faster.
          continue
        result = world.run(cell)
        cells.write(folder, cells.Finished(cell, result, time.monotonic() - start))
    except InUse as reason:
      if str(reason) not in told:
        told.add(str(reason))
        console.print(f'{cells.describe(cell)} waits: {reason}')
      waiting.append(cell)
      refused += 1
      if refused >= len(waiting):  # Other commands have all that is left.
        time.sleep(_WAIT_SECONDS)
        refused = 0
      continue
    now, ran, refused = time.monotonic(), ran + 1, 0
    left = (now - began) / ran * len(waiting)
    console.print(
      f'{len(todo) - len(waiting)}/{len(todo)}  {cells.describe(cell)}  {now - start:.1f} s; '
      f'about {left / 60:.0f} min left'
    )
  return ran


def save(folder: pathlib.Path, name: str, report: Report) -> list[str]:
  """Writes `results.json`, `results.md` and the figures; returns their names."""
  from matplotlib.figure import Figure

  content = {'suite': name, 'tables': [tables.for_json(table) for table in report.tables]}
  text = json_text(content, indent=2, ensure_ascii=False) + '\n'
  files.write_atomically(folder / 'results.json', text)
  body = f'# Arena: {name}\n\n' + '\n'.join(map(tables.for_markdown, report.tables))
  body += ''.join(f'\n![{figure}]({figure})\n' for figure in report.figures)
  files.write_atomically(folder / 'results.md', body)
  for file, draw in report.figures.items():
    figure = Figure(layout='constrained')
    draw(figure)
    figure.savefig(folder / file, dpi=120)
  return ['results.json', 'results.md', *report.figures]


__all__ = ['arena']
