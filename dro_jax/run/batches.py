"""The batches of a run for training and validation, laid out in rows for its mesh."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np

from dro_jax import algorithms
from dro_jax.algorithms.columns import Labelling
from dro_jax.configs.effects import LAYOUT
from dro_jax.data.batches import groups, loader, packing, plan
from dro_jax.data.records import comparisons
from dro_jax.data.table.table import TokenTable
from dro_jax.data.triplets import Triplets, require_rewards, with_missing_rewards_zero
from dro_jax.errors import UsageError, suggests_fields
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run.sampling import rollouts

_MOST_EPOCHS = 100  # In one batch.


@suggests_fields
@dataclasses.dataclass(frozen=True)
class RowOptions:
  """How a batch is laid out in rows; changes speed, never a number (see `data.batches.packing.Layout.fit`).

  Args:
    packed: whether a row holds many responses; otherwise it holds one.
    encode_once: whether the responses to one prompt in one row share its encoding.
    prompt_length: prompt tokens of a row; `None` takes the length that fits the data best.
    response_length: response tokens of a row; `None` takes the length that fits the data best.
    coverage: the share of batches that must fit the usual number of rows; the rest take more rows, for which
      the step is compiled again. Below 1 helps where a few prompts have very many or very long responses.

  Example:
    >>> rows = dro.RowOptions(prompt_length=64, response_length=32)
    >>> dro.replace(spec, batches={'rows': rows}).batches.rows.packed
    True
  """

  packed: Annotated[bool, LAYOUT] = True
  encode_once: Annotated[bool, LAYOUT] = True
  prompt_length: Annotated[int | None, LAYOUT] = None
  response_length: Annotated[int | None, LAYOUT] = None
  coverage: Annotated[float | int, LAYOUT] = 1.0


class Loaders(NamedTuple):
  """Batches to train on, to validate on where prompts are held out, and the report of pairs or groups.

  `statistics` holds every held-out response where `eval` holds pairs or groups, which leave some out, so that
  the statistics of algorithms are comparable.
  """

  train: loader.Loader
  eval: loader.Loader | None
  units: Mapping[str, Any] | None
  statistics: loader.Loader | None = None


def derive(
  triplets: Triplets,
  columns: Mapping[str, Callable[[Triplets], Callable[[TokenTable], np.ndarray]]],
  select: Callable[[TokenTable], np.ndarray] | None = None,
  weights: Callable[[TokenTable], np.ndarray] | None = None,
) -> Triplets:
  """Adds columns derived from the data, and then chooses the responses to train on.

  Args:
    triplets: the data; the training part decides every constant.
    columns: by name: from the triplets to a function from a table to `[N]`. The rule of labels is reported.
    select: marks the training responses to keep, `[N]` booleans.
    weights: how often to draw each of these, `[N]`, times the mixture's weights.
  """
  made = {name: fit(triplets) for name, fit in columns.items()}
  rules = [column for column in made.values() if isinstance(column, Labelling)]

  def extended(table: TokenTable | None) -> TokenTable | None:
    return table and table.with_columns({name: column(table) for name, column in made.items()})

  train = extended(triplets.train)
  report = triplets.report | ({'labels': rules[0].report(train)} if rules else {})
  if select is not None:
    train = train.subset(select(train))
    report = report | {'selected_records': len(train)}
  if weights is not None:
    own = weights(train)
    train = dataclasses.replace(train, weights=own if train.weights is None else own * train.weights)
  return triplets._replace(train=train, eval=extended(triplets.eval), report=report)


def admitted(triplets: Triplets, algorithm: algorithms.Algorithm) -> Triplets:
  """The triplets with the algorithm's derived columns, and only the responses on which it trains.

  Raises:
    UsageError: the algorithm cannot learn from the triplets.
  """
  for table in filter(None, (triplets.train, triplets.eval)):
    algorithms.check_columns(algorithm, table.columns)
  triplets = with_rewards(triplets, algorithm)
  algorithm.check(triplets)
  return derive(triplets, algorithm.columns, algorithm.select, algorithm.weights)


def with_rewards(triplets: Triplets, algorithm: algorithms.Algorithm) -> Triplets:
  """The triplets, with missing rewards as 0 for an algorithm that reads no rewards.

  Raises:
    UsageError: the algorithm reads rewards, and a record has none.
  """
  if not algorithm.uses_rewards:
    return with_missing_rewards_zero(triplets)
  require_rewards(triplets, algorithm.name)
  return triplets


def make_loaders(
  triplets: Triplets,
  algorithm: algorithms.Algorithm,
  rows: RowOptions,
  unit_options: groups.UnitOptions,
  *,
  batch_size: int,
  seed: int,
  multiple: int,
  eval_examples: int | None,
  deal: str = 'together',
  in_file_order: bool = False,
) -> Loaders:
  """Makes the batches of a run.

  Args:
    triplets: with the algorithm's own columns (see `admitted`).
    algorithm: the algorithm, in whose unit a batch counts.
    rows: how a batch is laid out.
    unit_options: how pairs and groups are formed.
    batch_size: responses, pairs, groups or prompts.
    seed: the seed of the order of batches.
    multiple: parts into which the mesh and the microbatches cut a batch's rows.
    eval_examples: held-out responses to validate on at most; `None` for all.
    deal: 'together' or 'uniform' (see `data.batches.plan.Plan`).
    in_file_order: keep the held-out part in the order of its file, as runs of earlier versions did.

  Raises:
    UsageError: a batch cannot give every part of the mesh and every microbatch its rows, or the data has no
      units for the algorithm.
  """
  if algorithm.online is not None:
    # Each row has one prompt, and its fresh responses: the layout of logged ones does not apply.
    triplets = rollouts.prompts_only(triplets)
    rows = dataclasses.replace(rows, packed=False, response_length=None)
  _refuse_lone(batch_size, algorithm, triplets.report.get('labels', {}))
  _refuse_indivisible(batch_size, algorithm.unit, rows.packed, multiple)

  def load(table: TokenTable, batches: plan.Plan | plan.SequentialPlan | plan.UnitPlan) -> loader.Loader:
    table = dataclasses.replace(table, columns=comparisons.without(table.columns))
    fitted = packing.Layout.fit(table, batches, row_multiple=multiple, **dataclasses.asdict(rows))
    return loader.Loader(table, batches, fitted, mismatched=algorithm.uses_mismatched)

  if algorithm.unit == 'pair':  # The held-out part may be too small to decide.
    unit_options = groups.resolved(unit_options, triplets.train)
  table, members, report = _formed(triplets.train, algorithm.unit, unit_options)
  _refuse_split(algorithm, triplets.train, report, unit_options)
  _refuse_many_epochs(batch_size, algorithm.unit, len(table) if members is None else len(members))
  if members is None:
    train_loader = load(table, plan.Plan.from_table(table, batch_size, seed, deal=deal))
  else:
    train_loader = load(table, plan.UnitPlan.from_table(table, members, batch_size, seed, deal=deal))
  if triplets.eval is None:
    return Loaders(train_loader, None, report)
  if in_file_order:
    records = np.sort(np.argsort(triplets.eval.prompt_digests, kind='stable')[:eval_examples])
  else:
    records = by_content(triplets.eval)[:eval_examples]
  held_out = triplets.eval.subset(records)
  every = load(held_out, plan.SequentialPlan(len(held_out), batch_size))
  table, members, held_out_report = _formed(held_out, algorithm.unit, unit_options)
  _refuse_split(algorithm, held_out, held_out_report, unit_options)
  if members is None:
    return Loaders(train_loader, every, report)
  once = plan.UnitPlan(plan.SequentialPlan(len(members), batch_size), members, len(table))
  return Loaders(train_loader, load(table, once), report, every)


def by_content(table: TokenTable) -> np.ndarray:
  """The records of a table ordered by content, not by file: digests of prompt and response, reward, columns.

  Two records that are equal in all of these are the same to every algorithm.
  """
  columns, digests = dict(table.columns), table.response_digests()
  if comparisons.COLUMN in columns:  # Their numbers may depend on lines.
    numbers = columns[comparisons.COLUMN]
    columns[comparisons.COLUMN] = comparisons.contents(numbers, digests, table.raw_rewards)
  keys = (columns[name] for name in sorted(columns, reverse=True))
  return np.lexsort((*keys, table.raw_rewards, digests, table.prompt_digests))


def once(table: TokenTable, mesh: Mesh, batch_size: int) -> loader.Loader:
  """Every record of a table once, in order, in rows that fit it best."""
  batches = plan.SequentialPlan(len(table), batch_size)
  fitted = packing.Layout.fit(table, batches, row_multiple=partitioning.num_row_shards(mesh))
  return loader.Loader(table, batches, fitted)


def _refuse_lone(batch_size: int, algorithm: algorithms.Algorithm, labels: Mapping[str, Any]) -> None:
  if batch_size < max(algorithm.least_batch, labels.get('least_batch', 1)):
    raise UsageError(
      f'{algorithm.name} compares each reward with the mean of its batch, which in a batch of {batch_size} '
      'is the reward itself, so it would learn nothing: pass Batches(size=32), or --set BATCH=32.'
    )


def _refuse_many_epochs(batch_size: int, unit: str, count: int) -> None:
  """A batch of very many epochs takes minutes to deal, and is the same batch again and again."""
  if batch_size > _MOST_EPOCHS * count:
    raise UsageError(
      f'a batch of {batch_size} {unit}s would hold each of the {count} {unit}s to train on about '
      f'{batch_size // count} times, and a batch may hold them {_MOST_EPOCHS} times at most: pass '
      f'Batches(size={count}), or --set BATCH={count}, or fewer, or more data.'
    )


def _refuse_indivisible(batch_size: int, unit: str, packed: bool, multiple: int) -> None:
  if batch_size < multiple or (not packed and batch_size % multiple):
    raise UsageError(
      f'a batch of {batch_size} {unit}s does not divide over the {multiple} parts that the mesh and the '
      f'microbatches cut its rows into: pass a multiple of {multiple}, as Batches(size={multiple}) or --set '
      f'BATCH={multiple}, or a smaller mesh.'
    )


def _refuse_split(
  algorithm: algorithms.Algorithm,
  table: TokenTable,
  report: Mapping[str, Any] | None,
  options: groups.UnitOptions,
) -> None:
  if algorithm.whole_groups and report is not None and report['units'] > report['prompts']:
    most = int(np.unique(table.prompt_index, return_counts=True)[1].max())
    raise UsageError(
      f'{algorithm.name} sums over all responses to a prompt, and a group holds {options.group_size} of them '
      f'at most, while a prompt has {most}: pass UnitOptions(group_size={most}), or --set GROUP_SIZE={most}.'
    )


def _formed(table: Any, unit: str, options: groups.UnitOptions) -> tuple[Any, np.ndarray | None, Any]:
  """(the table, its pairs or groups, how they were formed); responses stay as they are."""
  return groups.form(table, unit, options) if unit in ('pair', 'group') else (table, None, None)


__all__ = ['RowOptions']
