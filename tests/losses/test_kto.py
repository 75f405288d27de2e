import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses
from tests.losses.conftest import check, float32, gradients

SETTINGS = {'beta': 0.3, 'desirable_weight': 1.5, 'undesirable_weight': 0.5}


@pytest.fixture
def inputs(arrays):
  labels = np.array([1, 0, 1, 1, 0, 0, 1])
  chosen = {name: arrays[name] for name in ('policy_logps', 'reference_logps')}
  return chosen | {'labels': labels, 'reference_point': np.array(0.4)}


def expected(policy_logps, reference_logps, labels, reference_point):
  def sigma(x):
    return 1 / (1 + np.exp(-x))

  rho = policy_logps - reference_logps
  up = 1.5 * (1 - sigma(0.3 * (rho - reference_point)))
  down = 0.5 * (1 - sigma(0.3 * (reference_point - rho)))
  return np.where(labels == 1, up, down)


def test_kto_equals_the_papers_formula(inputs):
  np.testing.assert_allclose(losses.kto(**float32(inputs), **SETTINGS), expected(**inputs), rtol=1e-5)


def test_the_gradient_of_kto_equals_its_closed_form(inputs):
  g = gradients(functools.partial(losses.kto, **SETTINGS), inputs, 'policy_logps', 'reference_point')
  assert g['reference_point'] == 0
  margin = 0.3 * (inputs['policy_logps'] - inputs['reference_logps'] - 0.4)
  slope = 0.3 / (2 + 2 * np.cosh(margin))
  np.testing.assert_allclose(g['policy_logps'], np.where(inputs['labels'] == 1, -1.5, 0.5) * slope, rtol=1e-4)


def test_reference_point_is_the_clamped_mean_without_gradient():
  policy, reference = jnp.array([1.0, 2.0, 99.0]), jnp.array([0.5, 0.5, 0.0])
  weights = jnp.array([True, True, False])
  np.testing.assert_allclose(losses.kto_reference_point(policy, reference, weights), 1.0)
  np.testing.assert_allclose(losses.kto_reference_point(-policy, reference, weights), 0.0)
  np.testing.assert_allclose(losses.kto_reference_point(policy, reference, jnp.zeros(3)), 0.0)
  gradient = jax.grad(lambda p: losses.kto_reference_point(p, reference, weights))(policy)
  assert not np.asarray(gradient).any()


def test_wrong_shapes_raise(inputs):
  with pytest.raises(ValueError, match='labels has shape'):
    losses.kto.__wrapped__(**(float32(inputs) | {'labels': jnp.ones(1)}))
  with pytest.raises(ValueError, match='reference_point has shape'):
    losses.kto.__wrapped__(**(float32(inputs) | {'reference_point': jnp.ones(7)}))


def test_kto_prefers_the_desirable_arm(bandit):
  labels = jnp.array([1.0, 1.0, 0.0])

  def loss(logps, _, __):
    return losses.kto(logps, bandit.reference_logps, labels, jnp.zeros(()), beta=1.0)

  policy, _ = bandit(loss, num_steps=500)
  assert policy[2] < 0.05 and policy[0] > 0.3


def test_bco_is_a_shifted_classifier(arrays):
  labels = np.array([1, 0, 1, 1, 0, 0, 1])
  inputs = {name: arrays[name] for name in ('policy_logps', 'reference_logps')}
  logits = 0.3 * (inputs['policy_logps'] - inputs['reference_logps']) - 0.4
  sigma = 1 / (1 + np.exp(-logits))
  expected = -np.where(labels == 1, np.log(sigma), np.log(1 - sigma))
  inputs |= {'labels': labels, 'shift': np.array(0.4)}
  check(losses.bco, inputs, expected, 0.3 * (sigma - labels), ('shift',), beta=0.3)
  with pytest.raises(ValueError, match='shift has shape'):
    losses.bco.__wrapped__(**(float32(inputs) | {'shift': jnp.ones(7)}))


def test_bco_prefers_the_desirable_arm(bandit):
  labels = jnp.array([1.0, 1.0, 0.0])

  def loss(logps, _, __):
    return losses.bco(logps, bandit.reference_logps, labels, jnp.zeros(()), beta=1.0)

  policy, _ = bandit(loss, num_steps=500)
  assert policy[2] < 0.05 and policy[0] > 0.3


def test_bco_solves_the_bandit_whose_thumbs_are_its_rewards(bandit):
  """Thumbs drawn from σ(R − 2): βρ − δ = R − 2 is π* where δ = 2 − V*, for any log."""

  def loss(logps, _, __):
    chance, shift = jax.nn.sigmoid(bandit.rewards - 2), jnp.float32(2 - bandit.value)
    up, down = (
      losses.bco(logps, bandit.reference_logps, jnp.full(3, label), shift, beta=bandit.tau)
      for label in (1.0, 0.0)
    )
    return chance * up + (1 - chance) * down

  policy, _ = bandit(loss, num_steps=6000, learning_rate=2.0)
  np.testing.assert_allclose(policy, bandit.optimum, atol=5e-4)
