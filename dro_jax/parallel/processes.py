"""Joins a process to the others of its run, before anything computes.

DRO_JAX_CLUSTER says who they are. Unset: nobody. `auto`: what jax finds out by itself (TPU pods, Slurm,
Kubernetes, Open MPI). `INDEX/COUNT@HOST:PORT`: this process, how many, and where the first one listens.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from dro_jax.errors import UsageError
from dro_jax.parallel import interrupts

VARIABLE = 'DRO_JAX_CLUSTER'
# A peer that does not answer for so long is dead, and the others end.
HEARTBEAT_SECONDS = 100
_AT_ONCE = (1, interrupts.ENDED)
_TOGETHER = (0, 75)  # Exit codes that all processes end with, so they may wait for each other.


def join() -> None:
  """Does what DRO_JAX_CLUSTER says; nothing where it is unset.

  Raises:
    UsageError: it says neither `auto` nor INDEX/COUNT@HOST:PORT.
  """
  if text := os.environ.get(VARIABLE):
    arguments = parse(text)
    import jax

    if not jax.distributed.is_initialized():
      jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def parse(text: str) -> dict[str, Any]:
  """What `jax.distributed.initialize` takes, of DRO_JAX_CLUSTER's text."""
  if text == 'auto':
    return {}
  match = re.fullmatch(r'(\d+)/(\d+)@(.+:\d+)', text)
  if not match or int(match[1]) >= int(match[2]):
    raise UsageError(
      f'{VARIABLE}={text!r}: pass auto, or INDEX/COUNT@HOST:PORT with INDEX below COUNT: 0/2@localhost:8476'
    )
  return {'process_id': int(match[1]), 'num_processes': int(match[2]), 'coordinator_address': match[3]}


def is_first() -> bool:
  """Whether this process speaks for all."""
  if not os.environ.get(VARIABLE):
    return True
  import jax

  return jax.process_index() == 0


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
  """Ends a process that failed without waiting for the others, as jax would for minutes: they do not know.

  Nor, where it is alone and failed in words (exit code 1), for the saves under way, which would fail too; nor
  where Ctrl-C ended it (130), for work of native threads, which may crash as Python takes itself down.
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
