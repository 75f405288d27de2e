"""Pairs and groups: which responses to one prompt a pairwise or group method sees together."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dro_jax import ties
from dro_jax.data.table import TokenTable
from dro_jax.errors import UsageError

PAIRS = ('best_worst', 'all')


@dataclasses.dataclass(frozen=True)
class UnitOptions:
  """How pairs and groups are formed from responses to one prompt.

  Args:
    pairs: a prompt's best response against its worst ('best_worst'), or every two ('all').
    margin: least difference of the rewards of a pair, in the rewards' own units; ties never make a pair.
    group_size: responses of a group at most, 2 or more. Larger groups are dealt out evenly, best and worst
      together.
    ranked: keep one response of each reward, so that a group is a strict ranking.
  """

  pairs: str = 'best_worst'
  margin: float | int = 0.0
  group_size: int = 8
  ranked: bool = False

  def __post_init__(self):
    if self.pairs not in PAIRS:
      raise UsageError(f"pairs '{self.pairs}' is unknown; choose from {', '.join(PAIRS)} (--set PAIRS=...)")
    if self.margin < 0 or self.group_size < 2:
      raise UsageError(
        f'margin={self.margin}, group_size={self.group_size}: pass a margin of 0 or more, and groups of 2 or '
        'more (--set PAIR_MARGIN=..., --set GROUP_SIZE=...)'
      )


class Formed(NamedTuple):
  """Units of a table.

  Attributes:
    table: those records only that are in some unit, each text once a prompt, its reward the mean of its
      duplicates'.
    members: `[U, K]`, records of `table`, best first; −1 where a group is smaller than the largest.
    report: plain JSON: how many units there are, and what was merged, dropped or left out.
  """

  table: TokenTable
  members: np.ndarray
  report: dict


def form(table: TokenTable, unit: str, options: UnitOptions) -> Formed:
  """Pairs (`unit` 'pair') or groups ('group') of the responses to one prompt.

  Raises:
    UsageError: there are none.
  """
  merged, duplicates = merge_duplicates(table)
  make = {'pair': _pairs, 'group': _groups}[unit]
  ranked = [_best_first(merged, members) for members in _by_prompt(merged)]
  made = [make(merged.raw_rewards[members], members, options) for members in ranked]
  units = [members for of_prompt, _ in made for members in of_prompt]
  report = {
    'unit': unit,
    'units': len(units),
    'prompts': sum(bool(of_prompt) for of_prompt, _ in made),
    'prompts_without': sum(not of_prompt for of_prompt, _ in made),
    'duplicates_merged': duplicates,
    'ties_dropped': sum(ties for _, ties in made),
    **dataclasses.asdict(options),
  }
  if not units:
    raise _none_formed(unit, table, report)
  used = np.unique(np.concatenate(units))
  members = np.full((len(units), max(map(len, units))), -1)
  for row, records in zip(members, units):
    row[: len(records)] = np.searchsorted(used, records)
  return Formed(merged.subset(used), members, report | {'responses_left_out': len(merged) - len(used)})


def _none_formed(unit: str, table: TokenTable, report: dict) -> UsageError:
  prompts = len(np.unique(table.prompt_index))
  why = (
    'every prompt has one response'
    if prompts == len(table)
    else f'{report["ties_dropped"]} dropped as ties, {report["duplicates_merged"]} responses as duplicates'
  )
  return UsageError(
    f'the algorithm compares the responses to one prompt, and these {len(table)} responses to {prompts} '
    f'prompts make no {unit}: {why}. Records that share a prompt form a group; lower PAIR_MARGIN, or choose '
    'an algorithm for single responses, such as dro_v or kto.'
  )


def merge_duplicates(table: TokenTable) -> tuple[TokenTable, int]:
  """Records of equal prompt and response as one, its reward their mean; and how many were merged away."""
  first, number = {}, np.zeros(len(table), np.int64)
  counts = np.bincount(table.prompt_index)
  for i, prompt in enumerate(table.prompt_index.tolist()):
    # What a prompt has one of has no duplicate, whatever it says.
    key = (prompt, table.response(i).tobytes()) if counts[prompt] > 1 else (prompt, None)
    number[i] = first.setdefault(key, len(first))
  if len(first) == len(table):
    return table, 0
  kept = np.unique(number, return_index=True)[1]
  times = np.bincount(number)
  means = {name: np.bincount(number, getattr(table, name)) / times for name in ('rewards', 'raw_rewards')}
  return dataclasses.replace(table.subset(kept), **means), len(table) - len(kept)


def _by_prompt(table: TokenTable) -> Iterator[np.ndarray]:
  """Records of each prompt, prompts in the order in which they first occur."""
  order = np.argsort(table.prompt_index, kind='stable')
  groups = np.split(order, np.flatnonzero(np.diff(table.prompt_index[order])) + 1)
  return iter(sorted(groups, key=lambda members: members[0]))


def _best_first(table: TokenTable, members: np.ndarray) -> np.ndarray:
  return members[np.argsort(-table.raw_rewards[members], kind='stable')]


def _pairs(rewards: np.ndarray, members: np.ndarray, options: UnitOptions) -> tuple[list[np.ndarray], int]:
  """(chosen, rejected) of one prompt's responses, best first; and how many pairs were dropped as ties."""
  above, below = np.triu_indices(len(members), 1)
  if options.pairs == 'best_worst':
    above, below = np.array([0]), np.array([len(members) - 1])
    if len(members) < 2:
      return [], 0
  higher, lower = rewards[above], rewards[below]
  kept = ties.exceeds(higher, lower) & ~ties.exceeds(options.margin, higher - lower, made_of=rewards)
  return list(members[np.stack([above, below], -1)[kept]]), int((~kept).sum())


def _groups(rewards: np.ndarray, members: np.ndarray, options: UnitOptions) -> tuple[list[np.ndarray], int]:
  """Groups of one prompt's responses, best first; and how many responses were dropped as ties."""
  total = len(members)
  if options.ranked:
    members = members[ties.distinct(-rewards)[1]]
  parts = -(-len(members) // options.group_size)
  groups = [members[part::parts] for part in range(parts)]
  return [group for group in groups if len(group) > 1], total - len(members)
