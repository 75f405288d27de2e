"""The reference policy is an array: ways to fill the reference's scores, and to move it.

Any loss takes any of them: a moving reference makes DPO TR-DPO, and DRO-V TR-DRO-V.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from dro_jax.configs.effects import PLACE, Effect
from dro_jax.errors import UsageError
from dro_jax.models.scoring import Score
from dro_jax.names import MISMATCHED_LOGPS, TOKEN_LOGPS
from dro_jax.ops import masked
from dro_jax.step.state import TrainState
from dro_jax.types import Array, Params, Rows, Scores

# How measures end that are taken against a reference that moves.
MOVING = '_moving'


class Stored(NamedTuple):
  """Where a cached reference's log-probs lie, and how they are tried at the start of a run.

  Attributes:
    directory: a column store that `cache_reference` wrote.
    sample: responses that are scored again.
    tolerance: nats by which a token's log-prob may differ from the stored one; `None`: .001, and .1 in
      bfloat16.
  """

  directory: str
  sample: int = 64
  tolerance: float | int | None = None


class Reference(NamedTuple):
  """How a step gets log π_ref, and what becomes of π_ref after an optimiser step.

  Attributes:
    scores: the reference's scores of some rows; no gradient flows through them.
    update: from the state after an optimiser step to the state that the next one sees.
    is_kept: whether the state holds the reference's parameters.
    settings: what decides the run's numbers, recorded with it.
    stored: the store whose log-probs the rows must bring; `None` where the reference is scored.
    initial: the initial policy's scores, by which a run is measured whose reference moves: against that, KL
      and ρ are 0 after each update. `None` where the reference is the initial policy.
    policy: the parameters by which it scores; `None` where it scores nothing.
  """

  scores: Callable[[TrainState, Rows], Scores]
  update: Callable[[TrainState], TrainState]
  is_kept: bool
  settings: Mapping[str, Any]
  stored: Stored | None = None
  initial: Callable[[TrainState, Rows], Scores] | None = None
  policy: Callable[[TrainState], Params] | None = None

  @property
  def is_live(self) -> bool:
    """Whether any responses can be scored, and not only those that a store has."""
    return self.policy is not None

  @property
  def yardsticks(self) -> dict[str, Callable[[TrainState, Rows], Scores]]:
    """What a run is measured against, by how the measures' names end: '' is the initial policy."""
    return {'': self.scores} if self.initial is None else {'': self.initial, MOVING: self.scores}

  def beside(
    self, networks: Mapping[str, Params], state: TrainState, ending: str = MOVING
  ) -> dict[str, Params]:
    """Networks' parameters with those of a yardstick beside them, for next-token KL.

    Args:
      networks: by name.
      state: the run's.
      ending: of the yardstick's measures; that of a reference that moves is the reference of any run.
    """
    policy = self.policy if ending == MOVING or self.initial is None else _initial
    return {**networks, 'reference': jax.lax.stop_gradient(policy(state))}


def _kept(state: TrainState) -> Params:
  return state.policy_of(state.reference)


def _initial(state: TrainState) -> Params:
  return state.policy_of(state.initial)


def _off(state: TrainState) -> Params:
  return state.policy_of(None)


def live_scores(
  score: Score, policy: Callable[[TrainState], Params] = _kept
) -> Callable[[TrainState, Rows], Scores]:
  """Scores by the state's own reference, afresh at every step.

  Args:
    score: the policy's own scoring function, so that policy and reference agree to the bit while equal.
    policy: the parameters by which it scores.
  """

  def scores(state: TrainState, rows: Rows) -> Scores:
    return jax.lax.stop_gradient(score({'policy': policy(state)}, rows, None))

  return scores


@dataclasses.dataclass(frozen=True)
class Frozen:
  """π_ref is the run's initial policy.

  Args:
    store: must be `None`: this reference is scored afresh at every step.

  Example:
    >>> dro.RunSpec(data=data, policy=policy).reference == dro.Frozen()
    True
  """

  store: Annotated[str | None, PLACE] = None

  def build(self, score: Score) -> Reference:
    """The reference, given the policy's scoring function.

    Raises:
      UsageError: a store is given.
    """
    _refuse_store(self.store, 'is scored afresh at every step', '; to read the store')
    return Reference(live_scores(score), lambda state: state, True, {'scheme': 'frozen'}, policy=_kept)


@dataclasses.dataclass(frozen=True)
class Cached:
  """π_ref's log-probs were taken once, by `cache_reference`, and come with the rows.

  The numbers are those of `Frozen` to rounding; no parameters of π_ref are held, and no pass of it is made.

  Args:
    store: the folder that `dro_jax cache_reference` wrote.
    sample: the number of responses that are scored again, to check the store.
    tolerance: nats by which a token's log-prob may differ from the stored one; `None` is .001, and .1 in
      bfloat16.

  Example:
    >>> dro.replace(spec, reference=dro.Cached('stores/reference')).reference.store
    'stores/reference'
  """

  store: Annotated[str | None, PLACE] = None
  sample: int = 64
  tolerance: Annotated[float | int | None, Effect('check', 'what a check of the store forgives')] = None

  def build(self, score: Score) -> Reference:
    """The reference; the scoring function is not used, for nothing is scored.

    Raises:
      UsageError: no store is given.
    """
    if self.store is None:
      raise UsageError(
        'a cached reference reads a store: write one with `dro_jax cache_reference`, and pass it as '
        'Cached(store=DIR) or --set REFERENCE_STORE=DIR.'
      )
    stored = Stored(str(self.store), self.sample, self.tolerance)
    return Reference(_logged_scores, lambda state: state, False, {'scheme': 'cached'}, stored)


def _logged_scores(state: TrainState, rows: Rows) -> Scores:
  """The log-probs that came with the rows."""
  token_logps_BT = rows.token_columns[TOKEN_LOGPS]
  logps_BR = masked.segment_sum(token_logps_BT, rows.response_segments, rows.valid.shape[1])
  return Scores(logps_BR, token_logps_BT, rows.columns.get(MISMATCHED_LOGPS))


def _refuse_store(store: str | None, why: str, remedy: str) -> None:
  if store is not None:
    raise UsageError(
      f'REFERENCE_STORE={store} holds the log-probs of a reference that stays as it is, and this one {why}: '
      f'remove REFERENCE_STORE{remedy}, pass --gin_file=references/cached.gin alone.'
    )


@dataclasses.dataclass(frozen=True)
class Soft:
  """A trust region's soft update (TR-DPO, arXiv 2404.09656, Sect. 3): π_ref follows π.

  After each `every` optimiser steps: θ_ref ← α·θ + (1 − α)·θ_ref, in float32 (bfloat16 loses a small α). The
  state keeps a third policy beside π and π_ref, the initial one, by which the run is measured. With adapters
  θ is the adapter: its factors are mixed, not the products that they make.

  Args:
    alpha: the policy's weight in an update, 0 < α ≤ 1 (many moving averages give the other weight).
    every: optimiser steps, not microbatches, between updates.
    store: must be `None`: a reference that moves cannot be cached.

  Example:
    >>> dro.replace(spec, reference=dro.Soft(alpha=0.6, every=512)).reference.alpha
    0.6
  """

  alpha: float | int = 0.6
  every: int = 512
  store: Annotated[str | None, PLACE] = None

  def build(self, score: Score) -> Reference:
    """The reference, given the policy's scoring function.

    Raises:
      UsageError: a setting is out of its range, or a store is given.
    """
    alpha, every = self.alpha, self.every
    _refuse_store(
      self.store, 'moves with the policy, so that they hold for its first steps only', '; to keep it frozen'
    )
    if not 0 < alpha <= 1 or every < 1:
      raise UsageError(
        f'alpha={alpha}, every={every}: pass 0 < alpha ≤ 1 (the weight of the policy) and every ≥ 1 steps.'
      )

    def blend(state: TrainState) -> TrainState:
      def mix(policy: Array, reference: Array) -> Array:
        return policy if alpha == 1 else alpha * policy + (1 - alpha) * reference

      # A copy where α = 1: two names for one buffer could not both be donated.
      mixed = jax.tree.map(lambda p, r: jnp.copy(mix(p, r)), state.params['policy'], state.reference)
      return state._replace(reference=jax.lax.stop_gradient(mixed))

    def update(state: TrainState) -> TrainState:
      return jax.lax.cond(state.step % every == 0, blend, lambda state: state, state)

    settings = {'scheme': 'moving', 'alpha': alpha, 'every': every}
    initial = live_scores(score, _initial)
    return Reference(live_scores(score), update, True, settings, initial=initial, policy=_kept)


@dataclasses.dataclass(frozen=True)
class Hard:
  """A trust region's hard update (TR-DPO, arXiv 2404.09656, Sect. 3): every so often π_ref becomes π.

  Args:
    every: optimiser steps between updates.
    store: must be `None`: a reference that moves cannot be cached.

  Example:
    >>> dro.replace(spec, reference=dro.Hard(every=512)).reference.every
    512
  """

  every: int = 512
  store: Annotated[str | None, PLACE] = None

  def build(self, score: Score) -> Reference:
    """The reference, given the policy's scoring function.

    Raises:
      UsageError: `every` is less than 1, or a store is given.
    """
    return Soft(1.0, self.every, self.store).build(score)


@dataclasses.dataclass(frozen=True)
class AdapterOff:
  """π_ref is the base with the policy's adapter switched off: no parameters of π_ref are held.

  A fresh adapter's run has it by default, since that is its initial policy. Named, it is the reference of a
  run too that trains on an adapter that was trained before.

  Args:
    store: none: see `Cached`.

  Example:
    >>> adapted = dro.replace(spec, policy={'lora': dro.Lora(rank=8)}, reference=dro.AdapterOff())
    >>> adapted.policy.lora.rank
    8
  """

  store: Annotated[str | None, PLACE] = None

  def build(self, score: Score) -> Reference:
    """The reference, given the policy's scoring function.

    Raises:
      UsageError: a store is given.
    """
    _refuse_store(self.store, 'is scored afresh at every step', '; to read the store')
    scores = live_scores(score, _off)
    return Reference(scores, lambda state: state, False, {'scheme': 'adapter_off'}, policy=_off)


# What a run may be told: how its reference is scored, and how it moves.
References = Frozen | Cached | Soft | Hard | AdapterOff
