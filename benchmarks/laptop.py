"""Methods on the world of `make demo-lm`: one language model, one reward, a table of all methods.

  python benchmarks/laptop.py --folder=laptop [--algorithms=dro_v,kto] [--jobs=2]

The policy answers 64 requests three times, each answer is rated, and every method trains adapters of the
same policy on that log, from the least and from the greatest temperature of its range. Answers to 16 other
requests choose between the two, answers to 32 others are reported: their reward, its gain over the policy
before, and their KL. All methods get the FLOPs of `--steps` steps of DRO-V. What is finished is not run
again.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
from concurrent import futures
from typing import Any

import numpy as np
from rich.console import Console

from dro_jax import api, demo_lm, files
from dro_jax.arena import training
from dro_jax.arena.cells import Cell
from dro_jax.arena.methods import methods
from dro_jax.arena.trials import Range
from dro_jax.checkpoints.import_checkpoint import import_checkpoint
from dro_jax.data.triplets import load_triplets
from dro_jax.data.worlds import requests
from dro_jax.models.lora import Lora
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.printing import tables
from dro_jax.run.sampling.generation import Response, make_scorer
from dro_jax.run.sampling.prompts import tokenise_prompts
from dro_jax.run.trained import TrainedRun
from dro_jax.statistics import bootstrap

USUAL = (
  'dro_v', 'dro_v+kl1', 'dro_p', 'dro_group_leave_one_out_log_mean_exp', 'kto', 'kto+kl.3', 'bco', 'dpo',
  'copg', 'rloo', 'rft', 'filtered_sft',
)  # fmt: skip
VALIDATION, TEST = 16, 32
BEFORE = 'SmolLM2 before'


def prompts() -> tuple[list[str], list[str], list[str]]:
  """Requests to learn from, to choose by and to report on."""
  others, test = requests.split(TEST)
  return others[VALIDATION:], others[:VALIDATION], test


def prepared(folder: pathlib.Path, settings: demo_lm.Settings) -> pathlib.Path:
  """The imported model, and the log of its rated answers."""
  folder = demo_lm.prepare(folder, settings)
  if not (folder / 'model').exists():
    import_checkpoint(settings.source, str(folder / 'model'))
  return demo_lm.write_log(folder, prompts()[0][: settings.prompts], settings)


def run(folder: pathlib.Path, settings: demo_lm.Settings, name: str, temperature: float | None) -> None:
  """Trains a method on the log, and judges it; or judges the policy before."""
  target = folder / 'results' / f'{name}-{temperature}.json'
  if target.exists():
    return
  place = folder / 'model'
  if name != BEFORE:
    rate = settings.learning_rate
    load = functools.partial(
      load_triplets, str(folder / 'feedback.jsonl'), prompt_length=64, response_length=settings.max_length,
      scaling='standardise', validation_fraction=0.1, cache_dir=str(folder / 'tables'),
    )  # fmt: skip
    trained = training.fit(
      folder / 'runs' / f'{name}-{temperature}',
      methods(Range(rate, rate), behaviour_sampler='sampled', optimizers=('adamw',))[name],
      Cell('laptop', name, {'temperature': temperature or 1.0, 'learning_rate': rate}, settings.seed, {}),
      training.Data(load, str(folder / 'model'), Lora(rank=settings.rank)),
      training.Budget(settings.steps, settings.batch_size, settings.answers, evaluations=1),
      MeshSpec(),
    )  # fmt: skip
    place = training.saved(trained['model_dir'])['last']
  policy, reference = api.load(place), api.load(folder / 'model')
  found: dict[str, Any] = {'name': name, 'temperature': temperature}
  for split, asked in zip(('validation', 'test'), prompts()[1:]):
    drawn = [demo_lm.answer(policy, asked, settings, seed=1000 + turn) for turn in range(settings.answers)]
    texts = [answer for turn in drawn for answer in turn]
    rewards = np.array([demo_lm.rated(asked, turn) for turn in drawn]).mean(0)
    kl = np.mean([divergences(policy, reference, asked, turn, settings) for turn in drawn], axis=0)
    found[split] = {
      'reward': rewards.tolist(), 'kl': kl.tolist(),
      **requests.parts([answer.text for answer in texts]),
    }  # fmt: skip
  target.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(target, files.json_text(found) + '\n')


def divergences(
  policy: TrainedRun, reference: TrainedRun, asked: list[str], answers: list[Response], settings: Any
) -> np.ndarray:
  """log π(y|x) − log π_ref(y|x) of a policy's own samples, whose mean is its KL to the reference."""
  network, mesh = reference.policy, MeshSpec().over()
  score = make_scorer(network.module, mesh, max_length=settings.max_length, batch_size=settings.batch_size)
  tokens = tokenise_prompts(asked, policy.vocabulary, policy.data_options)
  theirs = score(network.params, tokens, [answer.tokens for answer in answers])
  return np.array([answer.logp for answer in answers]) - theirs


def temperatures(name: str) -> list[float | None]:
  grid = methods(Range(1.0, 1.0))[name].grid
  return [None] if 'temperature' not in grid else [grid['temperature'].low, grid['temperature'].high]


def table(folder: pathlib.Path) -> tables.Table:
  """The trial of each method that validation requests choose, beside the policy before."""
  found = [json.loads(path.read_text()) for path in sorted((folder / 'results').glob('*.json'))]
  chosen = {}
  for each in sorted(found, key=lambda each: np.mean(each['validation']['reward'])):
    chosen[each['name']] = each
  before = np.array(chosen[BEFORE]['test']['reward'])
  rows = []
  for name, each in sorted(chosen.items(), key=lambda item: -np.mean(item[1]['test']['reward'])):
    test, is_before = each['test'], name == BEFORE
    rows.append({
      'policy': name, 'temperature': each['temperature'] or '', 'reward': estimate(test['reward']),
      'gain': '' if is_before else estimate(np.array(test['reward']) - before), 'KL': estimate(test['kl']),
      'at most 40 words': test['short'], 'no comma': test['no_comma'],
    })  # fmt: skip
  return tables.Table(f'{TEST} held-out requests', rows, '95 % intervals over requests.')


def estimate(values: Any) -> bootstrap.Estimate:
  x = np.asarray(values, np.float64)
  return bootstrap.bootstrap(bootstrap.mean_of(x), len(x), resamples=1000, seed=0)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--algorithms', default=','.join(USUAL))
  parser.add_argument('--steps', type=int, default=demo_lm.Settings.steps, help='of DRO-V')
  parser.add_argument('--jobs', type=int, default=2, help='trainings at a time')
  parser.add_argument('--only', nargs=2, metavar=('NAME', 'TEMPERATURE'), help=argparse.SUPPRESS)
  given = parser.parse_args()
  settings = demo_lm.Settings(steps=given.steps)
  if given.only:
    name, temperature = given.only
    return run(given.folder, settings, name, None if temperature == 'None' else float(temperature))
  prepared(given.folder, settings)
  trials = [(BEFORE, None), *((name, t) for name in given.algorithms.split(',') for t in temperatures(name))]
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(given.folder.absolute() / 'compiled'))

  def one(trial: tuple[str, float | None]) -> int:
    print(*trial, flush=True)
    same = [f'--folder={given.folder}', f'--steps={given.steps}', '--only', *map(str, trial)]
    return subprocess.run([sys.executable, __file__, *same]).returncode

  with futures.ThreadPoolExecutor(given.jobs) as pool:
    failed = sum(map(bool, pool.map(one, trials)))
  Console(width=160).print(tables.for_terminal(table(given.folder)))
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  main()
