"""Curves and last values of a reproduction's runs, and figures of them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dro_jax import files
from dro_jax.run.folder import validation
from dro_jax.statistics import agreement
from dro_jax.statistics.bootstrap import Estimate

Points = Sequence[tuple[float, float]]
_RESAMPLES = 1000


def points(root: pathlib.Path, stage: str, metric: str, axis: str = 'step') -> Points:
  """(axis, metric) of a stage's run, wherever it recorded both."""
  records = files.json_lines(root / stage / 'run' / 'metrics.jsonl')
  return [(record[axis], record[metric]) for record in records if axis in record and metric in record]


def latest(root: pathlib.Path, stage: str, metric: str) -> float | None:
  """A metric of a stage's run, as it was last recorded."""
  found = points(root, stage, metric)
  return found[-1][1] if found else None


def last(root: pathlib.Path, stage: str, metric: str) -> Estimate:
  """A metric of the policy's own samples at its run's last validation, with its interval over prompts."""
  folder = root / stage / 'run'
  found = validation.load(folder, validation.steps(folder)[-1])
  assert found.sample_prompts is not None, f'{stage} samples nothing'
  statistic = validation.sample_statistics(found)[metric]
  return agreement.bootstrap(statistic, len(found.sample_prompts), _RESAMPLES, seed=0)


def panels(
  figure: Any, of: Mapping[str, Mapping[str, Points]], x: str, y: str, *, logarithmic: bool = False
) -> None:
  """A panel for each key, side by side, with a curve for each name; axes are shared."""
  figure.set_size_inches(3.6 * len(of), 3.2)
  grid = figure.subplots(1, len(of), sharey=True, squeeze=False)[0]
  for axes, (title, curves) in zip(grid, of.items()):
    draw(axes, curves, logarithmic=logarithmic)
    axes.set(title=title, xlabel=x)
  grid[0].set_ylabel(y)


def draw(axes: Any, curves: Mapping[str, Points], *, logarithmic: bool = False) -> None:
  """Curves with their names."""
  for name, of in curves.items():
    axes.plot(*(zip(*of) if of else ([], [])), marker='o', markersize=3, label=name)
  values = sorted({x for of in curves.values() for x, _ in of})
  if logarithmic and values:
    axes.set_xscale('log')
    axes.set_xticks(values, [f'{value:g}' for value in values])
    axes.minorticks_off()
  axes.legend(fontsize='small')
