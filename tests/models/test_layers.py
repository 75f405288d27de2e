import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dro_jax.models import layers

t5_torch = pytest.importorskip('transformers.models.t5.modeling_t5')
torch = pytest.importorskip('torch')


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize('num_buckets, max_distance', [(32, 128), (8, 20)])
def test_buckets_equal_transformers(bidirectional, num_buckets, max_distance):
  relative = np.arange(-2000, 2001)
  actual = layers.relative_buckets(
    relative, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
  )
  expected = t5_torch.T5Attention._relative_position_bucket(
    torch.tensor(relative), bidirectional, num_buckets, max_distance
  )
  np.testing.assert_array_equal(actual, expected.numpy())


@pytest.mark.parametrize('queries, keys', [(1, 1), (1, 5), (4, 4), (3, 6), (6, 2)])
def test_toeplitz_matrices_have_constant_diagonals(queries, keys):
  vector = np.random.default_rng(0).normal(size=(2, queries + keys)).astype(np.float32)
  index = np.arange(keys)[None, :] - np.arange(queries)[:, None] + queries - 1
  np.testing.assert_array_equal(layers.toeplitz(jnp.asarray(vector), queries, keys), vector[:, index])


@pytest.mark.parametrize('bidirectional', [True, False])
def test_relative_bias_looks_up_each_pair(bidirectional):
  module = layers.RelativeBias(3, 8, 20, bidirectional)
  variables = nn.unbox(module.init(jax.random.key(0), 30, 30))
  table = np.asarray(variables['params']['rel_embedding'])
  relative = np.arange(30)[None, :] - np.arange(30)[:, None]
  buckets = layers.relative_buckets(relative, bidirectional=bidirectional, num_buckets=8, max_distance=20)
  bias = np.asarray(module.apply(variables, 30, 30))
  np.testing.assert_array_equal(bias, table[:, buckets][None])
  row = module.apply(variables, jnp.asarray(17), 30, method='at')
  np.testing.assert_array_equal(row, bias[:, :, 17:18])


def test_masked_keys_weigh_nothing_and_a_query_without_keys_is_finite():
  queries, keys = jnp.ones((1, 2, 1, 4)), jnp.full((1, 3, 1, 4), 50.0)
  mask = jnp.asarray([[True, False, True], [False, False, False]])[None, None]
  weights = layers.attention_weights(queries, keys, None, mask)[0, 0]
  np.testing.assert_array_equal(weights[0], [0.5, 0.0, 0.5])
  np.testing.assert_allclose(weights[1], np.full(3, 1 / 3), rtol=1e-6)


def test_a_token_outside_the_vocabulary_gives_nan():
  module = layers.Embedding(4, 2)
  variables = module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  vectors = module.apply(variables, jnp.asarray([[3, 4]]))
  assert jnp.isfinite(vectors[0, 0]).all()
  assert jnp.isnan(vectors[0, 1]).all()


def test_constrain_does_nothing_without_a_mesh_and_rules():
  x = jnp.ones((8, 2))
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  cut = jax.jit(lambda x: layers.constrain(x * 2, 'activation_batch', 'activation_embed'))
  assert len(cut(x).sharding.device_set) == 1
  with jax.set_mesh(mesh), nn.logical_axis_rules([('activation_batch', 'data'), ('activation_embed', None)]):
    assert len(cut(x).sharding.device_set) == 8


def test_products_join_rows_and_lengths_on_a_cpu_only():
  x, kernel = jax.random.normal(jax.random.key(0), (2, 3, 4)), jax.random.normal(jax.random.key(1), (4, 5))

  def product(kind, platform):
    device = jax.sharding.AbstractDevice(kind, None, platform)
    mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
      [dot] = [
        equation for equation in jax.make_jaxpr(layers.project)(x, kernel).eqns
        if equation.primitive.name == 'dot_general'
      ]  # fmt: skip
    return dot.outvars[0].aval.shape

  assert product('cpu', 'cpu') == (6, 5)
  assert product('TPU v5 lite', 'tpu') == (2, 3, 5)
  with jax.set_mesh(jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))):
    flat = layers.project(x, kernel)
  np.testing.assert_allclose(flat, layers.project(x, kernel), rtol=1e-6)
  np.testing.assert_allclose(flat, np.asarray(x, np.float64) @ np.asarray(kernel, np.float64), rtol=1e-5)
