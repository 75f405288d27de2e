"""From finished cells to tables: the trial that validation chooses, scores with intervals, edges flagged.

A suite's cells hold `validation`, a number that is smaller for better, and at each of the checkpoints `best`
and `last` their `step` and, under `test`, measures by prompt. Numpy, float64.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.arena import trials
from dro_jax.arena.cells import Cell, Finished
from dro_jax.statistics.bootstrap import Estimate

RESAMPLES = 1000
CHECKPOINTS = ('best', 'last')


class Chosen(NamedTuple):
  """A method's trial that validation chose, the same for all seeds.

  Attributes:
    hyperparameters: the trial's.
    results: by seed.
    trials: how many were compared.
    edges: hyperparameters at an end of what was tried (see `trials.edges`).
  """

  hyperparameters: Mapping[str, Any]
  results: Mapping[int, Mapping[str, Any]]
  trials: int
  edges: Sequence[str]

  @property
  def of_seeds(self) -> list[Mapping[str, Any]]:
    """The results of all seeds."""
    return list(self.results.values())


def at(finished: Iterable[Finished], axes: Mapping[str, Any]) -> list[Finished]:
  """The cells at a point of the axes."""
  return [each for each in finished if each.cell.axes == axes]


def points(finished: Iterable[Finished]) -> list[Mapping[str, Any]]:
  """The points of the axes that have cells, in their order."""
  found = {tuple(each.cell.axes.values()): each.cell.axes for each in finished}
  return [found[key] for key in sorted(found)]


def choose(finished: Iterable[Finished], methods: Iterable[str], checkpoint: str) -> dict[str, Chosen]:
  """Each method's trial with the least mean validation over seeds, at the best or the last checkpoint.

  Trials are compared at the seeds that most of them have, and those that lack one are left out. Further seeds
  of the chosen trial decide nothing, and are reported.
  """
  by_method: dict[str, list[Finished]] = {}
  for each in finished:
    by_method.setdefault(each.cell.algorithm, []).append(each)
  return {name: _choose(by_method[name], checkpoint) for name in methods if name in by_method}


def _choose(finished: Sequence[Finished], checkpoint: str) -> Chosen:
  tried: dict[tuple[tuple[str, Any], ...], dict[int, Finished]] = {}
  for each in finished:
    tried.setdefault(_key(each.cell), {})[each.cell.seed] = each
  counted = collections.Counter(frozenset(of_seed) for of_seed in tried.values())
  seeds = max(counted, key=lambda seeds: (counted[seeds], len(seeds)))
  complete = {key: of_seed for key, of_seed in tried.items() if seeds <= of_seed.keys()}
  best = min(complete, key=lambda key: _validation((complete[key][seed] for seed in seeds), checkpoint))
  return Chosen(
    dict(best),
    {seed: complete[best][seed].result for seed in sorted(complete[best])},
    len(complete),
    trials.edges(dict(best), [dict(key) for key in complete]),
  )


def _key(cell: Cell) -> tuple[tuple[str, Any], ...]:
  return tuple(sorted(cell.hyperparameters.items()))


def _validation(finished: Iterable[Finished], checkpoint: str) -> float:
  """The mean over seeds; null, which stands for divergence, is the worst."""
  scores = [each.result[checkpoint]['validation'] for each in finished]
  return np.inf if None in scores else float(np.mean(scores))


def by_prompt(chosen: Chosen, checkpoint: str, measure: str) -> dict[int, np.ndarray]:
  """A measure of each seed's test prompts, with nan for null."""
  return {
    seed: np.asarray(result[checkpoint]['test'][measure], np.float64)
    for seed, result in chosen.results.items()
    if result[checkpoint]['test'].get(measure) is not None
  }


def mean(values: Mapping[int, np.ndarray]) -> Estimate:
  """The mean over seeds and prompts, and its interval."""
  return crossed_bootstrap(np.stack(list(values.values())))


def difference(values: Mapping[int, np.ndarray], baseline: Mapping[int, np.ndarray]) -> Estimate:
  """The mean difference, paired by seed and prompt, over the seeds that both have; nan without one."""
  shared = sorted(values.keys() & baseline.keys())
  if not shared:
    return Estimate(np.nan, np.nan, np.nan)
  return crossed_bootstrap(np.stack([values[seed] - baseline[seed] for seed in shared]))


def crossed_bootstrap(x_SP: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
  """The mean of `[seeds, prompts]`, and its 2.5 % and 97.5 % quantiles over draws of both with replacement.

  All seeds share their prompts, so the two are drawn independently. One seed alone, or one prompt alone, is
  not drawn: then the interval says nothing of it.
  """
  rng = np.random.default_rng(seed)
  x_SP = np.asarray(x_SP, np.float64)
  draws = [rng.multinomial(count, np.full(count, 1 / count), resamples) / count for count in x_SP.shape]
  means = np.einsum('rs,sp,rp->r', draws[0], x_SP, draws[1])
  if not np.isfinite(means).all():
    return Estimate(float(x_SP.mean()), np.nan, np.nan)
  low, high = np.quantile(means, (0.025, 0.975))
  return Estimate(float(x_SP.mean()), float(low), float(high))


def titled(title: str, where: str) -> str:
  """A table's title, with the point of the axes where there are several."""
  return f'{title} ({where})' if where else title


def unequal(chosen: Mapping[str, Chosen]) -> str:
  """A warning where methods had unequal numbers of trials or seeds, else nothing."""
  told = []
  for what, count in (
    ('trials', {name: each.trials for name, each in chosen.items()}),
    ('seeds', {name: len(each.results) for name, each in chosen.items()}),
  ):
    if len(set(count.values())) > 1:
      most = max(count.values())
      fewer = ', '.join(f'{name} {number}' for name, number in count.items() if number < most)
      told.append(f'Unequal numbers of {what}: {fewer}, others {most}. Run the arena again for all.')
  return ' '.join(told)
