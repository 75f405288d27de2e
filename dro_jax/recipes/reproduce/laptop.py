"""The stages of reproductions at the scales `small` and `smoke`: the world of habits, without a download.

A small T5 is fitted to demonstrations; it answers prompts, which is the log; a reward model is trained on
noisy comparisons of its answers to other prompts, and scores the log; methods learn from that; and their
answers to test prompts are judged by the world's own grade, which trainings see only through the comparisons.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dro_jax.recipes.reproduce import stages
from dro_jax.recipes.reproduce.stages import Stage, Training, at, settings

# A model's size: the fields of T5Config beside those of models/t5_1_1_tiny.gin.
L: Mapping[str, int] = {}
XL: Mapping[str, int] = {
  'emb_dim': 96, 'num_heads': 6, 'mlp_dim': 256, 'num_encoder_layers': 3, 'num_decoder_layers': 3
}  # fmt: skip
LEAST: Mapping[str, int] = {
  'emb_dim': 16, 'num_heads': 2, 'head_dim': 8, 'mlp_dim': 32, 'num_encoder_layers': 1,
  'num_decoder_layers': 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sizes of a world, of its models and of its budgets.

  Attributes:
    demonstrations, log_prompts, judged_prompts, test_prompts: see `make_world`.
    samples: answers to each prompt of the log and of the comparisons.
    noise: of the comparisons, in units of the grade.
    models: by size, in order; the first one writes the log and is the reward model's trunk.
    sft_steps, reward_steps, steps: optimiser steps of the SFT policies, of the reward model and of methods.
    rate: of all methods and both networks, at its peak.
    checkpoints: of a method's run, among which a judge chooses.
    choose: the share of test prompts that choose.
    folds: of the others.
    held_out: the share of prompts on which runs validate.
    validates: whether they do.
    seed: of everything.
  """

  demonstrations: int = 4000
  log_prompts: int = 4000
  judged_prompts: int = 4000
  test_prompts: int = 1280
  samples: int = 4
  noise: float = 0.1
  models: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=lambda: {'l': L, 'xl': XL})
  sft_steps: int = 800
  reward_steps: int = 1500
  steps: int = 800
  rate: float = 1e-3
  checkpoints: int = 4
  choose: float = 0.2
  folds: int = 5
  held_out: float = 0.05
  validates: bool = True
  seed: int = 0


SMALL = Sizes()
SMOKE = Sizes(
  demonstrations=64, log_prompts=32, judged_prompts=24, test_prompts=40, samples=2,
  models={'l': LEAST, 'xl': LEAST}, sft_steps=4, reward_steps=2, steps=2, checkpoints=2, choose=0.3, folds=2,
  held_out=0.25, validates=False,
)  # fmt: skip
SCALES: Mapping[str, Sizes] = {'small': SMALL, 'smoke': SMOKE}

_BATCH = 64
_ANSWER = 12  # Tokens of an answer at most.


def common(sizes: Sizes) -> dict[str, Any]:
  """The settings of all runs."""
  return {
    'PROMPT_LENGTH': 64, 'RESPONSE_LENGTH': _ANSWER, 'BATCH': _BATCH, 'VALIDATION_FRACTION': sizes.held_out,
    'SEED': sizes.seed,
  }  # fmt: skip


def _quiet(sizes: Sizes, steps: int, checkpoints: int = 1) -> dict[str, Any]:
  """Checkpoints evenly through a run, all of them kept, and no sampling on the way."""
  every = max(steps // checkpoints, 1)
  return {
    'STEPS': steps, 'LOG_EVERY': max(steps // 20, 1), 'EVAL_EVERY': every if sizes.validates else 0,
    'CHECKPOINT_EVERY': every, 'KEEP_LAST': checkpoints, 'SAMPLE_PROMPTS': 0, 'KL_PROMPTS': 0,
    'BEST_METRIC': None,
  }  # fmt: skip


def world(sizes: Sizes) -> Stage:
  """The data: demonstrations, and prompts of the log, of comparisons and of tests."""
  names = ('demonstrations', 'log_prompts', 'judged_prompts', 'test_prompts', 'seed')
  values = {name.upper(): getattr(sizes, name) for name in names}
  made = tuple(f'{name}.jsonl' for name in ('demonstrations', 'log', 'judged', 'test'))
  return Stage('world', ('make_world', f'--output={at("world")}', *settings(values)), makes=made)


def sft(sizes: Sizes, size: str) -> Stage:
  """A policy of a size, fitted to the demonstrations: the reference, and where methods start."""
  source, name = world(sizes), f'sft-{size}'
  model = tuple(f'--gin.T5Config.{field}={value}' for field, value in sizes.models[size].items())
  values = {
    'VOCABULARY': 'bytes', **common(sizes), **_quiet(sizes, sizes.sft_steps),
    'POLICY_OPTIMIZER': '@policy/adamw', 'POLICY_SCHEDULE': '@policy/warmup_cosine()',
    'POLICY_LEARNING_RATE': 2e-3, 'WARMUP_STEPS': sizes.sft_steps // 20,
  }  # fmt: skip
  files = ('--gin_file=algorithms/sft.gin', '--gin_file=models/t5_1_1_tiny.gin')
  return _trained(name, (*files, *model), source.at('demonstrations.jsonl'), values, (source.name,), size)


def answers(
  sizes: Sizes, name: str, policy: Stage, prompts: str, samples: int, source: Stage, **others: Any
) -> Stage:
  """A policy's answers to the prompts of a file, `answers.jsonl`.

  Args:
    sizes: of the scale.
    name: of the stage.
    policy: the stage whose run answers.
    prompts: the path of the file.
    samples: answers to each prompt.
    source: the stage that made the file.
    others: settings of `generate`.
  """
  values = {'SAMPLES': samples, 'MAX_LENGTH': _ANSWER, 'BATCH': 256, 'SEED': sizes.seed} | others
  return stages.answers(name, policy, prompts, source, values)


def usable(name: str, answered: Stage) -> Stage:
  """The answers that can train, `kept.jsonl`."""
  command = ('keep_answers', answered.at('answers.jsonl'), f'--output={at(name, "kept.jsonl")}')
  return Stage(name, command, (answered.name,), ('kept.jsonl',))


def log(sizes: Sizes) -> list[Stage]:
  """The log that methods learn from, without rewards: the stages `log-answers` and `log`."""
  source, policy = world(sizes), sft(sizes, next(iter(sizes.models)))
  drawn = answers(sizes, 'log-answers', policy, source.at('log.jsonl'), sizes.samples, source)
  return [source, policy, drawn, usable('log', drawn)]


def reward_model(sizes: Sizes) -> list[Stage]:
  """A reward model of noisy comparisons: `judged-answers`, `judged`, `comparisons` and `reward-model`."""
  source, policy = world(sizes), sft(sizes, next(iter(sizes.models)))
  drawn = answers(
    sizes, 'judged-answers', policy, source.at('judged.jsonl'), sizes.samples, source, SEED=sizes.seed + 1
  )
  kept = usable('judged', drawn)
  command = (
    'make_comparisons', kept.at('kept.jsonl'), '--reward=graded_match',
    f'--output={at("comparisons", "comparisons.jsonl")}',
    *settings({'NOISE': sizes.noise, 'SEED': sizes.seed}),
  )  # fmt: skip
  compared = Stage('comparisons', command, (kept.name,), ('comparisons.jsonl',))
  values = {
    **common(sizes), **_quiet(sizes, sizes.reward_steps), 'VALUE_LEARNING_RATE': sizes.rate,
    'VALUE_OPTIMIZER': '@value/adamw', 'VALUE_SCHEDULE': '@value/warmup_cosine()',
    'WARMUP_STEPS': sizes.reward_steps // 20,
  }  # fmt: skip
  model = _trained(
    'reward-model', ('--gin_file=algorithms/bradley_terry.gin', f'--init_from={policy.run}'),
    compared.at('comparisons.jsonl'), values, (policy.name, compared.name), next(iter(sizes.models)),
  )  # fmt: skip
  return [source, policy, drawn, kept, compared, model]


def scored(name: str, answered: Stage, file: str, model: Stage, **others: Any) -> Stage:
  """The answers of a stage's file with the reward model's scores as their rewards, `scored.jsonl`."""
  values = {'MODEL_BATCH': 256, 'BATCH': 1024} | others
  return stages.scored(name, answered.at(file), model.run, [answered, model], values)


def triplets(sizes: Sizes) -> list[Stage]:
  """All stages of the data that methods learn from; the last one, `triplets`, has `scored.jsonl`."""
  logged, rewarded = log(sizes), reward_model(sizes)
  every = [*logged, *(stage for stage in rewarded if stage not in logged)]
  return [*every, scored('triplets', logged[-1], 'kept.jsonl', rewarded[-1])]


def train(
  sizes: Sizes, name: str, algorithm: str, size: str, values: Mapping[str, Any], source: Stage,
  file: str = 'scored.jsonl',
) -> Stage:  # fmt: skip
  """A method's training cell, from the SFT policy of a size.

  Args:
    sizes: of the scale.
    name: of the stage.
    algorithm: the method's gin file in algorithms/.
    size: of the model.
    values: settings beside the scale's own, as TAU.
    source: the stage that made the triplets.
    file: theirs.
  """
  policy = sft(sizes, size)
  own = {
    **common(sizes), **_quiet(sizes, sizes.steps, sizes.checkpoints), 'DEAL': 'uniform',
    'REWARD_SCALING': 'standardise', 'POLICY_LEARNING_RATE': sizes.rate,
    'WARMUP_STEPS': sizes.steps // 20,
  } | dict(values)  # fmt: skip
  files = (f'--gin_file=algorithms/{algorithm}.gin', f'--init_from={policy.run}')
  return _trained(name, files, source.at(file), own, (policy.name, source.name), size)


def _trained(
  name: str, arguments: Sequence[str], file: str, values: Mapping[str, Any], needs: Sequence[str], size: str
) -> Stage:
  chosen = (*settings({'CACHE_DIR': at(name, 'tables')}), *settings(values))
  command = ('train', *arguments, f'--triplets={file}', f'--model_dir={at(name, "run")}', *chosen)
  return Stage(name, command, tuple(needs), training=Training(values['STEPS'], size=size))


def judged(
  sizes: Sizes,
  name: str,
  runs: Mapping[str, Stage],
  size: str,
  judge: Sequence[str],
  *,
  against: str = 'all',
  last: bool = False,
) -> Stage:
  """Side by side on test prompts: the SFT policy of a size, and the best checkpoint of each run.

  Args:
    sizes: of the scale.
    name: of the stage.
    runs: stages by the names of their sides.
    size: of the SFT policy.
    judge: the settings of the judge, as `REWARD=graded_match`.
    against: `all` meet all, or the `first` only.
    last: whether each run's last checkpoint stands for it, and none is chosen.
  """
  source, policy = world(sizes), sft(sizes, size)
  values = {
    'AGAINST': against, 'CHOOSE': 0 if last else sizes.choose, 'FOLDS': sizes.folds, 'MAX_LENGTH': _ANSWER,
    'BATCH': 256, 'SEED': sizes.seed,
  }  # fmt: skip
  file = source.at('test.jsonl')
  return stages.judged(name, policy.run, runs, file, [source, policy], values, judge, last=last)


JUDGE = ('REWARD=graded_match',)
