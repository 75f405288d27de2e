import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.errors import UsageError
from dro_jax.models.attention import dense, splash
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues
from tests.models.attention import layouts

interpreted = functools.partial(splash.attend, interpret=True)


@pytest.mark.parametrize(
  'softcap, window, kv_heads', [(None, None, 2), (2.0, 20, 2), (None, 20, 4), (2.0, None, 1)]
)
def test_values_and_gradients_equal_dense_attentions(softcap, window, kv_heads):
  inputs, both = layouts.arrays(kv_heads=kv_heads), layouts.response_spans(window)
  ours = layouts.values_and_gradients(interpreted, inputs, both, softcap)
  layouts.assert_equal(ours, layouts.values_and_gradients(dense.attend, inputs, both, softcap))


def test_a_query_without_a_key_is_finite_with_its_gradient():
  keys_values = KeysValues(layouts.normal(1, 300, 2, 8), layouts.normal(1, 300, 2, 8))
  nothing = jnp.zeros((1, 300), jnp.int32)
  empty = Source(keys_values, Span(nothing, nothing))
  function = lambda queries: interpreted(queries, [empty, empty], None).sum()  # noqa: E731
  value, gradient = jax.value_and_grad(function)(layouts.normal(1, 300, 2, 8))
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_blocks_are_run_where_a_query_reads_a_key_and_others_name_the_next():
  first, stop = jnp.repeat(jnp.array([0, 0, 256]), 128), jnp.repeat(jnp.array([0, 100, 300]), 128)
  info = splash._mask_info(Span(first, stop), 128, 128, 384)
  np.testing.assert_array_equal(info.block_mask[0], [[0, 0, 0], [1, 0, 0], [0, 0, 1]])
  np.testing.assert_array_equal(info.data_next[0], [[0, 0, 0], [0, 2, 2], [2, 2, 2]])
  by_keys = splash._mask_info(Span(first, stop), 128, 128, 384, by_keys=True)
  np.testing.assert_array_equal(by_keys.data_next[0].T, [[1, 1, 2], [2, 2, 2], [2, 2, 2]])


def test_rows_beyond_an_integers_half_are_refused():
  length = splash.LONGEST + 1
  shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
  place = jax.ShapeDtypeStruct((1, length), jnp.int32)
  source = Source(KeysValues(shape, shape), Span(place, place))
  with pytest.raises(UsageError, match='reads rows of up to 32767 keys'):
    jax.eval_shape(lambda queries, source: splash.attend(queries, [source], None), shape, source)
