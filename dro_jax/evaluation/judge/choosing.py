"""The best checkpoint of a run by win rate, chosen on prompts apart from those that are reported on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dro_jax.checkpoints import folders
from dro_jax.errors import UsageError
from dro_jax.evaluation.judge import sides
from dro_jax.evaluation.judge.sides import Side
from dro_jax.printing.tables import Table
from dro_jax.statistics import win_rates
from dro_jax.statistics.bootstrap import Estimate


class Candidates(NamedTuple):
  """A run among the sides, and its checkpoints as sides."""

  run: Side
  checkpoints: list[Side]


def candidates(found: Sequence[Side]) -> list[Candidates]:
  """The runs among the sides but the first that hold several checkpoints.

  Raises:
    UsageError: there is none, so that nothing can be chosen.
  """
  result = []
  for side in found[1:]:
    is_run = side.kind == sides.POLICY and (folders.absolute_path(side.path) / 'checkpoints').is_dir()
    steps = folders.find_steps(side.path) if is_run else {}
    if len(steps) > 1:
      at = [Side(f'{side.name} at {step}', sides.POLICY, str(folder)) for step, folder in steps.items()]
      result.append(Candidates(side, at))
  if not result:
    raise UsageError(
      'choose= (--set CHOOSE=...) chooses among the checkpoints of a run, and no side but the first is a run '
      'with several: keep more of them by KEEP_LAST in training, or leave CHOOSE.'
    )
  return result


def choose(
  runs: Sequence[Candidates],
  rates: Callable[[Sequence[Side]], Sequence[np.ndarray]],
  *,
  resamples: int,
  seed: int,
) -> tuple[dict[Side, Side], Table]:
  """The checkpoint of each run that wins most against the first side, and a table of all.

  Args:
    runs: with their checkpoints.
    rates: from sides to the rate of each against the first one by prompt, `[P]`.
    resamples: draws of prompts behind the intervals.
    seed: of the draws.
  """
  chosen, rows = {}, []
  every = [side for run in runs for side in run.checkpoints]
  found = dict(zip(every, rates(every)))
  for run in runs:
    estimates: list[Estimate] = [
      win_rates.win_rate(found[side], resamples=resamples, seed=seed) for side in run.checkpoints
    ]
    best = int(np.argmax([np.nan_to_num(estimate.value, nan=-1.0) for estimate in estimates]))
    chosen[run.run] = run.checkpoints[best]._replace(name=run.run.name)
    rows += [
      {'checkpoint': side.name, 'win rate': estimate, 'chosen': number == best}
      for number, (side, estimate) in enumerate(zip(run.checkpoints, estimates))
    ]
  note = 'On prompts that only choose. A chosen rate is too high by the choice; the tables above are not.'
  return chosen, Table('Checkpoints against the first side', rows, note)
