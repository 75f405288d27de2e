"""Policies over responses that can all be listed: their exact log-probs, and measures of these.

Axes: P prompts, S prompt tokens, I letters of a response, C choices of a letter, Y responses, Z responses and
anything else. Enumeration is numpy in float64; only the networks compute in float32.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int

from dro_jax.data.worlds import toy
from dro_jax.models import policy as models_policy
from dro_jax.types import Array, Params

PROMPTS_AT_ONCE = 8


@functools.partial(jax.jit, static_argnums=(0, 4))
def word_logps(
  policy: nn.Module, params: Params, prompts: Int[Array, 'P S'], letters: Int[Array, 'I C'], eos: int
) -> Float[Array, 'P Y']:
  """log π(y|x) of every word, EOS included, in the order of `itertools.product` over its letters' choices.

  Words share their beginnings: the decoder runs once for each beginning, not for each word.

  Args:
    policy: the network.
    params: its parameters.
    prompts: tokens, 0 where there is none.
    letters: tokens of each position's alphabet.
    eos: the token that ends a word.
  """
  rest = -len(prompts) % PROMPTS_AT_ONCE
  parts = jnp.pad(prompts, ((0, rest), (0, 0))).reshape(-1, PROMPTS_AT_ONCE, prompts.shape[1])
  logps = jax.lax.map(lambda part: _part_logps(policy, params, part, letters, eos), parts)
  return logps.reshape(len(prompts) + rest, -1)[: len(prompts)]


def _part_logps(policy: nn.Module, params: Params, prompts_PS: Array, letters_IC: Array, eos: int) -> Array:
  def next_logps(hidden_ND: Array) -> Array:
    return jax.nn.log_softmax(models_policy.next_logits(policy, params, hidden_ND))

  # Padding rows have no token; they see one, for a softmax over nothing is undefined.
  mask_PS = (prompts_PS > 0) | (jnp.arange(prompts_PS.shape[1]) == 0)[None]
  prompts = prompts_PS, mask_PS.astype(jnp.int32)
  hidden_ND, cache = models_policy.start(policy, params, prompts, len(letters_IC) + 1)
  logps_N = jnp.zeros(len(prompts_PS))
  for position, letters_C in enumerate(letters_IC, 1):
    chosen_NC = next_logps(hidden_ND)[:, letters_C]
    logps_N = (logps_N[:, None] + chosen_NC).reshape(-1)
    tokens_N = jnp.tile(letters_C, len(hidden_ND))
    # Each beginning's cache for each letter that may follow it.
    cache = models_policy.select(policy, cache, jnp.repeat(jnp.arange(len(hidden_ND)), len(letters_C)))
    hidden_ND, cache = models_policy.advance(policy, params, cache, tokens_N, jnp.asarray(position))
  return (logps_N + next_logps(hidden_ND)[:, eos]).reshape(len(prompts_PS), -1)


def measures(
  logps_PZ: np.ndarray, reference_PZ: np.ndarray, rewards_PZ: np.ndarray, tau: float
) -> dict[str, np.ndarray]:
  """Measures of a policy by prompt, `[P]` each.

  `reward` E_π r; `kl_to_reference` KL(π‖π_ref); `regret` J* − J at τ; `kl_to_optimum` KL(π‖π*), which is
  regret / τ; `below_frontier` how much more reward there is at an equal mean KL to the reference; `no_word`
  the probability of anything else than a word. All nan where the policy is.
  """
  if not np.all(np.isfinite(logps_PZ)):
    return dict.fromkeys(MEASURES, np.full(len(logps_PZ), np.nan))
  regret_P = np.maximum(toy.regret(logps_PZ, reference_PZ, rewards_PZ, tau), 0)
  return {
    'reward': expected_reward(logps_PZ, rewards_PZ),
    'kl_to_reference': toy.kl(logps_PZ, reference_PZ),
    'regret': regret_P,
    'kl_to_optimum': regret_P / tau,
    'below_frontier': below_frontier(logps_PZ, reference_PZ, rewards_PZ),
    'no_word': np.exp(logps_PZ[:, -1]),
  }


MEASURES = ('reward', 'kl_to_reference', 'regret', 'kl_to_optimum', 'below_frontier', 'no_word')


def expected_reward(logps_PZ: np.ndarray, rewards_PZ: np.ndarray) -> np.ndarray:
  """E_π r of each prompt, [P]."""
  return np.sum(np.exp(logps_PZ) * rewards_PZ, -1)


def below_frontier(logps_PZ: np.ndarray, reference_PZ: np.ndarray, rewards_PZ: np.ndarray) -> np.ndarray:
  """Reward that is missing to the most there is at the policy's mean KL to the reference, [P], in its units.

  The most reward at a mean KL is that of some temperature's optimum π_t. Where their KLs agree, the mean of
  t·KL(π‖π_t), which no prompt has negative, is the difference of the mean rewards.
  """
  wanted = toy.kl(logps_PZ, reference_PZ).mean()

  def optimum(log_t: float) -> np.ndarray:
    return toy.optimum(reference_PZ, rewards_PZ, float(np.exp(log_t)))[0]

  low, high = np.log(np.ptp(rewards_PZ) * np.array([2e-3, 2e3]))
  for _ in range(40):
    middle = (low + high) / 2
    if toy.kl(optimum(middle), reference_PZ).mean() > wanted:
      low = middle
    else:
      high = middle
  return np.maximum(np.exp(high) * toy.kl(logps_PZ, optimum(high)), 0)


def frontier(
  reference_PZ: np.ndarray, rewards_PZ: np.ndarray, temperatures: Sequence[float]
) -> dict[str, list[float]]:
  """Mean KL to the reference and mean reward of some temperatures' optima: the most that there is."""
  optima = [toy.optimum(reference_PZ, rewards_PZ, t)[0] for t in temperatures]
  return {
    'kl_to_reference': [float(toy.kl(logps_PZ, reference_PZ).mean()) for logps_PZ in optima],
    'reward': [float(expected_reward(logps_PZ, rewards_PZ).mean()) for logps_PZ in optima],
  }


def best_of(reference_PZ: np.ndarray, rewards_PZ: np.ndarray, number: int) -> np.ndarray:
  """log-probs of the best of `number` reference samples by their true reward, [P, Z]; ties at random.

  P(reward of the best ≤ r) = F(r)^n; within equal rewards the reference's proportions stay.
  """
  probs_PZ = np.exp(reference_PZ)
  result_PZ = np.empty_like(probs_PZ)
  for result_Z, probs_Z, rewards_Z in zip(result_PZ, probs_PZ, rewards_PZ):
    # Rewards that differ by rounding only are one level.
    _, level_Z = np.unique(np.round(rewards_Z, 9), return_inverse=True)
    mass = np.bincount(level_Z, probs_Z)
    upto = np.minimum(np.cumsum(mass) / mass.sum(), 1)
    gained = np.diff(upto**number, prepend=0)
    result_Z[:] = probs_Z * (gained / np.maximum(mass, 1e-300))[level_Z]
  return np.log(np.maximum(result_PZ, 1e-300))


def means(of_prompts: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Means over prompts."""
  return {name: float(np.mean(x_P)) for name, x_P in of_prompts.items()}
