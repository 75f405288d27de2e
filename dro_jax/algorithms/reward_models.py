"""Reward models: a value network that reads the response too, fitted to preferences or to rewards."""

from collections.abc import Callable

import jax.numpy as jnp

from dro_jax import limits, losses
from dro_jax.algorithms import refusals
from dro_jax.algorithms.base import PREFERENCES, REWARDS, Algorithm, pair_metrics
from dro_jax.algorithms.batch import Batch
from dro_jax.errors import UsageError, did_you_mean
from dro_jax.types import LossOutput, LossTerm, Scalar

ROLES = ('proxy', 'gold')


def bradley_terry(margin: Scalar = 0.0, role: str = 'proxy') -> Algorithm:
  """A Bradley-Terry reward model (`losses.bradley_terry`): of a pair, the chosen response scores more.

  `role` says what the model is for, and is recorded with it: a `proxy` trains policies, and a `gold` model
  judges them.
  """
  limits.at_least_zero('bradley_terry', margin=margin)

  def loss(batch: Batch) -> LossOutput:
    scores_P2, valid = batch.members(batch.values), jnp.all(batch.unit_mask, axis=1)
    chosen, rejected = scores_P2[:, 0], scores_P2[:, 1]
    per_pair = losses.bradley_terry(chosen, rejected, margin=margin)
    return LossOutput({'value': LossTerm(per_pair, valid)}, pair_metrics(chosen - rejected, valid))

  return _reward_model('bradley_terry', loss, role, PREFERENCES)._replace(unit='pair', couples=True)


def reward_regression(role: str = 'proxy') -> Algorithm:
  """A reward model fitted to rewards by least squares (`losses.reward_regression`).

  `role` says what the model is for, and is recorded with it: a `proxy` trains policies, and a `gold` model
  judges them.
  """

  def loss(batch: Batch) -> LossOutput:
    per_response = losses.reward_regression(batch.values, batch.rewards)
    return LossOutput({'value': LossTerm(per_response, batch.valid)})

  algorithm = _reward_model('reward_regression', loss, role, REWARDS)
  return algorithm._replace(check=refusals.refuse_equal_rewards)


def _reward_model(name: str, loss: Callable[[Batch], LossOutput], role: str, scores: str) -> Algorithm:
  if role not in ROLES:
    raise UsageError(
      f'role={role!r} is unknown{did_you_mean(str(role), ROLES)}: pass proxy (it trains policies) or gold '
      f"(it judges them), as {name}(role='gold') or --set ROLE=gold."
    )
  return Algorithm(
    name, loss, uses_reference=False, uses_value=True, uses_response_values=True, trains_policy=False,
    scores_policy=False, reward_model={'role': role, 'scores': scores},
  )  # fmt: skip


__all__ = ['bradley_terry', 'reward_regression']
