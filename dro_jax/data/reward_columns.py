"""Several rewards of a response, each a column, and the weighted sum of them on which a run trains."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dro_jax.data.table.table import TokenTable
from dro_jax.errors import UsageError, did_you_mean

OWN = 'reward'  # The records' own reward, among the columns.


def parse_weights(rewards: str | Mapping[str, float | int] | None) -> dict[str, float]:
  """'helpful=1,safe=0.5' (or a mapping, or nothing) as a dict.

  Raises:
    UsageError: a part is no NAME=NUMBER, or a name has two weights.
  """
  if not rewards:
    return {}
  pairs: list[tuple[str, Any]]
  if isinstance(rewards, Mapping):
    pairs = [*rewards.items()]
  else:
    pairs = [(name.strip(), weight.strip() or None) for name, _, weight in
             (part.partition('=') for part in rewards.split(','))]  # fmt: skip
  weights: dict[str, float] = {}
  for name, weight in pairs:
    number = _number(weight)
    if not name or number is None:
      raise UsageError(
        f"rewards='{_text(rewards)}': pass COLUMN=WEIGHT pairs separated by commas, each weight a number, as "
        '--rewards helpful=1,safe=0.5.'
      )
    if name in weights:
      raise UsageError(f"rewards='{_text(rewards)}': {name} has two weights: give it one.")
    weights[name] = number
  return weights


def _text(rewards: str | Mapping[str, Any]) -> str:
  if isinstance(rewards, str):
    return rewards
  return ','.join(f'{name}={weight}' for name, weight in rewards.items())


def _number(weight: Any) -> float | None:
  try:
    number = float(weight)
  except (TypeError, ValueError):
    return None
  return number if math.isfinite(number) else None


def inherited(
  table: TokenTable, weights: Mapping[str, float], read: Mapping[str, Any] | None
) -> Mapping[str, float]:
  """The weights as the user passed them, or those of a run where the table has all of its columns."""
  own = parse_weights((read or {}).get('rewards'))
  return weights or (own if own.keys() <= {OWN, *table.columns} else {})


def weighted(table: TokenTable, weights: Mapping[str, float]) -> TokenTable:
  """The table with the rewards Σ_c w_c r_c, r_c being its columns, or `reward` the records' own reward.

  Raises:
    UsageError: there is no such column, or some records lack it.
  """
  if not weights:
    return table
  own = {} if np.isnan(table.raw_rewards).any() else {OWN: table.raw_rewards}
  columns = {**table.columns, **own}
  for name in weights:
    if name not in columns:
      raise _missing(table, name, sorted(columns))
  total = sum(weight * np.asarray(columns[name], np.float64) for name, weight in weights.items())
  return dataclasses.replace(table, rewards=total, raw_rewards=total)


def _missing(table: TokenTable, name: str, columns: list[str]) -> UsageError:
  partial = [*table.report.get('columns_left_out', ())]
  if name in partial:
    return UsageError(
      f"--rewards: the column '{name}' is in some records and missing in others: give it to every record "
      '(`dro_jax score` fills it), or leave it out of --rewards.'
    )
  if name == OWN:
    problem = table.report.get('reward_problem') or 'some records have no reward'
    return UsageError(f"--rewards: the records' own reward cannot be weighted: {problem}")
  listed = ', '.join(columns) or 'none'
  return UsageError(
    f"--rewards: the triplets have no column '{name}'{did_you_mean(name, columns)}; they have {listed}: name "
    'these, or fill the column with `dro_jax score FILE --reward '
    f'{name}=SPEC`.'
  )
