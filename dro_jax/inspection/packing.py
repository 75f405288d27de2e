"""Finds the lengths of rows that suit a data set."""

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

_SCANNED = 64  # Batches that are laid out in each kind of rows, at most.
_EPOCHS = 4  # Epochs from which these batches come, at most.
_TRIED = 4  # Lengths of rows that are tried.
_ROWS = (128, 256, 512, 1024)  # Lengths of a row's side in tokens, besides the length of the longest text.
_WORTH = 0.02  # The share by which rows must be fuller than the default rows to be worth a setting.


def packing(table: TokenTable, batch_size: int) -> dict[str, Any]:
  """Measures how full rows of several kinds are, and finds the settings that fill them best.

  Returns:
    `kinds`: the default rows, padded ones, then others; `settings`: the best ones, empty where the default is
    as good.
  """
  order = plan.Plan.from_table(table, batch_size, 0)
  batches = [order.batch(step) for step in range(min(_SCANNED, -(-_EPOCHS * len(table) // batch_size)))]
  default, candidates = dataclasses.asdict(feeds.RowOptions()), [{'packed': False}, {'coverage': 0.9}]
  candidates += [
    dict(zip(('prompt_length', 'response_length'), sides)) for sides in _promising(table, batches)
  ]
  kinds = [_packed(table, order, batches, default, {})]
  kinds += [_packed(table, order, batches, default, changes, scan=len(batches)) for changes in candidates]
  # Another number of rows is another shape to compile.
  best = max(kinds, key=lambda kind: kind['total'] - _WORTH * (len(kind['rows']) - 1))
  worth = best['total'] > kinds[0]['total'] + _WORTH
  return {'kinds': kinds, 'settings': best['settings'] if worth else {}}


def _promising(table: TokenTable, batches: Sequence[np.ndarray]) -> list[tuple[int, int]]:
  """The most promising lengths of rows, by their fill if texts could be cut anywhere."""
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
  table: TokenTable,
  order: plan.Plan,
  batches: Sequence[np.ndarray],
  default: Mapping[str, Any],
  changes: Mapping[str, Any],
  **options: int,
) -> dict[str, Any]:
  rows = layout.Layout.fit(table, order, **{**default, **changes}, **options)
  fill = layout.fill(table, rows, batches)
  return {
    'settings': {MACROS[name]: value for name, value in changes.items()},
    'prompt_length': rows.prompt_length, 'response_length': rows.response_length, **fill._asdict(),
  }  # fmt: skip
