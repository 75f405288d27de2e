import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dro_jax.data.records import answers, triplets
from dro_jax.errors import UsageError


def write(path, *records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def test_fields_of_any_kind_are_kept_and_rewards_are_not_needed(tmp_path):
  record = {'id': 'a', 'prompt': 'p', 'response': 'r', 'source': 'web', 'tags': ['x'], 'safe': 1}
  [answer] = answers.read_answers(write(tmp_path / 'a.jsonl', record))
  assert (answer.prompt, answer.response, answer.fields) == ('p', 'r', record)


def test_fields_that_the_user_named_get_our_names_and_ignored_ones_go(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'q': 'p', 'text': {'answer': 'r'}, 'stars': 4, 'id': {}, 'n': 1})
  [answer] = answers.read_answers(path, 'prompt=q,response=text.answer,reward=stars,id=')
  assert answer.fields == {
    'text': {'answer': 'r'}, 'n': 1, 'prompt': 'p', 'response': 'r', 'reward': 4, 'id': 'a.jsonl:1'
  }  # fmt: skip


def test_a_conversation_is_its_turns_as_json_and_keeps_its_fields(tmp_path):
  turns = [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'q'}]
  path = write(
    tmp_path / 'a.jsonl', {'prompt': turns, 'response': 'r'},
    {'messages': [*turns, {'role': 'assistant', 'content': 'r'}]},
    {'prompt': turns[1:], 'response': 'r'},
  )  # fmt: skip
  first, second, third = answers.read_answers(path)
  assert json.loads(first.prompt) == turns and first.fields['prompt'] == turns
  assert second.prompt == first.prompt and second.response == 'r' and 'prompt' not in second.fields
  assert third.prompt == 'q'


def test_a_comparison_is_two_answers_with_its_rewards_and_columns(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'id': 'c', 'prompt': 'p', 'chosen': 'x', 'rejected': 'y', 'hard': 1})
  assert [answer.fields for answer in answers.read_answers(path)] == [
    {'id': 'c/chosen', 'prompt': 'p', 'response': 'x', 'reward': 1.0, 'hard': 1},
    {'id': 'c/rejected', 'prompt': 'p', 'response': 'y', 'reward': 0.0, 'hard': 1},
  ]


def test_numbers_of_formats_without_types_become_numbers(tmp_path):
  (tmp_path / 'a.csv').write_text('id,prompt,response,reward,safe\n7,12,r,0.5,1e-1\n')
  [answer] = answers.read_answers(str(tmp_path / 'a.csv'))
  assert answer.fields == {'id': '7', 'prompt': '12', 'response': 'r', 'reward': 0.5, 'safe': 0.1}


def test_texts_of_parquet_files_are_kept(tmp_path):
  table = pa.table({'prompt': ['p'], 'response': ['r'], 'source': ['web']})
  pq.write_table(table, tmp_path / 'a.parquet')
  [answer] = answers.read_answers(str(tmp_path / 'a.parquet'))
  assert answer.fields['source'] == 'web'


def test_the_fields_make_the_same_triplets(tmp_path):
  path = write(
    tmp_path / 'a.jsonl', {'prompt': 'p', 'response': 'r', 'reward': 2, 'safe': 1},
    {'id': 'c', 'prompt': 'p', 'chosen': 'x', 'rejected': 'y'},
  )  # fmt: skip
  again = write(tmp_path / 'b.jsonl', *(answer.fields for answer in answers.read_answers(path)))
  key = lambda record: (record.id, record.prompt, record.response, record.reward)  # noqa: E731
  assert [*map(key, triplets.read_triplets(again))] == [*map(key, triplets.read_triplets(path))]


def test_answers_to_compare_are_what_a_policy_gave(tmp_path):
  turns = json.dumps([{'role': 'assistant', 'content': 'x'}])
  path = write(
    tmp_path / 'a.jsonl',
    *({'id': 'a', 'prompt': 'p', 'response': text, 'logp': -1.5} for text in ('', 'a\0b', turns)),
    {'messages': [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'r'}]},
  )
  *first, last = answers.read_unchecked(path)
  assert [(answer.prompt, answer.response) for answer in first] == [('p', ''), ('p', 'a\0b'), ('p', turns)]
  assert first[0].fields == {'id': 'a', 'prompt': 'p', 'response': '', 'logp': -1.5}
  assert (last.prompt, last.response) == ('q', 'r')
  with pytest.raises(UsageError, match="b.jsonl:1: field 'response' is missing"):
    list(answers.read_unchecked(write(tmp_path / 'b.jsonl', {'prompt': 'p', 'chosen': 'x', 'rejected': 'y'})))


def test_answers_to_compare_may_lack_the_fields_that_the_user_named(tmp_path):
  ours = write(tmp_path / 'a.jsonl', {'prompt': 'p', 'response': 'r', 'reward': 1})
  theirs = write(tmp_path / 'b.jsonl', {'q': 'p', 'text': {'answer': 'r'}, 'stars': 1})
  for path in (ours, theirs):
    [answer] = answers.read_unchecked(path, 'prompt=q,response=text.answer,reward=stars')
    assert (answer.prompt, answer.response, answer.fields['reward']) == ('p', 'r', 1)


def test_errors_name_the_line(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'prompt': 'p', 'response': 'r'}, {'prompt': 'p'})
  with pytest.raises(UsageError, match="a.jsonl:2: field 'response' is missing"):
    list(answers.read_answers(path))
