"""Random log-probs, and dro_jax's losses of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dro_jax import losses

PAIRS = TOKENS = 6  # HALOs' SLiC runs only where they are equal.
SMOOTHING, CLIP, MARGIN = 0.1, 0.2, 0.3
WEIGHTS = {'desirable_weight': 1.5, 'undesirable_weight': 0.7}


class Case(NamedTuple):
  """Log-probs by token, `[2P, T]`; the first P responses are chosen, the others rejected."""

  policy: np.ndarray
  reference: np.ndarray
  mask: np.ndarray
  mismatched_policy: np.ndarray
  mismatched_reference: np.ndarray
  thumbs: np.ndarray
  advantages: np.ndarray
  beta: float


class Row(NamedTuple):
  """A loss of a peer, and what it is here.

  peer, loss  whose, and its name there
  ours        the call here, as the table shows it
  theirs_by   the mean loss of the batch by the peer's code, for PyTorch's log-probs
  ours_by     the same by dro_jax, for JAX's
  why         what differs in definition, sign, mean or scale
  agrees      whether both must be equal
  by_gradient only the gradients must be
  """

  peer: str
  loss: str
  ours: str
  theirs_by: Callable[[Case, Any], Any]
  ours_by: Callable[[Case, jax.Array], jax.Array]
  why: str = ''
  agrees: bool = True
  by_gradient: bool = False


def make_case(seed: int, beta: float) -> Case:
  rng = np.random.default_rng(seed)
  shape = 2 * PAIRS, TOKENS
  mask = np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (2 * PAIRS, 1))
  policy, mismatched = -rng.exponential(2.0, shape), -rng.exponential(2.0, shape)
  thumbs = rng.permutation(np.arange(2 * PAIRS) % 3 > 0)
  # The policy is above its reference on average, so that KTO's reference point is not cut at 0.
  return Case(
    policy * mask, (policy - rng.normal(0.1, 0.4, shape)) * mask, mask, mismatched * mask,
    (mismatched - rng.normal(0.1, 0.4, shape)) * mask, thumbs, rng.normal(size=2 * PAIRS), beta,
  )  # fmt: skip


def summed(case: Case, policy: jax.Array) -> tuple[jax.Array, jax.Array]:
  """log π and log π_ref of the responses, `[2P]`."""
  return jnp.sum(policy * case.mask, -1), jnp.sum(case.reference * case.mask, -1)


def pairs(case: Case, policy: jax.Array) -> tuple[jax.Array, ...]:
  """log π of the chosen and the rejected responses, then log π_ref."""
  logps, reference = summed(case, policy)
  return logps[:PAIRS], logps[PAIRS:], reference[:PAIRS], reference[PAIRS:]


def without_reference(case: Case, policy: jax.Array) -> tuple[jax.Array, ...]:
  chosen, rejected, *_ = pairs(case, policy)
  return chosen, rejected, jnp.zeros(PAIRS), jnp.zeros(PAIRS)


def lengths(case: Case) -> dict[str, np.ndarray]:
  counts = case.mask.sum(-1).astype(float)
  return {'chosen_lengths': counts[:PAIRS], 'rejected_lengths': counts[PAIRS:]}


def kto(case: Case, policy: jax.Array, mismatched: bool = True) -> jax.Array:
  point = losses.kto_reference_point(
    case.mismatched_policy.sum(-1), case.mismatched_reference.sum(-1), np.ones(2 * PAIRS)
  )
  return losses.kto(
    *summed(case, policy), case.thumbs, point if mismatched else jnp.zeros(()), beta=case.beta,
    **WEIGHTS,
  )  # fmt: skip


def bco(case: Case, policy: jax.Array, labels: np.ndarray, running: bool) -> jax.Array:
  logps, reference = summed(case, policy)
  shift = case.beta * jnp.mean(logps - reference) if running else jnp.zeros(())
  return losses.bco(logps, reference, labels, shift, beta=case.beta)


CHOSEN_FIRST = np.arange(2 * PAIRS) < PAIRS


def nca(case: Case, policy: jax.Array) -> jax.Array:
  logps, reference = (x.reshape(2, PAIRS).T for x in summed(case, policy))
  rewards = jnp.broadcast_to(jnp.array([1.0, 0.0]), (PAIRS, 2))
  mask = jnp.ones((PAIRS, 2), bool)
  return losses.nca(logps, reference, rewards, mask, beta=case.beta, alpha=1e-3)


def slic(case: Case, policy: jax.Array, delta: float, sft_weight: float) -> jax.Array:
  return losses.slic(*pairs(case, policy)[:2], delta=delta, sft_weight=sft_weight)


def hinge(case: Case, policy: jax.Array) -> jax.Array:
  chosen, rejected, reference_chosen, reference_rejected = pairs(case, policy)
  return case.beta * losses.slic(
    chosen - reference_chosen, rejected - reference_rejected, delta=1 / case.beta, sft_weight=0.0
  )


def ppo_token(case: Case, policy: jax.Array) -> jax.Array:
  advantages = np.broadcast_to(case.advantages[:, None], case.mask.shape)
  return losses.ppo_token(policy, case.mask, case.reference, advantages, epsilon=CLIP)


def rloo(case: Case, policy: jax.Array) -> jax.Array:
  """All responses as one group of 2P; with their advantage, the leave-one-out one of the same rewards."""
  logps = jnp.sum(policy * case.mask, -1)[None]
  mask = jnp.ones((1, 2 * PAIRS), bool)
  return losses.rloo(logps, logps, jnp.asarray(case.advantages)[None], mask, beta=0.0)


def leave_one_out(case: Case) -> np.ndarray:
  rewards = case.advantages
  return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def bradley_terry(case: Case, policy: jax.Array, margin: float = 0.0) -> jax.Array:
  """Of the first token's number, taken as a response's score."""
  return losses.bradley_terry(policy[:PAIRS, 0], policy[PAIRS:, 0], margin)
