import jax
import pytest

from dro_jax import partitioning


@pytest.fixture(scope='session')
def one_device():
  """A mesh that compiles in a fraction of eight devices' time; tests of the step hold all meshes together."""
  kind = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.make_mesh((1, 1, 1), partitioning.AXES, axis_types=kind, devices=jax.devices()[:1])
  return lambda: mesh
