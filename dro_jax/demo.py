"""From logged stars to an aligned T5, beside an optimum that is known: `python -m dro_jax.demo`.

Users of a toy world ask for words and rate what they hear (`data.toy`). The demo writes its triplet files,
fits a reference policy to demonstrations, trains DRO-V, DRO-P and KTO from it on one log, and judges them on
words that nothing was trained on, over everything that could be answered.
"""

import argparse
import dataclasses
import functools
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax
import rich.table
from rich.console import Console

from dro_jax import algorithms
from dro_jax.data.triplets import Triplets, load_triplets
from dro_jax.data.worlds import toy
from dro_jax.errors import Interrupted
from dro_jax.files import json_line, json_lines, json_text, write_atomically
from dro_jax.models.policy import make_config
from dro_jax.parallel import partitioning
from dro_jax.printing import tables
from dro_jax.run import trained
from dro_jax.run.batches import RowOptions
from dro_jax.run.build import build
from dro_jax.run.schedule import Schedule
from dro_jax.run.spec import Batches, Keep, Optimizers, Policy, RunSpec
from dro_jax.run.train import train
from dro_jax.step import optimizers

MODEL = make_config(
  't5', emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64, num_encoder_layers=2, num_decoder_layers=2
)


class Method(NamedTuple):
  """How a policy is trained; the value's learning rate where it has a value."""

  algorithm: Callable[[], algorithms.Algorithm]
  learning_rate: float
  value_learning_rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Settings:
  """The demo's world and budget.

  Args:
    world: see `data.worlds.toy.World`.
    demonstrations: records that the reference is fitted to.
    triplets: records of feedback, the same for every method.
    reference_steps: optimiser steps of the reference.
    steps: optimiser steps of every method.
    batch_size: responses of a batch.
    tau: temperature of DRO-V and DRO-P, in standard deviations of the logged ratings.
    seed: of the draws and of every run.
  """

  world: toy.World = toy.World()  # noqa: RUF009
  demonstrations: int = 16_000
  triplets: int = 64_000
  reference_steps: int = 1000
  steps: int = 500
  batch_size: int = 128
  tau: float = 0.3
  seed: int = 0


class Judged(NamedTuple):
  """What enumeration says of every policy, means over held-out prompts; and of DRO-V's value, `[P]` each."""

  table: dict[str, dict[str, float]]
  frontier: np.ndarray
  moods: np.ndarray
  values: np.ndarray
  best_values: np.ndarray


def methods(settings: Settings) -> dict[str, Method]:
  """Who competes, each with the best of a small grid by its regret on the prompts that have feedback.

  The grid: learning rates 3e-5, 1e-4, 3e-4 and 1e-3, and for KTO β = .1, 1 and 5 (DRO's paper found 5 the
  best of these, too). β is no price of divergence in reward units, so it need not be τ.
  """
  return {
    'KTO': Method(functools.partial(algorithms.kto, beta=5.0), 3e-4),
    'DRO-P': Method(functools.partial(algorithms.dro_p, tau=settings.tau), 1e-4),
    'DRO-V': Method(functools.partial(algorithms.dro_v, tau=settings.tau), 1e-3, 1e-3),
  }


def main(directory: str = 'demo_output', settings: Settings = Settings()) -> dict[str, dict[str, float]]:
  """Runs the demo, or what is left of it, and returns its table."""
  console, began = Console(highlight=False), time.monotonic()
  folder = prepare(pathlib.Path(directory).expanduser(), settings)
  files = write_files(folder / 'data', settings)
  console.print(introduction(files, settings))
  console.print('\n[bold]SFT[/bold], the reference')
  reference = Method(algorithms.sft, 3e-3)
  runs = {'SFT': fit(folder, settings, files['demonstrations'], 'SFT', reference, settings.reference_steps)}
  for name, method in methods(settings).items():
    console.print(f'\n[bold]{name}[/bold]')
    runs[name] = fit(folder, settings, files['feedback'], name, method, settings.steps, runs['SFT'])
  judged = judge(runs, files['heldout'], folder, settings)
  console.print(rendered(judged))
  console.print(conclusion(judged))
  plot(judged, folder / 'demo.png')
  write_atomically(folder / 'table.json', json_text(judged.table, indent=2) + '\n')
  console.print(f'Plot: {folder / "demo.png"}. {time.monotonic() - began:.0f} s.')
  return judged.table


def prepare(folder: pathlib.Path, settings: Settings) -> pathlib.Path:
  """Makes the demo's folder. What is there of the same settings is resumed, of others removed."""
  folder.mkdir(parents=True, exist_ok=True)
  chosen = {
    name: [getattr(method.algorithm, 'keywords', {}), *method[1:]]
    for name, method in methods(settings).items()
  }
  text = json_text(dataclasses.asdict(settings) | {'methods': chosen}, indent=2) + '\n'
  mark = folder / 'settings.json'
  if mark.exists() and mark.read_text(encoding='utf-8') != text:
    for name in ('data', 'runs'):
      shutil.rmtree(folder / name, ignore_errors=True)
  write_atomically(mark, text)
  return folder


def write_files(folder: pathlib.Path, settings: Settings) -> dict[str, pathlib.Path]:
  """Writes triplets: demonstrations, feedback, and every word in response to every held-out prompt."""
  world, seed = settings.world, settings.seed
  prompts, words = toy.prompts(world, 'heldout'), toy.responses(world)
  rewards_PZ = toy.expected_reward(world, prompts)
  records = {
    'demonstrations': toy.sft_records(world, settings.demonstrations, seed),
    'feedback': toy.sample_log(world, settings.triplets, seed),
    'heldout': [
      {'prompt': prompt, 'response': word, 'reward': reward}
      for prompt, rewards_Z in zip(prompts, rewards_PZ.tolist())
      for word, reward in zip(words, rewards_Z)
    ],
  }
  folder.mkdir(exist_ok=True)
  files = {name: folder / f'{name}.jsonl' for name in records}
  for name, file in files.items():
    write_atomically(file, ''.join(map(json_line, records[name])))
  return files


def introduction(files: Mapping[str, pathlib.Path], settings: Settings) -> str:
  """What the world is, by one of its triplets."""
  record = next(json_lines(files['feedback']))
  word, mood = toy.parse(record['prompt'])
  return (
    f'{record["prompt"]!r}: a user of mood {mood} (0 harsh, {len(settings.world.ease) - 1} kind) asks for '
    f'{word!r}. A mediocre policy answers {record["response"]!r} and is rated {record["reward"]:.0f} '
    f'({settings.world.feedback}). {settings.triplets:,} such triplets are in {files["feedback"]}; '
    f'{settings.demonstrations:,} demonstrations, on other words, in {files["demonstrations"]}.'
  )


def fit(
  folder: pathlib.Path,
  settings: Settings,
  triplets: pathlib.Path,
  name: str,
  method: Method,
  steps: int,
  init_from: str | None = None,
) -> str:
  """Trains one policy, or resumes it, and returns its run's folder."""

  def optimizer(rate: float) -> optax.GradientTransformation:
    return optimizers.adamw(optimizers.warmup_cosine(rate, steps, min(30, steps // 2)))

  # V starts at 0. Were ratings not centred, every logged response would first be pushed the same way, until V
  # has caught up; what probability then leaves the words, no logged response calls back.
  scaling = 'none' if init_from is None else 'standardise'
  spec = RunSpec(
    data=functools.partial(read, folder, triplets, scaling=scaling),
    policy=Policy(init_from=init_from, config=MODEL if init_from is None else None),
    algorithm=method.algorithm,
    optimizers=Optimizers(optimizer(method.learning_rate), optimizer(method.value_learning_rate)),
    batches=Batches(settings.batch_size, rows=RowOptions(prompt_length=32, response_length=16)),
    schedule=Schedule(steps, log_every=100, eval_every=0, checkpoint_every=0),
    keep=Keep(metric=None),
    seed=settings.seed,
  )
  return train(build(spec), folder / 'runs' / name)['model_dir']


def read(folder: pathlib.Path, triplets: pathlib.Path, **options: Any) -> Triplets:
  """All triplets of a file."""
  cache = str(folder / 'data' / 'tables')
  return load_triplets(
    str(triplets), prompt_length=16, response_length=8, validation_fraction=0, cache_dir=cache, **options
  )


def judge(runs: Mapping[str, str], heldout: pathlib.Path, folder: pathlib.Path, settings: Settings) -> Judged:
  """Scores every word under every policy, and compares with the optimum."""
  prompts = toy.prompts(settings.world, 'heldout')
  rewards_PZ = toy.expected_reward(settings.world, prompts)
  mesh, scored, loaded = partitioning.make_mesh(), {}, {}
  for name, model_dir in runs.items():
    loaded[name] = trained.load_run(model_dir, mesh)
    table = read(folder, heldout, vocabulary=loaded[name].vocabulary).train
    scored[name] = trained.score_table(loaded[name], table, mesh, batch_size=1000)
  scaling = loaded['DRO-V'].scaling
  tau = scaling.effective_temperature(settings.tau)
  policies = {name: toy.complete(scores.logps.reshape(len(prompts), -1)) for name, scores in scored.items()}
  reference_PZ = policies['SFT']
  best_PZ, best_values_P = toy.optimum(reference_PZ, rewards_PZ, tau)
  policies = {
    'logging policy': toy.complete(toy.logging_logps(settings.world, prompts)),
    **policies,
    'optimum': best_PZ,
  }
  values_PY = scored['DRO-V'].values.reshape(len(prompts), -1)
  return Judged(
    {name: figures(logps_PZ, reference_PZ, best_PZ, rewards_PZ, tau) for name, logps_PZ in policies.items()},
    frontier(reference_PZ, rewards_PZ, tau),
    np.array([toy.parse(prompt)[1] for prompt in prompts]),
    values_PY[:, 0] * scaling.scale + scaling.shift,
    best_values_P,
  )


def figures(
  logps_PZ: np.ndarray, reference_PZ: np.ndarray, best_PZ: np.ndarray, rewards_PZ: np.ndarray, tau: float
) -> dict[str, float]:
  """A policy's row of the table: means over prompts."""
  each = {
    'reward': (np.exp(logps_PZ) * rewards_PZ).sum(-1),
    'kl_to_reference': toy.kl(logps_PZ, reference_PZ),
    'regret': toy.regret(logps_PZ, reference_PZ, rewards_PZ, tau),
    'kl_to_optimum': toy.kl(logps_PZ, best_PZ),
    'no_word': np.exp(logps_PZ[:, -1]),
  }
  return {name: max(float(x_P.mean()), 0.0) for name, x_P in each.items()}  # No −0.000 of rounding.


def frontier(reference_PZ: np.ndarray, rewards_PZ: np.ndarray, tau: float) -> np.ndarray:
  """The most reward for each KL to the reference, [2, points]: optima of other temperatures."""
  optima = [toy.optimum(reference_PZ, rewards_PZ, tau * factor)[0] for factor in np.geomspace(0.4, 100, 60)]
  points = [figures(logps_PZ, reference_PZ, logps_PZ, rewards_PZ, tau) for logps_PZ in optima]
  return np.array([[point['kl_to_reference'], point['reward']] for point in points]).T


COLUMNS = {
  'reward': ('reward\nstars', '{:.3f}'),
  'kl_to_reference': ('KL(π‖π_ref)\nnats', '{:.3f}'),
  'regret': ('regret J* − J\nstars', '{:.3f}'),
  'kl_to_optimum': ('KL(π‖π*)\nnats', '{:.3f}'),
  'no_word': ('no word\nat all', '{:.1%}'),
}


def rendered(judged: Judged) -> rich.table.Table:
  """The table, for a terminal."""
  rows = [
    {'': name} | {title: form.format(row[column]) for column, (title, form) in COLUMNS.items()}
    for name, row in judged.table.items()
  ]
  return tables.for_terminal(tables.Table('On held-out words, by enumeration', rows), emphasised='DRO-V')


def conclusion(judged: Judged) -> str:
  """The number to look at."""
  closed = 1 - judged.table['DRO-V']['regret'] / judged.table['SFT']['regret']
  error = np.sqrt(np.mean((judged.values - judged.best_values) ** 2))
  return (
    f'DRO-V closes [bold]{closed:.0%}[/bold] of the gap between the reference and the optimum. Its value is '
    f'off by {error:.2f} stars (root mean square); V* spreads by {judged.best_values.std():.2f} over prompts.'
  )


def plot(judged: Judged, file: pathlib.Path) -> None:
  """Saves the picture: reward against divergence, and the value against V*."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4.2), layout='constrained')
  left, right = figure.subplots(1, 2)
  left.plot(*judged.frontier, color='0.6', zorder=0, label='the most there is, any τ')
  for name, row in judged.table.items():
    marker = '*' if name == 'optimum' else 'o'
    left.scatter(row['kl_to_reference'], row['reward'], marker=marker, s=80, label=name)
  left.set(xlabel='KL(π‖π_ref), nats', ylabel='expected reward, stars', title='policies on held-out words')
  left.legend(loc='lower right')
  ends = [judged.best_values.min(), judged.best_values.max()]
  right.plot(ends, ends, color='0.6', zorder=0)
  points = right.scatter(judged.best_values, judged.values, c=judged.moods, s=14)
  figure.colorbar(points, ax=right, label='mood of the user', ticks=np.unique(judged.moods))
  right.set(xlabel='V*(x), stars', ylabel='V(x) of DRO-V, stars', title='values on held-out words')
  figure.savefig(file, dpi=120)


def run_from_shell(run: Callable[[str], Any], about: str, directory: str, holds: str) -> None:
  """Runs a demo as a command: `--directory` says where its files go, and Ctrl-C stops it in one sentence."""
  parser = argparse.ArgumentParser(description=about.split('\n')[0])
  parser.add_argument('--directory', default=directory, help=holds)
  try:
    run(parser.parse_args().directory)
  except KeyboardInterrupt as stopped:
    print(
      f'demo: {stopped}' if str(stopped) else 'demo: stopped by Ctrl-C: the same command goes on',
      file=sys.stderr,
    )
    sys.exit(75 if isinstance(stopped, Interrupted) else 130)


if __name__ == '__main__':
  run_from_shell(main, __doc__, 'demo_output', 'where files, runs and the plot go')
