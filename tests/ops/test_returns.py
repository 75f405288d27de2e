import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.models import readouts, value
from dro_jax.ops import returns

RNG = np.random.default_rng(0)


def test_prompt_means_follow_each_responses_pointer():
  encoded = RNG.normal(size=(1, 5, 3))
  segments = jnp.array([[1, 1, 2, 2, 0]])
  pointers = jnp.array([[2, 1, 2, 0]])
  means = readouts.prompt_means(jnp.asarray(encoded, jnp.float32), segments, pointers)
  first, second = encoded[0, :2].mean(0), encoded[0, 2:4].mean(0)
  np.testing.assert_allclose(means[0], [second, first, second, np.zeros(3)], atol=1e-6)


def test_a_batch_value_is_the_mean_over_the_batchs_responses():
  x, valid = RNG.normal(size=(3, 2)), np.array([[True, True], [True, False], [False, False]])
  found = value.batch_mean(jnp.asarray(np.where(valid, x, 1e9), jnp.float32), jnp.asarray(valid))
  np.testing.assert_allclose(found, np.where(valid, x[valid].mean(), 0.0), rtol=1e-6)


def test_future_sums_are_over_later_tokens_of_the_response():
  x, mask = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[True, True, False]])
  np.testing.assert_allclose(returns.future_sums(x, mask), [[3.0, 2.0, 0.0]])


def test_gae_is_the_weighted_sum_of_later_errors():
  rewards, state_values = RNG.normal(size=(3, 5)), RNG.normal(size=(3, 5))
  lengths = (5, 3, 1)
  mask = np.arange(5)[None] < np.array(lengths)[:, None]
  gamma, lam = 0.9, 0.8
  expected = np.zeros((3, 5))
  for b, length in enumerate(lengths):
    following = np.append(state_values[b, 1:length], 0.0)
    errors = rewards[b, :length] + gamma * following - state_values[b, :length]
    for t in range(length):
      expected[b, t] = sum((gamma * lam) ** (i - t) * errors[i] for i in range(t, length))
  inside = [jnp.asarray(np.where(mask, x, 1e6), jnp.float32) for x in (rewards, state_values)]
  found = returns.gae(*inside, jnp.asarray(mask), gamma, lam)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gae_with_lambda_one_is_the_return_less_the_value():
  rewards, state_values = (jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32) for _ in range(2))
  mask = jnp.ones((2, 4), bool)
  found = returns.gae(rewards, state_values, mask, 1.0, 1.0)
  np.testing.assert_allclose(found, returns.future_sums(rewards, mask) - state_values, rtol=1e-4, atol=1e-5)


def test_gae_refuses_shapes_that_would_broadcast():
  x, mask = jnp.zeros((2, 4)), jnp.ones((2, 4), bool)
  with pytest.raises(ValueError, match='values has shape'):
    returns.gae.__wrapped__(x, x[:, :1], mask)
