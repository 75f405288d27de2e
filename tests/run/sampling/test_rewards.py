import functools

import numpy as np
import pytest

from dro_jax.data.worlds import exercises
from dro_jax.errors import UsageError
from dro_jax.run.sampling import rewards


@pytest.mark.parametrize(
  'prompt, expected',
  [
    ('sort: kjhba', 'abhjk'),
    ('sort down: 40715', '75410'),
    ('add: 478 + 356', '834'),
    ('add: 7 + 85 + 9', '101'),
    ('rewrite without ae: banana tree', 'bnn tr'),
    ('rewrite with a as o: banana', 'bonono'),
    ('rewrite backwards: banana', 'ananab'),
    ('rewrite sorted: pear fig', 'fig pear'),
    ('Do what it says.\nadd: 1 + 2\nAnswer:', '3'),
    ('sort: 1\nsort: 21', '12'),
    ('say something', None),
    ('add: 1', None),
  ],
)
def test_each_task_has_one_answer(prompt, expected):
  assert exercises.answer(prompt) == expected


def test_exact_match_forgives_only_space_around():
  prompts = ['add: 99 + 1'] * 4
  assert rewards.exact_match(prompts, ['100', ' 100\n', '1 00', '']) == [1.0, 1.0, 0.0, 0.0]


def test_graded_match_grows_with_what_is_right():
  graded = rewards.graded_match(['sort: dcba'] * 4, ['', 'dcba', 'abdc', 'abcd'])
  assert graded == sorted(graded)
  assert (graded[0], graded[-1]) == (0.0, 1.0)


@pytest.mark.parametrize('one, other, distance', [('', '', 0), ('kitten', 'sitting', 3), ('ab', '', 2)])
def test_edit_distance(one, other, distance):
  assert rewards.edit_distance(one, other) == rewards.edit_distance(other, one) == distance


def test_a_prompt_without_a_task_is_refused():
  with pytest.raises(UsageError, match=r"'hello'.*REWARD=FILE.py:FUNCTION"):
    rewards.exact_match(['sort: ab', 'hello'], ['ab', 'ab'])


def test_rewards_of_any_text():
  texts = ['', 'aab', 'xyz']
  assert rewards.length_reward(texts, texts, target=3) == [-1.0, 0.0, 0.0]
  assert rewards.contains(texts, texts, text='a') == [0.0, 1.0, 0.0]
  assert rewards.letter_share(texts, texts, letters='ax') == pytest.approx([0.0, 2 / 3, 1 / 3])


def test_a_function_of_ones_own(tmp_path):
  path = tmp_path / 'my_rewards.py'
  path.write_text('def shouts(prompts, responses):\n  return [r.isupper() for r in responses]\n')
  found = rewards.find(f'{path}:shouts')
  assert rewards.reward_responses(found, ['p', 'p'], ['A', 'a']) == [1.0, 0.0]
  assert rewards.name_of(found) == 'my_rewards:shouts'
  assert rewards.find('dro_jax.run.sampling.rewards:contains') is rewards.find('contains') is rewards.contains
  assert rewards.find(rewards.contains) is rewards.contains


def test_the_code_of_a_reward_is_that_of_its_file(tmp_path, monkeypatch):
  path = tmp_path / 'my_rewards.py'
  path.write_text('import scale_of_mine\ndef shouts(prompts, responses):\n  return [1.0] * len(responses)\n')
  (tmp_path / 'scale_of_mine.py').write_text('X = 1\n')
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv('HOME', str(tmp_path))
  before = rewards.code_of(f'{path}:shouts')
  assert before == rewards.code_of('my_rewards:shouts') == rewards.code_of('~/my_rewards.py:shouts')
  (tmp_path / 'scale_of_mine.py').write_text('X = 2\n')
  assert rewards.code_of(f'{path}:shouts') == rewards.code_of('my_rewards:shouts') != before
  assert rewards.code_of('dro_jax.run.sampling.rewards:contains') is rewards.code_of(rewards.contains) is None
  assert rewards.code_of(None) is None


def test_a_name_says_nothing_of_this_process():
  class Judge:
    def __call__(self, prompts, responses):
      return [0.0] * len(responses)

  assert rewards.name_of(functools.partial(rewards.contains, text='a')) == 'contains'
  assert rewards.name_of(Judge()).endswith('Judge')


@pytest.mark.parametrize(
  'spec, message',
  [
    (None, 'there is no reward function: pass .*--set REWARD=exact_match'),
    ('exactmatch', r'is not a reward function \(did you mean exact_match\?\)'),
    (
      'helpful=runs/a,safe=contains',
      'names columns, .* a run takes one reward: .*--rewards helpful=1,safe=0.5',
    ),
    ('nowhere.py:f', 'cannot import nowhere.py'),
    ('no_such_module:f', 'cannot import no_such_module'),
    ('dro_jax.run.sampling.rewards:nothing', "has no function 'nothing'"),
  ],
)
def test_no_function_is_refused(spec, message):
  with pytest.raises(UsageError, match=message):
    rewards.find(spec)


@pytest.mark.parametrize(
  'returned, message',
  [
    ([1.0], 'returned 1 numbers for 2 responses'),
    ([1.0, float('nan')], r"returned nan for the response 'b' to the prompt 'q'"),
    ([float('inf'), 0.0], "returned inf for the response 'a'"),
    ([0.0, 'good'], "returned 'good'"),
    ([None, 0.0], 'returned None'),
  ],
)
def test_what_is_no_reward_is_refused(returned, message):
  with pytest.raises(UsageError, match=message):
    rewards.reward_responses(lambda prompts, responses: returned, ['p', 'q'], ['a', 'b'])


@pytest.mark.parametrize('returned', ['10', {0: 0.5, 1: 0.2}, {0.5, 1.0}])
def test_what_is_no_sequence_is_refused(returned):
  with pytest.raises(UsageError, match=r'returned .* for 2 responses: it must return a list'):
    rewards.reward_responses(lambda prompts, responses: returned, ['p', 'q'], ['r', 's'])


@pytest.mark.parametrize('number', [10**400, 1e39, -1e39], ids=['integer', 'large', 'small'])
def test_numbers_that_float32_cannot_hold_are_refused(number):
  with pytest.raises(UsageError, match=r"for the response 's' .*it must return a finite number"):
    rewards.reward_responses(lambda prompts, responses: [1.0, number], ['p', 'q'], ['r', 's'])


def test_a_function_that_fails_as_its_numbers_are_read_or_leaves_python_is_refused():
  def leaves(prompts, responses):
    raise SystemExit(3)

  with pytest.raises(UsageError, match='raised ZeroDivisionError'):
    rewards.reward_responses(lambda prompts, responses: (1 / 0 for _ in responses), ['p'], ['r'])
  with pytest.raises(UsageError, match='raised SystemExit: 3'):
    rewards.reward_responses(leaves, ['p'], ['r'])


def test_arrays_are_rewards_too():
  given = rewards.reward_responses(
    lambda prompts, responses: np.array([1, 0], np.float32), ['p', 'q'], ['a', 'b']
  )
  assert given == [1.0, 0.0]


def test_a_function_that_returns_a_number_or_raises_is_refused_with_its_line(tmp_path):
  lines = ('def one(prompts, responses):', '  return 1.0', 'def bad(prompts, responses):', '  return [1 / 0]')
  (tmp_path / 'mine.py').write_text('\n'.join(lines))
  with pytest.raises(UsageError, match=r'mine:one returned 1.0 for 2 responses: it must return a list'):
    rewards.reward_responses(rewards.find(f'{tmp_path}/mine.py:one'), ['a', 'b'], ['c', 'd'])
  with pytest.raises(UsageError, match=r'raised ZeroDivisionError: division by zero \(.*mine.py, line 4\)'):
    rewards.reward_responses(rewards.find(f'{tmp_path}/mine.py:bad'), ['a', 'b'], ['c', 'd'])


@pytest.mark.parametrize('text, message', [('x = (', 'SyntaxError'), ('x = y\n', r'NameError.*line 1\)')])
def test_a_file_that_cannot_be_imported_is_refused_with_the_reason(tmp_path, text, message):
  (tmp_path / 'torn.py').write_text(text)
  with pytest.raises(UsageError, match=f'importing .*torn.py raised {message}'):
    rewards.find(f'{tmp_path}/torn.py:reward')
