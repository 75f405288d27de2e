import json

import pytest

from dro_jax.errors import UsageError
from dro_jax.recipes.build_table import build_table


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 't.jsonl'
  rows = [{'prompt': f'p{i}', 'response': 'r', 'reward': i if i else None} for i in range(4)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def test_records_without_a_reward_are_refused_with_file_line_and_field(file, tmp_path):
  with pytest.raises(
    UsageError, match=r"t.jsonl:1: field 'reward' is missing.*REWARDS_REQUIRED=True needs.*1 of 4"
  ):
    build_table(file, cache_dir=str(tmp_path / 'cache'))


def test_records_without_a_reward_are_accepted_where_rewards_are_not_required(file, tmp_path):
  cache = tmp_path / 'cache'
  assert build_table(file, cache_dir=str(cache), rewards_required=False)['records'] == 4
  assert len(list(cache.iterdir())) == 1
