import jax
import jax.numpy as jnp
import numpy as np

from dro_jax.models.causal import attention
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.layers import KeysValues

RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def source(rows, length, queries, heads=2, width=4):
  mask = RNG.random((rows, queries, length)) < 0.6
  return attention.Source(
    KeysValues(normal(rows, length, heads, width), normal(rows, length, heads, width)), mask
  )


def direct(queries, sources, softcap=None):
  """One softmax over all keys, in float64, head by head."""
  out = np.zeros(queries.shape)
  rows, length, heads, _ = queries.shape
  for n, t, h in np.ndindex(rows, length, heads):
    scores, values = [], []
    for keys_values, mask in sources:
      row = n // (rows // keys_values.keys.shape[0])
      head = h // (heads // keys_values.keys.shape[2])
      allowed = np.asarray(mask)[row, min(t, mask.shape[1] - 1)]
      s = np.asarray(keys_values.keys[row, :, head], np.float64) @ np.asarray(queries[n, t, h], np.float64)
      scores += list((s if softcap is None else softcap * np.tanh(s / softcap))[allowed])
      values += list(np.asarray(keys_values.values[row, :, head], np.float64)[allowed])
    weights = np.exp(scores - np.max(scores))
    out[n, t, h] = weights @ np.array(values) / weights.sum()
  return out


def test_two_sources_are_read_in_one_softmax():
  queries, sources = normal(3, 5, 6, 4) * 3, [source(3, 7, 5), source(3, 8, 5)]
  for softcap in (None, 2.0):
    got = attention.attend(queries, sources, softcap=softcap)
    np.testing.assert_allclose(got, direct(queries, sources, softcap), rtol=2e-5, atol=1e-6)


def test_a_source_that_several_rows_share_is_read_by_each():
  queries, sources = normal(6, 1, 4, 4), [source(2, 7, 1), source(6, 3, 1)]
  np.testing.assert_allclose(
    attention.attend(queries, sources), direct(queries, sources), rtol=2e-5, atol=1e-6
  )


def test_a_query_without_a_key_is_finite_with_its_gradient():
  keys_values, mask = source(1, 4, 2)
  empty = attention.Source(keys_values, np.zeros_like(mask))
  function = lambda queries: attention.attend(queries, [empty, empty]).sum()  # noqa: E731
  value, gradient = jax.value_and_grad(function)(normal(1, 2, 2, 4))
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_scores_far_from_zero_do_not_overflow():
  keys_values, mask = source(1, 4, 2)
  far = attention.Source(KeysValues(keys_values.keys * 1e4, keys_values.values), np.ones_like(mask))
  near = attention.Source(keys_values, np.ones_like(mask))
  queries = normal(1, 2, 2, 4)
  np.testing.assert_allclose(
    attention.attend(queries, [near, far]), direct(queries, [near, far]), rtol=2e-5, atol=1e-6
  )


def test_a_rotation_depends_on_distance_only():
  frequencies = attention.frequencies(CausalConfig(head_dim=8))
  query, key = normal(1, 1, 1, 8), normal(1, 1, 1, 8)
  at = lambda x, place: attention.rotate(x, attention.rotation(frequencies, jnp.array([[place]])))  # noqa: E731
  products = [jnp.sum(at(query, place + 5) * at(key, place)) for place in (0, 3, 40)]
  np.testing.assert_allclose(products, products[0], rtol=1e-4)
  assert abs(products[0] - jnp.sum(query * key)) > 1e-3


def test_linear_scaling_stretches_all_frequencies_but_the_local_ones():
  config = CausalConfig(head_dim=8, rope_scaling=('linear', 8.0), rope_local_theta=100.0)
  plain = 10_000.0 ** (-np.arange(4) / 4)
  np.testing.assert_allclose(attention.frequencies(config), plain / 8, rtol=1e-6)
  np.testing.assert_allclose(
    attention.frequencies(config, local=True), 100.0 ** (-np.arange(4) / 4), rtol=1e-6
  )
