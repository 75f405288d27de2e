import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dro_jax.data import chat, sources
from dro_jax.errors import UsageError


def turn(role: str, content) -> dict:
  return {'role': role, 'content': content}


TALK = [turn('system', 'Be brief.'), turn('user', 'Hi'), turn('assistant', 'Yes?'), turn('user', '1 + {1}?')]
TEXT = 'system: Be brief.\nuser: Hi\nassistant: Yes?\nuser: 1 + {1}?'


def read(tmp_path, record: dict, name: str = 't.jsonl', **options) -> list[sources.Record]:
  path = tmp_path / name
  if name.endswith('.parquet'):
    pq.write_table(pa.Table.from_pylist([record]), path)
  else:
    path.write_text(json.dumps(record))
  return list(sources.read_triplets(str(path), **options))


@pytest.mark.parametrize('name', ['t.jsonl', 't.parquet'])
def test_a_prompt_of_turns_is_a_line_each(tmp_path, name):
  (record,) = read(tmp_path, {'prompt': TALK, 'response': '2', 'reward': 1}, name)
  assert (record.prompt, record.response) == (TEXT, '2')


@pytest.mark.parametrize('name', ['t.jsonl', 't.parquet'])
def test_the_last_turn_of_messages_is_the_response(tmp_path, name):
  (record,) = read(tmp_path, {'messages': [*TALK, turn('assistant', '2')], 'reward': True}, name)
  assert record[1:4] == (TEXT, '2', 1.0)


def test_messages_under_another_name_go_before_a_prompt(tmp_path):
  record = {'talk': [*TALK, turn('assistant', '2')], 'prompt': 'not this', 'reward': 1}
  (found,) = read(tmp_path, record, columns='messages=talk')
  assert (found.prompt, found.response) == (TEXT, '2')


def test_records_of_kto_trainers(tmp_path):
  record = {'prompt': [turn('user', 'q')], 'completion': [turn('assistant', 'a')], 'label': False}
  (found,) = read(tmp_path, record, columns='response=completion,reward=label')
  assert found[1:5] == ('user: q', 'a', 0.0, {})


def test_the_template_is_ones_own(tmp_path):
  record = {'prompt': TALK[:2], 'response': 'r', 'reward': 1}
  (found,) = read(tmp_path, record, chat_template='<{role}>{content}')
  assert found.prompt == '<system>Be brief.\n<user>Hi'
  for template in ('{role}', '{content} {reward}', '{content', '{content:d}', '{content.x}'):
    with pytest.raises(UsageError, match='chat template'):
      read(tmp_path, record, chat_template=template)


def test_parts_are_lines_and_system_turns_may_be_empty(tmp_path):
  parts = [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]
  (found,) = read(
    tmp_path, {'prompt': [turn('system', ''), turn('user', parts)], 'response': 'r', 'reward': 1}
  )
  assert found.prompt == 'user: a\nb'


BAD = {
  'unknown role': (
    [turn('User', 'x')],
    r"turn 1, has the role 'User' \(did you mean user\?\)",
  ),
  'no role': ([{'from': 'human', 'value': 'x'}], 'it must be {"role"'),
  'no turn': (['x', 'y'], r"'prompt' is \['x', 'y'\], a list; it must be text"),
  'later no turn': ([TALK[0], 'x'], "turn 2, is 'x'"),
  'tool call': ([turn('assistant', None)], 'has the content None.*must be text'),
  'image': ([turn('user', [{'type': 'image_url', 'image_url': {}}])], "'image_url'; a text model reads"),
  'empty list': ([], "'prompt' is a conversation without turns"),
  'only an empty system': ([turn('system', ' ')], 'without turns'),
  'empty content': ([TALK[0], turn('user', '\n')], 'turn 2, has empty content'),
  'ends in an answer': (
    [*TALK, turn('assistant', 'x')],
    'ends in a turn of the assistant.*messages',
  ),
  'surrogate': ([turn('user', '\ud800')], 'half a surrogate pair'),
  'NUL': ([turn('user', 'a\0b')], 'NUL'),
}


@pytest.mark.parametrize('case', BAD)
def test_a_bad_prompt_is_named(tmp_path, case):
  value, message = BAD[case]
  with pytest.raises(UsageError, match=message) as error:
    read(tmp_path, {'prompt': value, 'response': 'r', 'reward': 1})
  assert str(error.value).startswith(f"{tmp_path / 't.jsonl'}:1: field 'prompt'")


@pytest.mark.parametrize(
  'value, message',
  [
    (TALK, r"t.jsonl:1: field 'messages' ends in a turn of the user.*must be the assistant's"),
    ([turn('assistant', 'x')], 'after 0 others'),
    ('[]', r"'messages' is '\[\]', a str; a conversation is a list"),
  ],
)
def test_messages_that_are_no_triplet_are_named(tmp_path, value, message):
  with pytest.raises(UsageError, match=message):
    read(tmp_path, {'messages': value, 'reward': 1})


def test_a_response_of_several_turns_is_refused(tmp_path):
  record = {'prompt': 'p', 'response': [turn('assistant', 'a'), turn('user', 'b')], 'reward': 1}
  with pytest.raises(UsageError, match=r"'response' has the turns assistant, user; a response is one turn"):
    read(tmp_path, record)


def test_a_missing_response_is_told_of_conversations(tmp_path):
  with pytest.raises(UsageError, match="'response' is missing.*--columns messages=FIELD"):
    read(tmp_path, {'prompt': 'p', 'messages': TALK, 'reward': 1})


def test_prompts_to_answer_are_what_comes_before_the_answer(tmp_path):
  path = tmp_path / 't.jsonl'
  records = [{'messages': TALK}, {'messages': [*TALK, turn('assistant', '2')]}, {'prompt': TALK[1:2]}]
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  assert [text for _, text in sources.read_prompts(str(path))] == [TEXT, TEXT, 'user: Hi']
  path.write_text(json.dumps({'messages': [turn('assistant', '2')]}))
  with pytest.raises(UsageError, match='nothing to answer'):
    list(sources.read_prompts(str(path)))


def test_a_conversation_once_rendered_is_the_default_template():
  assert chat.render([chat.Turn('user', 'a')], chat.TEMPLATE) == 'user: a'
