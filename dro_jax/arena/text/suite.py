"""The `text` suite: answers that a program can check, on prompts that nothing was trained on.

An SFT policy answers each prompt K times, or another policy does, and the answers are rewarded: that is the
log, sampled, so its log-probs are propensities. Every method learns from it, from the SFT policy, and is
judged by its own answers to other prompts. The log of those prompts says, without a new answer, what each
policy would earn (`off_policy`): held to the truth here.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.arena import training
from dro_jax.arena.cells import Cell
from dro_jax.arena.suite import Suite
from dro_jax.arena.text import answers, log
from dro_jax.arena.text.answers import Samples
from dro_jax.arena.text.log import Logged
from dro_jax.arena.text.methods import METHODS, USUAL
from dro_jax.arena.text.report import report
from dro_jax.arena.text.worlds import WORLDS, TextWorld
from dro_jax.data.worlds import exercises as verifiable
from dro_jax.errors import UsageError, did_you_mean
from dro_jax.files import to_json
from dro_jax.models.family import Config
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.run.folder import lock
from dro_jax.run.trained import load_run
from dro_jax.statistics import off_policy


def run_cell(
  folder: pathlib.Path,
  budgets: Mapping[str, training.Budget],
  mesh: MeshSpec,
  world_of: Callable[[str, int, int], Logged],
  cell: Cell,
) -> dict[str, Any]:
  """Runs a cell: trains, and judges its last and best checkpoint on validation and test prompts."""
  logged = world_of(cell.axes['world'], cell.axes['draw'], cell.seed)
  test = logged.heldout['test']
  num = len(test.prompts) // len(set(test.prompts))
  result = training.fit_and_judge(
    folder, METHODS[cell.algorithm], cell, logged.data, budgets[cell.axes['world']], mesh,
    lambda path: judge(logged, path, num, cell.seed),
  )  # fmt: skip
  return result | about_world(logged, num)


def about_world(logged: Logged, num: int) -> dict[str, Any]:
  """What a cell's report needs of its world: the reference's answers, the log's, kinds and ceilings."""
  test, logs = logged.heldout['test'], logged.log
  return {
    'reference': answers.about(test, num) | {'junk': _junk(logged, test.logps, test.rewards, num)},
    'log': answers.about(logs, num) | {'rewards': logs.rewards, 'predicted': logged.predict(logs)},
    'kinds': [verifiable.kind_of(prompt) for prompt in test.prompts[::num]],
    'ceilings': logged.ceilings,
  }


def judge(logged: Logged, checkpoint: str, num: int, seed: int) -> dict[str, Any]:
  """Measures of a policy's own answers by test prompt, `[P]`, and ratios `[N]` on answers of others.

  `validation` is less for better: trials are chosen by the mean reward on validation prompts. `ratios` are w
  on the log of the test prompts, `kept` e^ρ on the reference's answers to them.
  """
  policy = load_run(checkpoint, logged.tools.mesh).policy.params
  found = {}
  for split, theirs in logged.heldout.items():
    own = logged.tools.draw(policy, list(dict.fromkeys(theirs.prompts)), num, f'own {split}', seed)
    reference_logps = logged.tools.score(logged.reference, own)
    found[split] = answers.about(own, num) | {
      'win': answers.wins(own.rewards.reshape(-1, num), theirs.rewards.reshape(-1, num)),
      'kl': answers.by_prompt(own.logps - reference_logps, num),
      'junk': _junk(logged, reference_logps, own.rewards, num),
      'expected': answers.by_prompt(logged.predict(own), num),
    }

  def ratios(answered: Samples) -> np.ndarray:
    return off_policy.ratios(logged.tools.score(policy, answered), answered.logps)

  test = logged.heldout['test']
  kept = ratios(test)
  return {
    'validation': -float(found['validation']['reward'].mean()),
    'test': found['test'],
    'ratios': kept if logged.log is test else ratios(logged.log),  # The reference may have written the log.
    'kept': kept,
  }


def _junk(logged: Logged, reference_logps: np.ndarray, rewards: np.ndarray, num: int) -> np.ndarray:
  """The share of a prompt's answers that are wrong and that the reference almost never gives, `[P]`."""
  return answers.by_prompt((reference_logps < logged.unlikely) & (rewards < 1), num)


def text(
  folder: str,
  worlds: Mapping[str, Callable[[], TextWorld]] = WORLDS,
  *,
  chosen: str | Sequence[str] = 'exercises',
  draws: int = 1,
  model: Config = training.MODEL,
  steps: int = 800,
  batch_size: int = 64,
  evaluations: int = 4,
  mesh: MeshSpec = MeshSpec(),
) -> Suite:
  """Generation with a programmed reward.

  Args:
    folder: the arena's.
    worlds: all worlds by name: what is asked, and the log.
    chosen: names of those to run, 'exercises,habits'.
    draws: how often each is remade, prompts, demonstrations, SFT policies and log; numbered from 0.
    model: the policy's size.
    steps: of DRO-V; other methods take as many as cost the same FLOPs.
    batch_size: responses of a batch.
    evaluations: how often a run validates, to find its best checkpoint.
    mesh: devices' arrangement.

  Raises:
    UsageError: there is no such world, or no draw.
  """
  names = chosen.split(',') if isinstance(chosen, str) else list(chosen)
  _refuse(names, worlds, draws)
  place, made = pathlib.Path(folder).expanduser().absolute(), {name: make() for name, make in worlds.items()}
  budgets = {
    name: training.Budget(steps, batch_size, world.samples, evaluations) for name, world in made.items()
  }

  @functools.lru_cache(maxsize=2)
  def world_of(name: str, draw: int, seed: int) -> Logged:
    where = log.Place(place / 'worlds' / f'{name}-{draw}', made[name], draw, model, mesh)
    with lock.locked(where.folder):  # Of several commands one makes the files.
      return log.prepare(where, seed)

  settings = {f'world {name}': world._asdict() for name, world in made.items()}
  for name, world in made.items():
    hands = {'hand': world.hand._asdict(), 'logger': world.logger and world.logger._asdict()}
    settings[f'world {name}'] |= {'exercises': world.exercises._asdict(), **hands}
  settings |= {'model': vars(model), 'budget': [steps, batch_size, evaluations]}
  return Suite(
    'text', to_json(settings), {name: method.grid for name, method in METHODS.items()},
    [{'world': name, 'draw': draw} for name in names for draw in range(draws)],
    functools.partial(run_cell, place, budgets, mesh, world_of),
    functools.partial(report, tuple(METHODS)),
    'About 5 minutes for each draw of a world and 2 minutes a cell, on two cores.', USUAL,
    checkpoint='last',
  )  # fmt: skip


def _refuse(names: Sequence[str], worlds: Mapping[str, Any], draws: int) -> None:
  for name in names:
    if name not in worlds:
      hint = did_you_mean(name, worlds)
      raise UsageError(
        f'the suite text has no world {name!r}{hint}: choose from {", ".join(worlds)} (--set WORLDS=habits).'
      )
  if draws < 1:
    raise UsageError(f'draws={draws}: pass 1 or more (--set DRAWS=2).')


__all__ = ['text']
