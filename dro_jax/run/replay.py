"""A batch whose loss was not finite, reached again and examined."""

from collections.abc import Callable

import jax
import numpy as np

from dro_jax.errors import UsageError
from dro_jax.parallel import partitioning
from dro_jax.run.build import Run
from dro_jax.run.folder import nonfinite
from dro_jax.run.loop import global_batches, with_fresh_responses
from dro_jax.step import state as train_state


def run_replay(run: Run, state: train_state.TrainState, folder: str, step: Callable, score: Callable):
  """Steps from a state to a kept batch, and tells what is not finite there."""
  last, first = nonfinite.step_of(folder), int(state.step)
  if first >= last:
    raise UsageError(
      f"--replay={folder}: the newest checkpoint is of step {first}, after it. Copy the run's folder without "
      f'the checkpoints of step {last} and later, and pass it as --model_dir.'
    )
  for i, rows in global_batches(run, first, last):
    rows, _ = with_fresh_responses(run, state, i, rows)
    if i + 1 < last:
      with partitioning.use_mesh(run.mesh):
        state, _ = run.step(state, rows)
  rows, where = nonfinite.load(folder, rows), partitioning.replicated(run.mesh)
  with partitioning.use_mesh(run.mesh):
    examples = nonfinite.examine(jax.jit(score, out_shardings=where), state, rows, run.train_loader.table)
    found = nonfinite.origin(step, state, rows)
    _, output = run.step(state, rows)
  scalars = jax.device_get(output.metrics)
  wrong = {name: nonfinite.shown(value) for name, value in scalars.items() if not np.isfinite(value)}
  return {
    'step': last, 'from_checkpoint': first, 'not_finite': bool(wrong or examples), 'first_nan': found,
    'examples': examples, 'metrics': wrong,
  }  # fmt: skip
