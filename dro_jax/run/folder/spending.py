"""Counts the examples and FLOPs of a run; FLOPs from the jaxpr of its step."""

import pathlib
from collections.abc import Callable
from typing import Any

from dro_jax import files
from dro_jax.costs import flops


class ComputeCounter:
  """Counts the examples and FLOPs of a run, resumed or not.

  FLOPs are proportional to the rows of a batch, so one count is enough for batches of every size.

  Args:
    metrics: the run's metrics.jsonl, with the FLOPs so far.
    num_rows: rows of each step's batch.
    batch_size: examples of each.
    first: steps already done.
    counts_flops: False where a step costs more than its jaxpr says.
  """

  def __init__(
    self,
    metrics: pathlib.Path,
    num_rows: Callable[[int], int],
    batch_size: int,
    *,
    first: int = 0,
    counts_flops: bool = True,
  ):
    self._batch_size, self._counts_flops = batch_size, counts_flops
    step, self._flops = _last_record(metrics, first)
    self._rows = sum(map(num_rows, range(step, first))) if counts_flops else 0
    self._per_row: float | None = None

  def add(
    self, step_function: Callable[..., Any], step: int, *arguments: Any, num_rows: int
  ) -> dict[str, float]:
    """The totals after one more step, from its function and the arguments of that."""
    so_far = {'examples': float((step + 1) * self._batch_size)}
    if not self._counts_flops:
      return so_far
    if self._per_row is None:
      self._count(step_function, arguments, num_rows)
    self._rows += num_rows
    return so_far | {'flops': self._rows * self._per_row}

  def _count(self, step_function: Callable[..., Any], arguments: tuple[Any, ...], num_rows: int) -> None:
    self._per_row = flops.count(step_function, *arguments) / num_rows
    # Rows are exact however often a run is resumed.
    self._rows += round(self._flops / self._per_row) if self._per_row else 0


def _last_record(metrics: pathlib.Path, first: int) -> tuple[int, float]:
  """The last step up to `first` with FLOPs in metrics.jsonl, and those; (0, 0) if there is none."""
  last = 0, 0.0
  for record in files.json_lines(metrics) if metrics.exists() else ():
    if record['step'] <= first and 'flops' in record:
      last = max(last, (record['step'], record['flops']))
  return last
