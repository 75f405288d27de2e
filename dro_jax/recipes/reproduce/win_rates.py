"""Tables and figures of win rates, from the reports of `judge`, with a paper's own numbers beside ours."""

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax import files
from dro_jax.printing.tables import Table
from dro_jax.statistics.bootstrap import Estimate


class Judged(NamedTuple):
  """What a stage's judge found: its report, and the chosen checkpoint of each run."""

  report: Mapping[str, Any]
  chosen: Mapping[str, str]


def read(root: pathlib.Path, stage: str) -> Judged:
  """The report of a stage."""
  report = json.loads((root / stage / 'report' / 'report.json').read_text(encoding='utf-8'))
  tables = {table['title']: table['rows'] for table in report['tables']}
  rows = tables.get('Checkpoints against the first side', [])
  chosen = (row['checkpoint'].rpartition(' at ') for row in rows if row['chosen'])
  return Judged(report, {name: step for name, _, step in chosen})


class Rate(NamedTuple):
  """How often a side wins: with its interval over prompts, and the mean and deviation over folds."""

  rate: Estimate
  mean: float
  sd: float


def rate(found: Judged, side: str, other: str) -> Rate:
  """How often one side beats another, shares of 1."""
  pairs = found.report['pairs']
  if f'{side} against {other}' in pairs:
    return _rate(pairs[f'{side} against {other}'], 1)
  return _rate(pairs[f'{other} against {side}'], -1)


def _rate(pair: Mapping[str, Any], sign: int) -> Rate:
  value, low, high = (pair['win_rate'][name] for name in Estimate._fields)
  folds = pair['folds'] or {'mean': value, 'sd': float('nan')}
  if sign < 0:
    value, low, high, folds = 1 - value, 1 - high, 1 - low, folds | {'mean': 1 - folds['mean']}
  return Rate(Estimate(value, low, high), folds['mean'], folds['sd'])


def columns(found: Judged, side: str, other: str, paper: tuple[float, float | None] | None) -> dict[str, Any]:
  """A row's numbers: ours, in %, beside the paper's."""
  ours = rate(found, side, other)
  shown = {
    'win rate, %': f'{100 * ours.mean:.1f} ± {100 * ours.sd:.1f}',
    '95 % interval': f'{100 * ours.rate.low:.1f} to {100 * ours.rate.high:.1f}',
    'paper, %': None if paper is None else _paper(*paper), 'checkpoint': found.chosen.get(side),
  }  # fmt: skip
  return shown


def _paper(mean: float, sd: float | None = None) -> str:
  return f'{mean:.1f}' if sd is None else f'{mean:.1f} ± {sd:.1f}'


def table(title: str, rows: Sequence[Mapping[str, Any]], note: str = '') -> Table:
  """A table of win rates."""
  said = 'Mean and standard deviation over folds of the test prompts; ties are halves.'
  return Table(title, rows, ' '.join(filter(None, [said, note])))


def about(found: Mapping[str, Judged]) -> list[Table]:
  """A table of how it was judged."""
  rows = [
    {'judged': name, 'judge': each.report['judge'], 'prompts': each.report['prompts']}
    for name, each in found.items()
  ]
  return [Table('How it was judged', rows)]


def examples(root: pathlib.Path, stage: str, most: int = 5) -> Table:
  """Some prompts with the answers of all sides, as they stand first in the judge's verdicts."""
  rows: dict[str, dict[str, Any]] = {}
  for record in files.json_lines(root / stage / 'report' / 'verdicts.jsonl'):
    row = rows.setdefault(record['prompt'], {'prompt': _short(record['prompt'])})
    for side, text in zip(record['sides'], (record['first'], record['second'])):
      row.setdefault(side, _short(text))
  return Table('Answers', list(itertools.islice(rows.values(), most)), 'The first test prompts, not chosen.')


def _short(text: str, most: int = 300) -> str:
  line = ''.join(letter if letter.isprintable() else '�' for letter in ' '.join(text.split()))
  return line if len(line) <= most else line[: most - 1] + '…'


def bars(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
  """Win rates as bars, the paper's as diamonds."""
  figure.set_size_inches(7, 3.4)
  axes = figure.subplots()
  labels = [f'{row["policy"]}\nvs {row["against"]}\n{row["size"]}' for row in rows]
  means, sds = zip(*(map(float, row['win rate, %'].split(' ± ')) for row in rows))
  axes.bar(range(len(rows)), means, yerr=sds, capsize=3, label='ours')
  papers = [(at, float(row['paper, %'].split(' ± ')[0])) for at, row in enumerate(rows) if row['paper, %']]
  axes.scatter(*zip(*papers), marker='D', color='black', zorder=3, label='paper')
  axes.axhline(50, color='0.6', linestyle=':')
  axes.set(xticks=range(len(rows)), ylabel='win rate, %', ylim=(0, 100))
  axes.set_xticklabels(labels, fontsize='small')
  axes.legend(loc='lower right')


def lines(figure: Any, panels: Mapping[str, Mapping[str, Sequence[tuple[float, Rate]]]]) -> None:
  """Win rates over a setting, a panel for each setting and a line for each series.

  Args:
    figure: matplotlib's.
    panels: by the label of x, the series by name, each a list of x and the rate.
  """
  figure.set_size_inches(4.2 * len(panels), 3.4)
  for axes, (label, series) in zip(
    figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()
  ):
    for name, points in series.items():
      xs, rates = zip(*points)
      means, sds = [100 * each.mean for each in rates], [100 * each.sd for each in rates]
      axes.errorbar(xs, means, yerr=sds, marker='o', capsize=3, label=name)
    axes.axhline(50, color='0.6', linestyle=':')
    axes.set(xscale='log', xlabel=label, ylabel='win rate against SFT, %')
    axes.legend(fontsize='small')


def matrix(found: Judged, names: Mapping[str, str]) -> list[dict[str, Any]]:
  """All against all, rows of %: how often the side of a row beats that of a column."""
  return [
    {'wins of': label}
    | {
      f'against {names[other]}': None if other == side else round(100 * rate(found, side, other).mean, 1)
      for other in names
    }
    for side, label in names.items()
  ]


def heat(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
  """The matrix as a picture, with its numbers."""
  labels = [str(row['wins of']) for row in rows]
  values = np.array([[np.nan if x is None else x for x in list(row.values())[1:]] for row in rows], float)
  figure.set_size_inches(6, 5)
  axes = figure.subplots()
  shown = axes.imshow(values, vmin=0, vmax=100, cmap='RdYlGn')
  for i, j in np.ndindex(values.shape):
    axes.text(j, i, '–' if np.isnan(values[i, j]) else f'{values[i, j]:.1f}', ha='center', va='center')
  axes.set_xticks(range(len(labels)), labels, rotation=30, ha='right', fontsize='small')
  axes.set_yticks(range(len(labels)), labels, fontsize='small')
  figure.colorbar(shown, ax=axes, label='wins of the row against the column, %')
