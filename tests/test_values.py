import jax.numpy as jnp
import numpy as np

from dro_jax import values

RNG = np.random.default_rng(0)


def test_prompt_means_follow_each_responses_pointer():
  encoded = RNG.normal(size=(1, 5, 3))
  segments = jnp.array([[1, 1, 2, 2, 0]])
  pointers = jnp.array([[2, 1, 2, 0]])
  means = values.prompt_means(jnp.asarray(encoded, jnp.float32), segments, pointers)
  first, second = encoded[0, :2].mean(0), encoded[0, 2:4].mean(0)
  np.testing.assert_allclose(means[0], [second, first, second, np.zeros(3)], atol=1e-6)


def test_future_sums():
  x, mask = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[True, True, False]])
  np.testing.assert_allclose(values.future_sums(x, mask), [[3.0, 2.0, 0.0]])
