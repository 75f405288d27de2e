"""Tables of the `human` suite: how well scores of held-out responses agree with people, beside baselines."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.arena import results, training
from dro_jax.arena.cells import Finished
from dro_jax.arena.suite import Report
from dro_jax.printing.tables import Table
from dro_jax.statistics import agreement as statistics
from dro_jax.statistics.bootstrap import Estimate

DRAWS = 1000
# A score of every response, by a run's scores and what is known of the responses, all `[N]`.
Score = Callable[[Mapping[str, Any], Mapping[str, Any], float], np.ndarray]
Statistic = Callable[[np.ndarray, np.ndarray], float]


def _array(x: Any) -> np.ndarray:
  return np.asarray(x, np.float64)


def level(scores: Mapping[str, Any], about: Mapping[str, Any], temperature: float) -> np.ndarray:
  """V(x) + τρ, a reward, or τρ where there is no value; of a reward model, its score, for ρ is 0.

  Of two responses to one prompt it says what τρ says, for they have one V(x).
  """
  values = _array(scores['values']) if 'values' in scores else 0.0
  return values + temperature * (_array(scores['logps']) - _array(about['reference']))


def _logp(scores: Mapping[str, Any], about: Mapping[str, Any], temperature: float) -> np.ndarray:
  return _array(scores['logps'])


def _logp_per_token(scores: Mapping[str, Any], about: Mapping[str, Any], temperature: float) -> np.ndarray:
  return _array(scores['logps']) / _array(about['lengths'])


PLAIN = {'log-prob': _logp, 'log-prob by token': _logp_per_token}


# --- statistics ---------------------------------------------------------------------------------------------


def within_prompts(score: np.ndarray, about: Mapping[str, Any]) -> Callable[[np.ndarray], float]:
  """Accuracy on pairs of responses to one prompt, as a statistic of `weights_P`."""
  pairs = statistics.count_pairs(score, _array(about['rewards']), np.asarray(about['prompts']))
  return functools.partial(statistics.pairwise_accuracy, pairs)


def across_prompts(score: np.ndarray, about: Mapping[str, Any]) -> Callable[[np.ndarray], float]:
  """Rank correlation with the human score, as a statistic of `weights_P`."""
  prompts, rewards = np.asarray(about['prompts'], int), _array(about['rewards'])
  return lambda weights_P: statistics.rank_correlation(score, rewards, weights_P[prompts])


def corrections(
  score: np.ndarray, corrected: np.ndarray, about: Mapping[str, Any]
) -> Callable[[np.ndarray], float]:
  """Share of records, weighted by HTER, whose correction scores higher; ties half; of `weights_P`.

  Records that nobody edited have HTER 0 and do not count.
  """
  wins = (np.sign(corrected - score) + 1) / 2
  prompts, hter = np.asarray(about['prompts'], int), _array(about['weights'])

  def share(weights_P: np.ndarray) -> float:
    weights = weights_P[prompts] * hter
    return float(weights @ wins / weights.sum()) if weights.sum() > 0 else float('nan')

  return share


def estimate(of_seeds: Sequence[Callable[[np.ndarray], float]], prompts: Any) -> Estimate:
  """The mean over seeds of a statistic, and its interval over prompts."""
  count = int(np.max(prompts)) + 1
  return statistics.bootstrap(
    lambda weights_P: float(np.mean([statistic(weights_P) for statistic in of_seeds])), count, DRAWS, 0
  )


def has_pairs(about: Mapping[str, Any]) -> bool:
  """Whether some prompt has responses of different rewards."""
  counts = statistics.count_pairs(
    np.zeros(len(about['rewards'])), _array(about['rewards']), np.asarray(about['prompts'])
  )
  return bool(counts.pairs.sum() > 0)


def agreement(scores: Mapping[str, Any], about: Mapping[str, Any], temperature: float) -> float:
  """The score by which trials are chosen, on the validation table: more is better; −1 where it is undefined.

  Accuracy within prompts where they have pairs, else rank correlation.
  """
  table = about['validation']
  if has_pairs(table):
    statistic = within_prompts(level(scores, table, temperature), table)
  else:
    statistic = across_prompts(level(scores, table, temperature), table)
  value = statistic(np.ones(int(np.max(table['prompts'])) + 1))
  return value if np.isfinite(value) else -1.0


# --- tables -------------------------------------------------------------------------------------------------

# From a run's result, which checkpoint and a score to a statistic of `weights_P`.
Measure = Callable[[Mapping[str, Any], str, Score], Callable[[np.ndarray], float]]


def _scored(result: Mapping[str, Any], which: str, table: str, score: Score) -> np.ndarray:
  return score(result[which][table], result['about'][table], result['temperature'])


def measure_within(
  result: Mapping[str, Any], which: str, score: Score, part: str = 'test'
) -> Callable[[np.ndarray], float]:
  return within_prompts(_scored(result, which, part, score), result['about'][part])


def measure_across(result: Mapping[str, Any], which: str, score: Score) -> Callable[[np.ndarray], float]:
  return across_prompts(_scored(result, which, 'test', score), result['about']['test'])


def measure_corrections(result: Mapping[str, Any], which: str, score: Score) -> Callable[[np.ndarray], float]:
  before, after = (_scored(result, which, table, score) for table in ('test', 'corrections'))
  return corrections(before, after, result['about']['test'])


def table(
  title: str, note: str, measure: Measure, chosen: Mapping[str, results.Chosen], part: str = 'test'
) -> Table:
  """A row for each method and each baseline: its own score, and its plain log-probs."""
  first = next(iter(chosen.values())).of_seeds[0]
  rows = [_method_row(name, choice.of_seeds, measure, part) for name, choice in chosen.items()]
  return Table(title, [*rows, *_baseline_rows(measure, first, part)], f'{note} 95 % intervals over prompts.')


def _method_row(name: str, of_seeds: list[Mapping[str, Any]], measure: Measure, part: str) -> dict[str, Any]:
  def told(which: str, score: Score) -> Estimate:
    statistics_ = [measure(result, which, score) for result in of_seeds]
    return estimate(statistics_, of_seeds[0]['about'][part]['prompts'])

  return {
    'score of': name,
    'its own': told('last', level),
    'best checkpoint’s': told('best', level),
    **{title: told('last', score) for title, score in PLAIN.items()},
  }


def _baseline_rows(measure: Measure, result: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
  """Baselines without training: the reference's log-probs, the length, and who wrote the response."""
  about = result['about']
  tables = {name: {'logps': each['reference']} for name, each in about.items()}
  reference, told = {**result, 'reference': tables}, about[part]

  def of(score: Score) -> Estimate:
    return estimate([measure(reference, 'reference', score)], told['prompts'])

  rows = [
    {'score of': 'the reference', **{title: of(score) for title, score in PLAIN.items()}},
    {'score of': 'the length', 'its own': of(lambda scores, about, temperature: _array(about['lengths']))},
  ]
  if 'usual_length' in told:
    most = told['usual_length']
    capped = of(lambda scores, about, temperature: np.minimum(_array(about['lengths']), most))
    rows.append({'score of': f'the length, {most:g} tokens at most', 'its own': capped})
  if 'writer_means' in told:
    means = of(lambda scores, about, temperature: _array(told['writer_means']))
    rows.append({'score of': 'its writer’s mean reward', 'its own': means})
  return rows


def draw(tables: Sequence[Table], figure: Any) -> None:
  """Each table's own scores with their intervals, a panel each."""
  figure.set_size_inches(4.5 * len(tables), 3.5)
  for axes, shown in zip(np.atleast_1d(figure.subplots(1, len(tables))), tables):
    rows = [row for row in shown.rows if 'its own' in row]
    values = np.array([row['its own'] for row in rows], np.float64)
    reach = np.abs(values[:, 1:] - values[:, :1]).T
    axes.errorbar(values[:, 0], range(len(rows)), xerr=np.nan_to_num(reach), fmt='o')
    axes.set_yticks(range(len(rows)), [row['score of'] for row in rows])
    axes.set_title(shown.title, fontsize='small')


def report(order: Sequence[str], finished: Sequence[Finished]) -> Report:
  """The suite's tables and figure, methods in this order."""
  chosen = results.choose(finished, order, 'last')
  about = next(iter(chosen.values())).of_seeds[0]['about']
  tables = [
    table(title, 'Its own score is V + τρ, τρ without a value; .5 is chance.', measure, chosen, part)
    for title, measure, part in (
      ('Accuracy on two responses to a test prompt', measure_within, 'test'),
      (
        'Accuracy on two responses by new writers',
        functools.partial(measure_within, part='new writers'),
        'new writers',
      ),
    )
    if part in about and has_pairs(about[part])
  ]
  tables.append(
    table(
      'Rank correlation with human scores, all test prompts',
      'Its own score is V + τρ, or τρ without a value: that has no prompt’s level.', measure_across, chosen,
    )
  )  # fmt: skip
  if 'corrections' in about:
    tables.append(
      table(
        'Human corrections scored above what they correct',
        'Share of test records, weighted by HTER; its own score is V + τρ; .5 is chance.',
        measure_corrections, chosen,
      )
    )  # fmt: skip
  figures = {'agreement.png': functools.partial(draw, tables)}
  return Report([*tables, training.choices(chosen)], figures)
