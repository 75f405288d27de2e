import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses
from tests.losses.conftest import FIRST, SECOND, check, float32, regret


@pytest.fixture
def logged(arrays):
  """Responses with log-ratios to the behaviour policy on both sides of the window, rewards of both signs."""
  behaviour = arrays['reference_logps']
  ratio = np.array([-0.5, -0.1, 0.0, 0.1, 0.5, 1.5, -3.0])
  rewards = np.array([1.0, -1.0, 0.5, -0.5, 2.0, -2.0, -0.3])
  return {'policy_logps': behaviour + ratio, 'behaviour_logps': behaviour, 'rewards': rewards}


def test_reinforce_stops_its_return(arrays):
  arrays['baselines'] = arrays.pop('values')
  rho = arrays['policy_logps'] - arrays['reference_logps']
  returns = arrays['rewards'] - 0.5 * rho - arrays['baselines']
  stopped = ('reference_logps', 'rewards', 'baselines')
  check(losses.reinforce, arrays, -returns * arrays['policy_logps'], -returns, stopped, beta=0.5)


def test_ppo_clip_has_no_gradient_where_the_clip_wins(logged):
  inputs = logged | {'advantages': logged['rewards']}
  del inputs['rewards']
  ratio, advantage = np.exp(inputs['policy_logps'] - inputs['behaviour_logps']), inputs['advantages']
  clipped = np.clip(ratio, 0.8, 1.2)
  expected = [-min(w * a, c * a) for w, a, c in zip(ratio, advantage, clipped)]
  passed = ~((advantage > 0) & (ratio > 1.2)) & ~((advantage < 0) & (ratio < 0.8))
  check(losses.ppo_clip, inputs, expected, np.where(passed, -ratio * advantage, 0))
  assert 0 < passed.sum() < 7


def test_topr_tapers_only_responses_with_negative_rewards(logged):
  ratio = np.exp(logged['policy_logps'] - logged['behaviour_logps'])
  weight = np.where(logged['rewards'] >= 0, 1.0, np.minimum(1.0, ratio)) * logged['rewards']
  check(losses.topr, logged, -weight * logged['policy_logps'], -weight, ('behaviour_logps',))


def test_gold_weighs_tokens_by_the_policys_own_probability(tokens):
  inputs = {name: tokens[name] for name in ('policy_logps', 'mask')} | {'rewards': np.array([1.0, 0.5, 2.0])}
  expected, gradient = np.zeros(3), np.zeros((3, 5))
  for b, length in enumerate((4, 2, 1)):
    for t in range(length):
      logp = tokens['policy_logps'][b, t]
      weight = inputs['rewards'][b] * max(0.3, np.exp(logp))
      expected[b] -= weight * logp
      gradient[b, t] = -weight
  check(losses.gold, inputs, expected, gradient, floor=0.3)


@pytest.fixture
def sampled(tokens):
  advantages = np.where(tokens['mask'], np.random.default_rng(6).normal(size=(3, 5)), 1e6)
  return {
    'policy_logps': tokens['policy_logps'],
    'mask': tokens['mask'],
    'behaviour_logps': tokens['reference_logps'],
    'advantages': advantages,
  }


def test_ppo_token_is_a_token_mean(sampled):
  expected, gradient = np.zeros(3), np.zeros((3, 5))
  for b, length in enumerate((4, 2, 1)):
    for t in range(length):
      logp, mu, a = (sampled[name][b, t] for name in ('policy_logps', 'behaviour_logps', 'advantages'))
      w = np.exp(logp - mu)
      expected[b] -= min(w * a, min(max(w, 0.8), 1.2) * a) / length
      outside = (a > 0 and w > 1.2) or (a < 0 and w < 0.8)
      gradient[b, t] = 0 if outside else -w * a / length
  check(losses.ppo_token, sampled, expected, gradient)


def test_dro_token_pulls_each_token_to_the_sampler(sampled):
  expected, gradient = np.zeros(3), np.zeros((3, 5))
  for b, length in enumerate((4, 2, 1)):
    for t in range(length):
      logp, mu, a = (sampled[name][b, t] for name in ('policy_logps', 'behaviour_logps', 'advantages'))
      expected[b] -= logp * a - 0.7 / 2 * (logp - mu) ** 2
      gradient[b, t] = -(a - 0.7 * (logp - mu))
  check(losses.dro_token, sampled, expected, gradient, beta=0.7)


def test_dro_token_of_one_token_with_the_optimal_value_solves_the_bandit(bandit):
  """Responses of one token are the only ones for which it is DRO, given V*."""
  mask, optimal = jnp.ones((3, 1), bool), bandit.rewards - bandit.value

  def loss(logps, _, __):
    return losses.dro_token(
      logps[:, None], mask, bandit.reference_logps[:, None], optimal[:, None], bandit.tau
    )

  policy, _ = bandit(loss)
  np.testing.assert_allclose(policy, bandit.optimum, atol=1e-4)


@pytest.mark.parametrize('log_ratio, bounded', [(30.0, False), (200.0, True)])
def test_the_ratio_is_unbounded_where_the_advantage_is_negative(log_ratio, bounded):
  """Where A < 0, −wA is the loss; float32 ends at e^40."""

  def loss(logps):
    return losses.ppo_clip(logps, logps * 0 - log_ratio, jnp.full(1, -2.0))[0]

  value, slope = jax.value_and_grad(loss)(jnp.zeros(1))
  np.testing.assert_allclose(value, 2 * np.exp(min(log_ratio, 40)), rtol=1e-4)
  np.testing.assert_allclose(slope[0], 0 if bounded else 2 * np.exp(log_ratio), rtol=1e-4)


def test_wrong_shapes_raise(arrays, logged):
  arrays['baselines'] = arrays.pop('values')
  with pytest.raises(ValueError, match='baselines has shape'):
    losses.reinforce.__wrapped__(**(float32(arrays) | {'baselines': jnp.zeros(1)}))
  with pytest.raises(ValueError, match='advantages has shape'):
    losses.ppo_clip.__wrapped__(jnp.zeros(3), jnp.zeros(3), jnp.zeros(1))
  with pytest.raises(ValueError, match='rewards has shape'):
    losses.topr.__wrapped__(**(float32(logged) | {'rewards': jnp.zeros(1)}))
  with pytest.raises(ValueError, match='rewards has shape'):
    losses.gold.__wrapped__(jnp.zeros((2, 3)), jnp.ones((2, 3), bool), jnp.zeros(3))
  with pytest.raises(ValueError, match='advantages has shape'):
    losses.dro_token.__wrapped__(
      jnp.zeros((2, 3)), jnp.ones((2, 3), bool), jnp.zeros((2, 3)), jnp.zeros((2, 1))
    )
  with pytest.raises(ValueError, match='advantages has shape'):
    losses.ppo_token.__wrapped__(
      jnp.zeros((2, 3)), jnp.ones((2, 3), bool), jnp.zeros((2, 3)), jnp.zeros((2, 1))
    )


@pytest.mark.parametrize('own_mean, expected', [(False, 0.6378), (True, 0.0148)])
def test_reinforce_is_biased_by_its_baseline_off_policy(bandit, own_mean, expected):
  """CoPG's bandit: with b = 0 it follows the log; even with the policy's own mean it misses π*."""
  behaviour = jnp.asarray((FIRST + SECOND) / 2, jnp.float32)

  def loss(logits):
    logps = jax.nn.log_softmax(logits)
    baseline = jnp.sum(jnp.exp(logps) * bandit.rewards) if own_mean else jnp.zeros(())
    arrays = bandit.reference_logps, bandit.rewards, jnp.full(3, baseline)
    return jnp.sum(behaviour * losses.reinforce(logps, *arrays, beta=bandit.tau))

  slope = jax.grad(loss)
  logits = jax.lax.fori_loop(0, 20_000, lambda _, logits: logits - 0.5 * slope(logits), jnp.zeros(3))
  policy = np.asarray(jax.nn.softmax(logits), np.float64)
  np.testing.assert_allclose(regret(bandit, policy), expected, atol=1e-4)


def test_the_uniform_policys_regret(bandit):
  np.testing.assert_allclose(bandit.value - regret(bandit, np.full(3, 1 / 3)), 1.83333, atol=1e-5)


def ppo_of_one_token(policy_logps, behaviour_logps, advantages):
  mask = jnp.ones((3, 1), bool)
  return losses.ppo_token(policy_logps[:, None], mask, behaviour_logps[:, None], advantages[:, None])


@pytest.mark.parametrize('loss', [losses.ppo_clip, ppo_of_one_token])
def test_ppo_stops_at_the_windows_edge(bandit, loss):
  """From π/μ = (1.67, 1.11, .67) and A = (1, ½, −½) only the middle arm has a way to go, to 1.2 · .3."""

  def of_log(logps, _, behaviour):
    return loss(logps, jnp.log(behaviour), bandit.rewards - 1.5)

  policy, _ = bandit(of_log, num_steps=2000, learning_rate=0.01)
  np.testing.assert_allclose(policy, [0.32, 0.36, 0.32], atol=1e-3)


def test_topr_stops_pushing_away_improbable_responses(bandit):
  """What is worse dies out, what is better is cloned by μ·r."""

  def loss(logps, _, behaviour):
    return losses.topr(logps, jnp.log(behaviour), bandit.rewards - 1.5)

  policy, _ = bandit(loss, num_steps=4000)
  np.testing.assert_allclose(policy, np.array([0.2 * 1, 0.3 * 0.5, 0]) / 0.35, atol=2e-3)


def test_gold_concentrates_on_probable_responses(bandit):
  """μ·r = (.5, .6, .5): the likeliest arm weighs .6 π, the others fall to the floor, and Σ weights = .6."""

  def loss(logps, _, __):
    return losses.gold(logps[:, None], jnp.ones((3, 1), bool), bandit.rewards)

  policy, _ = bandit(loss)
  np.testing.assert_allclose(policy, np.array([1, 10, 1]) / 12, atol=1e-3)
