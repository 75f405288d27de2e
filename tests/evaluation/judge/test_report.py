import json
import math

import numpy as np
import pytest

from dro_jax.evaluation.judge import report
from dro_jax.evaluation.judge.comparing import Pair
from dro_jax.printing import result as printing
from dro_jax.statistics import bootstrap, win_rates

DRAWS = report.Draws(resamples=100, seed=3, folds=4)


def pair(sides, rate, num=80, seed=0, **changes):
  """Independent comparisons with some ties, and lengths around equal."""
  rng = np.random.default_rng(seed)
  scores = rng.choice([1.0, 0.5, 0.0], (num, 1), p=[rate - 0.05, 0.1, 0.95 - rate]).repeat(2, axis=1)
  return Pair(sides, scores, np.arange(num), rng.normal(0, 30, num).round(), **changes)


def test_a_pairs_numbers_are_those_of_the_statistics():
  found = pair((1, 0), 0.7, malformed=3, unjudged=2, identical=1)
  summary = report.summary(found, 80, DRAWS, sees_order=True)
  rates_P = found.scores_N2.mean(1)
  assert summary['win_rate'] == bootstrap.bootstrap(bootstrap.mean_of(rates_P), 80, 100, 3)
  assert summary['binomial_error'] == win_rates.binomial_error(rates_P.mean(), 80)
  assert summary['folds'] == win_rates.folds(rates_P, 4, 3)._asdict()
  assert (summary['malformed'], summary['unjudged'], summary['identical']) == (3, 2, 1)
  assert summary['flips'] == 0 and summary['length_controlled'].low < summary['length_controlled'].high
  assert report.summary(found, 80, DRAWS, sees_order=False)['flips'] is None


def test_a_length_controlled_rate_stands_beside_the_raw_one_or_says_why_not():
  longer = pair((1, 0), 0.7)._replace(differences_N=np.full(80, 40.0))
  shown = report.result(['sft', 'dro'], [longer], 80, DRAWS)
  [row] = shown['tables'][0]['rows']
  assert row['length-controlled'] is None and row['win rate']['value'] > 0.6
  assert 'lengths hardly overlap' in shown['tables'][0]['note']


def test_all_against_all_has_a_matrix_strengths_and_paired_differences():
  pairs = [pair((0, 1), 0.3, seed=1), pair((0, 2), 0.2, seed=2), pair((1, 2), 0.45, seed=3)]
  shown = report.result(['sft', 'kto', 'dro'], pairs, 80, DRAWS)
  titles = [table['title'] for table in shown['tables']]
  assert titles == ['Win rates', 'Verdicts', 'Differences', 'All against all', 'Bradley-Terry']
  matrix = shown['tables'][3]['rows']
  assert matrix[1]['against sft'] == pytest.approx(1 - matrix[0]['against kto'])
  assert matrix[0]['against sft'] is None
  strengths = shown['strengths']
  assert strengths['sft'].value == 0 < strengths['kto'].value < strengths['dro'].value
  change = shown['differences']['dro less kto, against sft']
  expected = (1 - pairs[1].rates(80)) - (1 - pairs[0].rates(80))
  assert change.value == pytest.approx(expected.mean()) and change.low < change.value < change.high


def test_against_the_first_only_there_is_no_matrix():
  shown = report.result(['sft', 'kto', 'dro'], [pair((1, 0), 0.7), pair((2, 0), 0.8)], 80, DRAWS)
  assert [table['title'] for table in shown['tables']] == ['Win rates', 'Verdicts', 'Differences']
  assert list(shown['differences']) == ['dro less kto, against sft']


def test_without_any_verdict_the_report_says_so_and_does_not_fail():
  empty = pair((0, 1), 0.5)._replace(scores_N2=np.full((80, 2), math.nan), unjudged=160)
  shown = report.result(['a', 'b'], [empty], 80, DRAWS)
  assert math.isnan(shown['pairs']['a against b']['win_rate'].value)
  assert shown['pairs']['a against b']['prompts'] == 0


def test_the_folder_gets_the_report_and_the_verdicts(tmp_path, capsys):
  shown = report.result(['a', 'b'], [pair((0, 1), 0.5)], 80, DRAWS, about={'judge': 'x'}, notes=['A note.'])
  report.save(tmp_path, shown, [{'prompt': 'p', 'scores': [1.0, None]}])
  assert json.loads((tmp_path / 'report.json').read_text())['judge'] == 'x'
  assert json.loads((tmp_path / 'verdicts.jsonl').read_text()) == {'prompt': 'p', 'scores': [1.0, None]}
  text = (tmp_path / 'report.md').read_text()
  assert '# Side by side' in text and 'A note.' in text and '| a against b |' in text
  printing.print_result(shown, as_json=False)
  assert 'a against b' in capsys.readouterr().out
