"""A record's numbers: its reward and its other columns."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dro_jax.data.records import field_paths, fields, reward_words
from dro_jax.data.records.comparisons import SIDES
from dro_jax.data.records.fields import ALIASES, FIELDS, NUMERIC
from dro_jax.errors import UsageError, did_you_mean, shown
from dro_jax.names import SAMPLED

_LARGEST = float(np.finfo(np.float32).max)


def plain_number(value: Any, textual: bool) -> float | None:
  """A number or boolean as a float, from text too where the format has no types; None for anything else."""
  try:
    if isinstance(value, str):
      return _parse_text(value) if textual else None
    return float(value) if hasattr(value, '__float__') else None
  except OverflowError:
    return math.inf
  except (TypeError, ValueError):
    return None


def _parse_text(text: str) -> float | None:
  lowered = text.strip().lower()
  return float(lowered == 'true') if lowered in ('true', 'false') else reward_words.as_number(text)


def is_finite(number: float) -> bool:
  """Whether a number is finite in float32, in which the networks compute."""
  return abs(number) <= _LARGEST


# --- the reward ---------------------------------------------------------------------------------------------


def read_reward(
  record: Mapping[str, Any], names: Mapping[str, str], rewards: reward_words.Rewards, textual: bool
) -> float | None:
  """The number that the record's reward is or stands for; None where it is missing or stands for none."""
  value = field_paths.value(record, names, 'reward')
  return rewards(value, plain_number(value, textual))


def reward_problem(
  record: Mapping[str, Any],
  names: Mapping[str, str],
  where: str,
  rewards: reward_words.Rewards,
  number: float | None,
) -> UsageError:
  """Why a record has no reward, or why the number that it has cannot be one."""
  value = field_paths.value(record, names, 'reward')
  if value is None:
    return fields.missing(record, names, 'reward', where)
  field = f'{where}: field {fields.described("reward", names)} is {shown(value)}'
  if number is not None:
    return UsageError(
      f'{field}; a reward must be finite in float32: remove the record, or correct the number'
    )
  return UsageError(
    f'{field}, {_structure(value, names.get("reward") or "reward") or rewards.why_not(value)}'
  )


def _structure(value: Any, path: str) -> str:
  """How to name the reward within a list or object; '' where the value is neither."""
  inner = field_paths.structured(value) if isinstance(value, str) else value
  if isinstance(inner, list) and inner:
    return f'not a number but a list of {len(inner)}; name one of its items: --columns reward={path}.0'
  if isinstance(inner, dict) and inner:
    first = fields.short(next(iter(inner)))
    return f'not a number but an object; name a field of it: --columns reward={path}.{first}'
  return ''


# --- other columns ------------------------------------------------------------------------------------------


class OurNames(dict[str, str | None]):
  """From the file's name of a column to ours; None for the fields that every triplet has."""

  def __init__(self, names: Mapping[str, str]):
    super().__init__(dict.fromkeys([*FIELDS, *(names.get(field, field) for field in FIELDS)]))
    self |= {field: ALIASES.get(name, name) for name, field in names.items() if name not in FIELDS}
    taken = {*names.values()}
    self |= dict.fromkeys(name for name, field in names.items() if not field and name not in taken)

  def __missing__(self, field: str) -> str:
    return self.setdefault(field, ALIASES.get(field, field))


def read_columns(
  record: Mapping[str, Any], names: Mapping[str, str], our_names: OurNames, where: str, textual: bool
) -> dict[str, float]:
  """The record's other numbers, under our names; text is left out, unless the column has a meaning."""
  columns = {}
  for field, value in _named_and_own(record, names, where).items():
    name = our_names[field]
    if name is None or value is None:
      continue
    if name == fields.SAMPLER:
      columns[fields.SAMPLED] = float(str(value).strip().lower() in SAMPLED)
      continue
    number = plain_number(value, textual)
    if number is not None and is_finite(number):
      columns[name] = number
    elif name in NUMERIC or field in names.values():
      raise UsageError(
        f"{where}: field '{field}' is {shown(value)}; it must be a finite number"
        f'{_ignore(field, names) or _misspelt(name)}'
      )
  if columns.get('label', 0) not in (0, 1):
    field = names.get('label', 'label')
    raise UsageError(
      f"{where}: field '{field}' is {columns['label']}; a label must be 0 or 1{_ignore(field, names)}"
    )
  return columns


def _named_and_own(record: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
  """The record's fields, and the values at the paths that the user named.

  Raises:
    UsageError: a named field is missing.
  """
  named = {
    name: field_paths.reach(record, path) for name, path in names.items() if path and name not in FIELDS
  }
  for name, value in named.items():
    if value is None:
      raise fields.missing(record, names, name, where)
  return {**record, **{names[name]: value for name, value in named.items()}}


def _misspelt(name: str) -> str:
  """The hint for a column of the user's that has nearly the name of a field that every triplet has."""
  near = did_you_mean(name, [*FIELDS, *SIDES])
  return f", because '{name}' is a column of your own, of numbers{near}" if near else ''


def _ignore(field: str, names: Mapping[str, str]) -> str:
  """How to ignore a column that the user did not name."""
  if field in names.values():
    return ''
  return f'. If the field has another meaning, ignore it with --columns {field}='
