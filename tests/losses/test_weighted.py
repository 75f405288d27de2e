import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses
from tests.losses.conftest import check


def test_sft_is_the_negative_log_likelihood():
  logps = jnp.array([-3.0, -0.5])
  np.testing.assert_array_equal(losses.sft(logps), [3.0, 0.5])
  np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(losses.sft(x)))(logps), [-1.0, -1.0])


def test_sft_clones_the_behaviour_policy(bandit):
  policy, _ = bandit(lambda logps, _, __: losses.sft(logps))
  np.testing.assert_allclose(policy, [0.2, 0.3, 0.5], atol=1e-5)


def test_weighted_bc_weighs_by_reward(arrays):
  inputs = {'policy_logps': arrays['policy_logps'], 'rewards': np.abs(arrays['rewards'])}
  check(losses.weighted_bc, inputs, -inputs['rewards'] * inputs['policy_logps'], -inputs['rewards'])


def test_awr_weighs_by_the_exponential_advantage_up_to_twenty(arrays):
  inputs = {'policy_logps': arrays['policy_logps'], 'advantages': np.linspace(-3, 3, 7)}
  weights = np.minimum(np.exp(inputs['advantages'] / 0.5), 20)
  assert (weights == 20).any() and (weights < 20).any()
  check(losses.awr, inputs, -weights * inputs['policy_logps'], -weights, ('advantages',), beta=0.5)
  far = losses.awr(jnp.array([-1.0]), jnp.array([1000.0]))
  np.testing.assert_allclose(far, [20.0])


def test_behaviour_cloning_solves_the_bandit_as_predicted(bandit):
  """Each clones its weighted log: μ·r, and μ·e^{r/β}."""
  behaviour = np.array([0.2, 0.3, 0.5])
  policy, _ = bandit(lambda logps, _, __: losses.weighted_bc(logps, bandit.rewards))
  expected = behaviour * np.asarray(bandit.rewards)
  np.testing.assert_allclose(policy, expected / expected.sum(), atol=1e-4)
  policy, _ = bandit(lambda logps, _, __: losses.awr(logps, bandit.rewards - 2, beta=1.0))
  expected = behaviour * np.exp(np.asarray(bandit.rewards))
  np.testing.assert_allclose(policy, expected / expected.sum(), atol=1e-4)


def test_wrong_shapes_raise():
  with pytest.raises(ValueError, match='rewards has shape'):
    losses.weighted_bc.__wrapped__(jnp.zeros(3), jnp.zeros(1))
  with pytest.raises(ValueError, match='advantages has shape'):
    losses.awr.__wrapped__(jnp.zeros(3), jnp.zeros(1))
