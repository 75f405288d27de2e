"""Trains the methods of the suites of text: by `train`, on one triplet file, within one budget."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from dro_jax import algorithms
from dro_jax.arena import results, trials
from dro_jax.arena.cells import Cell, file_of
from dro_jax.checkpoints import folders
from dro_jax.costs import flops
from dro_jax.data.batches import groups
from dro_jax.data.triplets import Triplets
from dro_jax.models.family import Config
from dro_jax.models.lora import Lora
from dro_jax.models.policy import make_config
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.printing.tables import Table
from dro_jax.recipes.train import train
from dro_jax.run.build import build
from dro_jax.run.schedule import Schedule
from dro_jax.run.spec import Batches, Keep, Optimizers, Policy, RunSpec, Value
from dro_jax.step import optimizers

# A policy that two cores can train.
MODEL = make_config(
  't5', emb_dim=64, num_heads=4, head_dim=16, mlp_dim=128, num_encoder_layers=2, num_decoder_layers=2
)


class Method(NamedTuple):
  """A method that competes.

  Attributes:
    algorithm: from its temperature to what is minimised.
    grid: what it varies; `learning_rate` is also its value network's, and so is the `optimizer`, by its name
      in `OPTIMIZERS`.
    value: the value network, where the algorithm has one.
  """

  algorithm: Callable[[float], algorithms.Algorithm]
  grid: trials.Grid
  value: Value = Value()


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
  'adamw': optimizers.adamw,
  'adafactor': optimizers.adafactor,
}
_YARDSTICK = Method(algorithms.dro_v, {})  # What a budget's steps are of.


class Budget(NamedTuple):
  """The budget of every method.

  Attributes:
    steps: of DRO-V; other methods take as many as cost the same FLOPs.
    responses: of a batch, whether it counts responses, pairs or groups.
    group_size: responses of a group at most.
    evaluations: how often a run validates and saves.
  """

  steps: int
  responses: int
  group_size: int = 4
  evaluations: int = 4


class Data(NamedTuple):
  """Triplets of a world: `load` reads them, given a vocabulary; `init_from` is the reference's run.

  With `lora` policies are adapters of the reference.
  """

  load: Callable[..., Triplets]
  init_from: str
  lora: Lora | None = None


def _schedule(learning_rate: float, steps: int) -> optax.Schedule:
  """A short warm-up and a cosine to 0; a single step has no room for a warm-up."""
  return optimizers.warmup_cosine(learning_rate, steps, min(max(steps // 20, 1), steps - 1))


def fit(
  folder: pathlib.Path, method: Method, cell: Cell, data: Data, budget: Budget, mesh: MeshSpec
) -> dict[str, Any]:
  """Trains a cell's policy from the reference, or resumes it; returns its run's folder, steps and FLOPs."""
  settings = cell.hyperparameters
  per_step = flops_per_step(method.algorithm, method.value, data, budget, mesh)
  whole = budget.steps * flops_per_step(_YARDSTICK.algorithm, _YARDSTICK.value, data, budget, mesh)
  steps = trials.steps_within(whole, per_step)
  make = OPTIMIZERS[settings.get('optimizer', 'adamw')]
  optimizer = make(_schedule(settings['learning_rate'], steps))
  every = -(-steps // budget.evaluations)
  algorithm = method.algorithm(settings.get('temperature', 1.0))
  spec = dataclasses.replace(
    _spec(algorithm, method.value, data, budget, mesh),
    optimizers=Optimizers(optimizer, optimizer),
    schedule=Schedule(
      steps, log_every=every, eval_every=every, checkpoint_every=every, sample_prompts=0, kl_prompts=0
    ),
    seed=cell.seed,
  )
  result = train(str(folder), spec)
  return {'model_dir': result['model_dir'], 'steps': steps, 'flops': steps * per_step}


def fit_and_judge(
  folder: pathlib.Path,
  method: Method,
  cell: Cell,
  data: Data,
  budget: Budget,
  mesh: MeshSpec,
  judge: Callable[[str], Any],
) -> dict[str, Any]:
  """Trains a cell's policy; returns its steps and FLOPs, and how its last and best checkpoint are judged.

  Args:
    folder: the folder of the arena.
    method: the method of the cell.
    cell: the cell.
    data: triplets and reference.
    budget: the budget.
    mesh: devices' arrangement.
    judge: from a checkpoint's folder to plain JSON; called once where both checkpoints are the same.
  """
  trained = fit(folder / 'runs' / file_of(folder, cell).stem, method, cell, data, budget, mesh)
  paths = saved(trained['model_dir'])
  judged = {path: judge(path) for path in set(paths.values())}
  found = {'steps': trained['steps'], 'flops': trained['flops']}
  return found | {name: judged[path] for name, path in paths.items()}


def _spec(
  algorithm: algorithms.Algorithm, value: Value, data: Data, budget: Budget, mesh: MeshSpec
) -> RunSpec:
  """A method's run, but for its optimisers and its length."""
  return RunSpec(
    data=data.load,
    policy=Policy(data.init_from, lora=data.lora),
    algorithm=algorithm,
    value=value,
    batches=Batches(_batch_size(algorithm, budget), units=groups.UnitOptions(group_size=budget.group_size)),
    mesh=mesh,
  )


def _batch_size(algorithm: algorithms.Algorithm, budget: Budget) -> int:
  """The batch size that gives every method the same number of responses."""
  return budget.responses // {'response': 1, 'pair': 2, 'group': budget.group_size}[algorithm.unit]


@functools.lru_cache(maxsize=64)
def flops_per_step(
  make: Callable[[float], algorithms.Algorithm], value: Value, data: Data, budget: Budget, mesh: MeshSpec
) -> float:
  """FLOPs of one optimiser step, with all networks and the reference's pass, from the jaxpr.

  No temperature changes them.
  """
  optimizer = optimizers.adamw()
  schedule = Schedule(steps=1, eval_every=0)
  spec = dataclasses.replace(
    _spec(make(1.0), value, data, budget, mesh),
    optimizers=Optimizers(optimizer, optimizer),
    schedule=schedule,
  )
  run = build(spec)
  return flops.count(run.pure_step, run.abstract_state, run.loaders.train.rows(0))


def imitate(
  folder: pathlib.Path,
  load: Callable[..., Triplets],
  model: Config,
  *,
  vocabulary: str | None,
  steps: int,
  responses: int,
  learning_rate: float,
  mesh: MeshSpec,
  seed: int = 0,
) -> str:
  """Fits the reference policy by supervised fine-tuning, or resumes that; returns its run's folder."""
  spec = RunSpec(
    data=load,
    policy=Policy(config=model, vocabulary=vocabulary),
    algorithm=algorithms.sft(),
    optimizers=Optimizers(optimizers.adamw(_schedule(learning_rate, steps))),
    batches=Batches(responses),
    schedule=Schedule(steps, log_every=max(steps // 4, 1), eval_every=0, checkpoint_every=0),
    keep=Keep(metric=None),
    mesh=mesh,
    seed=seed,
  )
  return train(str(folder), spec)['model_dir']


def saved(model_dir: str) -> dict[str, str]:
  """The last checkpoint of a run, and the best by its own validation loss."""
  newest = folders.newest_step(model_dir)
  return {
    'last': f'{model_dir}/checkpoints/{newest}',
    'best': str(folders.find_checkpoint(model_dir)),
  }


def choices(chosen: Mapping[str, results.Chosen], where: str = '') -> Table:
  """The chosen trial of each method, and its cost."""
  rows = [
    {
      'method': name,
      **dict(sorted(choice.hyperparameters.items(), reverse=True)),
      'at an edge': ', '.join(choice.edges),
      'trials': choice.trials,
      'seeds': len(choice.results),
      'steps': next(iter(choice.results.values()))['steps'],
      'FLOPs': next(iter(choice.results.values()))['flops'],
    }
    for name, choice in chosen.items()
  ]
  return Table(
    'Chosen on validation prompts' + (f' ({where})' if where else ''),
    rows,
    '≤, ≥: the best value was at an end of what was tried: --widen.',
  )
