"""A reproduction as data: stages, each an ordinary command of dro_jax, and the tables made from their files.

Paths in commands begin with `{root}`, the folder of all stages, so that a reproduction does not depend on it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.errors import UsageError, did_you_mean
from dro_jax.printing.tables import Table

ROOT = '{root}'


@dataclasses.dataclass(frozen=True)
class Training:
  """What preflight and the launcher need to know of a stage that trains.

  Attributes:
    steps: its optimiser steps.
    topology: the slice that it is meant for; '' where it trains on the machine at hand.
    size: the model's size by name, by which `--launch` can choose a job.
    stated_hours: as its paper states them.
  """

  steps: int
  topology: str = ''
  size: str = ''
  stated_hours: float | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
  """A step of a reproduction: one command, whose files lie in a folder of the stage's name.

  Attributes:
    name: of the stage and of its folder.
    command: the arguments of `dro_jax`, the command's name first.
    needs: the names of the stages whose files it reads.
    makes: the files that it writes, within its folder, by which a change of them is noticed.
    training: of a stage that trains.
  """

  name: str
  command: tuple[str, ...]
  needs: tuple[str, ...] = ()
  makes: tuple[str, ...] = ()
  training: Training | None = None

  def at(self, *parts: str) -> str:
    """A path within the stage's folder, as commands name it."""
    return '/'.join((ROOT, self.name, *parts))

  @property
  def written(self) -> tuple[str, ...]:
    """`makes`, and the records of the run of a stage that trains."""
    return self.makes + (('run/run.json', 'run/metrics.jsonl') if self.command[:1] == ('train',) else ())

  @property
  def run(self) -> str:
    """The run of a stage that trains, or the checkpoint of one that imports."""
    return self.at('run')

  def arguments(self, root: pathlib.Path) -> list[str]:
    """The command with its paths."""
    return [argument.replace(ROOT, str(root)) for argument in self.command]


class Figure(NamedTuple):
  """A figure: the name of its file, and a function that draws on matplotlib's."""

  file: str
  draw: Callable[[Any], None]


class Results(NamedTuple):
  """What a reproduction shows: tables, figures, and sentences on what is stated and what is ours."""

  tables: Sequence[Table]
  figures: Sequence[Figure] = ()
  notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Reproduction:
  """A paper's tables and figures at one scale.

  Attributes:
    name: on the command line.
    title: of the report.
    stages: in an order in which they can run.
    results: from the root of the stages to the results, once all are done.
  """

  name: str
  title: str
  stages: Sequence[Stage]
  results: Callable[[pathlib.Path], Results]

  def __post_init__(self) -> None:
    known: dict[str, Stage] = {}
    for stage in self.stages:
      if stage.name in known:
        raise UsageError(f'{self.name}: two stages are called {stage.name}: give one another name.')
      if missing := [name for name in stage.needs if name not in known]:
        raise UsageError(f'{self.name}: stage {stage.name} needs {missing[0]}, which no stage before it is.')
      known[stage.name] = stage


def distinct(stages: Sequence[Stage]) -> list[Stage]:
  """The stages, each once: two parts of a reproduction may ask for the same one."""
  found: dict[str, Stage] = {}
  for stage in stages:
    if found.setdefault(stage.name, stage) != stage:
      raise UsageError(f'two stages are called {stage.name} and have other commands: name one of them anew.')
  return list(found.values())


def settings(values: Mapping[str, Any]) -> tuple[str, ...]:
  """`--set` arguments of settings."""
  return tuple(f'--set={name}={value}' for name, value in values.items())


def judge_sides(first: Mapping[str, Stage], runs: Mapping[str, Stage], *, last: bool = False) -> list[str]:
  """The sides of `judge`, NAME=FOLDER.

  Args:
    first: whom the others meet.
    runs: stages that train, by the names of their sides.
    last: whether each run's last checkpoint stands for it.
  """
  ends = {
    name: f'/checkpoints/{stage.training.steps}' if last and stage.training else ''
    for name, stage in runs.items()
  }
  return [f'{name}={stage.run}{ends.get(name, "")}' for name, stage in (*first.items(), *runs.items())]


def find(name: str, known: Mapping[str, Any], what: str) -> Any:
  """The entry of a name.

  Raises:
    UsageError: there is none.
  """
  if name not in known:
    raise UsageError(
      f'there is no {what} {name!r}{did_you_mean(name, known)}: choose from {", ".join(known)}.'
    )
  return known[name]
