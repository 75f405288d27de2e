"""What every loss is held to."""

import functools

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


def check(loss, inputs, expected, gradient, stopped=(), **settings):
  """A loss against float64 numpy: its values, its gradient in `policy_logps`, none in `stopped`."""
  found = loss(
    **{
      name: jnp.asarray(x) if np.asarray(x).dtype == bool else jnp.asarray(x, jnp.float32)
      for name, x in inputs.items()
    },
    **settings,
  )
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
  chosen = gradients(functools.partial(loss, **settings), inputs, 'policy_logps', *stopped)
  np.testing.assert_allclose(chosen['policy_logps'], gradient, rtol=2e-4, atol=2e-5)
  for name in stopped:
    assert not chosen[name].any(), f'a gradient reaches {name}'


@pytest.fixture
def tokens():
  """Three responses of 4, 2 and 1 tokens in rows of 5; what is outside is no number to be read."""
  rng = np.random.default_rng(1)
  mask = np.arange(5)[None] < np.array([4, 2, 1])[:, None]

  def inside(x):
    return np.where(mask, x, 1e6)

  return {
    'policy_logps': inside(-rng.gamma(1.0, 1.0, (3, 5))),
    'reference_logps': inside(-rng.gamma(1.0, 1.0, (3, 5))),
    'mask': mask,
    'rewards': rng.normal(size=3),
    'values': inside(rng.normal(size=(3, 5))),
  }


@pytest.fixture
def groups():
  """Four groups of up to four members; what is masked is no number to be read."""
  rng = np.random.default_rng(2)
  mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)

  def inside(x):
    return np.where(mask, x, 1e6)

  return {
    'policy_logps': inside(-rng.gamma(4.0, 2.0, (4, 4))),
    'reference_logps': inside(-rng.gamma(4.0, 2.0, (4, 4))),
    'rewards': inside(rng.normal(size=(4, 4))),
    'mask': mask,
  }
