"""What came of the comparisons, as tables and as plain values."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax import files
from dro_jax.evaluation.judge.comparing import Pair
from dro_jax.printing import tables
from dro_jax.printing.result import Report
from dro_jax.printing.tables import Table
from dro_jax.statistics import bradley_terry, length_control, win_rates
from dro_jax.statistics.bootstrap import Estimate


class Draws(NamedTuple):
  """How intervals are made: the draws of prompts, their seed, and the folds."""

  resamples: int = 1000
  seed: int = 0
  folds: int = 5


def result(
  names: Sequence[str],
  pairs: Sequence[Pair],
  num_prompts: int,
  draws: Draws,
  *,
  sees_order: bool = True,
  about: Mapping[str, Any] = {},
  notes: Sequence[str] = (),
  more: Sequence[Table] = (),
) -> Report:
  """The statistics of all pairs.

  Args:
    names: of the sides.
    pairs: their comparisons.
    num_prompts: P.
    draws: for intervals.
    sees_order: whether the judge sees an order; without one there are no flips.
    about: plain values that come before, such as the judge's name.
    notes: sentences below the first table.
    more: tables that come after.
  """
  found = [summary(pair, num_prompts, draws, sees_order) for pair in pairs]
  labels = [f'{names[i]} against {names[j]}' for i, j in (pair.sides for pair in pairs)]
  shown = [_rates(labels, found, num_prompts, notes), _verdicts(labels, found)]
  content = dict(about) | {'prompts': num_prompts, 'pairs': dict(zip(labels, found))}
  rates = {pair.sides: pair.rates(num_prompts) for pair in pairs}
  if len(pairs) > 1:
    content['differences'] = differences(names, rates, draws)
    shown.append(_differences(content['differences']))
  if len(names) > 2 and len(pairs) == len(names) * (len(names) - 1) // 2:
    options = {'resamples': draws.resamples, 'seed': draws.seed}
    content['strengths'] = dict(zip(names, bradley_terry.estimates(rates, len(names), **options)))
    shown += [_matrix(names, dict(zip(rates, found))), _strengths(content['strengths'])]
  shown += more
  content['tables'] = [tables.for_json(table) for table in shown]
  return Report(content, shown)


def summary(pair: Pair, num_prompts: int, draws: Draws, sees_order: bool) -> dict[str, Any]:
  """One pair's statistics by name."""
  options: dict[str, Any] = {'resamples': draws.resamples, 'seed': draws.seed}
  rates_P = pair.rates(num_prompts)
  rate = win_rates.win_rate(rates_P, **options)
  rated = int(np.isfinite(rates_P).sum())
  folds = win_rates.folds(rates_P, draws.folds, draws.seed)
  scores_N = win_rates.of_comparisons(pair.scores_N2)
  refusal = length_control.refusal(pair.differences_N[np.isfinite(scores_N)])
  controlled = None
  if not refusal and rated:
    controlled = length_control.estimate(scores_N, pair.differences_N, pair.prompt_N, num_prompts, **options)
  orders = win_rates.orders(pair.scores_N2)
  return {
    'win_rate': rate, 'length_controlled': controlled, 'length_refusal': refusal, 'prompts': rated,
    'binomial_error': win_rates.binomial_error(rate.value, rated), 'folds': folds and folds._asdict(),
    'ties': orders.ties, 'flips': orders.flips if sees_order else None,
    'first_shown': orders.first if sees_order else None,
    'mean_length_difference': float(pair.differences_N.mean()) if len(pair.differences_N) else None,
    'comparisons': len(pair.scores_N2), 'identical': pair.identical, 'malformed': int(pair.malformed),
    'unjudged': pair.unjudged, 'soft': pair.soft,
  }  # fmt: skip


def differences(
  names: Sequence[str], rates: Mapping[tuple[int, int], np.ndarray], draws: Draws
) -> dict[str, Estimate]:
  """Of every two sides that met a third, the difference of their rates against it, on the same prompts."""
  against = dict(rates) | {(j, i): 1 - rate for (i, j), rate in rates.items()}
  return {
    f'{names[i]} less {names[j]}, against {names[k]}': win_rates.difference(
      against[i, k], against[j, k], resamples=draws.resamples, seed=draws.seed
    )
    for k in range(len(names))
    for j in range(len(names))
    for i in range(j + 1, len(names))
    if (i, k) in against and (j, k) in against
  }


def _rates(
  labels: Sequence[str], found: Sequence[Mapping[str, Any]], prompts: int, notes: Sequence[str]
) -> Table:
  rows = [
    {
      '': label, 'win rate': each['win_rate'], 'length-controlled': each['length_controlled'],
      'folds, mean ± sd': _folds(each['folds']), 'binomial error': each['binomial_error'],
      'characters more': each['mean_length_difference'], 'prompts': each['prompts'],
    }
    for label, each in zip(labels, found)
  ]  # fmt: skip
  refusals = [
    f'{label}: {each["length_refusal"]}.' for label, each in zip(labels, found) if each['length_refusal']
  ]
  note = f'On {prompts} prompts; ties are halves; 95 % intervals over prompts.'
  return Table('Win rates', rows, ' '.join([note, *refusals, *notes]))


def _folds(folds: Mapping[str, Any] | None) -> str | None:
  if folds is None:
    return None
  return f'{folds["mean"]:.4f} ± {folds["sd"]:.4f} ({folds["folds"]} × {folds["prompts"]})'


def _verdicts(labels: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Table:
  columns = {
    'comparisons': 'comparisons', 'ties': 'ties', 'flips': 'order flips',
    'first_shown': 'for the first shown', 'identical': 'equal answers', 'malformed': 'malformed',
    'unjudged': 'not judged', 'soft': 'soft',
  }  # fmt: skip
  rows = [
    {'': label} | {title: each[name] for name, title in columns.items()} for label, each in zip(labels, found)
  ]
  note = 'Each comparison has two verdicts. Malformed and missing ones count for nobody.'
  return Table('Verdicts', rows, note)


def _differences(found: Mapping[str, Estimate]) -> Table:
  rows = [{'': name, 'difference of win rates': estimate} for name, estimate in found.items()]
  return Table('Differences', rows, 'Paired: on the same prompts and the same draws.')


def _matrix(names: Sequence[str], found: Mapping[tuple[int, int], Mapping[str, Any]]) -> Table:
  rows = []
  for i, name in enumerate(names):
    row: dict[str, Any] = {'wins of': name}
    for j, other in enumerate(names):
      value = found[i, j]['win_rate'].value if (i, j) in found else None
      value = 1 - found[j, i]['win_rate'].value if (j, i) in found else value
      row[f'against {other}'] = value
    rows.append(row)
  return Table('All against all', rows)


def _strengths(found: Mapping[str, Estimate]) -> Table:
  rows = [
    {'': name, 'strength, log-odds': estimate}
    for name, estimate in sorted(found.items(), key=lambda item: -np.nan_to_num(item[1].value))
  ]
  first = next(iter(found))
  return Table('Bradley-Terry', rows, f'Log-odds to win against {first}, from all comparisons.')


def save(folder: pathlib.Path, found: Report, records: Sequence[Mapping[str, Any]]) -> None:
  """Writes report.json, report.md and verdicts.jsonl."""
  files.write_atomically(folder / 'verdicts.jsonl', ''.join(map(files.json_line, records)))
  found.save(folder, 'report', 'Side by side')
