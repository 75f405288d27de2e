import jax.numpy as jnp
import numpy as np

from dro_jax.ops import masked

SEGMENTS = jnp.array([[1, 1, 2, 0], [1, 2, 2, 2]])
X = jnp.array([[1.0, 2.0, 3.0, 99.0], [4.0, 5.0, 6.0, 7.0]])


def test_weighted_mean_and_variance_equal_numpys():
  x, w = jnp.array([1.0, 2.0, 6.0]), jnp.array([1.0, 3.0, 0.0])
  np.testing.assert_allclose(masked.weighted_mean(x, w), 7 / 4)
  np.testing.assert_allclose(
    masked.weighted_variance(x, w), np.average((np.array([1, 2]) - 1.75) ** 2, weights=[1, 3])
  )
  np.testing.assert_allclose(masked.weighted_mean(jnp.array([1.0, jnp.nan]), jnp.array([True, False])), 1.0)
  np.testing.assert_allclose(masked.weighted_mean(x, jnp.zeros(3)), 0.0)


def test_a_masked_mean_leaves_out_masked_entries():
  mask = jnp.array([[True, True, False, False], [False] * 4])
  np.testing.assert_allclose(masked.masked_mean(X, mask), [1.5, 0.0])


def test_segment_sum_first_and_last_of_each_segment():
  np.testing.assert_allclose(masked.segment_sum(X, SEGMENTS, 3), [[3.0, 3.0, 0.0], [4.0, 18.0, 0.0]])
  np.testing.assert_allclose(masked.segment_first(X, SEGMENTS, 3), [[1.0, 3.0, 0.0], [4.0, 5.0, 0.0]])
  np.testing.assert_allclose(masked.segment_last(X, SEGMENTS, 3), [[2.0, 3.0, 0.0], [4.0, 7.0, 0.0]])


def test_unpack_moves_each_response_to_its_own_row():
  x, mask = masked.unpack(X, SEGMENTS, 3)
  expected = [[1, 2, 0, 0], [3, 0, 0, 0], [0] * 4, [4, 0, 0, 0], [5, 6, 7, 0], [0] * 4]
  np.testing.assert_array_equal(x, expected)
  np.testing.assert_array_equal(mask, np.array(expected) > 0)
