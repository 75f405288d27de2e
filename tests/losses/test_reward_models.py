import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses
from tests.losses.conftest import float32


@pytest.fixture
def pairs():
  rng = np.random.default_rng(5)
  return {'chosen_scores': rng.normal(size=6) * 2, 'rejected_scores': rng.normal(size=6) * 2}


@pytest.mark.parametrize('margin', [0.0, 0.7])
def test_bradley_terry_is_the_cross_entropy_of_the_preference(pairs, margin):
  difference = pairs['chosen_scores'] - pairs['rejected_scores'] - margin
  chance = 1 / (1 + np.exp(-difference))
  loss, arrays = functools.partial(losses.bradley_terry, margin=margin), float32(pairs)
  np.testing.assert_allclose(loss(**arrays), -np.log(chance), rtol=1e-5)
  for name, slope in (('chosen_scores', chance - 1), ('rejected_scores', 1 - chance)):
    found = jax.grad(lambda x: jnp.sum(loss(**(arrays | {name: x}))))(arrays[name])  # noqa: B023
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-6)


def test_bradley_terry_reads_differences_and_stays_finite_far_out(pairs):
  arrays = float32(pairs)
  moved = {name: x + 3.0 for name, x in arrays.items()}
  np.testing.assert_allclose(losses.bradley_terry(**moved), losses.bradley_terry(**arrays), rtol=1e-4)
  value, slope = jax.value_and_grad(lambda x: jnp.sum(losses.bradley_terry(x, jnp.zeros(1))))(
    jnp.array([-2000.0])
  )
  assert (float(value), slope.tolist()) == (2000.0, [-1.0])


def test_reward_regression_is_half_the_squared_error():
  rng = np.random.default_rng(6)
  predictions, rewards = rng.normal(size=(2, 5))
  arrays = float32({'predictions': predictions, 'rewards': rewards})
  found, slope = jax.value_and_grad(lambda x: jnp.sum(losses.reward_regression(x, arrays['rewards'])))(
    arrays['predictions']
  )
  np.testing.assert_allclose(found, np.sum((predictions - rewards) ** 2) / 2, rtol=1e-5)
  np.testing.assert_allclose(slope, predictions - rewards, rtol=1e-4, atol=1e-6)


def test_wrong_shapes_raise():
  with pytest.raises(ValueError, match='rejected_scores has shape'):
    losses.bradley_terry.__wrapped__(jnp.zeros(3), jnp.zeros(1))
  with pytest.raises(ValueError, match='rewards has shape'):
    losses.reward_regression.__wrapped__(jnp.zeros(3), jnp.zeros(2))


def test_scores_fitted_to_bradley_terry_preferences_are_their_strengths():
  """The population's minimum, up to one number: preferences of three answers with strengths 1.5, 0 and −1."""
  strengths = jnp.array([1.5, 0.0, -1.0])
  chosen, rejected = jnp.array([0, 0, 1, 1, 2, 2]), jnp.array([1, 2, 0, 2, 0, 1])
  weights = jax.nn.sigmoid(strengths[chosen] - strengths[rejected])
  slope = jax.grad(lambda r: jnp.sum(weights * losses.bradley_terry(r[chosen], r[rejected])))
  fitted = jax.lax.fori_loop(0, 2000, lambda _, r: r - 0.5 * slope(r), jnp.zeros(3))
  np.testing.assert_allclose(fitted - fitted[1], strengths, atol=1e-3)
