"""What every test runs under: 8 CPU devices, rank promotion raises, shapes checked, warnings are errors."""

import gc
import hashlib
import os
import pathlib
import platform

# Before anything imports jax or tensorflow. Two workers on two cores: one computing thread each. What is
# compiled here runs for milliseconds, so LLVM's optimisations and XLA's fusion emitters are off: each would
# take a third of the suite's time.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  (
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_cpu_multi_thread_eigen=false',
    '--xla_backend_optimization_level=0',
    '--xla_cpu_use_fusion_emitters=false',
    '--xla_cpu_parallel_codegen_split_count=1',
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


def _shaped_modules() -> list[str]:
  """The modules with annotated shapes: to check the calls of all others takes long."""
  root = pathlib.Path(__file__).resolve().parent.parent
  paths = [
    path for path in (root / 'dro_jax').rglob('*.py') if 'jaxtyping' in path.read_text(encoding='utf-8')
  ]
  return ['.'.join(path.relative_to(root).with_suffix('').parts) for path in paths]


# Must precede the first import of dro_jax: annotated shapes and dtypes are checked in tests, and only here.
jaxtyping.install_import_hook(_shaped_modules(), 'beartype.beartype')

jax.config.update('jax_numpy_rank_promotion', 'raise')

# A third party's warning that we can do nothing about, each with whose it is and when it shows.
_THIRD_PARTIES = (
  # jax, where a run was killed as it wrote to the cache below: it compiles anew.
  'default:Error reading persistent compilation cache entry',
)


def _processor() -> str:
  """The kind of processor, as a short digest."""
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
  features = sorted({line for line in lines if line.startswith(('flags', 'Features'))})
  return hashlib.sha256('\n'.join(features).encode()).hexdigest()[:12]


def _keep_compilations() -> None:
  """Re-runs take their executables from .cache, in one folder for each processor and each worker.

  They are machine code, and jax's key does not say for which processor; and a worker would read what another
  is still writing.
  """
  worker = os.environ.get('PYTEST_XDIST_WORKER', 'main')
  folder = pathlib.Path(__file__).resolve().parent.parent / '.cache' / 'jax' / _processor() / worker
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


_keep_compilations()


def pytest_configure(config):
  config.addinivalue_line('filterwarnings', 'error')
  for line in _THIRD_PARTIES:
    config.addinivalue_line('filterwarnings', line)


def pytest_collection_finish(session):
  """Modules live to the end, so that no garbage collection need look at their millions of objects again."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
  """The folder of real feedback data named by DRO_JAX_DATA; tests that read it skip without it."""
  if not os.environ.get('DRO_JAX_DATA'):
    pytest.skip('set DRO_JAX_DATA to a folder of feedback data to run the tests on real input')
  return pathlib.Path(os.environ['DRO_JAX_DATA'])
