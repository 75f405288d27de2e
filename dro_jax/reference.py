"""The reference policy is an array: ways to fill the reference's scores, and to move it.

Any loss takes any of them: a moving reference makes DPO TR-DPO, and DRO-V TR-DRO-V.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dro_jax.errors import UsageError
from dro_jax.scoring import Score
from dro_jax.train_state import TrainState
from dro_jax.types import Rows, Scores


class Reference(NamedTuple):
  """How a step gets log π_ref, and what becomes of π_ref after an optimiser step.

  Attributes:
    scores: the reference's scores of some rows; no gradient flows through them.
    update: from the state after an optimiser step to the state that the next one sees.
    is_kept: whether the state holds the reference's parameters.
    settings: what decides the run's numbers, recorded with it.
  """

  scores: Callable[[TrainState, Rows], Scores]
  update: Callable[[TrainState], TrainState]
  is_kept: bool
  settings: Mapping[str, Any]


def live_scores(score: Score) -> Callable[[TrainState, Rows], Scores]:
  """Scores by the state's own reference, afresh at every step.

  Args:
    score: the policy's own scoring function, so that policy and reference agree to the bit while equal.
  """

  def scores(state: TrainState, rows: Rows) -> Scores:
    return jax.lax.stop_gradient(score({'policy': state.reference}, rows, None))

  return scores


def frozen(score: Score) -> Reference:
  """π_ref is the run's initial policy.

  Args:
    score: the policy's scoring function.
  """
  return Reference(live_scores(score), lambda state: state, True, {'scheme': 'frozen'})


def soft(score: Score, alpha: float | int = 0.6, every: int = 512) -> Reference:
  """A trust region's soft update (TR-DPO, arXiv 2404.09656, Sect. 3): π_ref follows π.

  After each `every` optimiser steps: θ_ref ← α·θ + (1 − α)·θ_ref, in float32 (bfloat16 loses a small α).

  Args:
    score: the policy's scoring function.
    alpha: the weight of the *policy* (most moving averages mean the opposite), 0 < α ≤ 1.
    every: optimiser steps, not microbatches, between updates.

  Raises:
    UsageError: a setting is out of its range.
  """
  if not 0 < alpha <= 1 or every < 1:
    raise UsageError(
      f'alpha={alpha}, every={every}: pass 0 < alpha ≤ 1 (the weight of the policy) and every ≥ 1 steps.'
    )

  def blend(state: TrainState) -> TrainState:
    def mix(policy, reference):
      return policy if alpha == 1 else alpha * policy + (1 - alpha) * reference

    # A copy where α = 1: two names for one buffer could not both be donated.
    mixed = jax.tree.map(lambda p, r: jnp.copy(mix(p, r)), state.params['policy'], state.reference)
    return state._replace(reference=jax.lax.stop_gradient(mixed))

  def update(state: TrainState) -> TrainState:
    return jax.lax.cond(state.step % every == 0, blend, lambda state: state, state)

  settings = {'scheme': 'moving', 'alpha': alpha, 'every': every}
  return Reference(live_scores(score), update, True, settings)


def hard(score: Score, every: int = 512) -> Reference:
  """A trust region's hard update (TR-DPO, arXiv 2404.09656, Sect. 3): every so often π_ref becomes π.

  Args:
    score: the policy's scoring function.
    every: optimiser steps between updates.

  Raises:
    UsageError: `every` is less than 1.
  """
  return soft(score, 1.0, every)


__all__ = ['frozen', 'hard', 'soft']
