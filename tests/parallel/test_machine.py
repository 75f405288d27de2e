"""Memory and devices that are not there, asked of the machine itself."""

import errno
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.errors import Failed
from dro_jax.parallel import machine


@pytest.mark.parametrize(
  'allocate', [lambda: jnp.zeros((1 << 50,), jnp.int8), lambda: np.ones((1 << 60,), np.int8)]
)
def test_running_out_of_memory_fails_with_the_remedy(allocate):
  message = r'out of memory \(.*\). Earlier saves .* pass --set MICROBATCHES=2\.'
  with pytest.raises(Failed, match=message), machine.memory('pass --set MICROBATCHES=2'):
    allocate()


@pytest.mark.parametrize(
  'error, is_memory',
  [
    (MemoryError(), True),
    (OSError(errno.ENOMEM, 'Cannot allocate memory'), True),
    (RuntimeError('INTERNAL: Failed to allocate 8589934592 bytes'), True),
    (RuntimeError('INTERNAL: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY'), True),
    (OSError(errno.ENOSPC, 'No space left on device'), False),
    (ValueError('out of memory'), False),
  ],
)
def test_errors_of_memory_are_recognised(error, is_memory):
  assert machine.is_out_of_memory(error) == is_memory


def test_other_errors_pass_unchanged():
  with pytest.raises(RuntimeError, match='a bug'), machine.memory(''):
    raise RuntimeError('a bug')


@pytest.mark.parametrize('platform', ['cuda', 'nonsense'])
def test_a_platform_without_devices_is_refused(platform):
  code = 'from dro_jax.parallel import machine; machine.refuse_missing_devices()'
  process = subprocess.run(
    [sys.executable, '-c', code], env=os.environ | {'JAX_PLATFORMS': platform}, capture_output=True, text=True
  )
  assert f'UsageError: JAX_PLATFORMS={platform}: jax finds no such device here' in process.stderr
  assert 'unset JAX_PLATFORMS' in process.stderr
