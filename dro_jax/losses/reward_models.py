"""Losses of reward models, which give a response a score R(x, y): from preferences, or from rewards.

No policy's log-probs are read.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dro_jax.ops import checks
from dro_jax.types import Array, Scalar


def bradley_terry(
  chosen_scores: Float[Array, ' P'], rejected_scores: Float[Array, ' P'], margin: Scalar = 0.0
) -> Float[Array, ' P']:
  """The pair's label under a Bradley-Terry model whose strengths are the scores.

  L = −log σ(R_c − R_r − margin)        (arXiv 2203.02155, Eq. 1; the margin: arXiv 2307.09288, Eq. 2)

  Only differences of scores count: all scores of a prompt may be moved by one number.

  Args:
    chosen_scores: R_c of the chosen response, in logits: σ(R_c − R_r) is the chance that it is preferred.
    rejected_scores: R_r of the rejected one.
    margin: what the difference has to exceed, in logits; 0 is maximum likelihood.

  Raises:
    ValueError: the arrays are not both `[P]`.
  """
  checks.check_same(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
  return -jax.nn.log_sigmoid(chosen_scores - rejected_scores - margin)


def reward_regression(predictions: Float[Array, ' B'], rewards: Float[Array, ' B']) -> Float[Array, ' B']:
  """Least squares of the reward, response by response.

  L = ½ (R − r)²

  Args:
    predictions: R(x, y), reward units.
    rewards: r(x, y).

  Raises:
    ValueError: the arrays are not both `[B]`.
  """
  checks.check_same(predictions=predictions, rewards=rewards)
  return jnp.square(predictions - rewards) / 2


__all__ = ['bradley_terry', 'reward_regression']
