"""What a run measures on held-out prompts: losses and statistics of logged responses and of its own."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dro_jax.algorithms import Algorithm
from dro_jax.algorithms.base import NO_LOSS, PREFERENCES
from dro_jax.data.table.table import TokenTable
from dro_jax.errors import NotFinite
from dro_jax.names import NEXT_TOKEN_KL
from dro_jax.run import table_scores
from dro_jax.run.batches import Loaders
from dro_jax.run.data import Data
from dro_jax.run.folder import nonfinite, validation
from dro_jax.run.folder.legacy import Legacy
from dro_jax.run.folder.validation import Validation
from dro_jax.run.learner import Learner
from dro_jax.run.sampling import policy_samples, rollouts
from dro_jax.run.spec import RunSpec
from dro_jax.run.table_scores import ScoredTable
from dro_jax.step.reference import MOVING
from dro_jax.step.state import TrainState


class Validator(NamedTuple):
  """How a run is validated.

  Attributes:
    algorithm: the run's.
    loaders: its batches.
    score_losses: scores the held-out units, with the algorithm's losses.
    score_statistics: scores every held-out response, where units leave some out; else `None`.
    rollouts: an online algorithm's.
    draw: draws the policy's own samples; `None` where none are asked for.
    decoding: how it draws them.
  """

  algorithm: Algorithm
  loaders: Loaders
  score_losses: Callable[[TrainState, Any], ScoredTable]
  score_statistics: Callable[[TrainState, Any], ScoredTable] | None
  rollouts: rollouts.Rollouts | None
  draw: policy_samples.Draw | None
  decoding: Mapping[str, Any] | None

  def validate(self, state: TrainState) -> tuple[dict[str, float], Validation]:
    """(losses and statistics by name, each held-out response's numbers).

    Raises:
      NotFinite: a loss is not finite.
    """
    every = self.loaders.statistics or self.loaders.eval
    drawn = self.draw and self.draw(state, every.table)
    own = policy_samples.summary(drawn) if drawn else {}
    if self.rollouts is not None:
      responses = validation.from_table(self.algorithm.temperature, every.table, None, drawn)
      measured = own | self.rollouts.validate(state, self.loaders.eval)
      _refuse_nonfinite(int(state.step), measured, responses, every.table)
      return measured, responses
    scored = of_units = self.score_losses(state, self.loaders.eval)
    losses = scored.losses
    if self.score_statistics is not None:
      scored = self.score_statistics(state, every)
    responses = validation.from_table(
      self.algorithm.temperature, every.table, scored, drawn, scores=self.algorithm.scores
    )
    if self.algorithm.scores == PREFERENCES:
      members = self.loaders.eval.plan.members
      responses = validation.with_pairs(responses, self.loaders.eval.table, of_units.values, members)
    kls = {f'{NEXT_TOKEN_KL}{ending}': float(x.mean()) for ending, x in scored.next_token_kls.items()}
    measured = {**losses, **own, **kls, **_criteria(self.algorithm, losses)}
    _refuse_nonfinite(int(state.step), measured, responses, every.table)
    # A statistic may be undefined, as a correlation is where rewards are equal; a loss may not.
    summary = validation.summary(responses)
    return measured | {name: x for name, x in summary.items() if math.isfinite(x)}, responses


def _criteria(algorithm: Algorithm, losses: Mapping[str, float]) -> dict[str, float]:
  """The criterion, by each reference: the algorithm's own, without the next-token KL that a run adds."""
  criteria = {}
  for ending in ('', MOVING):
    if f'{algorithm.criterion}{ending}' in losses:
      added = losses.get(f'loss/{NEXT_TOKEN_KL}{ending}', 0.0) if algorithm.criterion == 'loss' else 0.0
      criteria[f'criterion{ending}'] = losses[f'{algorithm.criterion}{ending}'] - added
  return criteria


def _refuse_nonfinite(
  step: int, measured: Mapping[str, float], responses: Validation, table: TokenTable
) -> None:
  wrong = [name for name, value in measured.items() if not math.isfinite(value)]
  if not wrong:
    return
  columns = (responses.logps, responses.reference_logps, responses.values, responses.rewards)
  arrays = [column for column in columns if column is not None]
  bad = np.flatnonzero(~np.isfinite(arrays).all(axis=0)) if arrays else ()
  where = f', in {len(bad)} of them: {nonfinite.listed(bad, table)}' if len(bad) else ''
  when, saved = f'after step {step}', 'That step is not saved, and earlier checkpoints are intact'
  remedy = 'If the data are sound, lower the learning rate or raise τ'
  if not step:
    when, saved = 'before the first step', 'Nothing was saved'
    remedy = 'No step was made, so look at the data, at the weights that the run starts from, and at the loss'
  raise NotFinite(
    f'{", ".join(wrong)} of the held-out responses is not finite {when}{where}. {saved}. {remedy}.'
  )


def make_validator(spec: RunSpec, learner: Learner, data: Data, legacy: Legacy) -> Validator:
  """How a run is validated, to be compiled when it first is.

  Raises:
    UsageError: there is no reward function of the name, or the reference does not know fresh responses.
  """
  algorithm, loaders = learner.algorithm, data.loaders
  make = functools.partial(
    table_scores.make_table_scorer, learner.networks, reference=learner.reference, mesh=learner.mesh,
    chunk_size=spec.compute.chunk_size, by_batch=legacy.validates_by_batch,
  )  # fmt: skip
  losses = make(algorithm=algorithm)
  no_loss = NO_LOSS._replace(kl_direction=algorithm.kl_direction)
  statistics = None if loaders.statistics is None else make(algorithm=no_loss)
  responder, (draw, decoding) = _make_rollouts(spec, learner, data.longest), _make_draw(spec, learner, data)
  return Validator(algorithm, loaders, losses, statistics, responder, draw, decoding)


def _make_rollouts(spec: RunSpec, learner: Learner, longest: int) -> rollouts.Rollouts | None:
  """How an online algorithm gets its responses; `None` of one that learns from logged ones."""
  if learner.algorithm.online is None:
    return None
  return rollouts.make_rollouts(
    learner.networks, learner.algorithm, learner.reference, learner.mesh, learner.vocabulary, spec.rollouts,
    max_length=longest, seed=spec.seed, chunk_size=spec.compute.chunk_size,
  )  # fmt: skip


def _make_draw(
  spec: RunSpec, learner: Learner, data: Data
) -> tuple[policy_samples.Draw | None, Mapping[str, Any] | None]:
  """How validations draw the policy's own samples, and its settings; `None`s where they draw none."""
  if not (data.schedule.eval_every and data.schedule.kl_prompts):
    return None, None
  return policy_samples.make_draw(
    learner.networks, learner.reference, learner.mesh, learner.vocabulary, data.schedule.kl_prompts,
    max_length=spec.rollouts.max_length or data.longest, reward=spec.rollouts.reward, seed=spec.seed,
    chunk_size=spec.compute.chunk_size,
  )  # fmt: skip
