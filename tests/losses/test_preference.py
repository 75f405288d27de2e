import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses
from tests.losses.conftest import fixed_point, float32, regret

NAMES = (
  'policy_chosen_logps',
  'policy_rejected_logps',
  'reference_chosen_logps',
  'reference_rejected_logps',
)


@pytest.fixture
def pairs():
  rng = np.random.default_rng(4)
  return {name: -rng.gamma(4.0, 2.0, 6) for name in NAMES}


def delta_rho(pairs):
  chosen = pairs['policy_chosen_logps'] - pairs['reference_chosen_logps']
  return chosen - (pairs['policy_rejected_logps'] - pairs['reference_rejected_logps'])


def held_to(loss, inputs, expected, by_chosen, by_rejected):
  """Values, and gradients in both of the policy's log-probs."""
  arrays = float32(inputs)
  np.testing.assert_allclose(loss(**arrays), expected, rtol=1e-5, atol=1e-5)
  for name, gradient in (('policy_chosen_logps', by_chosen), ('policy_rejected_logps', by_rejected)):
    found = jax.grad(lambda x: jnp.sum(loss(**(arrays | {name: x}))))(arrays[name])  # noqa: B023
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_dpo_is_the_cross_entropy_of_bradley_terry(pairs, smoothing):
  margin = 0.3 * delta_rho(pairs)
  chance = 1 / (1 + np.exp(-margin))
  expected = -(1 - smoothing) * np.log(chance) - smoothing * np.log(1 - chance)
  slope = 0.3 * (chance - (1 - smoothing))
  held_to(functools.partial(losses.dpo, beta=0.3, label_smoothing=smoothing), pairs, expected, slope, -slope)


def test_dpo_stays_finite_far_out(pairs):
  far = float32(pairs) | {'policy_chosen_logps': jnp.full(6, -2000.0)}
  value, gradient = jax.value_and_grad(lambda x: jnp.sum(losses.dpo(**(far | {'policy_chosen_logps': x}))))(
    far['policy_chosen_logps']
  )
  assert np.isfinite(value)
  np.testing.assert_allclose(gradient, -0.1, rtol=1e-4)


def test_ipo_regresses_the_margin(pairs):
  residual = delta_rho(pairs) - 1 / (2 * 0.4)
  held_to(functools.partial(losses.ipo, tau=0.4), pairs, residual**2, 2 * residual, -2 * residual)


def test_ipo_by_length_divides_each_log_ratio(pairs):
  lengths = {'chosen_lengths': np.array([1.0, 2, 3, 4, 5, 6]), 'rejected_lengths': np.full(6, 3.0)}
  chosen = (pairs['policy_chosen_logps'] - pairs['reference_chosen_logps']) / lengths['chosen_lengths']
  rejected = (pairs['policy_rejected_logps'] - pairs['reference_rejected_logps']) / 3
  residual = chosen - rejected - 1 / 0.2
  gradients = 2 * residual / lengths['chosen_lengths'], -2 * residual / 3
  held_to(losses.ipo, pairs | lengths, residual**2, *gradients)
  with pytest.raises(ValueError, match='only one of chosen_lengths and rejected_lengths'):
    losses.ipo(**float32(pairs), chosen_lengths=jnp.ones(6))


def test_slic_is_a_hinge_plus_imitation():
  pairs = {
    'policy_chosen_logps': np.array([-1.0, -4.0, -2.0]),
    'policy_rejected_logps': np.array([-3.0, -3.0, -2.5]),
  }
  expected = [0.1 * 1, 2 + 0.1 * 4, 0.5 + 0.1 * 2]
  open_ = np.array([0.0, 1.0, 1.0])
  held_to(losses.slic, pairs, expected, -open_ - 0.1, open_)


@pytest.mark.parametrize('loss', [losses.dpo, losses.ipo])
def test_wrong_shapes_raise(pairs, loss):
  with pytest.raises(ValueError, match='reference_rejected_logps has shape'):
    loss.__wrapped__(**(float32(pairs) | {'reference_rejected_logps': jnp.zeros(1)}))
  with pytest.raises(ValueError, match='policy_rejected_logps has shape'):
    losses.slic.__wrapped__(jnp.zeros(3), jnp.zeros(1))


# --- CoPG's bandit ------------------------------------------------------------------------------------------


def by_preference(bandit, loss):
  """The loss of a pair whose label is drawn from σ(R(y) − R(y'))."""
  ref = bandit.reference_logps

  def pair_loss(logps, y, other):
    chance = jax.nn.sigmoid(bandit.rewards[y] - bandit.rewards[other])
    won = loss(logps[y], logps[other], ref[y], ref[other])
    lost = loss(logps[other], logps[y], ref[other], ref[y])
    return chance * won + (1 - chance) * lost

  return pair_loss


def test_ipo_on_the_bandit_has_the_regret_of_copgs_paper(bandit):
  policy = fixed_point(bandit, by_preference(bandit, functools.partial(losses.ipo, tau=bandit.tau)))
  np.testing.assert_allclose(regret(bandit, policy), 0.1525, atol=1e-4)


def test_dpo_on_the_bandit_finds_the_optimum_of_its_own_temperature(bandit):
  """Preferences are Bradley-Terry's, so that DPO at β solves the bandit whose temperature is β."""
  policy = fixed_point(bandit, by_preference(bandit, functools.partial(losses.dpo, beta=bandit.tau)), 40_000)
  np.testing.assert_allclose(policy, bandit.optimum, atol=1e-3)


def test_slic_on_the_bandit_prefers_the_better(bandit):
  policy = fixed_point(
    bandit, by_preference(bandit, lambda c, r, *_: losses.slic(c, r, sft_weight=0.0)), steps=500
  )
  assert policy[2] < 1 / 3 < min(policy[0], policy[1])
