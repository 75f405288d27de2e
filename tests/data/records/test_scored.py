from dro_jax.data.records import scored

MODEL, FUNCTION = {'name': 'proxy', 'role': 'proxy'}, {'name': 'contains', 'code': None}


def test_the_rewards_of_files_are_those_of_the_columns_that_are_read(tmp_path):
  first, second, plain = (str(tmp_path / f'{name}.jsonl') for name in 'abc')
  scored.write(scored.place(first).with_name('a.jsonl'), {'reward': MODEL, 'safe': FUNCTION})
  scored.write(scored.place(second).with_name('b.jsonl'), {'reward': MODEL})
  assert scored.place(first).name == 'a.jsonl.scores.json'
  assert scored.read([first, second, plain], ['reward']) == [MODEL]
  assert scored.read([first], ['safe', 'reward']) == [MODEL, FUNCTION]
  assert scored.read([plain, 'gs://bucket/a.jsonl'], ['reward']) == []


def test_a_torn_record_says_nothing(tmp_path):
  path = tmp_path / 'a.jsonl'
  scored.place(path).write_text('{"rewards": ')
  assert scored.read([str(path)], ['reward']) == []


def test_all_on_which_scores_depend_is_read_again(tmp_path):
  path = tmp_path / 'a.jsonl'
  assert scored.settings_of(path) is None
  scored.write(path, {'reward': MODEL}, chat_template='{content}')
  assert scored.settings_of(path) == {'rewards': {'reward': MODEL}, 'chat_template': '{content}'}
  assert scored.read([str(path)], ['reward']) == [MODEL]
