"""`a_lol_hh`: A-LoL as a helpful and harmless assistant (arXiv 2305.14718): rewards, diversity, win rates."""

import functools
import pathlib
from collections.abc import Mapping, Sequence

from dro_jax.printing.tables import Table
from dro_jax.recipes.reproduce import a_lol, laptop, win_rates
from dro_jax.recipes.reproduce.a_lol import METHODS, PREFERENCES, Paper, Task
from dro_jax.recipes.reproduce.stages import (
  Reproduction,
  Results,
  Stage,
  Training,
  distinct,
  judged,
  settings,
  trained,
)

TITLE = 'A-LoL, the helpful and harmless assistant (arXiv 2305.14718)'
_ALL = {**METHODS, **PREFERENCES}
# By people and GPT-4 in the paper; against the reference here.
_JUDGED = ('nll', 'pro', 'dpo', 'a_lol', 'a_lol_seq', 'a_lol_kl')


def reproduction(scale: str, judge: Sequence[str]) -> Reproduction:
  """The stages, tables and figure at a scale.

  Args:
    scale: paper, small or smoke.
    judge: the settings of the judge.
  """
  task, compared = _paper(judge) if scale == 'paper' else _laptop(laptop.SCALES[scale], judge)
  notes = _PAPER_NOTES if scale == 'paper' else _laptop_notes(laptop.SCALES[scale])
  results = functools.partial(_results, task, compared.name, notes)
  return Reproduction('a_lol_hh', TITLE, distinct([*task.stages, compared]), results)


def _results(task: Task, judged: str, notes: Sequence[str], root: pathlib.Path) -> Results:
  found = win_rates.read(root, judged)
  rows = [
    {'policy': _ALL[name].name, 'win rate against the reference': win_rates.rate(found, name, 'sft').rate,
     'checkpoint': found.chosen.get(name)}
    for name in _JUDGED
  ]  # fmt: skip
  tables = [
    a_lol.table(root, task),
    Table('Win rates', rows, 'Ties are halves; 95 % intervals over prompts.'),
    *win_rates.about({'the reference': found}),
  ]
  return Results(tables, [a_lol.by_step(root, [task], 'reward_by_step.png')], notes)


def _laptop(sizes: laptop.Sizes, judge: Sequence[str]) -> tuple[Task, Stage]:
  before, size = laptop.triplets(sizes), next(iter(sizes.models))
  model = next(stage for stage in before if stage.name == 'reward-model')
  task = a_lol.laptop_task(
    sizes, 'hha', 'Rewards and diversity', before[-1], model, before, _ALL, TEMPERATURE=0
  )  # fmt: skip
  runs = {name: task.runs[name] for name in _JUDGED}
  return task, laptop.judged(sizes, 'judged-hha', runs, size, judge, against='first')


def _laptop_notes(sizes: laptop.Sizes) -> list[str]:
  return [
    'Stated by the paper’s code and kept: the losses, ε = .9, a value that is fitted first and then '
    'frozen, responses without advantage dropped, the others drawn by it, greedy answers, a reward model’s '
    'mean score, distinct-1 to 3.',
    f'Ours: everything else. A small T5 answers exercises in place of LLaMA 7B on HH; {sizes.steps} steps '
    f'of 64; all answers of the log and not the better one of two; the value by {sizes.folds} folds of '
    'prompts; KL weight .1; weights of wBC, GOLD and R-LoL between 0 and 1 by minimum and maximum. PPO is '
    'not rerun.',
    'In the paper A-LoL’s answers are the most diverse, and people rate them safer and more helpful.',
  ]


_PAPER_NOTES = [
  'Stated by the paper’s code: LLaMA 7B, the better answer of each pair by PRO’s published scores, ε = .9, '
  'batch, steps, rate of full models, clip, a value that is fitted first and frozen, greedy answers of 128 '
  'tokens.',
  'Ours: all parameters trained where it has QLoRA; steps that are not cut by the share of positive '
  'advantages; a reward model of HH’s comparisons that measures answers, in place of OpenAssistant’s; and '
  'what the gin files list under Ours. PPO is not rerun.',
]
_HH = Paper(
  name='hha', title='Rewards and diversity', source='huggyllama/llama-7b',
  sft=('experiments/a_lol/hh_llama_sft.gin',), sft_steps=5000, test='hh_rewarded',
  gin=('experiments/a_lol/hh_llama.gin',), steps=4500, topology='v5e:4x8',
  decoding={'TEMPERATURE': 0, 'MAX_LENGTH': 128}, pairs=('data/hh_rewarded.gin',), size='7b',
)  # fmt: skip
_REWARD_STEPS = 1250


def _reward_model(sft: Stage) -> Stage:
  """A model of people's comparisons in HH, which no method learns from."""
  values = {
    'STEPS': _REWARD_STEPS, 'BATCH': 128, 'WARMUP_STEPS': 125, 'VALUE_LEARNING_RATE': 1e-5, 'ROLE': 'gold'
  }  # fmt: skip
  gin_files = (_HH.sft[0], 'algorithms/bradley_terry.gin')
  about = Training(_REWARD_STEPS, _HH.topology, _HH.size)
  return trained('hha-reward-model', gin_files, sft, about, *settings(values))


def _paper(judge: Sequence[str]) -> tuple[Task, Stage]:
  task = a_lol.paper_task(_HH, _ALL, model=_reward_model)
  runs: Mapping[str, Stage] = {name: task.runs[name] for name in _JUDGED}
  sft, prompts = task.answered[a_lol.REFERENCE], task.before[-1]
  values = {'AGAINST': 'first', 'PROMPTS': 1000, 'FOLDS': 5, **_HH.decoding}
  first, file = sft.at('answers.jsonl'), prompts.at('test.jsonl')
  return task, judged('judged-hha', first, runs, file, [sft, prompts], values, judge)


__all__ = ['reproduction']
