"""The GPUs of this machine: how many the driver lists, and how many jax sees."""

import os
import subprocess
import sys

from dro_jax.errors import UsageError

_SECONDS = 120
# In a process that ends: jax takes the memory of a GPU as soon as it computes.
_ASK = 'import jax; print(len(jax.devices("cuda")))'


def count() -> int:
  """How many GPUs a run here would use; 0 where there are none, or where JAX_PLATFORMS excludes them.

  Raises:
    UsageError: there are GPUs, but jax cannot use them.
  """
  wanted = os.environ.get('JAX_PLATFORMS', '')
  if (wanted and not {'cuda', 'gpu'} & set(wanted.split(','))) or not listed():
    return 0
  asked = _output([sys.executable, '-c', _ASK])
  if not asked.strip().isdigit():
    raise UsageError(
      f'this machine has {listed()} GPUs (nvidia-smi -L), but jax sees none of them: pip install '
      "'dro_jax[gpu]' to run on them, or pass --job.platform=cpu to rehearse on CPU devices"
    )
  return int(asked)


def listed() -> int:
  """How many GPUs the driver lists; 0 where there is no driver, or CUDA_VISIBLE_DEVICES hides them all."""
  if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
    return 0
  return sum(line.startswith('GPU ') for line in _output(['nvidia-smi', '-L']).splitlines())


def visible(total: int) -> list[str]:
  """The names of the usable GPUs in CUDA_VISIBLE_DEVICES."""
  names = os.environ.get('CUDA_VISIBLE_DEVICES', '')
  return [name.strip() for name in names.split(',')] if names else [str(index) for index in range(total)]


def _output(command: list[str]) -> str:
  """The output of a command that succeeds, else ''."""
  try:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
  except (OSError, subprocess.TimeoutExpired):
    return ''
  return '' if ended.returncode else ended.stdout
