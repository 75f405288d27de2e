"""`a_lol_tasks`: A-LoL on Reddit, grounded dialogue and COMET (arXiv 2305.14718): rewards, diversity."""

import functools
import pathlib
from collections.abc import Mapping, Sequence

from dro_jax.recipes.reproduce import a_lol, laptop
from dro_jax.recipes.reproduce.a_lol import METHODS, Paper, Task
from dro_jax.recipes.reproduce.stages import Reproduction, Results, distinct

TITLE = 'A-LoL, Reddit, dialogue and COMET (arXiv 2305.14718)'
_DECODING = {'TEMPERATURE': 0, 'BEAMS': 2, 'REPETITION_PENALTY': 2.5}
_T5 = 'google/flan-t5-base'
_GIN = 'experiments/a_lol/{}.gin'


def _paper(
  name: str, title: str, gin: str, steps: tuple[int, int], test: str, length: int, *data: str
) -> Paper:
  """A task by the name of its gin files, with the steps of SFT and of methods, and `data` besides."""
  return Paper(
    name, title, _T5, (_GIN.format(f'{gin}_sft'), *data), steps[0], test, (_GIN.format(gin), *data),
    steps[1], '', {**_DECODING, 'MAX_LENGTH': length},
  )  # fmt: skip


_DIALOGUE = (36_000, 18_000)
PAPER = (
  _paper('reddit_upvoted', 'Reddit, upvoted', 'reddit', _DIALOGUE, 'reddit_upvoted', 128),
  _paper(
    'reddit_downvoted', 'Reddit, downvoted', 'reddit', _DIALOGUE, 'reddit_downvoted', 128,
    'data/reddit_downvoted.gin',
  ),
  _paper('dialogue', 'Grounded dialogue', 'dialogue', _DIALOGUE, 'faithdial_wow_rewarded', 128),
  _paper('comet', 'COMET', 'comet', (75_000, 300_000), 'comet_rewarded', 30),
)  # fmt: skip
_SCALES = {'small': METHODS, 'smoke': {name: METHODS[name] for name in ('nll', 'r_lol', 'a_lol')}}
# Logs of better and of worse answers than the reference's, as FaithDial beside WoW, by their temperatures.
LOGS: Mapping[str, tuple[str, float]] = {
  'clean': ('A clean log', 0.7), 'noisy': ('A noisy log', 1.3)
}  # fmt: skip


def reproduction(scale: str, judge: Sequence[str]) -> Reproduction:
  """The stages, tables and figure at a scale.

  Args:
    scale: paper, small or smoke.
    judge: not used: the paper's classifiers reward the answers.
  """
  del judge
  tasks = [a_lol.paper_task(about, METHODS) for about in PAPER] if scale == 'paper' else _laptop(scale)
  notes = _PAPER_NOTES if scale == 'paper' else _laptop_notes(laptop.SCALES[scale])
  stages = distinct([stage for task in tasks for stage in task.stages])
  return Reproduction('a_lol_tasks', TITLE, stages, functools.partial(_results, tasks, notes, scale))


def _results(tasks: Sequence[Task], notes: Sequence[str], scale: str, root: pathlib.Path) -> Results:
  figures = [] if scale == 'paper' else [a_lol.by_step(root, tasks, 'reward_by_step.png')]
  return Results([a_lol.table(root, task) for task in tasks], figures, notes)


def _laptop(scale: str) -> list[Task]:
  sizes = laptop.SCALES[scale]
  rewarded = laptop.reward_model(sizes)
  model, size = rewarded[-1], next(iter(sizes.models))
  world, policy = laptop.world(sizes), laptop.sft(sizes, size)
  tasks = []
  for name, (title, temperature) in LOGS.items():
    drawn = laptop.answers(
      sizes,
      f'{name}-log-answers',
      policy,
      world.at('log.jsonl'),
      sizes.samples,
      world,
      TEMPERATURE=temperature,
    )
    kept = laptop.usable(f'{name}-log', drawn)
    scored = laptop.scored(f'{name}-triplets', kept, 'kept.jsonl', model)
    before = [*rewarded, drawn, kept, scored]
    # Exercises repeat letters, so that a penalty on repetitions would be one on right answers.
    decoding = {'TEMPERATURE': 0, 'BEAMS': 2}
    tasks.append(a_lol.laptop_task(sizes, name, title, scored, model, before, _SCALES[scale], **decoding))
  return tasks


def _laptop_notes(sizes: laptop.Sizes) -> list[str]:
  temperatures = ' and '.join(f'{temperature:g}' for _, temperature in LOGS.values())
  return [
    'Stated by the paper’s code and kept: the losses, a value that is fitted first and then frozen, '
    'responses without advantage dropped, the others drawn by it, answers of two beams, distinct-1 to 3.',
    f'Ours: everything else. A small T5 answers exercises; logs sampled at temperatures {temperatures} '
    'stand for data of two qualities; one reward model for four or five summed classifiers; ε = .9; '
    f'{sizes.steps} steps of 64; no penalty on repetitions, which right answers have.',
    'In the paper A-LoL improves several rewards at once, on noisy data too.',
  ]


_PAPER_NOTES = [
  'Stated by the paper’s code: data and rewards, batch, epochs, optimiser, rate, schedule and clip, a '
  'value that is fitted first and frozen, answers of two beams with a repetition penalty of 2.5.',
  'Ours: FLAN-T5-base for DialoGPT and COMET-distill, and what the gin files list under Ours. The '
  'classifiers that reward answers are not here: `dro_jax answers ... --reward=NAME=FILE.py:FUNCTION` '
  'measures the files of the answers’ stages by yours.',
]


__all__ = ['reproduction']
