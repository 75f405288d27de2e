"""`trust_region`: TR-DPO, TR-IPO and TR-KTO against their plain forms (arXiv 2404.09656)."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.printing.tables import Table
from dro_jax.recipes.reproduce import curves, laptop, win_rates
from dro_jax.recipes.reproduce.stages import (
  Figure,
  Reproduction,
  Results,
  Stage,
  Training,
  distinct,
  held_out,
  imported,
  judged,
  settings,
  trained,
)

TITLE = 'Trust region (arXiv 2404.09656): TR-DPO, TR-IPO and TR-KTO against their plain forms'
METHODS = {'dpo': 'DPO', 'ipo': 'IPO', 'kto': 'KTO'}
KINDS = {'frozen': 'plain', 'soft': 'soft', 'hard': 'hard'}
# Points by which wins exceed losses, of Pythia 6.9B on TL;DR by GPT-4 (its abstract, v2).
PAPER: Mapping[str, float] = {'dpo': 8.4, 'ipo': 14.3, 'kto': 15.0}
BETA, ALPHA, TAU = 0.05, 0.6, 512  # By TRL's index of papers, which quotes the paper's tables.


class Grids(NamedTuple):
  """What is swept, of DPO: β of all forms, α of the soft one, τ of the hard one.

  τ is the steps between updates, and `every` its value where it is not swept.
  """

  beta: tuple[float, ...]
  alpha: tuple[float, ...]
  tau: tuple[int, ...]
  every: int


GRIDS: Mapping[str, Grids] = {
  'paper': Grids((0.01, 0.05, 0.1, 0.5), (0.1, 0.2, 0.4, 0.6, 0.8), (32, 64, 128, 256, 512, 1024), TAU),
  'small': Grids((0.01, 0.05, 0.1, 0.5), (0.1, 0.4, 0.6, 0.8), (16, 32, 64, 128, 256), 128),
  'smoke': Grids((0.05, 0.5), (0.6, 0.8), (1, 2), 1),
}


class Cell(NamedTuple):
  """A run: the loss, the form of its reference, and its numbers; what a form does not read stays as it is."""

  method: str
  kind: str
  beta: float = BETA
  alpha: float = ALPHA
  every: int = TAU

  @property
  def name(self) -> str:
    parts = [self.method, self.kind, f'beta{self.beta:g}']
    parts += [f'alpha{self.alpha:g}'] if self.kind == 'soft' else []
    parts += [f'tau{self.every}'] if self.kind != 'frozen' else []
    return '-'.join(parts)

  @property
  def reference(self) -> dict[str, Any]:
    """The settings of its reference."""
    moving = {'TRUST_REGION_EVERY': self.every} if self.kind != 'frozen' else {}
    return {'REFERENCE': self.kind, **moving} | (
      {'TRUST_REGION_ALPHA': self.alpha} if self.kind == 'soft' else {}
    )


def main_cells(grids: Grids) -> dict[str, dict[str, Cell]]:
  """The main table's runs, by method and form."""
  return {m: {kind: Cell(m, kind, every=grids.every) for kind in KINDS} for m in METHODS}


def swept_cells(grids: Grids) -> dict[str, list[Cell]]:
  """The sweeps' runs, by what is swept: of DPO."""
  return {
    'β': [Cell('dpo', kind, beta=beta, every=grids.every) for kind in KINDS for beta in grids.beta],
    'α': [Cell('dpo', 'soft', alpha=alpha, every=grids.every) for alpha in grids.alpha],
    'τ': [Cell('dpo', 'hard', every=every) for every in grids.tau],
  }


class _Task(NamedTuple):
  """A data set's part: how a cell is trained, its start, and how runs are judged: (name, runs, against).

  Of a sweep's runs, which meet SFT alone, the last checkpoint counts; of others the one that wins most.
  """

  name: str
  before: Sequence[Stage]
  train: Callable[[Cell], Stage]
  judged: Callable[[str, Mapping[str, Stage], str], Stage]


def reproduction(scale: str, judge: Sequence[str]) -> Reproduction:
  """The stages, tables and figures at a scale.

  Args:
    scale: paper, small or smoke.
    judge: the settings of the judge.
  """
  grids = GRIDS[scale]
  tasks = _paper(judge) if scale == 'paper' else [_laptop(laptop.SCALES[scale], judge)]
  stages = [stage for task in tasks for stage in _stages(task, grids)]
  notes = _PAPER_NOTES if scale == 'paper' else _laptop_notes(laptop.SCALES[scale], grids)
  results = functools.partial(_results, tasks, grids, notes)
  return Reproduction('trust_region', TITLE, distinct(stages), results)


def _stages(task: _Task, grids: Grids) -> list[Stage]:
  mains = {m: {kind: task.train(cell) for kind, cell in of.items()} for m, of in main_cells(grids).items()}
  swept = {cell.name: task.train(cell) for of in swept_cells(grids).values() for cell in of}
  judged = [task.judged(_main_name(task, method), runs, 'all') for method, runs in mains.items()]
  return [
    *task.before, *(stage for runs in mains.values() for stage in runs.values()), *swept.values(), *judged,
    task.judged(_sweep_name(task), swept, 'first'),
  ]  # fmt: skip


def _main_name(task: _Task, method: str) -> str:
  return f'judged-tr-{task.name}-{method}'


def _sweep_name(task: _Task) -> str:
  return f'judged-tr-{task.name}-sweeps'


def _results(tasks: Sequence[_Task], grids: Grids, notes: Sequence[str], root: pathlib.Path) -> Results:
  tables, figures = [], []
  for task in tasks:
    found = {method: win_rates.read(root, _main_name(task, method)) for method in METHODS}
    tables += [_against_plain(task, found), _against_sft(root, task, found, grids)]
    rows = _swept(root, task, grids)
    tables += [Table(f'{task.name}: {what} of DPO', of, _SWEPT) for what, of in rows.items()]
    figures += _figures(root, task, grids, rows)
  found = {_main_name(task, 'dpo'): win_rates.read(root, _main_name(task, 'dpo')) for task in tasks}
  return Results([*tables, *win_rates.about(found)], figures, notes)


_SWEPT = 'Win rate against SFT, with its 95 % interval, and KL of own answers to the policy before training.'


def _against_plain(task: _Task, found: Mapping[str, win_rates.Judged]) -> Table:
  rows = []
  for method, name in METHODS.items():
    for kind in ('soft', 'hard'):
      ours = win_rates.rate(found[method], kind, 'frozen')
      low, high = (200 * x - 100 for x in (ours.rate.low, ours.rate.high))
      rows.append({
        'method': f'TR-{name}, {kind}', 'against': name,
        'wins less losses, points': f'{200 * ours.rate.value - 100:.1f} [{low:.1f}, {high:.1f}]',
        'paper, up to': PAPER[method] if task.name != 'hh' else None,
        'checkpoint': found[method].chosen.get(kind),
      })  # fmt: skip
  note = 'Ties count neither; 95 % intervals over prompts. The paper’s is of its better form.'
  return Table(f'{task.name}: against the plain form', rows, note)


def _against_sft(
  root: pathlib.Path, task: _Task, found: Mapping[str, win_rates.Judged], grids: Grids
) -> Table:
  rows = []
  for method, of in main_cells(grids).items():
    for kind, cell in of.items():
      ours = win_rates.rate(found[method], kind, 'sft')
      rows.append({
        'method': f'{METHODS[method]}, {KINDS[kind]}', 'win rate against SFT': ours.rate,
        'KL, nats': curves.last(root, _stage_name(task, cell), 'kl'),
      })  # fmt: skip
  return Table(
    f'{task.name}: against SFT', rows, 'KL to the policy before training, of own answers, at the end.'
  )


def _stage_name(task: _Task, cell: Cell) -> str:
  return task.train(cell).name


def _swept(root: pathlib.Path, task: _Task, grids: Grids) -> dict[str, list[dict[str, Any]]]:
  judged = win_rates.read(root, _sweep_name(task))
  value = {'β': lambda cell: cell.beta, 'α': lambda cell: cell.alpha, 'τ': lambda cell: cell.every}
  return {
    what: [
      {
        'form': KINDS[cell.kind], what: value[what](cell),
        'win rate': win_rates.rate(judged, cell.name, 'sft').rate,
        'KL, nats': curves.last(root, _stage_name(task, cell), 'kl'),
      }
      for cell in of
    ]
    for what, of in swept_cells(grids).items()
  }  # fmt: skip


def _figures(
  root: pathlib.Path, task: _Task, grids: Grids, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Figure]:
  quality = {
    form: sorted((r['KL, nats'].value, r['win rate'].value) for r in rows['β'] if r['form'] == form)
    for form in KINDS.values()
  }
  by = {
    what: {form: [(r[what], r['win rate'].value) for r in of if r['form'] == form] for form in _forms(of)}
    for what, of in rows.items()
  }
  drift = {
    what: {f'{what} {row[what]:g}': curves.points(root, _stage_name(task, cell), 'eval/kl')
           for row, cell in zip(rows[what], swept_cells(grids)[what])}
    for what in ('α', 'τ')
  }  # fmt: skip
  return [
    Figure(
      f'{task.name}_quality_by_kl.png',
      lambda figure: curves.panels(
        figure, {'DPO over β': quality}, 'KL to SFT, nats', 'win rate against SFT'
      ),
    ),
    Figure(
      f'{task.name}_sweeps.png',
      lambda figure: curves.panels(figure, by, 'value', 'win rate against SFT', logarithmic=True),
    ),
    Figure(
      f'{task.name}_kl_by_step.png',
      lambda figure: curves.panels(figure, drift, 'step', 'KL to SFT, nats'),
    ),
  ]


def _forms(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  return list(dict.fromkeys(row['form'] for row in rows))


# --- small and smoke ----------------------------------------------------------------------------------------


def _laptop(sizes: laptop.Sizes, judge: Sequence[str]) -> _Task:
  # Without the model: pairs are learnt from as they were judged.
  stages = laptop.reward_model(sizes)[:-1]
  compared, size = stages[-1], next(iter(sizes.models))

  def train(cell: Cell) -> Stage:
    values = {
      **_beta(cell), **cell.reference, 'REWARD_SCALING': 'none', 'DEAL': 'together', 'KL_PROMPTS': 128,
      'EVAL_EVERY': max(sizes.steps // 10, 1),
    }  # fmt: skip
    name = f'tr-{cell.name}'
    return laptop.train(sizes, name, cell.method, size, values, compared, 'comparisons.jsonl')

  def judged_runs(name: str, runs: Mapping[str, Stage], against: str) -> Stage:
    return laptop.judged(sizes, name, runs, size, judge, against=against, last=against == 'first')

  return _Task('exercises', stages, train, judged_runs)


def _beta(cell: Cell) -> dict[str, Any]:
  """The settings of a loss at its β; KTO learns that chosen answers are desirable, and rejected ones not."""
  desirable = {'kto.labels': '@threshold_labels', 'threshold_labels.threshold': 0.5}
  return {
    'dpo': {'dpo.beta': cell.beta}, 'ipo': {'ipo.tau': cell.beta}, 'kto': {'TAU': cell.beta, **desirable}
  }[cell.method]  # fmt: skip


def _laptop_notes(sizes: laptop.Sizes, grids: Grids) -> list[str]:
  return [
    f'Stated (TRL’s index of papers, huggingface.co/docs/trl/paper_index) and kept: β = {BETA:g}, α = '
    f'{ALPHA:g}, pairs as they were judged, one start for all, KL to the policy before training.',
    f'Ours: everything else. A small T5 answers exercises in place of Pythia on TL;DR; {sizes.steps} steps '
    f'of 64 pairs at a rate of {sizes.rate:g}, so that both forms update every {grids.every} steps and not '
    f'every {TAU}; the judge is the world’s own grade.',
  ]


# --- paper --------------------------------------------------------------------------------------------------

_SLICE = 'v5e:4x8'
_STEPS = {'tldr': 2900, 'hh': 5000}
_SFT = {'tldr': 912, 'hh': 2500}
_HH = ('data/hh.gin',)
_PROMPTS, _CHOOSE = 1250, 0.2
_PAPER_NOTES = [
  'Stated (TRL’s index of papers, huggingface.co/docs/trl/paper_index): β .05, Adam at 1e-6, one epoch, '
  'warm-up 100, gradient norm 2, α .6, τ 512; α from .1 to .8, τ from 32 to 1024; Pythia 6.9B on TL;DR and '
  'HH.',
  'Ours: the values between, those of β beside .05, soft updates every 512 steps, the judge’s instructions, '
  'answers at temperature 1, and what the gin files list under Ours.',
]


def _paper(judge: Sequence[str]) -> list[_Task]:
  start = imported('pythia-6.9b', 'EleutherAI/pythia-6.9b')
  return [_paper_task('tldr', start, (), judge), _paper_task('hh', start, _HH, judge)]


def _paper_task(name: str, start: Stage, data: Sequence[str], judge: Sequence[str]) -> _Task:
  filtered = ('algorithms/filtered_sft.gin',) if data else ()
  sft = _trained(f'tr-{name}-sft', 'sft', start, (*data, *filtered), {'STEPS': _SFT[name]}, _SFT[name])

  def train(cell: Cell) -> Stage:
    values = {'BETA': cell.beta, **cell.reference, 'STEPS': _STEPS[name], 'TEST_FRACTION': 0.05}
    return _trained(f'tr-{name}-{cell.name}', cell.method, sft, data, values, _STEPS[name])

  first = train(Cell('dpo', 'frozen'))
  split = held_out(f'tr-{name}-test-prompts', first)

  def judged_runs(title: str, runs: Mapping[str, Stage], against: str) -> Stage:
    last = against == 'first'
    values = {
      'AGAINST': against, 'CHOOSE': 0 if last else _CHOOSE, 'PROMPTS': _PROMPTS, 'FOLDS': 5,
      'MAX_LENGTH': _LENGTH[name],
    }  # fmt: skip
    file = split.at('split', 'test.jsonl')
    return judged(title, sft.run, runs, file, [sft, split], values, judge, last=last)

  return _Task(name, [start, sft, first, split], train, judged_runs)


_LENGTH = {'tldr': 64, 'hh': 256}


def _trained(
  name: str, part: str, start: Stage, more: Sequence[str], values: Mapping[str, Any], steps: int
) -> Stage:
  gin_files = (f'experiments/trust_region/pythia_{part}.gin', *more)
  return trained(name, gin_files, start, Training(steps, _SLICE, '6.9b'), *settings(values))


__all__ = ['reproduction']
