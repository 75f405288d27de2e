"""How far the V of a prompt's answers lies from V* in the arena's `exact` world, by K and τ.

  python benchmarks/group_values.py --folder=arena/ladder [--noise=0]

For every estimate of V from a prompt's K logged rewards it prints the mean of V̂ − V* (the bias, in stars) and
its standard deviation over the log's records, and, beside them, V_μ − V*: the same log-mean-exp with all
answers of the logging policy μ and without noise. V* is that of the reference, by enumeration. The folder is
that of the ladder (docs/results/arena.md), whose reference it takes, or an empty one. Two minutes.
"""

import argparse
import pathlib

import numpy as np

from dro_jax.arena.exact import values, world
from dro_jax.data.worlds import toy
from dro_jax.losses.groups import GROUP_VALUES


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--noise', type=float, default=1.0, help="the factor on the ratings' noise")
  parser.add_argument('--temperatures', type=float, nargs='+', default=[0.3, 0.6])
  parser.add_argument('--responses', type=int, nargs='+', default=[2, 4, 16])
  given = parser.parse_args()
  for responses in given.responses:
    point = world.Point(noise=given.noise, responses=responses)
    place = world.Place(world.ExactSettings(), point, 0, given.folder / 'shared')
    for temperature in given.temperatures:
      print(f'K = {responses}, τ = {temperature:g}: {told(place, temperature)}', flush=True)


def told(place: world.Place, temperature: float) -> str:
  lab = world.laboratory(place)
  log = lab.triplets.train
  asked = world.logged_prompts(lab.world, log)
  _, best_P = toy.optimum(world.reference_on_log(place), asked.prompts.rewards_PZ, temperature)
  best_N = best_P[asked.of_record]
  logging_PZ = toy.complete(toy.logging_logps(lab.world, asked.prompts.texts))
  _, logging_P = toy.optimum(logging_PZ, asked.prompts.rewards_PZ, temperature)
  parts = [f'V_μ {np.mean(logging_P[asked.of_record] - best_N):+.3f}']
  for name in GROUP_VALUES:
    errors_N = values.logged_group_values(log.raw_rewards, log.prompt_index, name, temperature) - best_N
    parts.append(f'{name} {np.nanmean(errors_N):+.3f} ± {np.nanstd(errors_N):.3f}')
  return ', '.join(parts)


if __name__ == '__main__':
  main()
