import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses
from tests.losses.conftest import FIRST, SECOND, check, float32, gradients, regret

TAU = 0.7


def test_policy_is_equation_8_over_tau(arrays):
  logp, ref, r, v = (arrays[k] for k in ('policy_logps', 'reference_logps', 'rewards', 'values'))
  expected = -(r - v) * logp + TAU / 2 * (logp - ref) ** 2
  np.testing.assert_allclose(losses.dro_v_policy(**float32(arrays), tau=TAU), expected, rtol=2e-6, atol=1e-5)


def test_policy_gradient_is_the_residual_and_stops_at_the_value(arrays):
  loss = functools.partial(losses.dro_v_policy, tau=TAU)
  g = gradients(loss, arrays, 'policy_logps', 'values')
  rho = arrays['policy_logps'] - arrays['reference_logps']
  np.testing.assert_allclose(
    g['policy_logps'], -(arrays['rewards'] - arrays['values'] - TAU * rho), rtol=1e-5, atol=1e-5
  )
  assert not g['values'].any()


def test_value_is_equation_7(arrays):
  logp, ref, r, v = (arrays[k] for k in ('policy_logps', 'reference_logps', 'rewards', 'values'))
  expected = 0.5 * (v - (r - TAU * (logp - ref))) ** 2
  np.testing.assert_allclose(losses.dro_v_value(**float32(arrays), tau=TAU), expected, rtol=1e-5)
  g = gradients(functools.partial(losses.dro_v_value, tau=TAU), arrays, 'policy_logps', 'values', 'rewards')
  np.testing.assert_allclose(g['values'], v - (r - TAU * (logp - ref)), rtol=1e-5, atol=1e-5)
  assert not g['policy_logps'].any() and not g['rewards'].any()


def test_token_value_counts_the_future_alone(tokens):
  expected = []
  for b, length in enumerate((4, 2, 1)):
    rho = tokens['policy_logps'][b] - tokens['reference_logps'][b]
    squares = [
      0.5
      * (tokens['values'][b, t] - (tokens['rewards'][b] - TAU * sum(rho[i] for i in range(t, length)))) ** 2
      for t in range(length)
    ]
    expected.append(np.mean(squares))
  inputs = float32(tokens) | {'mask': jnp.asarray(tokens['mask'])}
  np.testing.assert_allclose(losses.dro_v_token_value(**inputs, tau=TAU), expected, rtol=1e-5)
  g = gradients(functools.partial(losses.dro_v_token_value, tau=TAU), tokens, 'policy_logps', 'values')
  assert not g['policy_logps'].any()
  assert not g['values'][~tokens['mask']].any() and g['values'][tokens['mask']].all()


def test_residual_holds_both_gradients(arrays):
  residual = gradients(functools.partial(losses.dro_v_residual, tau=TAU), arrays, 'policy_logps', 'values')
  policy = gradients(functools.partial(losses.dro_v_policy, tau=TAU), arrays, 'policy_logps')
  value = gradients(functools.partial(losses.dro_v_value, tau=TAU), arrays, 'values')
  np.testing.assert_allclose(residual['policy_logps'], TAU * policy['policy_logps'], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(residual['values'], value['values'], rtol=1e-5, atol=1e-5)


def test_dro_p_is_half_the_variance_in_sum(arrays):
  del arrays['values']
  e = arrays['rewards'] - TAU * (arrays['policy_logps'] - arrays['reference_logps'])
  loss = functools.partial(losses.dro_p, tau=TAU)
  inputs = arrays | {'mean': e.mean()}
  np.testing.assert_allclose(loss(**float32(inputs)), 0.5 * (e - e.mean()) ** 2, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(np.mean(loss(**float32(inputs))), np.var(e) / 2, rtol=1e-5)
  g = gradients(loss, inputs, 'policy_logps', 'mean')
  np.testing.assert_allclose(g['policy_logps'], -TAU * (e - e.mean()), rtol=1e-4, atol=1e-5)
  assert g['mean'] == 0


@pytest.mark.parametrize('loss', [losses.dro_v_policy, losses.dro_v_value, losses.dro_v_residual])
def test_wrong_shapes_raise(arrays, loss):
  with pytest.raises(ValueError, match='values has shape'):
    loss.__wrapped__(**(float32(arrays) | {'values': jnp.zeros(1)}))


def test_wrong_shapes_raise_for_tokens_and_statistics(tokens, arrays):
  inputs = float32(tokens) | {'mask': jnp.asarray(tokens['mask'])}
  with pytest.raises(ValueError, match='rewards has shape'):
    losses.dro_v_token_value.__wrapped__(**(inputs | {'rewards': jnp.zeros(2)}))
  del arrays['values']
  with pytest.raises(ValueError, match='mean has shape'):
    losses.dro_p.__wrapped__(**float32(arrays), mean=jnp.zeros(7))


@pytest.mark.parametrize('tau', [0.5, 2.0])
def test_dro_v_solves_the_bandit_at_its_temperature(bandit, tau):
  """From CoPG's log. With ½ for τ/2 the temperature would be lost."""

  def loss(logps, value, _):
    args = (logps, bandit.reference_logps, bandit.rewards, jnp.full(3, value), tau)
    return losses.dro_v_policy(*args) + losses.dro_v_value(*args)

  policy, value = bandit(loss, behaviour=(FIRST + SECOND) / 2)
  tilted = np.exp(np.asarray(bandit.rewards, np.float64) / tau)
  np.testing.assert_allclose(policy, tilted / tilted.sum(), atol=1e-4)
  np.testing.assert_allclose(value, tau * np.log(tilted.mean()), atol=1e-4)
  if tau == bandit.tau:
    np.testing.assert_allclose(policy, bandit.optimum, atol=1e-4)
    np.testing.assert_allclose(value, bandit.value, atol=1e-4)
    np.testing.assert_allclose(regret(bandit, np.asarray(policy, np.float64)), 0, atol=1e-4)


def test_dro_v_residual_solves_the_bandit(bandit):
  def loss(logps, value, _):
    return losses.dro_v_residual(
      logps, bandit.reference_logps, bandit.rewards, jnp.full(3, value), bandit.tau
    )

  policy, value = bandit(loss)
  np.testing.assert_allclose(policy, bandit.optimum, atol=1e-4)
  np.testing.assert_allclose(value, bandit.value, atol=1e-4)


def test_the_token_value_of_one_token_solves_the_bandit(bandit):
  def loss(logps, value, _):
    rest = bandit.rewards, jnp.full((3, 1), value), bandit.tau
    tokens = logps[:, None], bandit.reference_logps[:, None], jnp.ones((3, 1), bool)
    policy = losses.dro_v_policy(logps, bandit.reference_logps, rest[0], rest[1][:, 0], bandit.tau)
    return policy + losses.dro_v_token_value(*tokens, *rest)

  policy, value = bandit(loss)
  np.testing.assert_allclose(policy, bandit.optimum, atol=1e-4)
  np.testing.assert_allclose(value, bandit.value, atol=1e-4)


def test_dro_p_solves_the_bandit(bandit):
  """One prompt: the batch's mean residual is V(x)."""

  def loss(logps, _, behaviour):
    mean = jnp.sum(behaviour * (bandit.rewards - bandit.tau * (logps - bandit.reference_logps)))
    return losses.dro_p(logps, bandit.reference_logps, bandit.rewards, mean, bandit.tau)

  policy, _ = bandit(loss)
  np.testing.assert_allclose(policy, bandit.optimum, atol=1e-5)


def test_a_dropped_value_biases_the_bandit(bandit):
  def loss(logps, _, __):
    return losses.dro_v_policy(logps, bandit.reference_logps, bandit.rewards, jnp.zeros(3), bandit.tau)

  policy, _ = bandit(loss)
  assert np.abs(policy - bandit.optimum).max() > 0.05


@pytest.fixture
def answers(arrays):
  return arrays | {'lengths': np.array([1.0, 2, 3, 4, 5, 6, 7])}


def test_rpo_regresses_the_mean_log_ratio_on_the_advantage(answers):
  rho = (answers['policy_logps'] - answers['reference_logps']) / answers['lengths']
  residual = rho - (answers['rewards'] - answers['values']) / TAU
  check(losses.rpo, answers, residual**2 / 2, residual / answers['lengths'], ('values',), tau=TAU)


def rpo_fixed_point(bandit, rewards):
  """RPO on answers of one token; V̂ over all that `rewards` has."""
  rewards = jnp.asarray(rewards, jnp.float32)
  reference_logps = bandit.reference_logps[: len(rewards)]
  value = bandit.tau * jax.nn.logsumexp(reference_logps + rewards / bandit.tau)
  ones = jnp.ones(len(rewards))

  def loss(logps, *_):
    answers = logps[: len(rewards)], reference_logps, rewards, value * ones, ones
    return jnp.pad(losses.rpo(*answers, tau=bandit.tau), (0, 3 - len(rewards)))

  return bandit(loss)[0]


def test_rpo_on_all_answers_of_one_token_has_the_optimum(bandit):
  np.testing.assert_allclose(rpo_fixed_point(bandit, bandit.rewards), bandit.optimum, atol=1e-4)


def test_rpo_on_one_answer_imitates_it_whatever_its_reward(bandit):
  for reward in (-3.0, 3.0):
    assert rpo_fixed_point(bandit, [reward])[0] > 0.9


def test_rpo_refuses_wrong_shapes(answers):
  with pytest.raises(ValueError, match='lengths has shape'):
    losses.rpo.__wrapped__(**(float32(answers) | {'lengths': jnp.ones(1)}))
