"""How long rows should be for a data set's texts."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.data.batches import packing as layout
from dro_jax.data.batches import plan
from dro_jax.data.table.table import TokenTable
from dro_jax.inspection.command import MACROS
from dro_jax.run import batches as feeds

_SCANNED = 64  # Batches at most that are laid out in each kind of rows,
_EPOCHS = 4  # of that many epochs at most.
_TRIED = 4  # Lengths of rows that are tried.
_ROWS = (128, 256, 512, 1024)  # Tokens of a row's side, beside the longest text's.
_WORTH = 0.02  # Fill by which rows must be better than those that fit the data by themselves.


def packing(table: TokenTable, batch_size: int) -> dict[str, Any]:
  """How full rows of several kinds are, and which settings fill them best.

  Returns:
    `kinds`: the rows that a run takes by itself, padded ones, then others; `settings`: what to set, nothing
    where the first are as good.
  """
  order = plan.Plan.from_table(table, batch_size, 0)
  batches = [order.batch(step) for step in range(min(_SCANNED, -(-_EPOCHS * len(table) // batch_size)))]
  own, tried = dataclasses.asdict(feeds.RowOptions()), [{'packed': False}, {'coverage': 0.9}]
  tried += [dict(zip(('prompt_length', 'response_length'), sides)) for sides in _promising(table, batches)]
  found = [_packed(table, order, batches, own, {})]
  found += [_packed(table, order, batches, own, given, scan=len(batches)) for given in tried]
  # Another number of rows is another shape to compile.
  best = max(found, key=lambda kind: kind['total'] - _WORTH * (len(kind['rows']) - 1))
  worth = best['total'] > found[0]['total'] + _WORTH
  return {'kinds': found, 'settings': best['settings'] if worth else {}}


def _promising(table: TokenTable, batches: Sequence[np.ndarray]) -> list[tuple[int, int]]:
  """Lengths of rows that could be full, were the batches' texts cut as one likes: the best of them."""
  totals = []
  for batch in batches:
    first = np.unique(table.prompt_index[batch], return_index=True)[1]
    totals.append((table.prompt_lengths[batch][first].sum(), table.response_lengths[batch].sum()))

  def fill(sides: tuple[int, int]) -> float:
    rows = np.ceil((totals / np.array(sides)).max(1))
    return float(np.sum(totals) / (rows.sum() * sum(sides)))

  longest = int(table.prompt_lengths.max()), int(table.response_lengths.max())
  prompts, responses = [
    {-(-length // 8) * 8, *(size for size in _ROWS if size >= length)} for length in longest
  ]
  return sorted(sorted(itertools.product(prompts, responses)), key=fill)[-_TRIED:]


def _packed(
  table: TokenTable, order: plan.Plan, batches: list, own: Mapping, given: Mapping, **options
) -> dict[str, Any]:
  rows = layout.Layout.fit(table, order, **{**own, **given}, **options)
  fill = layout.fill(table, rows, batches)
  return {
    'settings': {MACROS[name]: value for name, value in given.items()},
    'prompt_length': rows.prompt_length, 'response_length': rows.response_length, **fill._asdict(),
  }  # fmt: skip
