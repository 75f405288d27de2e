"""What a machine lacks, memory or a device, said in words."""

import contextlib
import errno
import os
from collections.abc import Iterator

from dro_jax.errors import Failed, UsageError

# How jax, XLA and numpy say that memory is refused.
_OUT_OF_MEMORY = (
  'RESOURCE_EXHAUSTED', 'OUT_OF_MEMORY', 'Out of memory', 'out of memory', 'Unable to allocate',
  'Failed to allocate',
)  # fmt: skip


@contextlib.contextmanager
def memory(remedy: str) -> Iterator[None]:
  """A block that may run out of memory, on a device or on the host; that is raised as `Failed`.

  Args:
    remedy: what to do, as the end of a sentence that begins "To use less memory,".
  """
  try:
    yield
  except Exception as error:
    if not is_out_of_memory(error):
      raise
    raise Failed(
      f'out of memory ({_first_line(error)}). What was saved before is intact. To use less memory, {remedy}.'
    ) from error


def is_out_of_memory(error: Exception) -> bool:
  """Whether an error says that there was not enough memory."""
  if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
    return True
  return isinstance(error, RuntimeError) and any(word in str(error) for word in _OUT_OF_MEMORY)


def refuse_missing_devices() -> None:
  """Refuses a JAX_PLATFORMS whose devices jax cannot use here, before anything else meets them.

  Raises:
    UsageError: there is no such device, or jax is installed without support for it.
  """
  wanted = os.environ.get('JAX_PLATFORMS', '')
  if wanted in ('', 'cpu'):
    return
  import jax

  try:
    jax.devices()
  except Exception as error:  # An assertion, where a platform's plug-in is not installed.
    reason = f' ({_first_line(error)})' if str(error) else ''
    raise UsageError(
      f'JAX_PLATFORMS={wanted}: jax finds no such device here{reason}. For an NVIDIA GPU install '
      "pip install 'dro_jax[gpu]', for a TPU 'dro_jax[tpu]'; to run on the CPU, unset JAX_PLATFORMS or set "
      'it to cpu.'
    ) from error


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')
