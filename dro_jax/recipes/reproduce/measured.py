"""Answers of several policies to the same prompts: the stages that draw and measure them, and their table."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dro_jax.printing.tables import Table
from dro_jax.recipes.reproduce.stages import Stage, at
from dro_jax.statistics.bootstrap import Estimate

FILE = 'report/answers.json'


def stage(
  name: str, answered: Mapping[str, Stage], rewards: Mapping[str, str], scorer: Stage | None
) -> Stage:
  """Measures the files `answers.jsonl` of stages side by side.

  Args:
    name: of the stage.
    answered: stages by the names of their sides.
    rewards: specs by the names of their columns.
    scorer: the stage that made a reward model among them.
  """
  needs = (*(each.name for each in answered.values()), *([scorer.name] if scorer else []))
  sides = (f'{side}={each.at("answers.jsonl")}' for side, each in answered.items())
  spec = ','.join(f'{column}={reward}' for column, reward in rewards.items())
  command = ('answers', *sides, *([f'--reward={spec}'] if spec else []), f'--output={at(name, "report")}')
  return Stage(name, command, needs, (FILE,))


def table(
  root: pathlib.Path,
  name: str,
  title: str,
  columns: Mapping[str, str],
  sides: Mapping[str, str],
  note: str = '',
) -> Table:
  """A row for each side, a column for each measure.

  Args:
    root: of the stages.
    name: of the measuring stage.
    title: of the table.
    columns: what columns are called, by the measures' names in the report.
    sides: what rows are called, by the sides' names.
    note: below the table.
  """
  report = json.loads((root / name / FILE).read_text(encoding='utf-8'))
  measures = next(each['rows'] for each in report['tables'] if each['title'] == 'Measures')
  rows: list[dict[str, Any]] = [{'policy': shown} for shown in sides.values()]
  for measure in measures:
    if measure['metric'] in columns:
      for row, side in zip(rows, sides):
        row[columns[measure['metric']]] = _estimate(measure.get(side))
  return Table(title, rows, note or '95 % intervals over prompts.')


def _estimate(value: Any) -> Any:
  return Estimate(**value) if isinstance(value, Mapping) else value
