import jax.numpy as jnp
import numpy as np

from dro_jax.models.causal import rotary
from dro_jax.models.causal.config import CausalConfig

RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_a_rotation_depends_on_distance_only():
  frequencies = rotary.frequencies(CausalConfig(head_dim=8))
  query, key = normal(1, 1, 1, 8), normal(1, 1, 1, 8)
  at = lambda x, place: rotary.rotate(x, rotary.rotation(frequencies, jnp.array([[place]])))  # noqa: E731
  products = [jnp.sum(at(query, place + 5) * at(key, place)) for place in (0, 3, 40)]
  np.testing.assert_allclose(products, products[0], rtol=1e-4)
  assert abs(products[0] - jnp.sum(query * key)) > 1e-3


def test_linear_scaling_stretches_all_frequencies_but_the_local_ones():
  config = CausalConfig(head_dim=8, rope_scaling=('linear', 8.0), rope_local_theta=100.0)
  plain = 10_000.0 ** (-np.arange(4) / 4)
  np.testing.assert_allclose(rotary.frequencies(config), plain / 8, rtol=1e-6)
  np.testing.assert_allclose(rotary.frequencies(config, local=True), 100.0 ** (-np.arange(4) / 4), rtol=1e-6)
