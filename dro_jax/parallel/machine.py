"""Errors of a machine that lacks memory or a device, as messages with a remedy."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from dro_jax.errors import Failed, UsageError

# Words by which jax, XLA and numpy report that memory ran out.
_OUT_OF_MEMORY = (
  'RESOURCE_EXHAUSTED', 'OUT_OF_MEMORY', 'Out of memory', 'out of memory', 'Unable to allocate',
  'Failed to allocate',
)  # fmt: skip


_PLATFORMS = 'JAX_PLATFORMS'
_set_here: list[str] = []  # What `take_cpu` set, which is not the user's.


def take_cpu() -> None:
  """Keeps jax in this process from an accelerator, unless the user chose one; before jax is imported."""
  if _PLATFORMS not in os.environ:
    os.environ[_PLATFORMS] = 'cpu'
    _set_here.append(_PLATFORMS)


def environment(checkout: pathlib.Path) -> dict[str, str]:
  """The environment for another dro_jax process: the user's own, in which it finds this dro_jax.

  Args:
    checkout: the folder that holds the package.
  """
  variables = {name: value for name, value in os.environ.items() if name not in _set_here}
  if {'site-packages', 'dist-packages'} & {*checkout.parts}:
    return variables  # Python finds it, and on PYTHONPATH it would come before the standard library.
  paths = [str(checkout), *filter(None, [variables.get('PYTHONPATH')])]
  return variables | {'PYTHONPATH': os.pathsep.join(paths)}


@contextlib.contextmanager
def memory(remedy: str) -> Iterator[None]:
  """A block in which running out of memory, on a device or on the host, raises `Failed`.

  Args:
    remedy: what to do, as the end of a sentence that begins "To use less memory,".
  """
  try:
    yield
  except Exception as error:
    if not is_out_of_memory(error):
      raise
    raise Failed(
      f'out of memory ({_first_line(error)}). Earlier saves are intact. To use less memory, {remedy}.'
    ) from error


def is_out_of_memory(error: Exception) -> bool:
  """Whether an error means that memory ran out."""
  if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
    return True
  return isinstance(error, RuntimeError) and any(word in str(error) for word in _OUT_OF_MEMORY)


def refuse_missing_devices() -> None:
  """Refuses a JAX_PLATFORMS whose devices jax cannot use here, before anything else uses them.

  Raises:
    UsageError: there is no such device, or jax is installed without support for it.
  """
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if platforms in ('', 'cpu'):
    return
  import jax

  try:
    jax.devices()
  except Exception as error:  # jax raises an assertion where a platform's plug-in is not installed.
    reason = f' ({_first_line(error)})' if str(error) else ''
    raise UsageError(
      f'JAX_PLATFORMS={platforms}: jax finds no such device here{reason}. For an NVIDIA GPU install '
      "pip install 'dro_jax[gpu]', for a TPU 'dro_jax[tpu]'; to run on the CPU, unset JAX_PLATFORMS or set "
      'it to cpu.'
    ) from error


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')
