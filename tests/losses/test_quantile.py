import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses
from tests.losses.conftest import check, float32


@pytest.fixture
def inputs(arrays):
  quantiles = np.array([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
  return {name: arrays[name] for name in ('policy_logps', 'reference_logps')} | {'quantiles': quantiles}


@pytest.mark.parametrize('beta', [0.01, 0.1, 1.0, 10.0, 100.0])
def test_qrpo_regresses_on_the_optimums_log_ratio(inputs, beta):
  """Z by quadrature: quantiles of the reference's own rewards are uniform, Z = ∫ e^{q/β} dq."""
  middles = (np.arange(1_000_000) + 0.5) / 1_000_000
  log_z = np.log(np.mean(np.exp((middles - 1) / beta))) + 1 / beta
  rho = inputs['policy_logps'] - inputs['reference_logps']
  residual = inputs['quantiles'] - beta * log_z - beta * rho
  found = losses.qrpo(**float32(inputs), beta=beta)
  np.testing.assert_allclose(found, residual**2, rtol=1e-4, atol=1e-5)
  check(losses.qrpo, inputs, found, -2 * beta * residual, beta=beta)


def test_wrong_shapes_raise(inputs):
  with pytest.raises(ValueError, match='quantiles has shape'):
    losses.qrpo.__wrapped__(**(float32(inputs) | {'quantiles': jnp.zeros(1)}))


def test_qrpo_finds_the_tilted_reference(bandit):
  """Many arms whose quantiles are evenly spaced: π* ∝ π_ref e^{q/β}."""
  count, beta = 64, 0.5
  quantiles = (jnp.arange(count) + 0.5) / count
  ref = jnp.full(count, -jnp.log(count))
  slope = jax.grad(
    lambda logits: jnp.mean(losses.qrpo(jax.nn.log_softmax(logits), ref, quantiles, beta=beta))
  )
  logits = jax.lax.fori_loop(0, 3000, lambda _, logits: logits - 20 * slope(logits), jnp.zeros(count))
  np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(quantiles / beta), rtol=2e-3)
