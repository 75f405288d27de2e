import numpy as np
import pytest

from dro_jax.statistics import ties


def test_no_number_exceeds_the_mean_of_equal_numbers():
  for value in (0.7, 0.1, -0.3, 1e-12, 1e12):
    x = np.full(3, value)
    assert not ties.exceeds(x, x.mean()).any() and not ties.exceeds(x.mean(), x).any()


def test_a_mean_of_zero_has_the_rounding_of_its_terms():
  x = np.array([0.1, 0.2, -0.3, 0.0])
  assert x.mean() != 0
  assert ties.exceeds(x, x.mean(), x).tolist() == [True, True, False, False]
  assert not ties.exceeds(0.0, x.mean(), x) and not ties.exceeds(x.mean(), 0.0, x)


def test_numbers_that_differ_exceed_each_other():
  assert ties.exceeds(0.7000001, 0.7) and not ties.exceeds(0.7, 0.7000001)
  assert ties.exceeds(np.array([1.0, 2.0]), 1.5).tolist() == [False, True]


@pytest.mark.parametrize(
  'x, constant',
  [
    ([], True), ([3.0], True), ([0.7] * 3, True), ([0.1 + 0.2, 0.3], True), ([0.0, 0.0], True),
    ([0.0, 1e-12], False), ([0.7, 0.700001], False),
  ],
)  # fmt: skip
def test_numbers_are_constant_where_the_smallest_equals_the_largest(x, constant):
  assert ties.is_constant(np.array(x)) is constant


def test_a_group_of_equal_numbers_does_not_deviate_from_its_mean():
  x, group = np.array([0.7, 1.0, 0.7, 0.7, 3.0]), np.array([5, 2, 5, 5, 2])
  np.testing.assert_array_equal(ties.deviations(x, group), [0, -1, 0, 0, 1])


def test_distinct_is_unique_but_for_rounding():
  x = np.array([0.3, 2.0, 0.1 + 0.2, 0.1, 2.0])
  values, first, inverse, counts = ties.distinct(x)
  np.testing.assert_allclose(values, [0.1, 0.3, 2.0])
  assert (first.tolist(), inverse.tolist(), counts.tolist()) == ([3, 0, 1], [1, 2, 1, 0, 2], [1, 2, 2])
  random = np.random.default_rng(0).normal(size=1000).round(2)
  wanted = np.unique(random, return_index=True, return_inverse=True, return_counts=True)
  for ours, theirs in zip(ties.distinct(random), wanted):
    np.testing.assert_array_equal(ours, theirs)
