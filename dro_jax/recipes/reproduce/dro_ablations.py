"""`dro_ablations`: DRO's ablations (arXiv 2405.19107, Sect. 5): shared networks, learning rates, τ."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.recipes.reproduce import dro, laptop, ultrafeedback, win_rates
from dro_jax.recipes.reproduce.stages import Figure, Reproduction, Results, Stage, distinct

TITLE = 'DRO, ablations (arXiv 2405.19107, Sect. 5)'
SWEEPS, SHARING = 'judged-sweeps', 'judged-sharing'
_SIZE = 'l'


class Point(NamedTuple):
  """A run of a sweep.

  Attributes:
    side: its name in the judge's report.
    value: of the setting.
    stage: that trains it.
    paper: the paper's win rate against SFT, %.
    paper_value: the setting's value in the paper.
  """

  side: str
  value: float
  stage: Stage
  paper: float
  paper_value: float


class Sweep(NamedTuple):
  """A sweep: its title, the setting's name, the series' name in the figure, and its runs."""

  title: str
  setting: str
  series: str
  points: list[Point]


# The paper's values and win rates against SFT.
RATES = {1e-5: 73.7, 5e-5: 78.7, 1e-4: 78.9, 5e-4: 78.4}
VALUE_RATES = {1e-5: 76.8, 5e-5: 78.0, 1e-4: 78.9, 5e-4: 79.1}
TAUS = {0.1: 70.5, 1.0: 78.9, 5.0: 76.6}
KTO_TAUS = {0.1: 63.5, 1.0: 61.9, 5.0: 67.5}
# By side: its label, whether policy and value share a network, how V is read, the paper's win rate.
VARIANTS: Mapping[str, tuple[str, bool, str, float]] = {
  'two_many': ('two networks, many values', False, 'prompt', 76.6),
  'two_one': ('two networks, one value', False, 'batch', 72.1),
  'one_one': ('one network, one value', True, 'batch', 57.6),
  'one_many': ('one network, many values', True, 'prompt', 55.5),
}
# At the small scales rates are ten times the paper's, and DRO-V's τ is of its own range.
_LAPTOP_TAUS = {0.1: 0.1, 1.0: 0.3, 5.0: 1.0}


def reproduction(scale: str, judge: Sequence[str]) -> Reproduction:
  """The stages, tables and figures at a scale.

  Args:
    scale: paper, small or smoke.
    judge: the settings of the judge.
  """
  make = _Paper() if scale == 'paper' else _Laptop(laptop.SCALES[scale])
  sweeps, variants = _sweeps(make), {side: make.variant(side) for side in VARIANTS}
  swept = {point.side: point.stage for sweep in sweeps for point in sweep.points}
  # One run may stand in several sweeps under several names; a judge meets it once.
  once = {stage.name: side for side, stage in reversed(swept.items())}
  sides = {side: once[stage.name] for side, stage in swept.items()}
  judged = [
    make.judged(SWEEPS, {side: swept[side] for side in dict.fromkeys(sides.values())}, judge, 'first', False),
    make.judged(SHARING, variants, judge, 'all', True),
  ]
  stages = distinct([*make.data, *swept.values(), *variants.values(), *make.tests, *judged])

  def results(root: pathlib.Path) -> Results:
    return _results(root, sweeps, sides, make.notes)

  return Reproduction('dro_ablations', TITLE, stages, results)


class _Laptop:
  """The cells at the scales small and smoke."""

  def __init__(self, sizes: laptop.Sizes):
    self._sizes = sizes
    self.data = laptop.triplets(sizes)
    self.tests: list[Stage] = []
    self.notes = [
      *dro.laptop_notes(sizes),
      'Swept rates are ten times the paper’s, and so is the rate that stays as it is where the other is '
      'swept; DRO-V’s τ is .1, .3 and 1, of which .3 stands for the paper’s 1. The four variants are '
      'judged at the last step.',
    ]

  def tau(self, paper: float) -> float:
    return _LAPTOP_TAUS[paper]

  def rate(self, paper: float) -> float:
    return float(f'{paper * self._sizes.rate / 1e-4:.6g}')  # Without the rounding errors of the product.

  def train(self, algorithm: str, name: str, **values: Any) -> Stage:
    own = {'TAU': dro.TAUS[algorithm]} | values
    own = {'VALUE_LEARNING_RATE': self._sizes.rate} | own if algorithm == 'dro_v' else own
    plain = dro.cell(self._sizes, algorithm, _SIZE, self.data[-1])
    made = laptop.train(self._sizes, f'{name}-{_SIZE}', algorithm, _SIZE, own, self.data[-1])
    return plain if _is_same(made, plain) else made

  def variant(self, side: str) -> Stage:
    _, shared, readout, _ = VARIANTS[side]
    values = {'VALUE_SHARED': True} if shared else {}
    return self.train('dro_v', side, **values, **({} if readout == 'prompt' else {'VALUE_READOUT': readout}))

  def judged(
    self, name: str, runs: Mapping[str, Stage], judge: Sequence[str], against: str, last: bool
  ) -> Stage:
    return laptop.judged(self._sizes, name, runs, _SIZE, judge, against=against, last=last)


class _Paper:
  """The cells at the paper's scale."""

  notes = ultrafeedback.NOTES

  def __init__(self) -> None:
    self.data = [ultrafeedback.imported(_SIZE)]
    self.tests = [ultrafeedback.split()]

  def tau(self, paper: float) -> float:
    return paper

  def rate(self, paper: float) -> float:
    return paper

  def train(self, algorithm: str, name: str, **values: Any) -> Stage:
    main = {'dro_v': {'TAU': 1.0}, 'kto': {'TAU': 5.0}}[algorithm]
    main |= {'POLICY_LEARNING_RATE': 1e-4, 'VALUE_LEARNING_RATE': 1e-4}
    if all(main[setting] == value for setting, value in values.items()):
      return ultrafeedback.train(algorithm, _SIZE)
    return ultrafeedback.train(algorithm, _SIZE, name=f'{name}-{_SIZE}', **values)

  def variant(self, side: str) -> Stage:
    _, shared, readout, _ = VARIANTS[side]
    values = {'VALUE_SHARED': shared, 'VALUE_READOUT': readout}
    return ultrafeedback.train(
      'dro_v', _SIZE, name=f'{side}-{_SIZE}', gin_file='dro/ablation.gin', steps=10_000, **values
    )

  def judged(
    self, name: str, runs: Mapping[str, Stage], judge: Sequence[str], against: str, last: bool
  ) -> Stage:
    return ultrafeedback.judged(name, runs, _SIZE, judge, against=against, last=last)


def _is_same(one: Stage, other: Stage) -> bool:
  """Whether two stages that train have the same settings, in any order, but for their folders."""
  return _without_name(one) == _without_name(other)


def _without_name(stage: Stage) -> set[str]:
  return {argument.replace(f'/{stage.name}/', '/') for argument in stage.command}


def _sweeps(make: _Laptop | _Paper) -> list[Sweep]:
  def rates(values: Mapping[float, float], name: str, *settings: str) -> list[Point]:
    found = []
    for paper_value, paper in values.items():
      value = make.rate(paper_value)
      side = f'{name}_{value:g}'
      stage = make.train('dro_v', side, **dict.fromkeys(settings, value))
      found.append(Point(side, value, stage, paper, paper_value))
    return found

  def taus(values: Mapping[float, float], algorithm: str) -> list[Point]:
    found = []
    for paper_value, paper in values.items():
      value = make.tau(paper_value) if algorithm == 'dro_v' else paper_value
      side = f'{algorithm}_tau_{value:g}'
      found.append(Point(side, value, make.train(algorithm, side, TAU=value), paper, paper_value))
    return found

  both = ('POLICY_LEARNING_RATE', 'VALUE_LEARNING_RATE')
  return [
    Sweep('Learning rate of policy and value', 'learning rate', 'both', rates(RATES, 'rate', *both)),
    Sweep(
      'Learning rate of the value', 'learning rate', 'value alone', rates(VALUE_RATES, 'value_rate', both[1])
    ),
    Sweep('τ of DRO-V', 'τ', 'DRO-V', taus(TAUS, 'dro_v')),
    Sweep('τ of KTO', 'τ', 'KTO', taus(KTO_TAUS, 'kto')),
  ]


def _results(
  root: pathlib.Path, sweeps: Sequence[Sweep], sides: Mapping[str, str], notes: Sequence[str]
) -> Results:
  swept, shared = win_rates.read(root, SWEEPS), win_rates.read(root, SHARING)
  variants = [
    {'variant': label} | win_rates.columns(shared, side, 'sft', (paper, None))
    for side, (label, _, _, paper) in VARIANTS.items()
  ]
  names = {'sft': 'SFT', **{side: label for side, (label, *_) in VARIANTS.items()}}
  matrix = win_rates.matrix(shared, names)
  tables = [
    win_rates.table('Shared networks, against SFT', variants),
    win_rates.table('Shared networks, all against all, %', matrix, 'The paper’s matrix is in its appendix.'),
  ]
  panels: dict[str, dict[str, list[tuple[float, win_rates.Rate]]]] = {}
  for sweep in sweeps:
    rows = [
      {sweep.setting: point.value, 'in the paper': point.paper_value}
      | win_rates.columns(swept, sides[point.side], 'sft', (point.paper, None))
      for point in sweep.points
    ]
    tables.append(win_rates.table(sweep.title, rows, 'Against SFT.'))
    panels.setdefault(sweep.setting, {})[sweep.series] = [
      (point.value, win_rates.rate(swept, sides[point.side], 'sft')) for point in sweep.points
    ]
  bars = [{'policy': row['variant'], 'against': 'SFT', 'size': ''} | row for row in variants]
  figures = [
    Figure('sharing.png', lambda figure: win_rates.bars(figure, bars)),
    Figure('matrix.png', lambda figure: win_rates.heat(figure, matrix)),
    Figure('sweeps.png', lambda figure: win_rates.lines(figure, panels)),
  ]
  return Results([*tables, *win_rates.about({'sweeps': swept, 'shared networks': shared})], figures, notes)


__all__ = ['reproduction']
