"""Joins a process to the other processes of its run, before anything computes.

The variable DRO_JAX_CLUSTER describes the run's processes. Unset: this is the only one. `auto`: jax finds the
others itself (TPU pods, Slurm, Kubernetes, Open MPI). `INDEX/COUNT@HOST:PORT`: the index of this process, the
number of processes, and the address at which the first one listens.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from dro_jax.errors import UsageError
from dro_jax.parallel import interrupts

VARIABLE = 'DRO_JAX_CLUSTER'
# A process that does not answer for so long counts as dead, and the others end.
HEARTBEAT_SECONDS = 100
_AT_ONCE = (1, interrupts.ENDED)
_TOGETHER = (0, 75)  # With these exit codes all processes end, so they may wait for each other.


def join() -> None:
  """Joins the processes that DRO_JAX_CLUSTER describes; does nothing where it is unset.

  Raises:
    UsageError: it is neither `auto` nor INDEX/COUNT@HOST:PORT.
  """
  if text := os.environ.get(VARIABLE):
    arguments = parse(text)
    import jax

    if not jax.distributed.is_initialized():
      jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def parse(text: str) -> dict[str, Any]:
  """The arguments of `jax.distributed.initialize` for a value of DRO_JAX_CLUSTER."""
  if text == 'auto':
    return {}
  match = re.fullmatch(r'(\d+)/(\d+)@(.+:\d+)', text)
  if not match or int(match[1]) >= int(match[2]):
    raise UsageError(
      f'{VARIABLE}={text!r} describes no processes: pass auto, or INDEX/COUNT@HOST:PORT with INDEX below '
      'COUNT, such as 0/2@localhost:8476.'
    )
  return {'process_id': int(match[1]), 'num_processes': int(match[2]), 'coordinator_address': match[3]}


def is_first() -> bool:
  """Whether this is the process that prints for all."""
  if not os.environ.get(VARIABLE):
    return True
  import jax

  return jax.process_index() == 0


def from_first(make: Callable[[], int]) -> int:
  """The whole number, below 2³¹, that the first process makes, in every process.

  Raises:
    UsageError: in every process, where the first one raised one.
  """
  import jax

  number, error = 0, None
  if jax.process_index() == 0:
    try:
      number = make()
    except UsageError as refusal:
      error = refusal
  if jax.process_count() > 1:
    import numpy as np
    from jax.experimental import multihost_utils

    refused, number = multihost_utils.broadcast_one_to_all(np.asarray([error is not None, number])).tolist()
    if refused and error is None:
      error = UsageError('the first process refused to go on. Its message has the cause.')
  if error is not None:
    raise error
  return number


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
  """A block whose failure ends the process at once.

  jax would wait minutes for the other processes, which do not know of the failure. A process without others
  ends at once too where it failed with a message (exit code 1), because saves under way would fail as well,
  and where Ctrl-C ended it (130), because native threads may crash while Python shuts down.
  """
  try:
    yield
  except SystemExit as error:
    alone = not os.environ.get(VARIABLE)
    if (error.code or 0) in _TOGETHER or (alone and error.code not in _AT_ONCE):
      raise
    _end(error.code if isinstance(error.code, int) else 1)
  except BaseException:
    if not os.environ.get(VARIABLE):
      raise
    traceback.print_exc()
    _end(1)


def _end(code: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
