import json
import math

import pytest

from dro_jax.data.records import reward_words, triplets
from dro_jax.errors import UsageError


def read(tmp_path, rewards: list, map_reward=None, name: str = 't.jsonl', **options) -> list[float | None]:
  path = tmp_path / name
  if name.endswith('.csv'):
    text = 'prompt,response,reward\n' + ''.join(f'p,r,"{reward}"\n' for reward in rewards)
  else:
    text = ''.join(json.dumps({'prompt': 'p', 'response': 'r', 'reward': x}) + '\n' for x in rewards)
  path.write_text(text)
  return [record.reward for record in triplets.read_triplets(str(path), map_reward=map_reward, **options)]


@pytest.mark.parametrize(
  'map_reward, rewards, numbers',
  [
    ('up=1,down=0', ['up', 'down'], [1, 0]),
    ('true=1,false=-1', [True, False, 'true', 'FALSE', 'False'], [1, -1, 1, -1, -1]),
    ('True=2,False=-2', [True, False, 'true'], [2, -2, 2]),
    ('👍=1,👎=0', ['👍', '👎', '👍🏽', '👎🏿'], [1, 0, 1, 0]),
    ('❤️=1,♥=2', ['❤', '❤️', '♥️'], [1, 1, 2]),
    ('★★★☆☆=3,4/5=4,5 stars=5', ['★★★☆☆', '4/5', '5 stars'], [3, 4, 5]),
    ('1=0,2.0=.5', ['1', 1, 1.0, '2', 2], [0, 0, 0, 0.5, 0.5]),
    ('a=b=1', ['a=b'], [1]),
    ('café=1', ['cafe\u0301'], [1]),
    ({'a, b': 1, 'Up ': 2}, ['a, b', 'Up '], [1, 2]),
    ('none=0', [1.5, 'none', True], [1.5, 0, 1]),
    ('numbers', ['1.5', '-2', 3], [1.5, -2, 3]),
    ('numbers, n/a=0', ['1e-2', 'n/a'], [0.01, 0]),
    (
      'stars',
      ['★★★☆☆', '⭐⭐', '☆☆☆☆☆', '4/5', '3 of 5', '4 out of 5 stars', '1 star'],
      [3, 2, 0, 4, 3, 4, 1],
    ),
    ('stars', ['4.5/5', '⭐️⭐️⭐️', ' 5 Stars '], [4.5, 3, 5]),
  ],
)
def test_map_reward_gives_words_their_numbers(tmp_path, map_reward, rewards, numbers):
  assert read(tmp_path, rewards, map_reward) == numbers


@pytest.mark.parametrize(
  'map_reward, rewards, numbers',
  [('True=1,false=-1', ['true', 'False', 'TRUE'], [1, -1, 1]), ('1=-1,2=1', ['1', '2.0'], [-1, 1])],
)
def test_map_reward_reads_words_of_files_without_types(tmp_path, map_reward, rewards, numbers):
  assert read(tmp_path, rewards, map_reward, 't.csv') == numbers


@pytest.mark.parametrize(
  'map_reward, rewards, message',
  [
    (
      'up=1,down=0',
      ['up', 'Up '],
      r"'Up ', which .*\('up', 'down'\) does not name \(did you mean up",
    ),
    ('up=1,down=0', ['up', 'down', 'sideways'], "the words so far: 'up', 'down'. Give it a number"),
    ('up=1', [[1]], r'is \[1\], not a number but a list of 1; .*--columns reward=reward.0'),
    ('1=0,2=1', [1, 3], '3, which --map_reward'),
    ('true=1', [True, False], 'False, which --map_reward'),
    ('numbers', ['1_0'], "'1_0', which"),
    ('numbers', ['nan'], "'nan', which"),
    ('stars', ['★★☆☆☆', '3/4'], "'3/4', which .* stars so far are out of 5"),
    ('stars', ['5 stars', '3/4'], "'3/4', which"),
    ('stars', ['6/5'], "'6/5', which"),
    ('stars', ['★★½'], 'which --map_reward'),
    (None, ['★★'], 'not a number; .*--map_reward stars'),
    (None, ['1_0'], 'not a number'),
  ],
)
def test_an_unlisted_word_is_refused(tmp_path, map_reward, rewards, message):
  with pytest.raises(UsageError, match=message) as error:
    read(tmp_path, rewards, map_reward)
  assert f"t.jsonl:{len(rewards)}: field 'reward' is " in str(error.value)


@pytest.mark.parametrize(
  'given, message',
  [
    ('up', "'up' is not a WORD=NUMBER pair"),
    ('star', r"'star' \(did you mean stars\?\)"),
    ('up=1,', "'' is not a WORD"),
    ('=1', 'is not a WORD'),
    ('up=high', "'up' has the value 'high', which is not a finite number; pass WORD=NUMBER"),
    ('up=nan', 'WORD=NUMBER'),
    ('up=1,up=2', 'the same word with two different numbers'),
    ('1=1,1.0=2', "'1' and '1.0' are the same word"),
    ('👍=1,👍🏽=2', 'are the same word'),
    ({'up': math.inf}, 'WORD=NUMBER'),
  ],
)
def test_map_reward_refuses_a_bad_map(given, message):
  with pytest.raises(UsageError, match=message):
    reward_words.parse(given)


def test_a_listed_word_that_never_occurs_is_logged_once(tmp_path, caplog):
  with caplog.at_level('WARNING', 'dro_jax.data.records.reward_words'):
    read(tmp_path, ['up', 'down', 'up'], 'up=1,down=0,Flat=.5')
  (record,) = caplog.records
  assert record.getMessage() == (
    "t.jsonl: --map_reward lists words that never occur: 'Flat'; the rewards are 'up' (2), 'down' (1)"
  )
  caplog.clear()
  read(tmp_path, ['up', 'down'], 'up=1,down=0')
  assert not caplog.records


def test_an_unknown_word_is_no_reward_where_rewards_are_not_required(tmp_path):
  assert read(tmp_path, ['up', 'sideways'], 'up=1', rewards_required=False) == [1.0, None]


@pytest.mark.parametrize(
  'words, proposed, complete',
  [
    (['up', 'down'], 'up=1,down=0', True),
    (['Like', 'dislike', 'neutral'], 'Like=1,dislike=0,neutral=0.5', True),
    (['good', 'bad', 'Not helpful'], 'good=1,bad=0,Not helpful=0', True),
    (['👍🏽', '👎'], '👍🏽=1,👎=0', True),
    (['0.5', '2'], 'numbers', True),
    (['3/5', '★★★☆☆'], 'stars', True),
    (['good', 'gut'], 'good=1,gut=NUMBER', False),
    (['yes, very', 'no'], {'yes, very': 'NUMBER', 'no': 0}, False),
  ],
)
def test_propose_gives_known_words_their_numbers(words, proposed, complete):
  found = reward_words.propose(words)
  assert found == (proposed, complete)
  if complete:
    reward_words.parse(proposed)


def test_a_proposal_adds_to_the_users_map():
  assert reward_words.propose(['down'], 'up=3') == ('up=3,down=0', True)
  assert reward_words.propose(['down'], {'up, up': 3}) == ({'up, up': 3, 'down': 0}, True)


def test_reward_words_of_counts_the_texts_without_a_number(tmp_path):
  path = tmp_path / 't.jsonl'
  rewards = ['up', 'down', 'up', 1, '2', None, True]
  lines = [json.dumps({'prompt': 'p', 'response': 'r', 'reward': reward}) for reward in rewards]
  path.write_text('\n'.join(lines))
  assert triplets.reward_words_of(str(path)) == {'up': 2, 'down': 1, '2': 1}
  assert triplets.reward_words_of(str(path), map_reward='up=1,numbers') == {'down': 1}
  path.write_text('\n'.join(json.dumps({'reward': f'text {i}'}) for i in range(30)))
  assert triplets.reward_words_of(str(path)) == {}
