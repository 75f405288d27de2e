"""What every test runs under: 8 CPU devices, rank promotion raises, shapes checked, warnings are errors."""

import os
import pathlib

# Before anything imports jax or tensorflow. Two workers on two cores: one computing thread each.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  (
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_cpu_multi_thread_eigen=false',
  )
)
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
os.environ.setdefault('TF_NUM_INTEROP_THREADS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import jax
import jaxtyping
import pytest

# Must precede the first import of dro_jax: annotated shapes and dtypes are checked in tests, and only here.
jaxtyping.install_import_hook('dro_jax', 'beartype.beartype')

jax.config.update('jax_numpy_rank_promotion', 'raise')

# A third party's warning that we can do nothing about, each with whose it is and when it shows.
_THIRD_PARTIES = ()


def pytest_configure(config):
  config.addinivalue_line('filterwarnings', 'error')
  for line in _THIRD_PARTIES:
    config.addinivalue_line('filterwarnings', line)


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
  """The folder of real feedback data named by DRO_JAX_DATA; tests that read it skip without it."""
  if not os.environ.get('DRO_JAX_DATA'):
    pytest.skip('set DRO_JAX_DATA to a folder of feedback data to run the tests on real input')
  return pathlib.Path(os.environ['DRO_JAX_DATA'])
