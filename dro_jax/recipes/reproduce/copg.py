"""`copg`: CoPG on summaries (arXiv 2406.19185, Sect. 6): reward against steps and β, beside DPO and IPO."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.printing.tables import Table
from dro_jax.recipes.reproduce import curves, laptop
from dro_jax.recipes.reproduce.stages import (
  Figure,
  Reproduction,
  Results,
  Stage,
  Training,
  distinct,
  imported,
  scored,
  settings,
  trained,
)

TITLE = 'CoPG, figures of the summarisation experiment (arXiv 2406.19185, Sect. 6)'
NAMES = {'copg': 'CoPG', 'dpo': 'DPO', 'ipo': 'IPO'}
# β that the paper calls the best; CoPG's is not in its text.
STATED: Mapping[str, float] = {'dpo': 0.1, 'ipo': 0.01}
# The paper's reward model: the share of pairs that it ranks as people did.
ACCURACY = {'train': 0.891, 'validation': 0.728}

_PARAMETERS = {'copg': 'copg.beta', 'dpo': 'dpo.beta', 'ipo': 'ipo.tau'}
_MACROS = {'copg': 'COPG_BETA', 'dpo': 'DPO_BETA', 'ipo': 'IPO_BETA'}
_WIDE: Mapping[str, tuple[float, ...]] = {
  'copg': (0.01, 0.03, 0.06, 0.1, 0.3, 0.6), 'dpo': (0.01, 0.03, 0.06, 0.1, 0.3, 0.6),
  'ipo': (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
}  # fmt: skip
GRIDS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
  'paper': _WIDE, 'small': _WIDE, 'smoke': {'copg': (0.06, 0.6), 'dpo': (0.1,), 'ipo': (0.01,)}
}  # fmt: skip
_REWARD, _KL = 'eval/sample_reward', 'eval/kl'


class _Plan(NamedTuple):
  """Stages, the reward model's among them, cells by method and β, and notes."""

  stages: Sequence[Stage]
  model: str
  cells: Mapping[str, Mapping[float, str]]
  notes: Sequence[str]


def reproduction(scale: str, judge: Sequence[str]) -> Reproduction:
  """The stages and the figures at a scale.

  Args:
    scale: paper, small or smoke.
    judge: not used: the paper takes its reward model for the truth.
  """
  del judge
  plan = _paper() if scale == 'paper' else _laptop(laptop.SCALES[scale], GRIDS[scale])
  return Reproduction('copg', TITLE, distinct(plan.stages), functools.partial(_results, plan))


def _results(plan: _Plan, root: pathlib.Path) -> Results:
  rows = [
    {
      'method': NAMES[method], 'β': beta, 'reward': curves.last(root, name, 'sample_reward'),
      'KL, nats': curves.last(root, name, 'kl'),
    }
    for method, of in plan.cells.items()
    for beta, name in of.items()
  ]  # fmt: skip
  best = {method: _best(rows, name) for method, name in NAMES.items()}
  tables = [
    Table(
      'At the best β', [row | {"paper's best β": STATED.get(method)} for method, row in best.items()],
      'The β whose last reward is the highest; the paper’s figures have no numbers in its text.',
    ),
    Table('Last reward by β', rows, 'Of own answers to held-out prompts; 95 % intervals over these.'),
    _reward_model(root, plan.model),
  ]  # fmt: skip
  by_step = {
    NAMES[method]: {f'β {beta:g}': curves.points(root, name, _REWARD) for beta, name in of.items()}
    for method, of in plan.cells.items()
  }
  by_beta = {
    name: [(r['β'], r['reward'].value) for r in rows if r['method'] == name] for name in NAMES.values()
  }
  at_best = {
    f'{NAMES[method]}, β {row["β"]:g}': by_step[NAMES[method]][f'β {row["β"]:g}']
    for method, row in best.items()
  }
  return Results(
    tables,
    [
      Figure('reward_by_step.png', lambda figure: curves.panels(figure, by_step, 'step', 'reward')),
      Figure(
        'reward_by_beta.png',
        lambda figure: curves.panels(figure, {'last reward': by_beta}, 'β', 'reward', logarithmic=True),
      ),
      Figure('best.png', lambda figure: curves.panels(figure, {'at the best β': at_best}, 'step', 'reward')),
    ],
    plan.notes,
  )


def _best(rows: Sequence[Mapping[str, Any]], method: str) -> Mapping[str, Any]:
  return max((row for row in rows if row['method'] == method), key=lambda row: row['reward'].value)


def _reward_model(root: pathlib.Path, name: str) -> Table:
  row = {
    'pairs': 'validation', 'accuracy': curves.latest(root, name, 'eval/pair_accuracy'),
    'paper': ACCURACY['validation'],
  }  # fmt: skip
  note = f'The paper’s ranks {100 * ACCURACY["train"]:.1f} % of its training pairs as people did.'
  return Table('Reward model', [row], note)


# --- small and smoke ----------------------------------------------------------------------------------------


def _laptop(sizes: laptop.Sizes, grid: Mapping[str, Sequence[float]]) -> _Plan:
  stages = laptop.reward_model(sizes)
  compared, model = stages[-2:]
  pairs = laptop.scored('copg-pairs', compared, 'comparisons.jsonl', model, KEEP_PAIRS='true')
  cells = {
    method: {beta: _cell(sizes, method, beta, pairs, model) for beta in betas}
    for method, betas in grid.items()
  }
  every = [*stages, pairs, *(stage for of in cells.values() for stage in of.values())]
  notes = [
    'Stated by the paper and kept: the stages (fine-tuning, a reward model of people’s comparisons, its '
    'scores of the same pairs, which it ranks anew for DPO and IPO), and what is measured: the reward '
    'model’s mean score of own answers to validation prompts.',
    f'Ours: everything else. A small T5 answers exercises in place of Llama 2 7B on posts; {sizes.steps} '
    f'steps of 64 pairs at a rate of {sizes.rate:g}; the grids of β; pairs of a prompt’s answers for CoPG.',
  ]
  return _Plan(every, model.name, _names(cells), notes)


def _cell(sizes: laptop.Sizes, method: str, beta: float, pairs: Stage, model: Stage) -> Stage:
  every = max(sizes.steps // 20, 1)
  values = {
    _PARAMETERS[method]: beta, 'DEAL': 'together', 'REWARD_SCALING': 'none', 'REWARD': model.run,
    'EVAL_EVERY': every, 'KL_PROMPTS': 128, 'CHECKPOINT_EVERY': sizes.steps, 'KEEP_LAST': 1,
  }  # fmt: skip
  values |= {'GROUP_SIZE': 2} if method == 'copg' else {}
  size = next(iter(sizes.models))
  stage = laptop.train(sizes, f'copg-{method}-{beta:g}', method, size, values, pairs)
  return dataclasses.replace(stage, needs=(*stage.needs, model.name))


def _names(cells: Mapping[str, Mapping[float, Stage]]) -> dict[str, dict[float, str]]:
  return {method: {beta: stage.name for beta, stage in of.items()} for method, of in cells.items()}


# --- paper --------------------------------------------------------------------------------------------------

_SLICE = 'v5e:4x8'


def _paper() -> _Plan:
  start = imported('llama-2-7b', 'meta-llama/Llama-2-7b-hf')
  sft = _trained('copg-sft', '_sft', 1824, start, {})
  model = _trained('copg-reward-model', '_reward_model', 1450, sft, {})
  pairs = scored('copg-ranked', 'tldr_comparisons', model.run, [model], {'KEEP_PAIRS': 'true'})
  cells = {
    method: {beta: _paper_cell(method, beta, sft, model, pairs) for beta in betas}
    for method, betas in GRIDS['paper'].items()
  }
  notes = [
    'Stated by the paper: Llama 2 7B, the three stages with their epochs, batches, optimiser, rates and '
    'warm-up, six values of β for each method, the reward of answers to 128 validation prompts every 50 '
    'steps.',
    'Ours: the values of β around those that it calls the best, and what the gin files list under Ours.',
  ]
  every = [start, sft, model, pairs, *(stage for of in cells.values() for stage in of.values())]
  return _Plan(every, model.name, _names(cells), notes)


def _trained(name: str, part: str, steps: int, start: Stage, values: Mapping[str, Any]) -> Stage:
  about = Training(steps, _SLICE, '7b')
  return trained(name, [f'experiments/copg/llama_2{part}.gin'], start, about, *settings(values))


def _paper_cell(method: str, beta: float, sft: Stage, model: Stage, pairs: Stage) -> Stage:
  values = {'ALGORITHM': method, _MACROS[method]: beta, 'REWARD': model.run}
  stage = _trained(f'copg-{method}-{beta:g}', '', 1450, sft, values)
  command = (*stage.command, f'--triplets={pairs.at("scored.jsonl")}')
  return dataclasses.replace(stage, command=command, needs=(sft.name, model.name, pairs.name))


__all__ = ['reproduction']
