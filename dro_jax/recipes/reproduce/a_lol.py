"""What A-LoL's experiments (arXiv 2305.14718) share: their methods, a task's stages, and its table."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.printing.tables import Table
from dro_jax.recipes.reproduce import curves, laptop, measured, stages
from dro_jax.recipes.reproduce.stages import Figure, Stage, Training, at, settings


class Method(NamedTuple):
  """A row of the tables.

  Attributes:
    name: in the paper.
    algorithm: its gin file in algorithms/.
    values: its settings.
    reads_value: whether it reads advantages over a fitted value.
    weighs: whether it weighs by rewards, which must not be negative.
  """

  name: str
  algorithm: str
  values: Mapping[str, Any] = {}
  reads_value: bool = False
  weighs: bool = False


# In the order of the paper's code; A-LoL draws responses by their advantages where `good_priority` does.
METHODS: Mapping[str, Method] = {
  'nll': Method('NLL', 'sft'),
  'wbc': Method('wBC', 'weighted_bc', weighs=True),
  'r_gold': Method('Reward GOLD', 'gold', weighs=True),
  'r_lol': Method('R-LoL', 'r_lol', {'r_lol.epsilon': 0.9}, weighs=True),
  'a_lol': Method('A-LoL', 'a_lol', {'a_lol.epsilon': 0.9, 'a_lol.priority': True}, reads_value=True),
  'a_lol_ref_free': Method(
    'A-LoL ref-free', 'a_lol_ref_free', {'a_lol_ref_free.priority': True}, reads_value=True
  ),
  'a_lol_seq': Method(
    'A-LoL seq.', 'a_lol_sequence', {'a_lol_sequence.epsilon': 0.9, 'a_lol_sequence.priority': True},
    reads_value=True,
  ),
  'a_lol_kl': Method('A-LoL KL', 'a_lol_kl', reads_value=True),
}  # fmt: skip
PREFERENCES: Mapping[str, Method] = {'dpo': Method('DPO', 'dpo'), 'pro': Method('PRO', 'pro')}
REFERENCE = 'reference'
# What the table shows of `measured`'s report, and how it calls that.
COLUMNS: Mapping[str, str] = {
  'reward': 'reward', 'grade': "world's grade", 'tokens': 'tokens',
  **{f'distinct-{n} of all answers': f'distinct-{n}' for n in (1, 2, 3)},
}  # fmt: skip


class Task(NamedTuple):
  """One data set's part of a table.

  Attributes:
    name: of its stages.
    title: in tables.
    before: stages before the methods, SFT's among them.
    runs: the methods' training stages.
    answered: the stages that draw answers, of the reference first.
    measured: the stage that measures them.
  """

  name: str
  title: str
  before: Sequence[Stage]
  runs: Mapping[str, Stage]
  answered: Mapping[str, Stage]
  measured: Stage

  @property
  def stages(self) -> list[Stage]:
    return [*self.before, *self.runs.values(), *self.answered.values(), self.measured]


def table(root: pathlib.Path, task: Task) -> Table:
  """Rewards, lengths and diversity of all methods' answers."""
  names = {REFERENCE: 'reference', **{name: method_of(name).name for name in task.runs}}
  note = '95 % intervals over prompts. The paper’s numbers were not at hand, and are by its own classifiers.'
  return measured.table(root, task.measured.name, task.title, COLUMNS, names, note)


def method_of(name: str) -> Method:
  """A method by its name."""
  return {**METHODS, **PREFERENCES}[name]


def by_step(root: pathlib.Path, tasks: Sequence[Task], file: str) -> Figure:
  """A figure of the validation reward by step, a panel for each task and a curve for each method."""

  def of(task: Task) -> dict[str, curves.Points]:
    return {
      method_of(name).name: curves.points(root, stage.name, 'eval/sample_reward')
      for name, stage in task.runs.items()
    }

  return Figure(
    file,
    lambda figure: curves.panels(
      figure, {task.title: of(task) for task in tasks}, 'step', 'reward of own answers'
    ),
  )


# --- small and smoke ----------------------------------------------------------------------------------------


def laptop_value(sizes: laptop.Sizes, name: str, source: Stage) -> Stage:
  """Values of the prompts of a log, each by a network that never saw its prompt: `fit_value`."""
  size = next(iter(sizes.models))
  policy, steps = laptop.sft(sizes, size), max(sizes.steps // 2, 2)
  values = {
    **laptop.common(sizes), 'STEPS': steps, 'WARMUP_STEPS': steps // 10, 'EVAL_EVERY': steps,
    'CHECKPOINT_EVERY': steps, 'FOLDS': sizes.folds, 'CACHE_DIR': at(name, 'tables'),
  }  # fmt: skip
  command = (
    'fit_value', f'--init_from={policy.run}', f'--triplets={source.at("scored.jsonl")}',
    f'--model_dir={at(name, "run")}', *settings(values),
  )  # fmt: skip
  needs, made = (policy.name, source.name), ('run/columns/columns.json',)
  return Stage(name, command, needs, made, Training(steps, size=size))


def laptop_task(
  sizes: laptop.Sizes, name: str, title: str, source: Stage, model: Stage, before: Sequence[Stage],
  methods: Mapping[str, Method], **decoding: Any,
) -> Task:  # fmt: skip
  """A task in the world of exercises.

  Args:
    sizes: of the scale.
    name: of the task.
    title: in tables.
    source: the stage with the log and its rewards, `scored.jsonl`.
    model: the reward model's stage, which measures answers.
    before: all stages that these need.
    methods: what is trained.
    decoding: settings of `generate`.
  """
  size = next(iter(sizes.models))
  value, world, policy = (
    laptop_value(sizes, f'{name}-value', source),
    laptop.world(sizes),
    laptop.sft(sizes, size),
  )
  runs = {
    key: _laptop_run(sizes, f'{name}-{key}', method, source, model, value) for key, method in methods.items()
  }

  def answers(key: str, run: Stage) -> Stage:
    return laptop.answers(sizes, f'{name}-answers-{key}', run, world.at('test.jsonl'), 1, world, **decoding)

  answered = {key: answers(key, run) for key, run in {REFERENCE: policy, **runs}.items()}
  rewards = {'reward': model.run, 'grade': 'graded_match'}
  made = measured.stage(f'{name}-measured', answered, rewards, model)
  return Task(name, title, [*before, policy, value], runs, answered, made)


def _laptop_run(
  sizes: laptop.Sizes, name: str, method: Method, source: Stage, model: Stage, value: Stage
) -> Stage:
  values = {
    # Weights must not be negative, and a reward model's scores may be; advantages are in its units.
    'REWARD_SCALING': 'minmax' if method.weighs else 'none', 'DEAL': 'together', 'REWARD': model.run,
    'KL_PROMPTS': 64, 'EVAL_EVERY': max(sizes.steps // 10, 1), **method.values,
  }  # fmt: skip
  values |= {'COLUMNS_FROM': value.run} if method.reads_value else {}
  stage = laptop.train(sizes, name, method.algorithm, next(iter(sizes.models)), values, source)
  more = (model.name, value.name) if method.reads_value else (model.name,)
  return dataclasses.replace(stage, needs=(*stage.needs, *more))


# --- paper --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Paper:
  """A task at the paper's scale, by its gin files in experiments/a_lol/.

  Attributes:
    name: of the task and of its stages.
    title: in tables.
    source: the model to import.
    sft: the gin files of its reference policy.
    sft_steps: theirs.
    test: the data set whose part `test` has the prompts.
    gin: the gin files of the methods.
    steps: theirs.
    topology: the slice; '' trains on the machine at hand.
    decoding: settings of `generate`.
    pairs: gin files besides, for methods of pairs.
    size: of the model, by which --launch can choose a job.
  """

  name: str
  title: str
  source: str
  sft: tuple[str, ...]
  sft_steps: int
  test: str
  gin: tuple[str, ...]
  steps: int
  topology: str
  decoding: Mapping[str, Any]
  pairs: tuple[str, ...] = ()
  size: str = ''


_DATA_DIR = 'LoL-RL/data'
_VALUE_STEPS = 1000


def paper_task(
  about: Paper, methods: Mapping[str, Method], *, model: Callable[[Stage], Stage] | None = None
) -> Task:
  """A task at the paper's scale.

  Args:
    about: the task.
    methods: what is trained.
    model: from the stage of SFT to that of a reward model which measures answers; `None` measures them by
      what needs no model.
  """
  start = stages.imported(about.source.rpartition('/')[2], about.source)
  sft = _by_gin(about, f'{about.name}-sft', 'train', about.sft, about.sft_steps, start)
  value = _paper_value(about, sft)
  scorer = model and model(sft)
  runs = {key: _paper_run(about, key, method, sft, value, scorer) for key, method in methods.items()}
  prompts = _test_prompts(about, scorer)
  answered = {key: _paper_answers(about, key, run, prompts) for key, run in {REFERENCE: sft, **runs}.items()}
  rewards = {'reward': scorer.run} if scorer else {}
  made = measured.stage(f'{about.name}-measured', answered, rewards, scorer)
  before = [start, sft, value, *([scorer] if scorer else []), prompts]
  return Task(about.name, about.title, before, runs, answered, made)


def _by_gin(
  about: Paper, name: str, verb: str, gin: Sequence[str], steps: int, start: Stage, *more: str
) -> Stage:
  training = Training(steps, about.topology, about.size)
  return stages.trained(name, gin, start, training, *more, verb=verb)


def _paper_value(about: Paper, sft: Stage) -> Stage:
  values = {
    'STEPS': _VALUE_STEPS, 'BATCH': 32, 'WARMUP_STEPS': 150, 'EVAL_EVERY': 100, 'CHECKPOINT_EVERY': 100,
    'BEST_METRIC': 'eval/criterion',
  }  # fmt: skip
  name = f'{about.name}-value'
  return _by_gin(about, name, 'fit_value', about.gin, _VALUE_STEPS, sft, *settings(values))


def _paper_run(
  about: Paper, key: str, method: Method, sft: Stage, value: Stage, scorer: Stage | None
) -> Stage:
  gin = (*about.gin, *(about.pairs if key in PREFERENCES else ()))
  values = {'ALGORITHM': method.algorithm, **method.values}
  values |= {'COLUMNS_FROM': value.run} if method.reads_value else {}
  values |= {'REWARD': scorer.run} if scorer else {}
  stage = _by_gin(about, f'{about.name}-{key}', 'train', gin, about.steps, sft, *settings(values))
  more = [each.name for each in (value if method.reads_value else None, scorer) if each]
  return dataclasses.replace(stage, needs=(*stage.needs, *more))


def _test_prompts(about: Paper, scorer: Stage | None) -> Stage:
  """The test part, `test.jsonl`, its own answers scored as the methods' are."""
  needs, reward = ([scorer], scorer.run) if scorer else ([], 'length=length_reward')
  values = {'SPLIT': 'test', 'DATA_DIR': _DATA_DIR}
  return stages.scored(f'{about.name}-test', about.test, reward, needs, values, 'test.jsonl')


def _paper_answers(about: Paper, key: str, run: Stage, prompts: Stage) -> Stage:
  name, file = f'{about.name}-answers-{key}', prompts.at('test.jsonl')
  return stages.answers(name, run, file, prompts, about.decoding)
