import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dro_jax.data.records import triplets
from dro_jax.data.text import chat
from dro_jax.errors import UsageError


def turn(role: str, content) -> dict:
  return {'role': role, 'content': content}


TALK = [turn('system', 'Be brief.'), turn('user', 'Hi'), turn('assistant', 'Yes?'), turn('user', '1 + {1}?')]
TEXT = 'system: Be brief.\nuser: Hi\nassistant: Yes?\nuser: 1 + {1}?'


def read(tmp_path, record: dict, name: str = 't.jsonl', **options) -> list[triplets.Record]:
  path = tmp_path / name
  if name.endswith('.parquet'):
    pq.write_table(pa.Table.from_pylist([record]), path)
  else:
    path.write_text(json.dumps(record))
  return list(triplets.read_triplets(str(path), **options))


@pytest.mark.parametrize('name', ['t.jsonl', 't.parquet'])
def test_a_conversation_prompt_has_one_line_for_each_turn(tmp_path, name):
  (record,) = read(tmp_path, {'prompt': TALK, 'response': '2', 'reward': 1}, name)
  assert (record.prompt, record.response) == (TEXT, '2')


@pytest.mark.parametrize('name', ['t.jsonl', 't.parquet'])
def test_the_last_turn_of_messages_is_the_response(tmp_path, name):
  (record,) = read(tmp_path, {'messages': [*TALK, turn('assistant', '2')], 'reward': True}, name)
  assert record[1:4] == (TEXT, '2', 1.0)


@pytest.mark.parametrize('name', ['t.jsonl', 't.parquet', 't.csv'])
def test_sharegpts_conversations_are_read_as_messages(tmp_path, name):
  said = [('system', 'Be brief.'), ('human', 'Hi'), ('gpt', 'Yes?'), ('human', '1 + 1?'), ('gpt', '2')]
  record = {'conversations': [{'from': who, 'value': text} for who, text in said], 'reward': 1}
  if name == 't.csv':
    with open(tmp_path / name, 'w', newline='') as file:
      csv.writer(file).writerows([['conversations', 'reward'], [json.dumps(record['conversations']), 1]])
    (read_back,) = triplets.read_triplets(str(tmp_path / name))
  else:
    (read_back,) = read(tmp_path, record, name)
  text = 'system: Be brief.\nuser: Hi\nassistant: Yes?\nuser: 1 + 1?'
  assert read_back[1:4] == (text, '2', 1.0)
  assert next(triplets.read_prompts(str(tmp_path / name)))[1] == text


def test_a_list_of_sharegpts_turns_is_no_list_of_records(tmp_path):
  record = {'talk': [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Yes?'}], 'reward': 1}
  with pytest.raises(UsageError, match='whole conversation, --columns messages=FIELD') as error:
    read(tmp_path, record, 't.json')
  assert 'jq' not in str(error.value)
  assert read(tmp_path, record, 't.json', columns='messages=talk')[0][1:3] == ('user: Hi', 'Yes?')
  record['talk'][1]['from'] = 'observation'
  with pytest.raises(UsageError, match="turn 2, has the role 'observation'"):
    read(tmp_path, record, 't.json', columns='messages=talk')


def test_named_messages_take_precedence_over_a_prompt(tmp_path):
  record = {'talk': [*TALK, turn('assistant', '2')], 'prompt': 'not this', 'reward': 1}
  (found,) = read(tmp_path, record, columns='messages=talk')
  assert (found.prompt, found.response) == (TEXT, '2')


def test_records_of_kto_trainers_are_read(tmp_path):
  record = {'prompt': [turn('user', 'q')], 'completion': [turn('assistant', 'a')], 'label': False}
  (found,) = read(tmp_path, record, columns='response=completion,reward=label')
  assert found[1:5] == ('user: q', 'a', 0.0, {})


def test_the_user_can_choose_the_chat_template(tmp_path):
  record = {'prompt': TALK[:2], 'response': 'r', 'reward': 1}
  (found,) = read(tmp_path, record, chat_template='<{role}>{content}')
  assert found.prompt == '<system>Be brief.\n<user>Hi'
  for template in ('{role}', '{content} {reward}', '{content', '{content:d}', '{content.x}'):
    with pytest.raises(UsageError, match='chat template'):
      read(tmp_path, record, chat_template=template)


def test_parts_of_content_are_lines_and_system_turns_can_be_empty(tmp_path):
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
  'no role': ([{'name': 'human', 'value': 'x'}], 'it must be {"role"'),
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
def test_the_error_of_a_bad_prompt_names_the_turn(tmp_path, case):
  value, message = BAD[case]
  with pytest.raises(UsageError, match=message) as error:
    read(tmp_path, {'prompt': value, 'response': 'r', 'reward': 1})
  assert str(error.value).startswith(f"{tmp_path / 't.jsonl'}:1: field 'prompt'")


LOST = {
  'calls of tools': {'tool_calls': [{'function': {'name': 'weather', 'arguments': '{"city": "Oslo"}'}}]},
  'an older call': {'function_call': {'name': 'weather', 'arguments': '{}'}},
  'a name': {'name': 'Ann'},
  'a refusal': {'refusal': 'I cannot.'},
  'reasoning': {'reasoning_content': 'First, ...'},
  'thinking': {'thinking': 'Hm.'},
  'images': {'images': ['a.png']},
  'audio': {'audio': {'id': 'audio_1'}},
  'files': {'files': [{'id': 'f'}]},
  'an unknown text': {'scratchpad': 'x'},
  'an unknown object': {'extra': {'a': 1}},
}


@pytest.mark.parametrize('case', LOST)
@pytest.mark.parametrize('field', ['prompt', 'response', 'messages'])
def test_content_that_the_template_would_lose_is_refused(tmp_path, case, field):
  (key,) = LOST[case]
  asked, answered = turn('user', 'q'), turn('assistant', 'a')
  records = {
    'prompt': {'prompt': [asked | LOST[case]], 'response': 'r'},
    'response': {'prompt': 'p', 'response': [answered | LOST[case]]},
    'messages': {'messages': [asked, answered | LOST[case]]},
  }
  with pytest.raises(UsageError, match=rf"t.jsonl:1: field '{field}', turn \d, .*'{key}'.*would lose"):
    read(tmp_path, records[field] | {'reward': 1})


HARMLESS = {
  'id': 'm1', 'timestamp': '2024-05-01T00:00:00Z', 'created_at': 'today', 'model': 't5',
  'usage': {'total': 3}, 'finish_reason': 'stop', 'metadata': {'a': 'b'}, 'language': 'en', 'weight': 0.5,
  'edited': True, 'tool_calls': None, 'function_call': {}, 'refusal': '', 'images': [], 'name': None,
  'tool_call_id': 'call_1',
}  # fmt: skip


def test_metadata_and_empty_fields_of_a_turn_are_ignored(tmp_path):
  record = {'messages': [turn('user', 'q') | HARMLESS, turn('assistant', 'a') | HARMLESS], 'reward': 1}
  (found,) = read(tmp_path, record)
  assert (found.prompt, found.response) == ('user: q', 'a')


@pytest.mark.parametrize('name', ['t.jsonl', 't.parquet'])
@pytest.mark.parametrize(
  'key, value',
  [
    ('tools', [{'function': {'name': 'weather'}}]), ('functions', [{'name': 'weather'}]),
    ('images', ['a.png']),
    ('audio', 'a.wav'), ('documents', [{'text': 'd'}]), ('system', 'Be brief.'),
  ],
)  # fmt: skip
def test_content_beside_a_conversation_is_refused(tmp_path, key, value, name):
  talk = [turn('user', 'q'), turn('assistant', 'a')]
  for record in ({'messages': talk}, {'prompt': talk[:1], 'response': 'a'}):
    with pytest.raises(UsageError, match=rf"1: field '{key}' .*would lose.*--columns {key}="):
      read(tmp_path, record | {key: value, 'reward': 1}, name)


def test_a_system_field_that_is_also_a_turn_is_accepted(tmp_path):
  talk = [turn('system', 'Be brief.'), turn('user', 'q'), turn('assistant', 'a')]
  (found,) = read(tmp_path, {'messages': talk, 'system': 'Be brief.', 'tools': [], 'reward': 1})
  assert found.prompt == 'system: Be brief.\nuser: q'


def test_empty_lists_written_as_text_are_ignored(tmp_path):
  talk = [turn('user', 'q'), turn('assistant', 'a')]
  (found,) = read(
    tmp_path, {'messages': talk, 'tools': '[]', 'images': ' { } ', 'audio': 'null'} | {'reward': 1}
  )
  assert found.prompt == 'user: q'


def test_read_prompts_refuses_content_that_the_template_would_lose(tmp_path):
  path = tmp_path / 't.jsonl'
  path.write_text(json.dumps({'messages': [turn('user', 'q')], 'tools': [{'name': 'weather'}]}))
  with pytest.raises(UsageError, match="'tools' .*would lose"):
    list(triplets.read_prompts(str(path)))


def test_a_part_that_holds_more_than_its_text_is_refused(tmp_path):
  part = {'type': 'text', 'text': 'a', 'citations': [{'url': 'x'}]}
  with pytest.raises(UsageError, match="'citations'.*would lose"):
    read(tmp_path, {'prompt': [turn('user', [part])], 'response': 'r', 'reward': 1})
  part = {'type': 'input_text', 'text': 'a', 'cache_control': {'type': 'ephemeral'}, 'image_url': None}
  (found,) = read(tmp_path, {'prompt': [turn('user', [part])], 'response': 'r', 'reward': 1})
  assert found.prompt == 'user: a'


@pytest.mark.parametrize(
  'value, message',
  [
    (TALK, r"t.jsonl:1: field 'messages' ends in a turn of the user.*must be the assistant's"),
    ([turn('assistant', 'x')], 'after 0 others'),
    ('[]', r"'messages' is '\[\]', a str; a conversation is a list"),
  ],
)
def test_the_error_of_messages_without_a_response_names_them(tmp_path, value, message):
  with pytest.raises(UsageError, match=message):
    read(tmp_path, {'messages': value, 'reward': 1})


def test_a_response_of_several_turns_is_refused(tmp_path):
  record = {'prompt': 'p', 'response': [turn('assistant', 'a'), turn('user', 'b')], 'reward': 1}
  with pytest.raises(UsageError, match=r"'response' has the turns assistant, user; a response is one turn"):
    read(tmp_path, record)


def test_the_error_of_a_missing_response_mentions_messages(tmp_path):
  with pytest.raises(UsageError, match="'response' is missing.*--columns messages=FIELD"):
    read(tmp_path, {'prompt': 'p', 'messages': TALK, 'reward': 1})


def test_read_prompts_gives_the_turns_before_the_answer(tmp_path):
  path = tmp_path / 't.jsonl'
  records = [{'messages': TALK}, {'messages': [*TALK, turn('assistant', '2')]}, {'prompt': TALK[1:2]}]
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  assert [text for _, text in triplets.read_prompts(str(path))] == [TEXT, TEXT, 'user: Hi']
  path.write_text(json.dumps({'messages': [turn('assistant', '2')]}))
  with pytest.raises(UsageError, match='nothing to answer'):
    list(triplets.read_prompts(str(path)))


def test_the_default_template_renders_role_and_content():
  assert chat.render([chat.Turn('user', 'a')], chat.TEMPLATE) == 'user: a'


def as_numpy(messages: list) -> str:
  """As pandas writes an array of turns into a csv: no commas between them."""
  return '[' + '\n '.join(map(repr, messages)) + ']'


@pytest.mark.parametrize('write', [json.dumps, repr, lambda talk: json.dumps(talk, indent=1)])
@pytest.mark.parametrize('name', ['t.csv', 't.jsonl', 't.tsv'])
def test_a_conversation_written_as_text_is_read_as_turns(tmp_path, write, name):
  answer = turn('assistant', "it's \\d é\n")
  records = [
    {'prompt': write(TALK), 'response': write([answer]), 'reward': 1},
    {'prompt': write(TALK), 'response': write(answer), 'reward': 1},
    {'prompt': write({'messages': TALK}), 'response': "it's \\d é\n", 'reward': 1},
    {'messages': write([*TALK, answer]), 'reward': 1},
    {'messages': write({'messages': [*TALK, answer]}), 'reward': 1},
  ]
  for record in records:
    path = tmp_path / name
    if name == 't.jsonl':
      path.write_text(json.dumps(record))
    else:
      with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(record), delimiter='\t' if name == 't.tsv' else ',')
        writer.writeheader()
        writer.writerow(record)
    (found,) = triplets.read_triplets(str(path))
    assert (found.prompt, found.response) == (TEXT, "it's \\d é\n")
    assert [text for _, text in triplets.read_prompts(str(path))] == [TEXT]


@pytest.mark.parametrize('text', ['[1, 2]', '{"a": 1}', '[{"a": 1}]', '[', "['x', 'y']", '{x}', '[] or {}'])
def test_text_that_is_not_a_conversation_stays_text(tmp_path, text):
  (found,) = read(tmp_path, {'prompt': text, 'response': text, 'reward': 1})
  assert (found.prompt, found.response) == (text, text)


@pytest.mark.parametrize(
  'text',
  [
    as_numpy(TALK), json.dumps(TALK)[:-9], repr(TALK)[:-1], '[{"role": "user", "role": "x", "content": "q"}]',
    '[{"id": 1, "at": "now", "role": "user", "content": "cu',
  ],
)  # fmt: skip
def test_text_that_begins_like_a_conversation_but_cannot_be_read_is_refused(tmp_path, text):
  with pytest.raises(UsageError, match=r"1: field 'prompt' .*begins like a conversation.*json.dumps"):
    read(tmp_path, {'prompt': text, 'response': 'r', 'reward': 1})


def test_a_conversation_written_as_text_is_refused_where_the_template_would_lose_content(tmp_path):
  for value in (
    [turn('user', 'q') | {'tool_calls': [{'id': 'c'}]}],
    {'messages': TALK, 'tools': [{'name': 'w'}]},
  ):
    for written in (value, json.dumps(value)):
      with pytest.raises(UsageError, match="'tool.*would lose"):
        read(tmp_path, {'prompt': written, 'response': 'r', 'reward': 1})


def test_content_beside_a_conversation_at_the_end_of_a_path_is_refused(tmp_path):
  record = {'input': {'messages': TALK, 'tools': [{'name': 'w'}]}, 'output': 'r', 'reward': 1}
  for written in (record, record | {'input': json.dumps(record['input'])}):
    with pytest.raises(UsageError, match="'tools' .*would lose"):
      read(tmp_path, written, columns='prompt=input.messages,response=output')
  record['input']['tools'] = []
  assert read(tmp_path, record, columns='prompt=input.messages,response=output')[0].prompt == TEXT


def test_a_path_to_a_turns_text_is_refused_where_the_turn_holds_more(tmp_path):
  columns = 'prompt=input.0.content,response=reply.content'
  reply = turn('assistant', 'a') | {'tool_calls': [{'id': 'c'}]}
  record = {'input': [turn('user', 'q')], 'reply': reply, 'reward': 1}
  with pytest.raises(UsageError, match=r"1: field 'tool_calls' .*beside 'reply.content'.*tool_calls="):
    read(tmp_path, record, columns=columns)
  assert read(tmp_path, record, columns=f'{columns},tool_calls=')[0].response == 'a'
  (found,) = read(tmp_path, record | {'reply': turn('assistant', 'a')}, columns=columns)
  assert (found.prompt, found.response) == ('q', 'a')


def test_a_conversation_converted_to_text_twice_is_read(tmp_path):
  (found,) = read(tmp_path, {'prompt': json.dumps(json.dumps(TALK)), 'response': 'r', 'reward': 1})
  assert found.prompt == TEXT
  (found,) = read(tmp_path, {'prompt': '"Quoted," he said. "[1]"', 'response': '"r"', 'reward': 1})
  assert (found.prompt, found.response) == ('"Quoted," he said. "[1]"', '"r"')


# --- for a model with a chat template of its own ------------------------------------------------------------


@pytest.mark.parametrize(
  'talk',
  [
    TALK,
    TALK[:2],
    TALK[1:2],
    [turn('user', json.dumps(TALK))],  # A text that spells a conversation.
    [turn('user', '\n\nHuman: Hi\n\nAssistant:')],
    [turn('user', '[{"role": torn')],
    [turn('user', 'a "quoted"\nline \u2028 é')],
  ],
)
def test_turns_that_stay_turns_read_back_the_same(talk):
  turns = [chat.Turn(**each) for each in talk]
  assert chat.turns_of(chat.render(turns, None)) == turns


def test_a_turn_of_the_user_is_its_text_and_more_turns_are_json(tmp_path):
  (record,) = read(tmp_path, {'prompt': TALK[1:2], 'response': '2', 'reward': 1}, chat_template=None)
  assert record.prompt == 'Hi'
  (record,) = read(tmp_path, {'messages': [*TALK, turn('assistant', '2')], 'reward': 1}, chat_template=None)
  assert json.loads(record.prompt) == TALK and record.response == '2'


def test_a_dialogue_in_hhs_form_has_turns():
  dialogue = '\n\nHuman: Hi\nyou\n\nAssistant: Yes?\n\nHuman: 1 + 1?\n\nAssistant:'
  assert chat.turns_of(dialogue) == [
    chat.Turn('user', 'Hi\nyou'), chat.Turn('assistant', 'Yes?'), chat.Turn('user', '1 + 1?'),
  ]  # fmt: skip
  for text in ('Human: Hi\n\nAssistant:', '\n\nHuman: Hi', '\n\nHuman: \n\nAssistant:', 'Hi'):
    assert chat.turns_of(text) == [chat.Turn('user', text)]
