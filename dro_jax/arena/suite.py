"""A suite: a world, the methods that compete in it, how to run a cell and how to report on all."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.arena.cells import Cell, Finished
from dro_jax.arena.trials import Grid
from dro_jax.printing.tables import Table


class Report(NamedTuple):
  """Tables, and figures by file name: each draws on an empty matplotlib Figure."""

  tables: Sequence[Table]
  figures: Mapping[str, Callable[[Any], None]] = {}


class Suite(NamedTuple):
  """A suite, ready to run.

  Attributes:
    name: the suite's.
    settings: what all cells share, plain JSON: the world, the budget. A folder holds cells of one.
    grids: what each method may vary, by name. All that can compete are here.
    axes: points of the world's axes; `({},)` where there are none.
    run: from a cell to its result, plain JSON. What cells share it keeps between calls.
    report: from finished cells to tables and figures; a pure function.
    cost: what a run of all cells takes, in words.
    usual: who competes where nobody is named; None is all.
    checkpoint: the one by whose validation a trial is chosen, 'best' or 'last'; `None` where none is chosen.
    skips: whether a method cannot run at a point of the axes.
  """

  name: str
  settings: Mapping[str, Any]
  grids: Mapping[str, Grid]
  axes: Sequence[Mapping[str, Any]]
  run: Callable[[Cell], Mapping[str, Any]]
  report: Callable[[Sequence[Finished]], Report]
  cost: str = ''
  usual: Sequence[str] | None = None
  checkpoint: str | None = None
  skips: Callable[[Cell], bool] = lambda cell: False
