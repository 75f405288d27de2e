"""The reference policy is an array: ways to fill the reference's scores."""

from collections.abc import Callable

import jax

from dro_jax.scoring import Score
from dro_jax.train_state import TrainState
from dro_jax.types import Rows, Scores

Reference = Callable[[TrainState, Rows], Scores]


def frozen(score: Score) -> Reference:
  """π_ref is the run's initial policy, scored afresh at every step.

  Args:
    score: the policy's own scoring function, so that policy and reference agree to the bit while equal.
  """

  def reference_scores(state: TrainState, rows: Rows) -> Scores:
    return jax.lax.stop_gradient(score({'policy': state.reference}, rows, None))

  return reference_scores
