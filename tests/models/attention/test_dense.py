import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.models.attention import dense
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues
from tests.models.attention import layouts


def one_source(rows, length, first, stop):
  keys_values = KeysValues(layouts.normal(rows, length, 2, 4), layouts.normal(rows, length, 2, 4))
  return Source(keys_values, Span(jnp.asarray(first), jnp.asarray(stop)))


@pytest.mark.parametrize('softcap, window', [(None, None), (2.0, 20)])
def test_two_sources_are_read_in_one_softmax(softcap, window):
  inputs = layouts.arrays()
  masks = layouts.response_masks(window)
  read, _ = layouts.values_and_gradients(dense.attend, inputs, layouts.response_spans(window), softcap)
  written = (layouts.segments()[1] > 0)[:, :, None, None]
  expected = layouts.direct(inputs[0], inputs[1:], masks, softcap) * written
  np.testing.assert_allclose(read, expected, rtol=1e-4, atol=2e-5)


def test_a_source_that_several_rows_share_is_read_by_each():
  queries = layouts.normal(6, 1, 4, 4)
  shared = one_source(2, 7, [[1], [3]], [[7], [6]])
  own = one_source(6, 3, [[0]] * 6, [[2]] * 6)
  places = np.arange(7)
  masks = [
    np.stack([places >= 1, (places >= 3) & (places < 6)])[:, None],
    np.tile(np.arange(3) < 2, (6, 1, 1)),
  ]
  expected = layouts.direct(queries, [shared.keys_values, own.keys_values], masks)
  np.testing.assert_allclose(dense.attend(queries, [shared, own], None), expected, rtol=2e-5, atol=1e-6)


def test_a_query_without_a_key_is_finite_with_its_gradient():
  empty = one_source(1, 4, [[2, 0]], [[2, 0]])
  function = lambda queries: dense.attend(queries, [empty, empty], None).sum()  # noqa: E731
  value, gradient = jax.value_and_grad(function)(layouts.normal(1, 2, 2, 4))
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_scores_far_from_zero_do_not_overflow():
  near = one_source(1, 4, [[0, 0]], [[4, 4]])
  far = near._replace(keys_values=KeysValues(near.keys_values.keys * 1e4, near.keys_values.values))
  queries = layouts.normal(1, 2, 2, 4)
  every = np.ones((1, 2, 4), bool)
  expected = layouts.direct(queries, [near.keys_values, far.keys_values], [every, every])
  np.testing.assert_allclose(dense.attend(queries, [near, far], None), expected, rtol=2e-5, atol=1e-6)
