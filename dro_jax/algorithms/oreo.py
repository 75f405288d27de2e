"""OREO: a policy and a token value by soft Bellman consistency."""

from dro_jax import limits, losses
from dro_jax.algorithms import refusals
from dro_jax.algorithms.base import Algorithm
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.settings import STILL
from dro_jax.types import LossOutput, LossTerm, Scalar


def oreo(beta: Scalar = 0.03) -> Algorithm:
  """OREO (`losses.oreo_policy`, `losses.oreo_value`), with a value for each token."""
  limits.above_zero('oreo', STILL, beta=beta)

  def loss(batch: Batch) -> LossOutput:
    arrays = {
      'policy_logps': batch.tokens(batch.scores.token_logps),
      'reference_logps': batch.tokens(batch.reference.token_logps),
      'mask': batch.token_mask,
      'values': batch.tokens(batch.scores.token_values),
      'rewards': batch.rewards,
    }
    policy, value = losses.oreo_policy(**arrays, beta=beta), losses.oreo_value(**arrays, beta=beta)
    return LossOutput({'policy': LossTerm(policy, batch.valid), 'value': LossTerm(value, batch.valid)})

  return Algorithm(
    'oreo', loss, beta, criterion='loss/value', uses_value=True, uses_token_values=True,
    check=refusals.refuse_equal_rewards,
  )  # fmt: skip


__all__ = ['oreo']
