"""A bandit: answers to one prompt, their optimum, and the pairs that are logged of them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dro_jax.data.worlds import toy
from dro_jax.types import Array


class Bandit(NamedTuple):
  """One prompt's answers, and the log that was written of them.

  rewards     R(y).
  tau         temperature of the objective E_π R − τ KL(π‖π_ref); π_ref is uniform.
  behaviours  who wrote the first, and the second, answer of every pair.
  pairs       pairs of the sampled log.
  """

  rewards: tuple[float, ...] = (2.5, 2.0, 1.0)
  tau: float = 0.5
  behaviours: tuple[tuple[float, ...], tuple[float, ...]] = ((0.1, 0.2, 0.7), (0.05, 0.05, 0.9))
  pairs: int = 10_000


class Optimum(NamedTuple):
  """π* and its value, in float64."""

  policy: np.ndarray
  value: float


class Pairs(NamedTuple):
  """Logged pairs of answers, `[N]` each: which, whether the first was preferred, and how often it occurs."""

  first: Array
  second: Array
  prefers_first: Array
  weights: Array


def optimum(bandit: Bandit) -> Optimum:
  """π* ∝ π_ref exp(R/τ), and J* = V* = τ log Z."""
  policy, value = toy.optimum(reference(bandit), np.asarray(bandit.rewards)[None], bandit.tau)
  return Optimum(np.exp(policy[0]), float(value[0]))


def reference(bandit: Bandit) -> np.ndarray:
  """Log-probs of the uniform reference, `[1, Y]`."""
  return np.full((1, len(bandit.rewards)), -np.log(len(bandit.rewards)))


def regret(bandit: Bandit, logps: np.ndarray | Array) -> np.ndarray:
  """J* − J of policies `[..., Y]` given by log-probs."""
  logps = np.asarray(logps, np.float64)
  flat = logps.reshape(-1, logps.shape[-1])
  flat = flat - np.log(np.exp(flat).sum(-1, keepdims=True))
  rewards = np.broadcast_to(np.asarray(bandit.rewards), flat.shape)
  reference_logps = np.broadcast_to(reference(bandit), flat.shape)
  return toy.regret(flat, reference_logps, rewards, bandit.tau).reshape(logps.shape[:-1])


# --- the log ------------------------------------------------------------------------------------------------


def population(bandit: Bandit) -> Pairs:
  """Every pair with either preference, weighted by its probability: σ(R(y) − R(y′)) for the first."""
  count, rewards = len(bandit.rewards), np.asarray(bandit.rewards)
  first, second, prefers = map(np.ravel, np.meshgrid(*(np.arange(count),) * 2, [True, False], indexing='ij'))
  wins = 1 / (1 + np.exp(rewards[second] - rewards[first]))
  one, other = map(np.asarray, bandit.behaviours)
  weights = one[first] * other[second] * np.where(prefers, wins, 1 - wins)
  return Pairs(
    jnp.asarray(first), jnp.asarray(second), jnp.asarray(prefers), jnp.asarray(weights, jnp.float32)
  )


def sample(bandit: Bandit, seed: int) -> Pairs:
  """A log of pairs drawn from the behaviours, preferences drawn too."""
  rng = np.random.default_rng(seed)
  first, second = (rng.choice(len(bandit.rewards), bandit.pairs, p=p) for p in bandit.behaviours)
  margin = np.asarray(bandit.rewards)[first] - np.asarray(bandit.rewards)[second]
  prefers = rng.random(bandit.pairs) < 1 / (1 + np.exp(-margin))
  weights = jnp.ones(bandit.pairs)
  return Pairs(jnp.asarray(first), jnp.asarray(second), jnp.asarray(prefers), weights)
