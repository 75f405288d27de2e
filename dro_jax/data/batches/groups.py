"""Pairs and groups: the responses to one prompt that an algorithm compares."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np

from dro_jax.configs.effects import COMPARED
from dro_jax.data.records import comparisons
from dro_jax.data.table.table import TokenTable
from dro_jax.errors import UsageError, suggests_fields
from dro_jax.statistics import ties

PAIRS = ('logged', 'best_worst', 'all')


@suggests_fields
@dataclasses.dataclass(frozen=True)
class UnitOptions:
  """How pairs and groups are formed from responses to one prompt.

  Args:
    pairs: 'logged' takes each comparison as it was judged, 'best_worst' a prompt's best response against its
      worst, and 'all' every two. `None` takes 'logged' where the data are comparisons, else 'best_worst'.
    margin: the least difference between the rewards of a pair, in the rewards' own units; ties make no pair.
    group_size: responses of a group at most, 2 or more. A larger group is split evenly, and each part gets
      good and bad responses.
    ranked: whether a group keeps one response of each reward, so that it is a strict ranking.

  Example:
    >>> pairs = dro.UnitOptions(pairs='best_worst', margin=0.5)
    >>> dro.replace(spec, algorithm=dro.algorithms.dpo(), batches={'units': pairs}).batches.units.margin
    0.5
  """

  # None leaves the pairs to the data, which earlier versions did not: the saved report says which were taken.
  pairs: Annotated[str | None, COMPARED] = None
  margin: float | int = 0.0
  group_size: int = 8
  ranked: bool = False

  def __post_init__(self) -> None:
    if self.pairs is not None and self.pairs not in PAIRS:
      raise UsageError(
        f"pairs '{self.pairs}' is unknown; choose from {', '.join(PAIRS)}, as UnitOptions(pairs=...) or "
        '--set PAIRS=...'
      )
    if self.margin < 0 or self.group_size < 2:
      raise UsageError(
        f'margin={self.margin}, group_size={self.group_size}: pass a margin of 0 or more, and groups of 2 or '
        'more (--set PAIR_MARGIN=..., --set GROUP_SIZE=...)'
      )


class Formed(NamedTuple):
  """Units of a table.

  Attributes:
    table: only the records that are in a unit. Each text occurs once for its prompt, with the mean reward of
      its duplicates; for logged pairs each comparison keeps its own records.
    members: `[U, K]`, records of `table`, best first; −1 where a group is smaller than the largest.
    report: plain JSON: the number of units, and of what was merged, dropped or left out.
  """

  table: TokenTable
  members: np.ndarray
  report: dict[str, Any]


def resolved(options: UnitOptions, table: TokenTable) -> UnitOptions:
  """The options, with `pairs` chosen by the data where the user did not choose.

  Raises:
    UsageError: comparisons are mixed with other records: logged pairs would leave those out, and other pairs
      would join responses that were not compared.
  """
  if options.pairs is not None:
    return options
  if comparisons.COLUMN in table.report.get('columns_left_out', ()):
    raise UsageError(
      'these triplets are comparisons and other records, so that their pairs would differ from those that '
      'were judged: pass only files of comparisons, or form pairs by rewards (1 for chosen, 0 for rejected '
      'responses) with PAIRS=best_worst or PAIRS=all'
    )
  return dataclasses.replace(options, pairs='logged' if are_comparisons(table) else 'best_worst')


def form(table: TokenTable, unit: str, options: UnitOptions) -> Formed:
  """Pairs (`unit` 'pair') or groups ('group') of the responses to one prompt.

  Raises:
    UsageError: the data has none.
  """
  if unit == 'pair':
    options = resolved(options, table)
    if options.pairs == 'logged':
      return _formed_as_logged(table, options)
  merged, duplicates = merge_duplicates(table)
  make = {'pair': _pairs, 'group': _groups}[unit]
  ranked = [_best_first(merged, members) for members in _by_prompt(merged)]
  made = [make(merged.raw_rewards[members], members, options) for members in ranked]
  units = [members for prompt_units, _ in made for members in prompt_units]
  report = {
    'unit': unit,
    'units': len(units),
    'prompts': sum(bool(prompt_units) for prompt_units, _ in made),
    'prompts_without': sum(not prompt_units for prompt_units, _ in made),
    'duplicates_merged': duplicates,
    'ties_dropped': sum(ties for _, ties in made),
    **dataclasses.asdict(options),
  }
  # Settings that the unit does not read are not compared when a run resumes.
  report |= dict.fromkeys(('pairs', 'margin') if unit == 'group' else ('group_size', 'ranked'))
  if not units:
    raise _none_formed(unit, table, report)
  members = np.full((len(units), max(map(len, units))), -1)
  for row, records in zip(members, units):
    row[: len(records)] = records
  return _without_unused(merged, members, report)


def _without_unused(table: TokenTable, members: np.ndarray, report: dict[str, Any]) -> Formed:
  """The units of a table, which then holds only the records that are in a unit."""
  used = np.unique(members[members >= 0])
  numbered = np.where(members >= 0, np.searchsorted(used, members), -1)
  return Formed(table.subset(used), numbered, report | {'responses_left_out': len(table) - len(used)})


_TAKEN = {
  'logged': 'each comparison as it was judged',
  'best_worst': "each prompt's best response against its worst",
  'all': 'every two responses to a prompt whose rewards differ',
}


def notes(report: Mapping[str, Any] | None) -> tuple[str, ...]:
  """A line on a run's pairs: their kind and number, and what was left out."""
  if not report or report['unit'] != 'pair':
    return ()
  counts = {
    'ties_dropped': 'dropped as ties',
    'duplicates_merged': 'responses merged as duplicates',
    'comparisons_left_out': 'comparisons left out, because they lack a side or have two prompts',
    'equal_sides': 'comparisons left out, because their sides have the same tokens',
  }
  omitted = ''.join(f'; {report[name]} {text}' for name, text in counts.items() if report.get(name))
  return (f'pairs: {_TAKEN[report["pairs"]]} (PAIRS={report["pairs"]}), {report["units"]} of them{omitted}',)


class _Logged(NamedTuple):
  """A table's comparisons.

  Attributes:
    records: `[C, 2]`, of the comparisons with two records to one prompt.
    most: records of the largest comparison.
    broken: the number of comparisons with another number of records, or with two prompts.
  """

  records: np.ndarray
  most: int
  broken: int


def _logged(table: TokenTable) -> _Logged:
  number, prompt = table.columns[comparisons.COLUMN], table.prompt_index
  order = np.lexsort((number, prompt))
  changes = np.diff(number[order], prepend=np.nan) != 0
  starts = np.flatnonzero(changes | (np.diff(prompt[order], prepend=-1) != 0))
  sizes = np.diff([*starts, len(order)])
  whole = starts[sizes == 2]
  records = np.sort(order[np.stack([whole, whole + 1], -1)], axis=-1)
  return _Logged(records[np.argsort(records[:, 0])], int(sizes.max()), len(np.unique(number)) - len(whole))


def are_comparisons(table: TokenTable) -> bool:
  """Whether the records are pairs that were judged against each other (see `comparisons`)."""
  if comparisons.COLUMN not in table.columns or not len(table):
    return False
  logged = _logged(table)
  rewards = table.raw_rewards[logged.records]
  return logged.most == 2 and bool(ties.exceeds(rewards.max(-1), rewards.min(-1)).any())


def _formed_as_logged(table: TokenTable, options: UnitOptions) -> Formed:
  """Every comparison as it was judged; responses in several comparisons are not merged."""
  if not are_comparisons(table):
    raise UsageError(
      'PAIRS=logged keeps the pairs that were judged, and this data holds rewarded responses, not '
      'comparisons: pass records with prompt, chosen and rejected, or form pairs by rewards: '
      'PAIRS=best_worst or PAIRS=all'
    )
  if options.margin:
    raise UsageError(
      f'PAIR_MARGIN={options.margin} is a difference of rewards, and logged comparisons have none: pass 0, '
      'or form pairs by rewards: PAIRS=best_worst or PAIRS=all'
    )
  logged = _logged(table)
  rewards = table.raw_rewards[logged.records]
  judged = np.asarray(ties.exceeds(rewards.max(-1), rewards.min(-1)))
  same = np.array([np.array_equal(*map(table.response, pair)) for pair in logged.records.tolist()], bool)
  best_first = np.argsort(-rewards, axis=-1, kind='stable')
  members = np.take_along_axis(logged.records, best_first, axis=-1)[judged & ~same]
  if not len(members):
    raise UsageError(
      f'none of {len(same)} comparisons can teach the policy, because the sides of each are the same tokens '
      'or have equal rewards: check chosen and rejected, and RESPONSE_LENGTH, which cuts longer responses'
    )
  prompts = len(np.unique(table.prompt_index[members[:, 0]]))
  report = {
    'unit': 'pair',
    'units': len(members),
    'prompts': prompts,
    'prompts_without': len(np.unique(table.prompt_index)) - prompts,
    'duplicates_merged': 0,
    'ties_dropped': int((~judged).sum()),
    'comparisons_left_out': logged.broken,
    'equal_sides': int((judged & same).sum()),
    **dataclasses.asdict(options),
    'group_size': None,
    'ranked': None,
  }
  return _without_unused(table, members, report)


def _none_formed(unit: str, table: TokenTable, report: dict[str, Any]) -> UsageError:
  prompts = len(np.unique(table.prompt_index))
  reason = (
    'every prompt has one response'
    if prompts == len(table)
    else f'{report["ties_dropped"]} dropped as ties, {report["duplicates_merged"]} responses as duplicates'
  )
  return UsageError(
    f'the algorithm compares the responses to one prompt, and these {len(table)} responses to {prompts} '
    f'prompts make no {unit}: {reason}. Records that share a prompt form a group; lower PAIR_MARGIN, or '
    'choose an algorithm for single responses, such as dro_v or kto.'
  )


def merge_duplicates(table: TokenTable) -> tuple[TokenTable, int]:
  """Merges records of equal prompt and response, with their mean reward; and the number merged away."""
  first, number = {}, np.zeros(len(table), np.int64)
  counts = np.bincount(table.prompt_index)
  for i, prompt in enumerate(table.prompt_index.tolist()):
    # A prompt's only response has no duplicate, and its text need not be read.
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
  """(chosen, rejected) pairs of one prompt's responses, best first; and the number dropped as ties."""
  above, below = np.triu_indices(len(members), 1)
  if options.pairs == 'best_worst':
    above, below = np.array([0]), np.array([len(members) - 1])
    if len(members) < 2:
      return [], 0
  higher, lower = rewards[above], rewards[below]
  kept = ties.exceeds(higher, lower) & ~ties.exceeds(options.margin, higher - lower, made_of=rewards)
  return list(members[np.stack([above, below], -1)[kept]]), int((~kept).sum())


def _groups(rewards: np.ndarray, members: np.ndarray, options: UnitOptions) -> tuple[list[np.ndarray], int]:
  """Groups of one prompt's responses, best first; and the number of responses dropped as ties."""
  total = len(members)
  if options.ranked:
    members = members[ties.distinct(-rewards)[1]]
  parts = -(-len(members) // options.group_size)
  groups = [members[part::parts] for part in range(parts)]
  return [group for group in groups if len(group) > 1], total - len(members)
