"""The `bandit` suite: three answers to one prompt, where every method's optimum is known on paper.

CoPG's experiment (arXiv 2406.19185, Sect. 5): rewards 2.5, 2 and 1, temperature ½, a uniform reference, and
pairs logged by two policies that mostly give the worst answer. Each method is run twice: on the whole
population of pairs until nothing moves, which shows what it aims at, and by the paper's recipe on a sample,
which shows how it gets there. DRO's theory (arXiv 2405.19107) is checked on the same bandit.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dro_jax.arena.bandit.learning import Recipe, learn, settle
from dro_jax.arena.bandit.methods import METHODS
from dro_jax.arena.bandit.report import report
from dro_jax.arena.bandit.world import Bandit, regret, sample
from dro_jax.arena.cells import Cell
from dro_jax.arena.suite import Suite
from dro_jax.errors import UsageError
from dro_jax.files import to_json


def run_cell(bandit: Bandit, recipe: Recipe, cell: Cell) -> dict[str, Any]:
  """Runs a cell: its seed draws the start on the population, the log and its batches."""
  key = jax.random.key(cell.seed)
  start = jax.random.normal(jax.random.fold_in(key, 0), (len(bandit.rewards),))
  settled = settle(cell.algorithm, bandit, start)
  curve = learn(cell.algorithm, bandit, recipe, sample(bandit, cell.seed), jax.random.fold_in(key, 1))
  every = recipe.steps // recipe.measurements
  return {
    'population': {
      'policy': np.exp(np.asarray(settled['logps'], np.float64)),
      'value': float(settled['value']),
      'regret': float(regret(bandit, settled['logps'])),
    },
    'sample': {
      'step': [every * (i + 1) for i in range(recipe.measurements)],
      'regret': regret(bandit, curve['logps']),
      'value': np.asarray(curve['value'], np.float64),
    },
  }


def bandit(
  rewards: Sequence[float] = Bandit().rewards,
  tau: float | int = Bandit().tau,
  behaviours: Sequence[Sequence[float]] = Bandit().behaviours,
  pairs: int = Bandit().pairs,
  *,
  steps: int = 2000,
  batch_size: int = 512,
  measurements: int = 100,
) -> Suite:
  """CoPG's bandit and DRO's theory, in about a minute.

  Args:
    rewards: R(y).
    tau: temperature.
    behaviours: probabilities of those who wrote the first, and the second, answer of every pair.
    pairs: of the sampled log.
    steps: of the recipe, a multiple of `measurements`.
    batch_size: pairs of a batch.
    measurements: points of the learning curves.

  Raises:
    UsageError: `steps` is not a multiple of `measurements`.
  """
  if steps % measurements:
    raise UsageError(
      f'bandit.steps={steps} is not a multiple of bandit.measurements={measurements}: pass a multiple.'
    )
  world = Bandit(tuple(rewards), float(tau), tuple(map(tuple, behaviours)), pairs)
  recipe = Recipe(steps, batch_size, measurements=measurements)
  return Suite(
    name='bandit',
    settings=to_json({'world': world._asdict(), 'recipe': recipe._asdict()}),
    grids={name: {} for name in METHODS},
    axes=({},),
    run=functools.partial(run_cell, world, recipe),
    report=functools.partial(report, world, recipe),
  )


__all__ = ['bandit']
