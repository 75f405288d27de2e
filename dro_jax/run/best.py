"""The measures by which a run may choose its best checkpoint, known before its first step."""

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from dro_jax.algorithms import Algorithm
from dro_jax.algorithms.base import PREFERENCES
from dro_jax.checkpoints.bound import parse as parse_bound
from dro_jax.data.table.table import TokenTable
from dro_jax.errors import UsageError, did_you_mean
from dro_jax.names import NEXT_TOKEN_KL
from dro_jax.run import table_scores
from dro_jax.run.folder import validation
from dro_jax.run.sampling import policy_samples, rollouts
from dro_jax.run.spec import Keep
from dro_jax.statistics import preferences
from dro_jax.step.reference import MOVING

PREFIX = 'eval/'
# The algorithm's criterion, which every validation measures.
CRITERION = f'{PREFIX}criterion'
_WITHOUT = {'best_metric': 'None to keep the newest checkpoints only', 'best_bound': 'None to set no bound'}


def metrics_of(keep: Keep) -> dict[str, str]:
  """The metrics that decide which checkpoint is best, by the setting that names them."""
  named = {'best_metric': keep.metric, 'best_bound': keep.bound and parse_bound(keep.bound).metric}
  return {setting: metric for setting, metric in named.items() if metric is not None}


def refuse_unmeasured(metric: str, names: Collection[str], setting: str = 'best_metric') -> None:
  """Refuses a metric that no validation measures.

  Raises:
    UsageError: the metric is unknown; the message names the known ones.
  """
  if metric in names:
    return
  nearest = did_you_mean(f'{PREFIX}{metric.removeprefix(PREFIX)}', names)
  raise UsageError(
    f'{setting}={metric!r} is not measured{nearest}: pass one of {", ".join(sorted(names))}, as '
    f'Keep({setting.removeprefix("best_")}=...) or --set {setting.upper()}=..., or {_WITHOUT[setting]}.'
  )


def described(keep: Keep) -> str:
  """A line that says which checkpoint is the best; '' if it is that with the least criterion."""
  if keep.metric is None or (keep.metric == CRITERION and keep.bound is None):
    return ''
  among = '' if keep.bound is None else f' of those with {keep.bound}'
  least = 'largest' if keep.mode == 'max' else 'smallest'
  return f'the best checkpoint is that with the {least} {keep.metric}{among}'


def without_any(keep: Keep) -> str:
  """A line for a run none of whose checkpoints keeps the bound."""
  return (
    f'note: no checkpoint keeps the bound {keep.bound}, so none is the best, and the newest is taken. '
    'metrics.jsonl says by how much they miss it: loosen BEST_BOUND, or train so that the policy keeps it.'
  )


def measured_names(
  table: TokenTable,
  algorithm: Algorithm,
  terms: Iterable[str],
  *,
  moves: bool = False,
  draws: bool = False,
  draws_ratios: bool = False,
  draws_rewards: bool = False,
) -> set[str]:
  """Names of the metrics of a validation.

  The held-out rewards and prompts decide which statistics are defined, so these are computed on placeholder
  log-probs and values.

  Args:
    table: the held-out responses.
    algorithm: the run's.
    terms: names of the terms of its loss.
    moves: whether the reference moves; metrics against a moving reference have names of their own.
    draws: whether the validation samples from the policy.
    draws_ratios: whether it scores the samples under the reference too.
    draws_rewards: whether a reward function scores the samples.
  """
  names = set(policy_samples.summary(_drawn(draws_ratios, draws_rewards, moves))) if draws else set()
  if algorithm.online is not None:
    names |= set(rollouts.validation_names(('', MOVING)[: 1 + moves]))
  else:
    losses = ['criterion', 'loss', *(f'loss/{term}' for term in terms)]
    losses += [] if algorithm.kl_direction is None else [NEXT_TOKEN_KL]
    names |= {name + ending for name in losses for ending in ('', MOVING)[: 1 + moves]}
    names |= _defined(table, algorithm, moves).keys()
  return {PREFIX + name for name in names}


def _drawn(ratios: bool, rewards: bool, moves: bool) -> policy_samples.OwnSamples:
  one = np.zeros(1)
  columns = (one if there else None for there in (ratios, rewards, ratios and moves))
  of_reference = np.zeros((1, 1)) if ratios else None
  return policy_samples.OwnSamples(one, one, one, *columns, of_reference)


def _defined(table: TokenTable, algorithm: Algorithm, moves: bool) -> Mapping[str, float]:
  random = np.random.default_rng(0)
  logps, reference_logps, moving_logps = -table.response_lengths * (1 + random.random((3, len(table))))
  values = random.normal(size=len(table))
  scored = table_scores.ScoredTable(
    logps, table.response_lengths, table.rewards, reference_logps if algorithm.uses_reference else None,
    values if algorithm.uses_value else None, losses={}, moving_logps=moving_logps if moves else None,
  )  # fmt: skip
  summary = validation.summary(
    validation.from_table(algorithm.temperature, table, scored, scores=algorithm.scores)
  )
  if algorithm.scores == PREFERENCES:
    summary |= dict.fromkeys(preferences.NAMES, 0.0)
  return {name: value for name, value in summary.items() if math.isfinite(value)}
