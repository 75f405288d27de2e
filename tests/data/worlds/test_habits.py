import itertools
from collections import Counter

import numpy as np
import pytest

from dro_jax.data.worlds import exercises, habits
from dro_jax.data.worlds.habits import Hand

ASKED = exercises.Exercises(kinds=('sort', 'sort_down', 'without', 'backwards'), length=(4, 6))
PROMPTS = exercises.prompts(ASKED, 'sft', 4000)


def what(record, rule):
  """Whether a demonstration is right, follows the preferred wrong rule, or is neither."""
  prompt, response = record['prompt'], record['response']
  if response == exercises.answer(prompt):
    return 'right'
  return 'wrong' if response in habits.wrong_answers(prompt, rule)[:1] else 'slip'


@pytest.mark.parametrize('hand', [Hand(), Hand(rule=1), Hand(0.6, 0.1)])
def test_demonstrations_have_the_shares_of_their_hand(hand):
  made = Counter(what(record, hand.rule) for record in habits.demonstrations(PROMPTS, hand))
  shares = [made[name] / 4000 for name in ('right', 'wrong', 'slip')]
  np.testing.assert_allclose(shares, [hand.right, hand.wrong, 1 - hand.right - hand.wrong], atol=0.03)


def test_a_perfect_hand_makes_no_mistake():
  for record in habits.demonstrations(PROMPTS[:50]):
    assert record['response'] == exercises.answer(record['prompt'])
    assert record['reward'] == 1


def test_demonstrations_are_the_same_for_a_seed_and_others_for_another():
  one, again, other = (habits.demonstrations(PROMPTS, Hand(), seed) for seed in (0, 0, 1))
  assert one == again != other


def test_two_hands_prefer_different_wrong_rules():
  assert habits.wrong_answers('sort: bca') == ['cba', 'bca']
  assert habits.wrong_answers('sort: bca', 1) == ['bca', 'cba']
  assert habits.wrong_answers('sort down: bca', 1) == ['bca', 'abc']
  assert habits.wrong_answers('rewrite without c: bca') == ['bca', 'ca']
  assert habits.wrong_answers('rewrite backwards: bca') == ['bca', 'abc']


def test_a_rule_that_is_right_by_chance_is_no_wrong_answer():
  assert habits.wrong_answers('sort: abc') == ['cba']
  assert habits.wrong_answers('sort: aaa') == []
  assert habits.wrong_answers('rewrite without b: bca', 1) == ['bca']
  (record,) = habits.demonstrations(['sort: aaa'], Hand(0.0, 1.0))
  assert record['response'] in ('aa', 'aaaa')


def test_a_slip_drops_doubles_or_swaps_one_letter():
  rng = np.random.default_rng(0)
  found = {habits.slip('abc', rng) for _ in range(200)}
  assert found == {'bc', 'ac', 'ab', 'aabc', 'abbc', 'abcc', 'bac', 'acb'}
  assert {habits.slip('a', rng) for _ in range(9)} == {'aa'}
  for text in map(''.join, itertools.product('ab', repeat=3)):
    assert habits.slip(text, rng) not in ('', text)
