import math

import numpy as np
import pytest

from dro_jax.errors import UsageError
from dro_jax.evaluation.judge import comparing
from dro_jax.evaluation.judge.judges import Judge, Judged
from dro_jax.evaluation.judge.prompts import Prompt
from dro_jax.evaluation.judge.verdicts import MALFORMED, Verdict

PROMPTS = [Prompt(f'p{i}', f'prompt {i}', f'prompt {i}') for i in range(3)]


def answers(*texts):
  return {prompt.text: [text] if isinstance(text, str) else text for prompt, text in zip(PROMPTS, texts)}


def judge(verdict, sees_order=True):
  """A judge by a function of a comparison, with a log of what it was shown."""
  seen = []

  def ask(comparisons):
    seen.extend(comparisons)
    return Judged([verdict(comparison) for comparison in comparisons])

  return Judge('test', sees_order, ask), seen


def longer(shown):
  return Verdict(float(np.sign(len(shown.first) - len(shown.second)) + 1) / 2)


def test_both_orders_are_shown_and_scores_are_the_first_sides():
  by, seen = judge(longer)
  [pair], records, _ = comparing.compare(
    by, PROMPTS, [answers('aa', 'b', 'c'), answers('b', 'cc', 'd')], [(0, 1)]
  )
  np.testing.assert_array_equal(pair.scores_N2, [[1, 1], [0, 0], [0.5, 0.5]])
  np.testing.assert_array_equal(pair.differences_N, [1, -1, 0])
  assert [(shown.first, shown.second) for shown in seen[:2]] == [('aa', 'b'), ('b', 'aa')]
  assert records[1] == {
    'prompt_id': 'p1', 'prompt': 'prompt 1', 'sides': [0, 1], 'first': 'b', 'second': 'cc', 'scores': [0, 0],
  }  # fmt: skip


def test_a_judge_that_prefers_a_place_wins_nobody_anything():
  by, _ = judge(lambda shown: Verdict(1.0))
  [pair], _, _ = comparing.compare(by, PROMPTS, [answers('a', 'b', 'c'), answers('x', 'y', 'z')], [(0, 1)])
  np.testing.assert_array_equal(pair.scores_N2, [[1, 0]] * 3)
  np.testing.assert_array_equal(pair.rates(3), [0.5] * 3)


def test_a_judge_without_an_order_is_asked_once():
  by, seen = judge(longer, sees_order=False)
  [pair], _, _ = comparing.compare(by, PROMPTS, [answers('aa', 'b', 'c'), answers('b', 'cc', 'd')], [(0, 1)])
  assert len(seen) == 3
  np.testing.assert_array_equal(pair.scores_N2, [[1, 1], [0, 0], [0.5, 0.5]])


def test_equal_answers_are_ties_that_nobody_is_asked_about():
  by, seen = judge(lambda shown: Verdict(1.0))
  [pair], _, _ = comparing.compare(by, PROMPTS, [answers('a', 'b', ''), answers('a', 'y', '')], [(0, 1)])
  assert len(seen) == 2 and pair.identical == 2
  np.testing.assert_array_equal(pair.rates(3), [0.5] * 3)


def test_malformed_and_missing_verdicts_are_counted_and_their_prompts_left_out():
  given = iter([Verdict(1.0), MALFORMED, None, None, Verdict(0.7, soft=True), Verdict(0.0)])
  by, _ = judge(lambda shown: next(given))
  [pair], records, _ = comparing.compare(by, PROMPTS, [answers(*'abc'), answers(*'xyz')], [(0, 1)])
  assert (pair.malformed, pair.unjudged, pair.soft) == (1, 2, 1)
  np.testing.assert_array_equal(pair.rates(3), [math.nan, math.nan, 0.85])
  assert records[1]['scores'] == [None, None]


def test_several_answers_meet_in_order_and_a_single_one_meets_each():
  by, seen = judge(longer, sees_order=False)
  one, two, single = answers(*[['a', 'bb']] * 3), answers(*[['x', 'yy', 'zz']] * 3), answers(*'rst')
  [pair, of_single], _, _ = comparing.compare(by, PROMPTS[:1], [one, two, single], [(0, 1), (0, 2)])
  assert [(shown.first, shown.second) for shown in seen] == [
    ('a', 'x'),
    ('bb', 'yy'),
    ('a', 'r'),
    ('bb', 'r'),
  ]
  assert len(pair.scores_N2) == len(of_single.scores_N2) == 2
  np.testing.assert_array_equal(of_single.rates(1), [0.75])


def test_requests_go_prompt_by_prompt_so_that_a_budget_leaves_whole_prompts():
  by, seen = judge(longer)
  sides = [answers(*'abc'), answers(*'def'), answers(*'ghi')]
  comparing.compare(by, PROMPTS, sides, comparing.meetings(3, 'all'))
  assert [shown.prompt for shown in seen] == [prompt.text for prompt in PROMPTS for _ in range(6)]


def test_sides_meet_all_others_or_the_first():
  assert comparing.meetings(3, 'all') == [(0, 1), (0, 2), (1, 2)]
  assert comparing.meetings(3, 'first') == [(1, 0), (2, 0)]
  with pytest.raises(UsageError, match='AGAINST=some'):
    comparing.meetings(3, 'some')
