"""What every loss is held to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def arrays():
  """Log-probs, rewards and values of seven responses, float64."""
  rng = np.random.default_rng(0)
  return {
    'policy_logps': -rng.gamma(4.0, 2.0, 7),
    'reference_logps': -rng.gamma(4.0, 2.0, 7),
    'rewards': rng.normal(size=7),
    'values': rng.normal(size=7),
  }


@pytest.fixture
def bandit():
  """CoPG's bandit (arXiv 2406.19185, Sect. 5), and a loss's population fixed point by gradient descent."""

  def solve(loss, num_steps=3000, learning_rate=0.5):
    """Minimises Σ_y μ(y) loss(logits, value)(y) and returns (π, V)."""
    behaviour = jnp.array([0.2, 0.3, 0.5])

    def objective(params):
      return jnp.sum(behaviour * loss(jax.nn.log_softmax(params['logits']), params['value'], behaviour))

    def step(params, _):
      gradient = jax.grad(objective)(params)
      return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), None

    params = {'logits': jnp.zeros(3), 'value': jnp.zeros(())}
    params, _ = jax.lax.scan(step, params, None, length=num_steps)
    return jax.nn.softmax(params['logits']), params['value']

  solve.rewards = jnp.array([2.5, 2.0, 1.0])
  solve.reference_logps = jnp.log(jnp.full(3, 1 / 3))
  solve.optimum = np.array([0.70538, 0.25950, 0.03512])
  solve.tau = 0.5
  solve.value = 2.12520
  return solve


def gradients(loss, arrays, *names):
  """Gradients of Σ loss with respect to the named arguments, as float64 numpy."""
  arrays = {
    name: jnp.asarray(x, jnp.float32) if np.asarray(x).dtype != bool else jnp.asarray(x)
    for name, x in arrays.items()
  }
  result = jax.grad(lambda chosen: jnp.sum(loss(**(arrays | chosen))))({name: arrays[name] for name in names})
  return {name: np.asarray(g, np.float64) for name, g in result.items()}


def float32(arrays):
  return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
