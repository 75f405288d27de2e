import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses
from tests.losses.conftest import check, float32, gradients


@pytest.fixture
def inputs(arrays):
  """Log-ratios below, inside and above the window [.1, 1.9], and advantages of both signs."""
  rho = np.array([-4.0, -0.5, 0.0, 0.3, 0.7, 200.0, -200.0])
  reference = arrays['reference_logps']
  advantages = np.array([0.5, -1.0, 2.0, 0.7, 1.1, 0.3, 0.2])
  return {'policy_logps': reference + rho, 'reference_logps': reference, 'advantages': advantages}


def ratio(inputs, epsilon=0.9):
  rho = np.minimum(inputs['policy_logps'] - inputs['reference_logps'], 10)
  return np.clip(np.exp(rho), 1 - epsilon, 1 + epsilon)


@pytest.mark.parametrize('epsilon', [0.9, 0.3])
def test_a_lol_equals_the_papers_formula(inputs, epsilon):
  """The gradient is the weight's, also outside the window: the clip is inside the stop-gradient."""
  weight = np.maximum(inputs['advantages'], 0) * ratio(inputs, epsilon)
  check(
    losses.a_lol, inputs, -weight * inputs['policy_logps'], -weight, ('reference_logps',), epsilon=epsilon
  )


def test_a_lol_ref_free_equals_the_papers_formula(inputs):
  del inputs['reference_logps']
  weight = np.maximum(inputs['advantages'], 0)
  check(losses.a_lol_ref_free, inputs, -weight * inputs['policy_logps'], -weight)


def test_a_lol_kl_is_a_constant_off_every_advantage(inputs):
  weight = np.maximum(inputs['advantages'], 0)
  rho = inputs['policy_logps'] - inputs['reference_logps']
  expected = -weight * inputs['policy_logps'] + 0.25 * rho
  check(losses.a_lol_kl, inputs, expected, -(weight - 0.25), kl_weight=0.25)


def test_r_lol_takes_rewards_of_both_signs(inputs):
  inputs['rewards'] = inputs.pop('advantages')
  weight = inputs['rewards'] * ratio(inputs)
  check(losses.r_lol, inputs, -weight * inputs['policy_logps'], -weight, ('reference_logps',))


def test_a_lol_sequence_clips_token_by_token(tokens):
  tokens['advantages'] = np.array([0.8, -0.3, 1.5])
  del tokens['rewards'], tokens['values']
  expected, gradient = np.zeros(3), np.zeros((3, 5))
  for b, length in enumerate((4, 2, 1)):
    for t in range(length):
      rho = tokens['policy_logps'][b, t] - tokens['reference_logps'][b, t]
      weight = max(tokens['advantages'][b], 0) * min(max(np.exp(rho), 0.1), 1.9)
      expected[b] -= weight * tokens['policy_logps'][b, t]
      gradient[b, t] = -weight
  check(losses.a_lol_sequence, tokens, expected, gradient, ('reference_logps',))


def test_at_the_reference_the_sequence_variants_gradient_is_the_reference_free_ones(tokens):
  tokens['reference_logps'] = tokens['policy_logps']
  advantages = np.array([0.8, -0.3, 1.5])
  arrays = {name: tokens[name] for name in ('policy_logps', 'reference_logps', 'mask')}
  by_token = gradients(losses.a_lol_sequence, arrays | {'advantages': advantages}, 'policy_logps')

  def reference_free(policy_logps):
    summed = jnp.sum(jnp.where(tokens['mask'], policy_logps, 0), axis=1)
    return jnp.sum(losses.a_lol_ref_free(summed, jnp.asarray(advantages, jnp.float32)))

  expected = jax.grad(reference_free)(jnp.asarray(tokens['policy_logps'], jnp.float32))
  np.testing.assert_allclose(by_token['policy_logps'], expected, rtol=1e-6)


@pytest.mark.parametrize('loss', [losses.a_lol, losses.a_lol_ref_free, losses.a_lol_kl, losses.r_lol])
def test_wrong_shapes_raise(inputs, loss):
  if loss is losses.r_lol:
    inputs['rewards'] = inputs.pop('advantages')
  if loss is losses.a_lol_ref_free:
    del inputs['reference_logps']
  last = list(inputs)[-1]
  with pytest.raises(ValueError, match=f'{last} has shape'):
    loss.__wrapped__(**(float32(inputs) | {last: jnp.zeros(1)}))
  with pytest.raises(ValueError, match='advantages has shape'):
    losses.a_lol_sequence.__wrapped__(
      jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3), bool), jnp.zeros(3)
    )


def test_a_lol_raises_responses_better_than_the_value(bandit):
  """It imitates the good arms, in proportion to μ·A; the optimum's temperature plays no part."""
  advantages = bandit.rewards - 1.5

  def loss(logps, _, __):
    return losses.a_lol_ref_free(logps, advantages)

  policy, _ = bandit(loss)
  np.testing.assert_allclose(policy, np.array([0.2 * 1.0, 0.3 * 0.5, 0]) / 0.35, atol=2e-3)


def one_token(loss):
  """A loss of token arrays, on answers of one token."""

  def on_answers(policy_logps, reference_logps, advantages):
    mask = jnp.ones((3, 1), bool)
    return loss(policy_logps[:, None], reference_logps[:, None], mask, advantages)

  return on_answers


@pytest.mark.parametrize('loss', [losses.a_lol, one_token(losses.a_lol_sequence)])
def test_a_lols_ratio_feeds_on_itself_up_to_its_window(bandit, loss):
  """The best arm's ratio is cut at 1.9, the next one's is 3π: .45 π² − .83 π + .38 = 0, π = .8444."""
  advantages = bandit.rewards - 1.5
  policy, _ = bandit(lambda logps, *_: loss(logps, bandit.reference_logps, advantages), num_steps=4000)
  np.testing.assert_allclose(policy, [0.84444, 0.15556, 0], atol=3e-3)


def test_r_lol_is_where_its_weights_are_its_policy(bandit):
  policy, _ = bandit(lambda logps, *_: losses.r_lol(logps, bandit.reference_logps, bandit.rewards))
  weights = np.asarray(bandit.behaviour * bandit.rewards) * np.clip(3 * np.asarray(policy), 0.1, 1.9)
  np.testing.assert_allclose(policy, weights / weights.sum(), atol=1e-4)


def test_a_lol_kl_imitates_in_proportion_to_advantages_less_the_kl_weight(bandit):
  advantages = jnp.array([1.0, 0.5, 0.2])
  policy, _ = bandit(lambda logps, *_: losses.a_lol_kl(logps, bandit.reference_logps, advantages))
  np.testing.assert_allclose(policy, np.array([0.2 * 0.9, 0.3 * 0.4, 0.5 * 0.1]) / 0.35, atol=1e-4)
