import json

import pytest

from dro_jax.data.records import inheritance

READ = {'columns': 'prompt=chat.question,reward=thumbs,label=', 'map_reward': 'up=1,down=0'}


@pytest.fixture
def write(tmp_path):
  def write(*records):
    path = tmp_path / 'a.jsonl'
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return str(path)

  return write


def test_a_runs_names_apply_to_files_that_have_the_fields(write):
  path = write({'chat': {'question': 'x'}}, {'chat': {'question': 'x'}, 'thumbs': 'up'})
  found = inheritance.options(READ, path, None)
  assert found == {
    'columns': {'prompt': 'chat.question', 'reward': 'thumbs', 'label': ''}, 'map_reward': 'up=1,down=0'
  }  # fmt: skip
  found = inheritance.options(READ, write({'prompt': 'x', 'reward': 1}), None)
  assert found == {'columns': {'label': ''}, 'map_reward': 'up=1,down=0'}


def test_the_users_own_options_win_over_the_runs(write):
  path = write({'chat': {'question': 'x'}, 'thumbs': 'up'})
  for given in ({'columns': '', 'map_reward': ''}, {'columns': 'prompt=p', 'map_reward': 'stars'}):
    assert inheritance.options(READ, path, *given.values()) == given


@pytest.mark.parametrize('read', [None, {}, {'columns': None, 'map_reward': None}])
def test_without_a_run_nothing_is_inherited(read, write):
  given = {'columns': None, 'map_reward': None}
  assert inheritance.options(read, write({'prompt': 'x'}), None) == given
  assert inheritance.options(READ, 'a_data_set', None) == given
