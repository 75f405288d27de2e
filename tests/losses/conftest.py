"""What every loss is held to."""

import itertools

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

  def solve(loss, num_steps=3000, learning_rate=0.5, behaviour=(0.2, 0.3, 0.5)):
    """Minimises Σ_y μ(y) loss(logits, value)(y) and returns (π, V)."""
    behaviour = jnp.asarray(behaviour, jnp.float32)

    def objective(params):
      return jnp.sum(behaviour * loss(jax.nn.log_softmax(params['logits']), params['value'], behaviour))

    def step(params, _):
      gradient = jax.grad(objective)(params)
      return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), None

    params = {'logits': jnp.zeros(3), 'value': jnp.zeros(())}
    params, _ = jax.lax.scan(step, params, None, length=num_steps)
    return jax.nn.softmax(params['logits']), params['value']

  solve.behaviour = jnp.array([0.2, 0.3, 0.5])
  solve.rewards = jnp.array([2.5, 2.0, 1.0])
  solve.reference_logps = jnp.log(jnp.full(3, 1 / 3))
  solve.optimum = np.array([0.70538, 0.25950, 0.03512])
  solve.tau = 0.5
  solve.value = 2.12520
  return solve


# CoPG's bandit (arXiv 2406.19185, Sect. 5): pairs of its two behaviour policies.
FIRST, SECOND = np.array([0.1, 0.2, 0.7]), np.array([0.05, 0.05, 0.9])


def fixed_point(bandit, pair_loss, steps=6000):
  """The policy that minimises the population's mean of `pair_loss(logps of y, logps of y', y, y')`."""
  y, other = (jnp.array(column) for column in zip(*itertools.product(range(3), repeat=2)))
  weights = jnp.array(np.outer(FIRST, SECOND).ravel(), jnp.float32)
  slope = jax.grad(lambda logits: jnp.sum(weights * pair_loss(jax.nn.log_softmax(logits), y, other)))
  logits = jax.lax.fori_loop(0, steps, lambda _, logits: logits - 0.5 * slope(logits), jnp.zeros(3))
  return np.asarray(jax.nn.softmax(logits), np.float64)


def regret(bandit, policy):
  objective = policy @ np.asarray(bandit.rewards) - bandit.tau * policy @ np.log(3 * policy)
  return bandit.value - objective


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
  arrays = {
    name: jnp.asarray(x) if np.asarray(x).dtype == bool else jnp.asarray(x, jnp.float32)
    for name, x in inputs.items()
  }

  @jax.jit
  def values_and_gradients(arrays):
    def total(moving):
      per_example = loss(**(arrays | moving), **settings)
      return jnp.sum(per_example), per_example

    return jax.grad(total, has_aux=True)({name: arrays[name] for name in ('policy_logps', *stopped)})

  found, per_example = values_and_gradients(arrays)
  np.testing.assert_allclose(per_example, expected, rtol=2e-5, atol=2e-5)
  np.testing.assert_allclose(found['policy_logps'], gradient, rtol=2e-4, atol=2e-5)
  for name in stopped:
    assert not np.asarray(found[name]).any(), f'a gradient reaches {name}'


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
