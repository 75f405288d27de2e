import jax
import pytest

from dro_jax.parallel import partitioning
from tests import runs


@pytest.fixture(scope='session')
def one_device():
  """A mesh that compiles in a fraction of eight devices' time; tests of the step hold all meshes together."""
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  return runs.LaidOut(make=lambda: mesh)
