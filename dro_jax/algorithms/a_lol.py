"""Advantage-weighted methods: A-LoL, its variants, R-LoL."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dro_jax import limits, losses
from dro_jax.algorithms import columns, refusals
from dro_jax.algorithms.base import Algorithm, by_response
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.settings import WINDOW
from dro_jax.errors import UsageError
from dro_jax.types import Array


class _Advantages(NamedTuple):
  """How an algorithm reads advantages, and the settings that go with them."""

  read: Callable[[Batch], Array]
  settings: dict[str, Any]


def _advantages(priority: bool, weigh_again: bool) -> _Advantages:
  """A = r − V(x) from the data's column `value`; responses with A ≤ 0 are dropped.

  With `priority` a response is drawn in proportion to A and weighs 1; with `weigh_again` too it weighs A, as
  in the paper's code, so that its expected weight is A².
  """
  if weigh_again and not priority:
    raise UsageError(
      'weigh_again=True with priority=False: responses that are drawn equally often weigh A already. Pass '
      'priority=True (--set PRIORITY=true) as well, or leave out weigh_again (WEIGH_AGAIN).'
    )

  def read(batch: Batch) -> Array:
    advantages = batch.column('advantage')
    return (advantages > 0).astype(jnp.float32) if priority and not weigh_again else advantages

  def positive(table: Any) -> np.ndarray:
    return table.columns['advantage'] > 0

  settings = {'columns': {'advantage': columns.advantages}, 'select': positive}
  if priority:
    settings['weights'] = lambda table: table.columns['advantage']
  return _Advantages(read, settings)


def a_lol(epsilon: float = 0.9, priority: bool = False, weigh_again: bool = False) -> Algorithm:
  """A-LoL (`losses.a_lol`): positive advantages, weighted by the clipped ratio to the reference."""
  limits.within('a_lol', 0, 1, WINDOW, epsilon=epsilon)
  advantages = _advantages(priority, weigh_again)
  return by_response(
    'a_lol',
    lambda batch: losses.a_lol(
      policy_logps=batch.policy_logps, reference_logps=batch.reference_logps,
      advantages=advantages.read(batch), epsilon=epsilon,
    ),
    **advantages.settings,
  )  # fmt: skip


def a_lol_ref_free(priority: bool = False, weigh_again: bool = False) -> Algorithm:
  """A-LoL without a reference (`losses.a_lol_ref_free`)."""
  advantages = _advantages(priority, weigh_again)
  return by_response(
    'a_lol_ref_free',
    lambda batch: losses.a_lol_ref_free(policy_logps=batch.policy_logps, advantages=advantages.read(batch)),
    uses_reference=False,
    **advantages.settings,
  )


def a_lol_kl(kl_weight: float = 0.1, priority: bool = False, weigh_again: bool = False) -> Algorithm:
  """A-LoL with a KL penalty (`losses.a_lol_kl`)."""
  limits.at_least_zero('a_lol_kl', kl_weight=kl_weight)
  if priority and not weigh_again:
    raise UsageError(
      'a_lol_kl with priority=True: responses drawn by their advantages weigh 1, so the penalty only scales '
      'the gradient, by 1 − kl_weight, and the algorithm is a_lol_ref_free. Pass '
      'priority=False (--set PRIORITY=false), or weigh_again=True (--set WEIGH_AGAIN=true), which weighs by '
      'advantages as well.'
    )
  advantages = _advantages(priority, weigh_again)
  return by_response(
    'a_lol_kl',
    lambda batch: losses.a_lol_kl(
      policy_logps=batch.policy_logps, reference_logps=batch.reference_logps,
      advantages=advantages.read(batch), kl_weight=kl_weight,
    ),
    **advantages.settings,
  )  # fmt: skip


def a_lol_sequence(epsilon: float = 0.9, priority: bool = False, weigh_again: bool = False) -> Algorithm:
  """A-LoL seq. (`losses.a_lol_sequence`), with the ratio clipped token by token."""
  limits.within('a_lol_sequence', 0, 1, WINDOW, epsilon=epsilon)
  advantages = _advantages(priority, weigh_again)

  def per_example(batch: Batch) -> Array:
    return losses.a_lol_sequence(
      policy_logps=batch.tokens(batch.scores.token_logps),
      reference_logps=batch.tokens(batch.reference.token_logps),
      mask=batch.token_mask, advantages=advantages.read(batch), epsilon=epsilon,
    )  # fmt: skip

  return by_response('a_lol_sequence', per_example, **advantages.settings)


def r_lol(epsilon: float = 0.9) -> Algorithm:
  """R-LoL (`losses.r_lol`): A-LoL on rewards, which must not be negative, without a value."""
  limits.within('r_lol', 0, 1, WINDOW, epsilon=epsilon)
  return by_response(
    'r_lol',
    lambda batch: losses.r_lol(
      policy_logps=batch.policy_logps,
      reference_logps=batch.reference_logps,
      rewards=batch.rewards,
      epsilon=epsilon,
    ),
    check=refusals.refuse_negative_rewards,
  )


__all__ = ['a_lol', 'a_lol_kl', 'a_lol_ref_free', 'a_lol_sequence', 'r_lol']
