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


def at(stage: str, *parts: str) -> str:
  """A path within the folder of a stage, as commands name it."""
  return '/'.join((ROOT, stage, *parts))


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
    return at(self.name, *parts)

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


# --- stages of one command ----------------------------------------------------------------------------------


def imported(name: str, source: str) -> Stage:
  """A checkpoint of Hugging Face's, by its name there."""
  return Stage(name, ('import_checkpoint', f'--init_from={source}', f'--model_dir={at(name, "run")}'))


def trained(
  name: str, gin_files: Sequence[str], start: Stage, training: Training, *more: str, verb: str = 'train'
) -> Stage:
  """A run by gin files.

  Args:
    name: of the stage.
    gin_files: an experiment's first.
    start: the stage whose run it starts from.
    training: what preflight and the launcher need to know.
    more: further arguments.
    verb: the command, whose folder is the stage's `run`.
  """
  files = (f'--gin_file={file}' for file in gin_files)
  command = (verb, *files, f'--init_from={start.run}', f'--model_dir={at(name, "run")}', *more)
  return Stage(name, command, (start.name,), training=training)


def answers(name: str, policy: Stage, prompts: str, source: Stage, values: Mapping[str, Any]) -> Stage:
  """A policy's answers, `answers.jsonl`.

  Args:
    name: of the stage.
    policy: the stage whose run answers.
    prompts: the path of their file.
    source: the stage that made the file.
    values: settings of `generate`.
  """
  command = (
    'generate', f'--model_dir={policy.run}', f'--triplets={prompts}',
    f'--output={at(name, "answers.jsonl")}', *settings(values),
  )  # fmt: skip
  return Stage(name, command, (policy.name, source.name), ('answers.jsonl',))


def scored(
  name: str,
  triplets: str,
  reward: str,
  needs: Sequence[Stage],
  values: Mapping[str, Any],
  file: str = 'scored.jsonl',
) -> Stage:
  """Answers with rewards.

  Args:
    name: of the stage.
    triplets: the path of their file, or a data set's name.
    reward: as `score` takes it.
    needs: the stages that made file and reward.
    values: settings of `score`.
    file: to write.
  """
  command = ('score', triplets, f'--reward={reward}', f'--output={at(name, file)}', *settings(values))
  return Stage(name, command, tuple(stage.name for stage in needs), (file,))


def held_out(name: str, source: Stage) -> Stage:
  """The prompts that a run kept for tests, `split/test.jsonl`: the same ones for all runs, by their hash."""
  output = f'--output={at(name, "split")}'
  command = ('export_split', f'--model_dir={source.run}', output, '--set=RESPONSES=false')
  return Stage(name, command, (source.name,), ('split/test.jsonl',))


def judged(
  name: str, first: str, runs: Mapping[str, Stage], prompts: str, needs: Sequence[Stage],
  values: Mapping[str, Any], judge: Sequence[str], *, last: bool = False,
) -> Stage:  # fmt: skip
  """Runs side by side, and against the SFT policy.

  Args:
    name: of the stage.
    first: the run or the answers of the SFT policy.
    runs: stages that train, by the names of their sides.
    prompts: the path of their file.
    needs: the stages that made `first` and the prompts.
    values: settings of `judge` that the reproduction chooses.
    judge: those that choose the judge, as `REWARD=graded_match`.
    last: whether each run's last checkpoint stands for it.
  """
  ends = {
    side: f'/checkpoints/{run.training.steps}' if last and run.training else '' for side, run in runs.items()
  }
  sides = (f'sft={first}', *(f'{side}={run.run}{ends[side]}' for side, run in runs.items()))
  command = (
    'judge', *sides, f'--triplets={prompts}', f'--output={at(name, "report")}', *settings(values),
    *(f'--set={setting}' for setting in judge),
  )  # fmt: skip
  made = ('report/report.json', 'report/verdicts.jsonl')
  return Stage(name, command, tuple(stage.name for stage in (*needs, *runs.values())), made)
