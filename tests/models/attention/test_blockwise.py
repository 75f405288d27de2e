import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.models.attention import blockwise, dense, spans
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues
from tests.models.attention import layouts

small = functools.partial(blockwise.attend, block=32)


@pytest.mark.parametrize(
  'softcap, window, kv_heads', [(None, None, 2), (2.0, 20, 2), (None, 20, 4), (2.0, None, 1)]
)
def test_values_and_gradients_equal_dense_attentions(softcap, window, kv_heads):
  inputs, both = layouts.arrays(kv_heads=kv_heads), layouts.response_spans(window)
  ours = layouts.values_and_gradients(small, inputs, both, softcap)
  layouts.assert_equal(ours, layouts.values_and_gradients(dense.attend, inputs, both, softcap))


@pytest.mark.parametrize('kv_heads, length', [(4, 75), (2, 96), (4, 20)])
def test_a_relative_bias_and_its_gradient_equal_dense_attentions(kv_heads, length):
  """Rows of two texts and padding, each of which reads itself in both directions."""
  own = spans.segment_span(jnp.asarray([[1] * 15 + [2] * (length - 15), [1] * 9 + [0] * (length - 9)]))
  queries, bias = layouts.normal(2, length, 4, 8), layouts.normal(4, 2 * length)
  keys_values = KeysValues(*(layouts.normal(2, length, kv_heads, 8) for _ in range(2)))

  def results(attend, queries, keys_values, bias):
    def total(*inputs):
      read = attend(inputs[0], [Source(inputs[1], own, inputs[2])], None)
      return jnp.sum(jnp.sin(read)), read

    return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(queries, keys_values, bias)

  ours, expected = (results(attend, queries, keys_values, bias) for attend in (small, dense.attend))
  layouts.assert_equal(ours, expected)
  assert np.abs(expected[1][2]).max() > 0.1


def test_bfloat16_keeps_its_type_and_stays_near_float32():
  inputs, both = layouts.arrays(), layouts.response_spans()
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs)
  read, gradients = layouts.values_and_gradients(small, half, both)
  exact = layouts.values_and_gradients(dense.attend, inputs, both)
  assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype('bfloat16')}
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      np.asarray(x, np.float32), y, atol=0.05 * float(np.abs(y).max()), rtol=0.1
    ),
    (read, gradients),
    exact,
  )


def test_a_query_without_a_key_reads_zeros_and_has_no_gradient():
  keys_values = KeysValues(layouts.normal(1, 5, 2, 4), layouts.normal(1, 5, 2, 4))
  empty = Source(keys_values, Span(jnp.array([[2, 0, 0]]), jnp.array([[2, 0, 5]])))
  read, gradient = jax.value_and_grad(lambda queries: small(queries, [empty], None)[:, :2].sum())(
    layouts.normal(1, 3, 2, 4)
  )
  assert read == 0 and not np.any(gradient)


def test_memory_does_not_grow_with_the_product_of_lengths():
  def temporary(length):
    shape = jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32)
    place = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def total(queries, keys, values, span):
      return blockwise.attend(queries, [Source(KeysValues(keys, values), span)], None, block=64).sum()

    compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(shape, shape, shape, Span(place, place)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(2048) < 2.2 * temporary(1024)
  assert temporary(2048) < 4 * 2 * 2048 * 2048 / 8  # Of the scores.
