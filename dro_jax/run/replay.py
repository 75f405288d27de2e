"""Runs again up to a batch with a loss that was not finite, and examines the batch."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dro_jax.errors import UsageError
from dro_jax.parallel import partitioning
from dro_jax.run.build import Run
from dro_jax.run.folder import nonfinite
from dro_jax.run.folder.configs import Recorded
from dro_jax.run.train import opened, refuse_unbuilt


def replay(
  run: Run,
  folder: str | os.PathLike[str],
  batch: str | os.PathLike[str],
  configs: Callable[[], Recorded] = Recorded,
) -> dict[str, Any]:
  """Runs from the newest checkpoint to a saved batch, and reports the cause of its loss that is not finite.

  Writes nothing.

  Args:
    run: a run built as the run in `folder` was.
    folder: the run's folder.
    batch: the folder of the batch, FOLDER/nonfinite/STEP.
    configs: the configuration of this start.

  Returns:
    The step, a description of the batch, and the operation that makes its first NaN.

  Raises:
    UsageError: the batch is not there, or the newest checkpoint comes after it.

  Example:
    >>> dro.replay(dro.build(spec), 'runs/dro_v', 'runs/dro_v/nonfinite/1')
    Traceback (most recent call last):
    dro_jax.errors.UsageError: --replay=...: pass a folder MODEL_DIR/nonfinite/STEP, which has arrays.npz.
  """
  refuse_unbuilt(run)
  with opened(run, folder, configs, writes=False) as own:
    return _replay(own.run, own.state, batch)


def _replay(run: Run, state: Any, batch: str | os.PathLike[str]) -> dict[str, Any]:
  last, first = nonfinite.step_of(batch), int(state.step)
  if first >= last:
    raise UsageError(
      f"--replay={batch}: the newest checkpoint is of step {first}, after it. Copy the run's folder without "
      f'the checkpoints of step {last} and later, and pass it as --model_dir.'
    )
  for i, rows in run.batches(first, last):
    rows, _ = run.with_responses(state, i, rows)
    if i + 1 < last:
      state, _ = run.step(state, rows)
  rows = nonfinite.load(batch, rows)
  score = partitioning.jit_on(run.mesh, run.evaluate_rows())
  with partitioning.use_mesh(run.mesh):
    examples = nonfinite.examine(score, state, rows, run.loaders.train.table)
    origin = nonfinite.origin(run.pure_step, state, rows)
    _, output = run.jitted_step(state, rows)
  scalars = jax.device_get(output.metrics)
  wrong = {name: nonfinite.shown(value) for name, value in scalars.items() if not np.isfinite(value)}
  return {
    'step': last, 'from_checkpoint': first, 'not_finite': bool(wrong or examples), 'first_nan': origin,
    'examples': examples, 'metrics': wrong,
  }  # fmt: skip
