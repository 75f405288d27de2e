"""A real language model taught by a reward, on a laptop: `python -m dro_jax.demo_lm`.

SmolLM2-135M-Instruct (from PyPI) answers everyday requests; a reward that a person checks at a glance rates
its answers (at most forty words, no commas); DRO-V trains adapters on that log alone; and the policies before
and after answer requests that nothing was trained on.
"""

import dataclasses
import pathlib
import shutil
import time
from typing import Any

import numpy as np
import optax
from rich.console import Console

from dro_jax import algorithms, api
from dro_jax.checkpoints.import_checkpoint import import_checkpoint
from dro_jax.data.triplets import Triplets, load_triplets
from dro_jax.data.worlds import requests
from dro_jax.demo import run_from_shell
from dro_jax.files import json_line, json_lines, json_text, write_atomically
from dro_jax.models.lora import Lora
from dro_jax.printing import tables
from dro_jax.run.build import build
from dro_jax.run.sampling.generation import Response
from dro_jax.run.schedule import Schedule
from dro_jax.run.spec import Batches, Keep, Optimizers, RunSpec
from dro_jax.run.train import train
from dro_jax.run.trained import TrainedRun
from dro_jax.statistics import bootstrap
from dro_jax.step import optimizers

SHOWN = 3  # Requests whose answers are printed side by side.


@dataclasses.dataclass(frozen=True)
class Settings:
  """The demo's budget.

  Args:
    source: what `import_checkpoint` takes.
    prompts: requests that feedback is collected on.
    answers: answers to each of them.
    heldout: other requests, to judge the policies on.
    max_length: most tokens of an answer.
    steps: optimiser steps.
    batch_size: answers of a step.
    tau: DRO-V's temperature, in standard deviations of the logged rewards.
    rank: of the adapters.
    learning_rate: of the policy's adapter and of the value's.
    seed: of the draws and of the run.
  """

  source: str = 'smollm2'
  prompts: int = 64
  answers: int = 3
  heldout: int = 32
  max_length: int = 64
  steps: int = 60
  batch_size: int = 16
  tau: float = 0.1
  rank: int = 16
  learning_rate: float = 1e-3
  seed: int = 0


def main(directory: str = 'demo_lm_output', settings: Settings = Settings()) -> dict[str, Any]:
  """Runs the demo, or what is left of it, and returns what it prints."""
  console, began = Console(highlight=False), time.monotonic()
  folder = prepare(pathlib.Path(directory).expanduser(), settings)
  if not (folder / 'model').exists():
    console.print(f'[bold]1. Import[/bold] {settings.source}')
    import_checkpoint(settings.source, str(folder / 'model'))
  asked, heldout = requests.split(settings.heldout)
  asked = asked[: settings.prompts]
  console.print(f'[bold]2. Feedback[/bold]: {len(asked)} requests, {settings.answers} answers each, rated')
  log = write_log(folder, asked, settings)
  console.print(described(log))
  console.print(f'[bold]3. DRO-V[/bold], {settings.steps} steps on that log')
  fit(folder, log, settings)
  console.print(f'[bold]4. Before and after[/bold], on {len(heldout)} other requests')
  found = judge(folder, heldout, settings)
  console.print(tables.for_terminal(found['table']))
  for line in found['lines']:
    console.print(line)
  console.print(f'{(time.monotonic() - began) / 60:.1f} minutes. Everything is in {folder}.')
  return found


def prepare(folder: pathlib.Path, settings: Settings) -> pathlib.Path:
  """Makes the demo's folder. What is there of the same settings goes on; of others all but the model goes."""
  folder.mkdir(parents=True, exist_ok=True)
  text = json_text(dataclasses.asdict(settings), indent=2) + '\n'
  mark = folder / 'settings.json'
  if mark.exists() and mark.read_text(encoding='utf-8') != text:
    (folder / 'feedback.jsonl').unlink(missing_ok=True)
    for name in ('runs', 'tables'):
      shutil.rmtree(folder / name, ignore_errors=True)
  write_atomically(mark, text)
  return folder


def write_log(folder: pathlib.Path, asked: list[str], settings: Settings) -> pathlib.Path:
  """Samples the policy's answers and rates them: the triplets that a product would have logged."""
  file = folder / 'feedback.jsonl'
  if file.exists():
    return file
  reference = api.load(folder / 'model')
  records = []
  for turn in range(settings.answers):
    answers = answer(reference, asked, settings, seed=settings.seed + turn)
    rewards = rated(asked, answers)
    records += [
      {'prompt': prompt, 'response': response.text, 'reward': reward, 'answer': turn}
      for prompt, response, reward in zip(asked, answers, rewards)
      if response.text.strip()
    ]
  write_atomically(file, ''.join(map(json_line, records)))
  return file


# Sampled at temperature 1: then the log-ratio of a policy's own answers is its KL.
def answer(policy: TrainedRun, prompts: list[str], settings: Settings, seed: int) -> list[Response]:
  """One sampled answer to each prompt."""
  return policy.generate(prompts, max_length=settings.max_length, seed=seed)


def rated(prompts: list[str], answers: list[Response]) -> list[float]:
  """The rewards of answers: 0 for one that the limit cut, for it is too long."""
  rewards = requests.plainness(prompts, [response.text for response in answers])
  return [reward if response.ended else 0.0 for reward, response in zip(rewards, answers)]


def described(log: pathlib.Path) -> str:
  """What the log holds, by its counts and one record."""
  records = list(json_lines(log))
  rewards = np.array([record['reward'] for record in records])
  first = records[int(rewards.argmax())]
  counts = ', '.join(f'{value:g}: {(rewards == value).sum()}' for value in np.unique(rewards))
  return (
    f'{len(records)} answers, rewards {counts} (1 is at most {requests.MOST_WORDS} words and no comma). '
    f'{first["prompt"]!r} was answered {first["response"]!r}: {first["reward"]:g}.'
  )


def fit(folder: pathlib.Path, log: pathlib.Path, settings: Settings) -> None:
  """Trains adapters of the policy and of its value by DRO-V on the log, or resumes them."""

  def optimizer() -> optax.GradientTransformation:
    rate = optimizers.warmup_cosine(settings.learning_rate, settings.steps, max(1, settings.steps // 10))
    return optimizers.adamw(rate)

  policy = dataclasses.replace(api.pretrained(folder / 'model'), lora=Lora(rank=settings.rank))
  spec = RunSpec(
    data=read(folder, log, policy.vocabulary, settings, scaling='standardise'),
    policy=policy,
    algorithm=algorithms.dro_v(tau=settings.tau),
    optimizers=Optimizers(policy=optimizer(), value=optimizer()),
    batches=Batches(settings.batch_size),
    schedule=Schedule(settings.steps, log_every=10, eval_every=0, checkpoint_every=25),
    keep=Keep(metric=None),
    seed=settings.seed,
  )  # fmt: skip
  train(build(spec), folder / 'runs' / 'dro_v')


def judge(folder: pathlib.Path, heldout: list[str], settings: Settings) -> dict[str, Any]:
  """Answers of the policies before and after: reward with intervals, its parts, KL, and examples."""
  policies = {'SmolLM2': api.load(folder / 'model'), 'DRO-V': api.load(folder / 'runs' / 'dro_v')}
  answers = {name: answer(policy, heldout, settings, seed=1000) for name, policy in policies.items()}
  rewards = {name: np.array(rated(heldout, given)) for name, given in answers.items()}
  rows = []
  for name, given in answers.items():
    shares = requests.parts([response.text for response in given])
    rows.append({
      '': name, 'reward': interval(rewards[name]), 'at most 40 words': f'{shares["short"]:.0%}',
      'no comma': f'{shares["no_comma"]:.0%}',
    })  # fmt: skip
  gain = rewards['DRO-V'] - rewards['SmolLM2']
  kl = divergences(folder, policies['DRO-V'], heldout, answers['DRO-V'], settings)
  lines = [
    f'The reward changes by {interval(gain)} (by request; 95 % intervals over requests). '
    f'KL(π‖π_ref), by its own answers: {interval(kl)} nats.'
  ]
  shown = {
    name: policy.generate(heldout[:SHOWN], max_length=settings.max_length, temperature=0.0)
    for name, policy in policies.items()
  }
  lines.append('The most probable answers to three of the requests:')
  for i in range(SHOWN):
    lines += [f'{heldout[i]}', *(f'  {name}: {given[i].text}' for name, given in shown.items())]
  return {
    'table': tables.Table('On held-out requests', rows), 'lines': lines,
    'rewards': {name: found.tolist() for name, found in rewards.items()},
  }  # fmt: skip


def divergences(
  folder: pathlib.Path, policy: TrainedRun, prompts: list[str], answers: list[Response], settings: Settings
) -> np.ndarray:
  """log π(y|x) − log π_ref(y|x) of a policy's own samples, whose mean is its KL to the reference."""
  file = folder / 'answers.jsonl'
  records = [
    {'prompt': prompt, 'response': response.text, 'reward': 0.0}
    for prompt, response in zip(prompts, answers)
    if response.text.strip()
  ]
  write_atomically(file, ''.join(map(json_line, records)))
  data = read(folder, file, policy.vocabulary, settings, scaling='none')
  return np.asarray(policy.score(data.train).log_ratio, np.float64)


def read(
  folder: pathlib.Path, file: pathlib.Path, vocabulary: Any, settings: Settings, scaling: str
) -> Triplets:
  """All triplets of a file."""
  return load_triplets(
    str(file), vocabulary=vocabulary, prompt_length=64, response_length=settings.max_length,
    scaling=scaling, validation_fraction=0, cache_dir=str(folder / 'tables'),
  )  # fmt: skip


def interval(values: np.ndarray) -> str:
  """A mean with its interval over requests."""
  found = bootstrap.bootstrap(bootstrap.mean_of(values), len(values), resamples=1000, seed=0)
  return f'{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]'


if __name__ == '__main__':
  run_from_shell(main, __doc__, 'demo_lm_output', 'where the model, the log and the run go')
