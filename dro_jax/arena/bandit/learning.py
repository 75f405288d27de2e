"""Learning on the bandit: on the whole population until nothing moves, and by a recipe on a sample."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dro_jax.arena.bandit.methods import METHODS, State
from dro_jax.arena.bandit.world import Bandit, Pairs, population
from dro_jax.types import Array

SETTLING_STEPS = 6000
_Carry = tuple[dict[str, Array], optax.OptState]  # Of a scan over updates.


class Recipe(NamedTuple):
  """How a method learns from the sampled log: the paper's recipe, and a larger learning rate for V."""

  steps: int = 2000
  batch_size: int = 512
  learning_rate: float = 1e-3
  value_learning_rate: float = 1e-2
  measurements: int = 100


def _state(params: Mapping[str, Array]) -> State:
  logps = jax.nn.log_softmax(params['logits'])
  return State(params['logits'], params['value'], logps + jnp.log(float(len(logps))), logps)


@functools.partial(jax.jit, static_argnums=(0, 1))
def settle(method: str, bandit: Bandit, logits: Array) -> dict[str, Array]:
  """Descends the population's loss from some logits until nothing moves."""
  pairs = population(bandit)
  tx = optax.adam(optax.schedules.cosine_decay_schedule(0.03, SETTLING_STEPS))

  def loss(params: dict[str, Array]) -> Array:
    return METHODS[method].loss(bandit, _state(params), pairs)

  def step(carry: _Carry, _: None) -> tuple[_Carry, None]:
    params, opt_state = carry
    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  start = {'logits': logits, 'value': jnp.zeros(())}
  (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=SETTLING_STEPS)
  return {'logps': jax.nn.log_softmax(params['logits']), 'value': params['value']}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def learn(method: str, bandit: Bandit, recipe: Recipe, pairs: Pairs, key: Array) -> dict[str, Array]:
  """Follows the recipe on a sampled log from the reference; log-probs and V as measured on the way."""
  tx = optax.partition(
    {'logits': optax.adam(recipe.learning_rate), 'value': optax.adam(recipe.value_learning_rate)},
    {'logits': 'logits', 'value': 'value'},
  )
  epochs = -(-recipe.steps * recipe.batch_size // len(pairs.first))
  order = jax.vmap(lambda key: jax.random.permutation(key, len(pairs.first)))(jax.random.split(key, epochs))
  batches = order.reshape(-1)[: recipe.steps * recipe.batch_size]

  def step(carry: _Carry, chosen: Array) -> tuple[_Carry, None]:
    params, opt_state = carry
    batch = jax.tree.map(lambda x: x[chosen], pairs)
    gradient = jax.grad(lambda params: METHODS[method].loss(bandit, _state(params), batch))(params)
    updates, opt_state = tx.update(gradient, opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  def stretch(carry: _Carry, chosen: Array) -> tuple[_Carry, dict[str, Array]]:
    carry, _ = jax.lax.scan(step, carry, chosen)
    return carry, {'logps': jax.nn.log_softmax(carry[0]['logits']), 'value': carry[0]['value']}

  start = {'logits': jnp.zeros(len(bandit.rewards)), 'value': jnp.zeros(())}
  batches = batches.reshape(recipe.measurements, -1, recipe.batch_size)
  _, measured = jax.lax.scan(stretch, (start, tx.init(start)), batches)
  return measured
