import csv
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from dro_jax.data.records import products, triplets
from dro_jax.errors import UsageError

RECIPES = (pathlib.Path(__file__).parents[3] / 'docs/start/recipes.md').read_text()


# --- Open WebUI ---------------------------------------------------------------------------------------------


def message(name: str, parent: str | None, role: str, text: str, **beside) -> dict:
  """A message of a chat of Open WebUI's."""
  own = (
    {'models': ['llama3'], 'timestamp': 1}
    if role == 'user'
    else {'model': 'llama3', 'done': True, 'modelIdx': 0}
  )
  usual = {'id': name, 'parentId': parent, 'childrenIds': [], 'role': role, 'content': text, **own}
  return usual | {'files': [], 'statusHistory': [{'action': 'x'}], 'followUps': ['More?']} | beside


def talk(**first) -> dict:
  """A chat with a second answer to its question, and with turns after the first."""
  messages = [
    message('q1', None, 'user', 'Hi'),
    message(
      'a1', 'q1', 'assistant', 'Hello', annotation={'rating': 1, 'tags': ['kind']}, feedbackId='f1', **first
    ),
    message('a2', 'q1', 'assistant', 'Go away', annotation={'rating': -1}),
    message('q2', 'a1', 'user', '1 + 1?'),
    message('a3', 'q2', 'assistant', '2', annotation={'rating': 1}),
    message('q3', 'a3', 'user', 'Thanks'),
    message('a4', 'q3', 'assistant', 'Bye'),
  ]
  history = {'messages': {m['id']: m for m in messages}, 'currentId': 'a4'}
  return {'models': ['llama3'], 'params': {}, 'history': history, 'messages': [], 'files': []}


def feedback(name: str, rated: str, rating, chat: dict | None = None) -> dict:
  return {
    'id': name, 'user_id': 'u', 'version': 0, 'type': 'rating', 'created_at': 1, 'updated_at': 1,
    'data': {'rating': rating, 'model_id': 'llama3', 'reason': '', 'details': {'rating': 7}},
    'meta': {'arena': False, 'message_id': rated, 'message_index': 2, 'chat_id': 'c'},
    'snapshot': {'chat': {'id': 'c', 'user_id': 'u', 'title': 'T', 'chat': chat or talk()}},
    'user': {'id': 'u', 'name': 'Ann'},
  }  # fmt: skip


RATED = [
  ('user: Hi', 'Hello', 1.0),
  ('user: Hi', 'Go away', -1.0),
  ('user: Hi\nassistant: Hello\nuser: 1 + 1?', '2', 1.0),
]


def found(path, *args, **options) -> list[tuple]:
  return [(r.prompt, r.response, r.reward) for r in triplets.read_triplets(str(path), *args, **options)]


def written(path, value) -> str:
  path.write_text(json.dumps(value))
  return str(path)


def test_open_webui_feedback_is_the_branch_up_to_the_rated_answer(tmp_path):
  path = written(tmp_path / 't.json', [feedback(f'f{i}', f'a{i}', 1 if i != 2 else -1) for i in (1, 2, 3)])
  assert found(path) == RATED
  assert [r.id for r in triplets.read_triplets(path)] == ['f1', 'f2', 'f3']
  assert found(path, 'reward=data.details.rating')[0][2] == 7.0
  assert [text for _, text in triplets.read_prompts(path)] == [prompt for prompt, _, _ in RATED]


@pytest.mark.parametrize('system', [{'system': 'Be brief.'}, {'params': {'system': 'Be brief.'}}])
def test_a_chats_own_system_prompt_is_its_first_turn(tmp_path, system):
  path = written(tmp_path / 't.json', [feedback('f', 'a1', 1, talk() | system)])
  assert found(path) == [('system: Be brief.\nuser: Hi', 'Hello', 1.0)]


def test_open_webui_chats_give_each_rated_answer(tmp_path):
  path = written(tmp_path / 't.json', [{'id': f'c{i}', 'title': 'T', 'chat': talk()} for i in range(2)])
  assert found(path) == RATED * 2
  assert [r.id for r in triplets.read_triplets(path)][:4] == ['c0/a1', 'c0/a2', 'c0/a3', 'c1/a1']


LOST = {
  'an image': (feedback('f', 'a1', 1, talk(files=[{'type': 'image', 'url': 'x'}])), "'files'"),
  'retrieved sources': (feedback('f', 'a1', 1, talk(sources=[{'document': ['d']}])), "'sources'"),
  'no answer': (feedback('f', 'a1', 1, talk(content='')), 'empty content'),
  'a question': (feedback('f', 'q2', 1), 'turns user'),
  'no such message': (feedback('f', 'a9', 1), 'lacks the question'),
  'no snapshot': (feedback('f', 'a1', 1) | {'snapshot': None}, 'lacks the question'),
}


@pytest.mark.parametrize('case', LOST)
def test_an_answer_that_text_cannot_represent_is_left_out_and_counted(tmp_path, caplog, case):
  odd, why = LOST[case]
  path = written(
    tmp_path / 't.json', [feedback('f1', 'a1', 1), odd, feedback('f2', 'a2', None), feedback('f3', 'a3', 1)]
  )
  with caplog.at_level('INFO', 'dro_jax'):
    assert found(path) == [RATED[0], RATED[2]]
  log = '\n'.join(record.getMessage() for record in caplog.records)
  assert "Open WebUI's feedback; answers that were rated: 3, not rated: 1" in log
  assert re.search(rf'1 of 3 rated answers are left out.*t.json:2.*{why}', log)


def test_a_circle_of_parents_is_left_out(tmp_path, caplog):
  chat = talk()
  chat['history']['messages']['q1']['parentId'] = 'a1'
  assert found(written(tmp_path / 't.json', [feedback('f', 'a1', 1, chat)])) == []
  assert 'lacks the question' in caplog.text


# --- LibreChat ----------------------------------------------------------------------------------------------


def said(name: str, parent: str, by_user: bool, text: str, rating: str | None = None, **beside) -> dict:
  """A message of LibreChat's."""
  usual = {
    'messageId': name, 'conversationId': 'c', 'parentMessageId': parent, 'isCreatedByUser': by_user,
    'sender': 'User' if by_user else 'GPT', 'model': None if by_user else 'gpt', 'error': False, 'text': text,
    'createdAt': '2025', 'tokenCount': 3,
  }  # fmt: skip
  return usual | ({'feedback': {'rating': rating, 'tag': None}} if rating else {}) | beside


MESSAGES = [
  said('q1', products._ROOT, True, 'Hi'),
  said('a1', 'q1', False, '', 'thumbsUp', content=[{'type': 'text', 'text': {'value': 'Hello'}}, None]),
  said('a2', 'q1', False, 'Go away', 'thumbsDown'),
  said('q2', 'a1', True, '1 + 1?'),
  said('a3', 'q2', False, '2', 'thumbsUp', content=[{'type': 'text', 'text': '2'}]),
  said('a4', 'q2', False, 'unrated'),
]
THUMBS = {'map_reward': 'thumbsUp=1,thumbsDown=-1'}


def tree(parent: str = products._ROOT) -> list[dict]:
  return [m | {'children': tree(m['messageId'])} for m in MESSAGES if m['parentMessageId'] == parent]


CONVERSATION = {
  'conversationId': 'c',
  'endpoint': 'openAI',
  'title': 'T',
  'exportAt': 'now',
  'branches': True,
}


@pytest.mark.parametrize(
  'text',
  [
    json.dumps(CONVERSATION | {'messages': MESSAGES}),
    json.dumps(CONVERSATION | {'messagesTree': tree()}),
    json.dumps(MESSAGES),
    '\n'.join(json.dumps({'_id': {'$oid': 'x'}} | m) for m in MESSAGES[::-1]),
  ],
)
def test_librechat_exports_and_dumps_give_each_rated_answer(tmp_path, text):
  (tmp_path / 't.json').write_text(text)
  assert sorted(found(tmp_path / 't.json', **THUMBS)) == sorted(RATED)
  with pytest.raises(UsageError, match=r"'reward' is 'thumbs(Up|Down)'.*--map_reward"):
    found(tmp_path / 't.json')


@pytest.mark.parametrize(
  'beside',
  [
    {'files': [{'filename': 'a.pdf'}]},
    {'content': [{'type': 'think', 'think': 'Hm.'}, {'type': 'text', 'text': '2'}]},
    {'content': [{'type': 'tool_call', 'tool_call': {}}]}, {'parentMessageId': 'gone'},
  ],
)  # fmt: skip
def test_a_librechat_answer_that_text_cannot_represent_is_left_out(tmp_path, caplog, beside):
  messages = [*MESSAGES, said('a9', 'q1', False, 'x', 'thumbsUp') | beside]
  path = written(tmp_path / 't.json', CONVERSATION | {'messages': messages})
  assert found(path, **THUMBS) == RATED
  assert '1 of 4 rated answers are left out' in caplog.text


def test_the_prompt_prefix_of_a_preset_is_a_system_turn(tmp_path):
  path = written(
    tmp_path / 't.json', CONVERSATION | {'options': {'promptPrefix': 'Be brief.'}, 'messages': MESSAGES[:2]}
  )
  assert found(path, **THUMBS) == [('system: Be brief.\nuser: Hi', 'Hello', 1.0)]


@pytest.mark.parametrize(
  'first, rest',
  [
    ({'id': 'f0', 'data': {'rating': 1}, 'meta': {}}, feedback('f', 'a1', 1)),
    ({'id': 'c0', 'chat': {}}, {'id': 'c1', 'chat': talk()}),
    ({'conversationId': 'c0', 'messages': []}, CONVERSATION | {'messages': MESSAGES}),
  ],
)
def test_an_incomplete_first_object_does_not_hide_the_product(tmp_path, first, rest):
  options = THUMBS if 'conversationId' in first else {}
  alone = found(written(tmp_path / 't.json', [rest]), **options)
  assert alone and found(written(tmp_path / 'u.json', [first, rest]), **options) == alone


def test_a_dump_too_large_for_memory_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(products, '_LARGEST', 100)
  with pytest.raises(UsageError, match='t.json: more than .* GiB of messages'):
    found(written(tmp_path / 't.json', MESSAGES), **THUMBS)


def test_other_json_is_read_unchanged(tmp_path):
  turns = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]
  path = written(tmp_path / 't.json', [{'conversationId': 'c', 'messages': turns, 'reward': 1}])
  assert found(path) == [('user: q', 'a', 1.0)]
  # Fields that are named go before.
  path = written(tmp_path / 'u.json', [feedback('f', 'a1', 1) | {'q': 'p', 'a': 'r'}])
  assert found(path, 'prompt=q,response=a,reward=data.rating') == [('p', 'r', 1.0)]


# --- the recipes --------------------------------------------------------------------------------------------

TURNS = [{'role': 'user', 'content': 'Hi'}]
OBSERVATION = {
  'id': 'o1', 'type': 'GENERATION', 'traceId': 't1', 'startTime': '2025-01-01T00:00:00Z', 'level': 'DEFAULT',
  'latency': 0.5, 'traceTags': ['x'], 'metadata': {'a': 'b'}, 'usageDetails': {'input': 3}, 'comments': [],
  'input': TURNS, 'output': {'role': 'assistant', 'content': 'Hello'}, 'user-feedback': [1],
}  # fmt: skip


def langfuse(folder: pathlib.Path) -> None:
  rows = [
    OBSERVATION,
    OBSERVATION | {'id': 'o2', 'input': {'messages': TURNS}, 'output': 'Go away', 'user-feedback': [-1]},
  ]
  (folder / 'observations.json').write_text(json.dumps(rows))
  (folder / 'observations.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  with open(folder / 'observations.csv', 'w', newline='') as file:
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator='\n')
    writer.writerow(OBSERVATION)
    for row in rows:
      writer.writerow(x if isinstance(x, str) else json.dumps(x, separators=(',', ':')) for x in row.values())


def langfuse_files(folder: pathlib.Path) -> None:
  row = {
    'id': 'o1',
    'trace_id': 't1',
    'parent_observation_id': '',
    'input': json.dumps(TURNS),
    'output': 'Hello',
  }
  rows = [
    row,
    row | {'id': 'o2', 'trace_id': 't2', 'output': 'Go away'},
    row | {'id': 'o3', 'trace_id': 't3'},
  ]
  score = {'name': 'user-feedback', 'trace_id': 't1', 'observation_id': 'o1', 'value': 1}
  scores = [
    score,
    score | {'trace_id': 't2', 'observation_id': None, 'value': -1},
    score | {'name': 'x', 'trace_id': 't3'},
  ]
  for name, lines in (('observations_v2', rows), ('scores', scores)):
    (folder / name).mkdir()
    (folder / name / '1.jsonl').write_text('\n'.join(map(json.dumps, lines)))


def in_files(**files):
  """Writes files of these names, given as lists of records or as text."""

  def write(folder: pathlib.Path) -> None:
    for name, text in files.items():
      path = folder / name.replace('__', '/').replace('_dot_', '.')
      path.parent.mkdir(exist_ok=True)
      path.write_text(text)

  return write


def lines(records: list[dict]) -> str:
  return '\n'.join(map(json.dumps, records))


REPLY = {
  'id': 'r',
  'choices': [{'index': 0, 'message': {'role': 'assistant', 'content': 'Hello', 'refusal': None}}],
}
OTHER = {'choices': [{'message': {'role': 'assistant', 'content': 'Go away'}}]}
LOG = [
  {'request': {'model': 'm', 'messages': TURNS}, 'response': REPLY, 'thumb': 'up'},
  {'request': {'messages': TURNS}, 'response': OTHER, 'thumb': 'down'},
]
KTO = [
  {'prompt': TURNS, 'completion': [{'role': 'assistant', 'content': 'Hello'}], 'label': True},
  {'prompt': 'user: Hi', 'completion': 'Go away', 'label': False},
]
FEEDBACK = [feedback('f1', 'a1', 1), feedback('f2', 'a2', -1)]
SHAPES = {
  'Open WebUI: feedback': in_files(**{'feedback-history-export_dot_json': json.dumps(FEEDBACK)}),
  'Open WebUI: chats': in_files(**{'all-chats-export_dot_json': json.dumps([{'id': 'c', 'chat': talk()}])}),
  'LibreChat: conversations': in_files(
    exports__a_dot_json=json.dumps(CONVERSATION | {'messages': MESSAGES}),
    exports__b_dot_json=json.dumps(CONVERSATION | {'messages': [MESSAGES[0], MESSAGES[5]]}),
  ),
  'LibreChat: the database': in_files(messages_dot_json=lines(MESSAGES)),
  'Langfuse: observations or traces': langfuse,
  'Langfuse: the scheduled export': langfuse_files,
  "Trainers' files": in_files(kto_dot_jsonl=lines(KTO)),
  'Requests and replies of an API': in_files(log_dot_jsonl=lines(LOG)),
}
SECTIONS = dict(re.findall(r'^## (.+)\n((?:(?!^## ).*\n)*)', RECIPES, re.MULTILINE))


def test_every_recipe_has_a_file_of_its_shape():
  assert set(SECTIONS) == set(SHAPES)


@pytest.mark.parametrize('name', SHAPES)
def test_each_recipes_command_reads_a_file_of_its_shape(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  SHAPES[name](tmp_path)
  for code in re.findall(r'```python\n(.*?)```', SECTIONS[name], re.DOTALL):
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
  (command,) = re.findall(r'```sh\n(.*)\n```', SECTIONS[name])
  _, inspect, files, *flags = shlex.split(command)
  assert inspect == 'inspect'
  options = {flag.removeprefix('--'): value for flag, value in zip(flags[::2], flags[1::2])}
  paths = (
    [files.replace('.csv', ending) for ending in ('.csv', '.json', '.jsonl')]
    if 'observations' in files
    else [files]
  )
  for path in paths:
    records = found(path, **options)
    assert [(prompt, response) for prompt, response, _ in records[:2]] == [
      ('user: Hi', 'Hello'),
      ('user: Hi', 'Go away'),
    ]
    assert records[0][2] == 1 and records[1][2] in (0, -1)
