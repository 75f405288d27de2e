"""The measures by which a run may choose its best checkpoint, known before its first step."""

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from dro_jax.algorithms import Algorithm
from dro_jax.data.table.table import TokenTable
from dro_jax.errors import UsageError, did_you_mean
from dro_jax.names import NEXT_TOKEN_KL
from dro_jax.run import table_scores
from dro_jax.run.folder import validation
from dro_jax.run.sampling import policy_samples, rollouts
from dro_jax.step.reference import MOVING

PREFIX = 'eval/'
# The algorithm's criterion, which every validation measures.
CRITERION = f'{PREFIX}criterion'


def refuse_unmeasured(metric: str, names: Collection[str]) -> None:
  """Refuses a metric that no validation measures.

  Raises:
    UsageError: the metric is unknown; the message names the known ones.
  """
  if metric in names:
    return
  nearest = did_you_mean(f'{PREFIX}{metric.removeprefix(PREFIX)}', names)
  raise UsageError(
    f'best_metric={metric!r} is not measured{nearest}: pass one of {", ".join(sorted(names))} (--set '
    'BEST_METRIC=...), or None to keep the newest checkpoints only.'
  )


def described(metric: str | None, mode: str) -> str:
  """A line that names the metric of the best checkpoint; '' if it is the algorithm's criterion."""
  if metric in (None, CRITERION):
    return ''
  return f'the best checkpoint is that with the {"largest" if mode == "max" else "smallest"} {metric}'


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
  return policy_samples.OwnSamples(one, one, one, *columns)


def _defined(table: TokenTable, algorithm: Algorithm, moves: bool) -> Mapping[str, float]:
  random = np.random.default_rng(0)
  logps, reference_logps, moving_logps = -table.response_lengths * (1 + random.random((3, len(table))))
  values = random.normal(size=len(table))
  scored = table_scores.ScoredTable(
    logps, table.response_lengths, table.rewards, reference_logps if algorithm.uses_reference else None,
    values if algorithm.uses_value else None, losses={}, moving_logps=moving_logps if moves else None,
  )  # fmt: skip
  summary = validation.summary(validation.from_table(algorithm.temperature, table, scored))
  return {name: value for name, value in summary.items() if math.isfinite(value)}
