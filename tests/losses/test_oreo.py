import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses
from tests.losses.conftest import check, gradients

BETA = 0.6


def residuals(tokens):
  """V_t + β Σ_{i≥t} ρ_i − r, token by token."""
  result = np.zeros((3, 5))
  for b, length in enumerate((4, 2, 1)):
    rho = tokens['policy_logps'][b] - tokens['reference_logps'][b]
    for t in range(length):
      result[b, t] = (
        tokens['values'][b, t] + BETA * sum(rho[i] for i in range(t, length)) - tokens['rewards'][b]
      )
  return result


LENGTHS = np.array([[4], [2], [1]])


def test_policy_moves_only_the_tokens_own_log_ratio(tokens):
  found = residuals(tokens)
  check(
    losses.oreo_policy, tokens, (found**2).sum(1) / LENGTHS[:, 0], 2 * BETA * found / LENGTHS, ('values',),
    beta=BETA,
  )  # fmt: skip


def test_the_value_is_fitted_to_the_reward_minus_later_log_ratios(tokens):
  found = residuals(tokens)
  check(losses.oreo_value, tokens, (found**2).sum(1) / LENGTHS[:, 0], np.zeros((3, 5)), beta=BETA)
  slope = gradients(lambda **x: losses.oreo_value(**x, beta=BETA), tokens, 'values')['values']
  np.testing.assert_allclose(slope, 2 * found / LENGTHS, rtol=1e-4, atol=1e-5)


def test_wrong_shapes_raise():
  arrays = [jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3), bool), jnp.zeros((2, 3))]
  for loss in (losses.oreo_policy, losses.oreo_value):
    with pytest.raises(ValueError, match='rewards has shape'):
      loss.__wrapped__(*arrays, jnp.zeros(3))
    with pytest.raises(ValueError, match='values has shape'):
      loss.__wrapped__(*arrays[:3], jnp.zeros((2, 1)), jnp.zeros(2))


def test_oreo_solves_the_bandit(bandit):
  """Answers of one token: OREO is DRO with residuals squared once."""

  def loss(logps, value, _):
    arrays = logps[:, None], bandit.reference_logps[:, None], jnp.ones((3, 1), bool), jnp.full((3, 1), value)
    policy = losses.oreo_policy(*arrays, bandit.rewards, beta=bandit.tau)
    return policy + losses.oreo_value(*arrays, bandit.rewards, beta=bandit.tau)

  policy, value = bandit(loss, num_steps=4000, learning_rate=0.3)
  np.testing.assert_allclose(policy, bandit.optimum, atol=1e-4)
  np.testing.assert_allclose(value, bandit.value, atol=1e-4)
  assert jax.numpy.isfinite(value)
