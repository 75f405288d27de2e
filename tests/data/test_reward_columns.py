import json

import numpy as np
import pytest

from dro_jax.data import reward_columns, triplets
from dro_jax.data.records import scored
from dro_jax.errors import UsageError


@pytest.fixture
def load(tmp_path):
  path = tmp_path / 't.jsonl'
  records = [
    {'prompt': f'p{i}', 'response': f'r{i}', 'reward': i, 'helpful': i % 3, 'safe': -i} for i in range(12)
  ]
  records[3]['rare'] = 1
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  options = {'validation_fraction': 0, 'cache_dir': str(tmp_path / 'cache')}

  def loaded(**changes):
    return triplets.load_triplets(str(path), **options, **changes)

  loaded.path = path
  return loaded


@pytest.mark.parametrize('rewards', ['helpful=1, safe=0.5', {'helpful': 1, 'safe': 0.5}])
def test_the_weighted_sum_of_columns_is_the_reward(load, rewards):
  data = load(rewards=rewards, scaling='standardise')
  expected = np.array([i % 3 - 0.5 * i for i in range(12)])
  np.testing.assert_allclose(data.train.raw_rewards, expected)
  np.testing.assert_allclose(data.train.rewards, (expected - expected.mean()) / expected.std())
  assert data.report['read']['rewards'] == {'helpful': 1.0, 'safe': 0.5}
  assert data.report['train_fingerprint'] != load().report['train_fingerprint']
  assert 'rewards' not in load().report['read']


def test_the_records_own_reward_is_a_column_too(load):
  np.testing.assert_allclose(load(rewards='reward=2,helpful=-1').train.raw_rewards[:4], [0, 1, 2, 6])


@pytest.mark.parametrize(
  'rewards, message',
  [
    ('helpfull=1', r"no column 'helpfull' \(did you mean helpful\?\); they have helpful, reward, safe"),
    ('rare=1', "the column 'rare' is in some records and missing in others"),
    ('helpful', "rewards='helpful': pass COLUMN=WEIGHT pairs"),
    ('helpful=much', 'each weight a number'),
    ('helpful=nan', 'each weight a number'),
    ('helpful=1,helpful=2', 'helpful has two weights'),
  ],
)
def test_wrong_weights_are_refused(load, rewards, message):
  with pytest.raises(UsageError, match=message):
    load(rewards=rewards)


def test_a_runs_weights_hold_for_files_with_its_columns(load, tmp_path):
  run = {'columns': None, 'map_reward': None, 'rewards': {'helpful': 1.0}}
  np.testing.assert_allclose(load(inherited=run).train.raw_rewards, [i % 3 for i in range(12)])
  other = tmp_path / 'other.jsonl'
  other.write_text('{"prompt": "p", "response": "r", "reward": 7}\n')
  read = triplets.load_triplets(
    str(other), inherited=run, validation_fraction=0, cache_dir=str(tmp_path / 'c')
  )
  assert read.train.raw_rewards.tolist() == [7.0]


def test_missing_own_rewards_cannot_be_weighted(tmp_path):
  path = tmp_path / 'n.jsonl'
  path.write_text('{"prompt": "p", "response": "r", "helpful": 1}\n')
  options = {'validation_fraction': 0, 'cache_dir': str(tmp_path / 'c')}
  assert triplets.load_triplets(str(path), rewards='helpful=2', **options).train.raw_rewards.tolist() == [2.0]
  with pytest.raises(UsageError, match="the records' own reward cannot be weighted: .*n.jsonl:1"):
    triplets.load_triplets(str(path), rewards='reward=1', **options)


def test_what_scored_the_file_is_reported_of_the_columns_that_are_used(load):
  model = {'name': 'proxy', 'code': 'abc', 'role': 'proxy'}
  scored.write(load.path, {'helpful': model, 'reward': {'name': 'contains', 'code': None}})
  assert load(rewards='helpful=1').report['scored_by'] == [model]
  assert load().report['scored_by'] == [{'name': 'contains', 'code': None}]
  assert 'scored_by' not in load(rewards='safe=1').report


def test_no_weights_change_nothing():
  assert reward_columns.parse_weights(None) == reward_columns.parse_weights('') == {}
