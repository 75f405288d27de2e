import pytest

from dro_jax.data.records import field_paths

RECORD = {
  'prompt': 'why?',
  'chat': {'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant'}], 'rating.mean': 4},
  'scores': [0.5, None, 2],
  'a.b': 'a field of that very name',
  'a': {'b': 'a path'},
  'json': '{"inner": [1, {"deep": "yes"}]}',
  'python': "{'inner': (1, 2), 'text': 'it''s'}",
  'missing': None,
}


@pytest.mark.parametrize(
  'path, value',
  [
    ('prompt', 'why?'),
    ('chat.messages.0.content', 'hi'),
    ('chat.messages[0].content', 'hi'),
    ('chat.messages[-1].role', 'assistant'),
    ('chat.rating.mean', 4),  # One field of the object, with a dot in its name.
    ('scores.0', 0.5),
    ('scores[2]', 2),
    ('a.b', 'a field of that very name'),
    ('json.inner[1].deep', 'yes'),
    ('python.text', 'its'),
  ],
)
def test_a_path_leads_to_its_value(path, value):
  assert field_paths.reach(RECORD, path) == value


@pytest.mark.parametrize(
  'path',
  [
    'nothing',
    'missing',
    'scores[3]',
    'scores[-4]',
    'scores.x',
    'scores[1]',
    'prompt.0',
    'chat.x.y',
    'json.x',
  ],
)
def test_a_path_that_leads_nowhere_has_no_value(path):
  assert field_paths.reach(RECORD, path) is None


def test_a_name_is_read_from_the_field_that_was_chosen_for_it():
  assert field_paths.value(RECORD, {'reward': 'scores.0'}, 'reward') == 0.5
  assert field_paths.value(RECORD, {}, 'prompt') == 'why?'
  assert field_paths.value(RECORD, {'prompt': ''}, 'prompt') is None


def test_an_error_can_say_how_far_a_path_led():
  assert "'chat' has messages, rating.mean" in field_paths.how_far(RECORD, 'chat.message')
  assert "'scores' is a list of 3" in field_paths.how_far(RECORD, 'scores[7]')
  assert "'chat.messages.0.content' is 'hi'" in field_paths.how_far(RECORD, 'chat.messages[0].content.x')
  assert field_paths.how_far(RECORD, 'nothing.x') == ''


def test_the_fields_that_a_path_may_begin_with():
  assert field_paths.first_steps('a.b[0]') == ['a.b[0]', 'a', 'a.b']


def test_the_objects_on_the_way_are_the_records_and_those_within():
  chat = RECORD['chat']
  assert field_paths.holders(RECORD, 'chat.messages[0].content') == [RECORD, chat, chat['messages'][0]]
  assert field_paths.holders(RECORD, 'a.b') == [RECORD]


@pytest.mark.parametrize(
  'text, value',
  [
    (' [1, 2] ', [1, 2]),
    ('{"a": null}', {'a': None}),
    ("['a', None, True]", ['a', None, True]),
    ('text', None),
    ('(1, 2)', None),
    ('{1, 2}', None),
    ('[1, 2', None),
    ('[open("x")]', None),
    ('{"a": 1, "a": 2}', None),
    ('[' * 100000 + ']' * 100000, None),
  ],
)
def test_only_text_that_is_a_list_or_an_object_is_read_as_such(text, value):
  assert field_paths.structured(text) == value
