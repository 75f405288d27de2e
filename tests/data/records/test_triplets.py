import csv
import gzip
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dro_jax.data.records import triplets
from dro_jax.errors import UsageError

RECORDS = [
  {'id': 'a', 'prompt': 'two, or "three"?', 'response': 'ja\nnein', 'reward': 1.5, 'hter': 0.25},
  {'id': 'b', 'prompt': '„Cu inima”', 'response': 'x\ty', 'reward': -2.0, 'hter': 0.5},
  {'id': 'c', 'prompt': '42', 'response': '7', 'reward': 0.0, 'hter': 0.75},
]


def write_jsonl(path, records):
  text = ''.join(json.dumps(record) + '\n' for record in records).encode()
  path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == '.gz' else text)


def write_csv(path, records, delimiter=','):
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)


def write(path, records) -> str:
  if path.name.endswith('.parquet'):
    pq.write_table(pa.Table.from_pylist(records), path)
  elif path.suffix in ('.csv', '.tsv'):
    write_csv(path, records, '\t' if path.suffix == '.tsv' else ',')
  else:
    write_jsonl(path, records)
  return str(path)


def read(path, *args, **options) -> list[triplets.Record]:
  return list(triplets.read_triplets(path, *args, **options))


@pytest.mark.parametrize('name', ['t.jsonl', 't.jsonl.gz', 't.csv', 't.tsv', 't.parquet'])
def test_every_format_gives_the_same_records(tmp_path, name):
  found = read(write(tmp_path / name, RECORDS))
  assert [(r.id, r.prompt, r.response, r.reward, r.columns) for r in found] == [
    (r['id'], r['prompt'], r['response'], r['reward'], {'hter': r['hter']}) for r in RECORDS
  ]


def test_columns_maps_our_names_to_the_files(tmp_path):
  records = [{'question': 'q', 'answer': 'a', 'thumbs': True, 'response': 'not this', 'score': 3}]
  path = write(tmp_path / 't.jsonl', records)
  mapping = 'prompt=question,response=answer,reward=thumbs,label=thumbs'
  for columns in (mapping, dict(pair.split('=') for pair in mapping.split(','))):
    (record,) = read(path, columns)
    assert record[:5] == ('t.jsonl:1', 'q', 'a', 1.0, {'label': 1.0, 'score': 3.0})


def test_known_columns_get_our_names_and_text_columns_are_left_out(tmp_path):
  path = write(tmp_path / 't.jsonl', [dict(RECORDS[0], behaviour_logprob=-3.5, system='S', ratings=[1, 2])])
  assert read(path)[0].columns == {'hter': 0.25, 'behaviour_logps': -3.5}


@pytest.mark.parametrize('sampler, sampled', [('sampled', 1), ('Sampling', 1), ('sample', 1), ('beam', 0)])
def test_the_sampler_of_a_log_becomes_a_number(tmp_path, sampler, sampled):
  path = write(tmp_path / 't.jsonl', [dict(RECORDS[0], drawn=sampler)])
  assert read(path, 'behaviour_sampler=drawn')[0].columns['behaviour_sampled'] == sampled


def test_rewards_that_are_words_are_mapped(tmp_path):
  path = write(tmp_path / 't.jsonl', [dict(RECORDS[0], reward='up'), dict(RECORDS[1], reward='down')])
  for mapping in ('up=1,down=0', {'up': 1, 'down': 0}):
    assert [r.reward for r in read(path, map_reward=mapping)] == [1.0, 0.0]


def test_a_record_without_a_reward_is_read_where_rewards_are_not_required(tmp_path):
  records = [{'prompt': 'p', 'post_edit': 'e'}, {'prompt': 'p', 'post_edit': 'f', 'reward': 'word'}]
  path = write(tmp_path / 't.jsonl', records)
  found = read(path, 'response=post_edit', rewards_required=False)
  assert [(r.response, r.reward) for r in found] == [('e', None), ('f', None)]


@pytest.mark.parametrize(
  'columns', ['label=,id=,behaviour_logprob=', {'label': '', 'id': None, 'behaviour_logprob': ''}]
)
def test_columns_with_an_empty_name_are_ignored(tmp_path, columns):
  records = [
    dict(RECORDS[0], label='spam', id=[1], behaviour_logprob='x'),
    dict(RECORDS[1], label=7, id=[1], behaviour_logprob=None),
  ]
  path = write(tmp_path / 't.jsonl', records)
  found = read(path, columns)
  assert [(r.id, r.columns) for r in found] == [('t.jsonl:1', {'hter': 0.25}), ('t.jsonl:2', {'hter': 0.5})]
  assert [record_id for record_id, _ in triplets.read_prompts(path, columns)] == ['t.jsonl:1', 't.jsonl:2']


@pytest.mark.parametrize(
  'field, value', [('label', 'spam'), ('label', 7), ('behaviour_logprob', 'x'), ('id', [1])]
)
def test_errors_in_a_column_say_how_to_ignore_it(tmp_path, field, value):
  path = write(tmp_path / 't.jsonl', [dict(RECORDS[0], **{field: value})])
  with pytest.raises(UsageError, match=f'--columns {field}='):
    read(path)


@pytest.mark.parametrize(
  'field, message',
  [
    ('prompt', "'promt' is a column of your own, of numbers .did you mean prompt"),
    ('question', '--columns promt=question names another column .did you mean prompt'),
  ],
)
def test_a_misspelt_name_of_a_column_is_suggested(tmp_path, field, message):
  record = {field: 'How?', 'response': 'so', 'reward': 1}
  with pytest.raises(UsageError, match=message):
    read(write(tmp_path / 't.jsonl', [record]), columns=f'promt={field}')


def test_a_column_of_numbers_can_be_ignored(tmp_path):
  path = write(tmp_path / 't.jsonl', RECORDS)
  assert read(path, 'hter=')[0].columns == {}


def test_an_ignored_column_can_have_another_name(tmp_path):
  path = write(tmp_path / 't.jsonl', [dict(r, label=7) for r in RECORDS])
  assert {r.columns['grade'] for r in read(path, 'label=,grade=label')} == {7}


def test_the_error_of_dates_in_a_column_with_a_meaning_says_how_to_ignore_it(tmp_path):
  path = str(tmp_path / 't.parquet')
  ids = pa.array([1, 2], pa.timestamp('ns'))
  pq.write_table(pa.table({'prompt': ['p', 'q'], 'response': ['r', 's'], 'reward': [1, 0], 'id': ids}), path)
  with pytest.raises(UsageError, match=r"column 'id' \(timestamp.ns.\).*ignore it with --columns NAME="):
    read(path)
  assert len(read(path, 'id=')) == 2


@pytest.mark.parametrize('name', ['prompt', 'response'])
def test_columns_refuses_to_ignore_the_prompt_or_response(tmp_path, name):
  with pytest.raises(UsageError, match=f"'{name}=': every record needs its {name}"):
    read(write(tmp_path / 't.jsonl', RECORDS), f'{name}=')


def test_several_files_and_patterns_are_read_in_order(tmp_path):
  for i, record in enumerate(RECORDS):
    write(tmp_path / f'part{i}.jsonl', [record])
  parts = [str(tmp_path / f'part{i}.jsonl') for i in range(3)]
  for paths in (parts, ','.join(parts), str(tmp_path / 'part*.jsonl')):
    assert [r.id for r in read(paths)] == ['a', 'b', 'c']


def test_booleans_in_files_without_types_are_numbers(tmp_path):
  records = [dict(RECORDS[0], reward='true'), dict(RECORDS[1], reward='False')]
  assert [r.reward for r in read(write(tmp_path / 't.csv', records))] == [1.0, 0.0]


def without(record: dict, field: str) -> dict:
  return {name: value for name, value in record.items() if name != field}


BAD = {
  'missing prompt': (without(RECORDS[1], 'prompt'), r"'prompt' is missing.*--columns prompt=FIELD"),
  'missing response': (without(RECORDS[1], 'response'), "'response' is missing"),
  'missing reward': (without(RECORDS[1], 'reward'), "'reward' is missing"),
  'null reward': (dict(RECORDS[1], reward=None), "'reward' is missing"),
  'text reward': (dict(RECORDS[1], reward='good'), "'reward' is 'good', not a number.*--map_reward"),
  'number as text': (dict(RECORDS[1], reward='1.5'), "'reward' is '1.5', not a number"),
  'NaN reward': (dict(RECORDS[1], reward=math.nan), "'reward' is nan; a reward must be finite"),
  'infinite reward': (dict(RECORDS[1], reward=-math.inf), "'reward' is -inf; a reward must be finite"),
  'huge reward': (dict(RECORDS[1], reward=10**400), 'a reward must be finite'),
  'reward past float32': (dict(RECORDS[1], reward=1e300), 'must be finite in float32'),
  'list reward': (dict(RECORDS[1], reward=[1]), r"'reward' is \[1\], not a number"),
  'empty response': (dict(RECORDS[1], response=''), "'response' is empty"),
  'blank response': (dict(RECORDS[1], response=' \n'), "'response' is empty"),
  'empty prompt': (dict(RECORDS[1], prompt=''), "'prompt' is empty"),
  'number as response': (dict(RECORDS[1], response=3), "'response' is 3, a int; it must be text"),
  'half a surrogate pair': (dict(RECORDS[1], response='\ud800'), 'surrogate'),
  'duplicate id': (dict(RECORDS[1], id='a'), r"id 'a' .*was used before at .*t\.jsonl:1"),
  'bad id': (dict(RECORDS[1], id=[1]), 'an id must be text'),
  'bad label': (dict(RECORDS[1], label=2), 'a label must be 0 or 1'),
  'text label': (dict(RECORDS[1], label='yes'), "'label' is 'yes'; it must be a finite number"),
  'text propensity': (dict(RECORDS[1], behaviour_logprob='x'), "'behaviour_logprob' is 'x'"),
}


@pytest.mark.parametrize('case', BAD)
def test_the_error_of_a_bad_record_names_file_line_and_field(tmp_path, case):
  record, message = BAD[case]
  path = write(tmp_path / 't.jsonl', [RECORDS[0], record, RECORDS[2]])
  with pytest.raises(UsageError, match=message) as error:
    read(path)
  assert str(error.value).startswith(f'{path}:2: ')


def test_errors_name_a_field_by_the_files_name(tmp_path):
  path = write(tmp_path / 't.jsonl', RECORDS)
  with pytest.raises(
    UsageError, match=r"t.jsonl:1: field 'thumbs' \(the reward\) is missing.*record has id, prompt"
  ):
    read(path, 'reward=thumbs')
  with pytest.raises(UsageError, match=r"'thumb' \(the label\) is missing"):
    read(path, 'label=thumb')


def test_empty_cells_are_missing(tmp_path):
  path = write(tmp_path / 't.csv', [RECORDS[0], dict(RECORDS[1], reward='')])
  with pytest.raises(UsageError, match="'reward' is missing"):
    read(path)


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('t.jsonl', b'', 'holds no records'),
    ('t.jsonl', b'\n\n', 'holds no records'),
    ('t.csv', b'prompt,response,reward\n', 'holds no records'),
    ('t.jsonl', b'{"prompt": "p"\n', r't.jsonl:1: not JSON.*one JSON object a line'),
    ('t.jsonl', b'[1, 2]\n', 't.jsonl:1: a JSON list, not an object'),
    ('t.jsonl', b'\xff\xfe{}\n', 't.jsonl:1: .*UTF-16'),
    ('t.jsonl.gz', b'not gzip', 'gzip data is damaged'),
    (
      't.jsonl.gz',
      gzip.compress(b'{"prompt": "p", "response": "r", "reward": 1}\n' * 9, mtime=0)[:-12],
      'gzip data is damaged',
    ),
    ('t.csv', b'prompt,response,reward\na,b\n', 't.csv:2: 2 fields, but the header has 3'),
    ('t.csv', b'prompt,prompt\na,b\n', 'occurs twice in the header'),
    ('t.csv', b'prompt,response,reward\na,"b"c,1\n', 't.csv:2: .*quote fields'),
    ('t.csv', b'prompt,response,reward\na,"b,1\n', 'quote fields'),
    ('t.parquet', b'not parquet', 'not readable as parquet'),
    ('t.txt', b'x', r'unknown format; the name must end in one of .jsonl'),
  ],
)
def test_the_error_of_a_bad_file_names_it(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UsageError, match=message):
    read(str(path))


def test_the_error_of_a_parquet_column_of_the_wrong_type_names_it(tmp_path):
  path = write(tmp_path / 't.parquet', [dict(r, reward=str(r['reward'])) for r in RECORDS])
  with pytest.raises(UsageError, match=r"t.parquet:1: field 'reward' is '1.5', not a number"):
    read(path)
  path = write(tmp_path / 'u.parquet', [dict(r, response=[1]) for r in RECORDS])
  with pytest.raises(UsageError, match=r"u.parquet:1: field 'response' is \[1\]"):
    read(path)


def test_an_empty_file_among_several_is_refused(tmp_path):
  path = write(tmp_path / 't.jsonl', RECORDS)
  (tmp_path / 'empty.jsonl').touch()
  with pytest.raises(UsageError, match=r'empty.jsonl: the file holds no records'):
    read([path, str(tmp_path / 'empty.jsonl')])


def test_a_missing_file_is_refused():
  with pytest.raises(UsageError, match=r"'nowhere.jsonl': there is no such file"):
    read('nowhere.jsonl')


@pytest.mark.parametrize(
  'name, files',
  [('a.jsonl', True), ('dir/a', True), ('part*', True), ('a.txt,b.csv', True), ('my_task.v1', False)],
)
def test_is_files_tells_files_from_tasks(name, files):
  assert triplets.is_files(name) == files
  assert triplets.is_files([name]) == files


def test_columns_and_map_reward_refuse_bad_pairs(tmp_path):
  path = write(tmp_path / 't.jsonl', RECORDS)
  with pytest.raises(UsageError, match='NAME=FIELD'):
    read(path, 'prompt:question')
  with pytest.raises(UsageError, match='WORD=NUMBER'):
    read(path, map_reward='up=high')


NESTED = {
  'chat': {'messages': ['q1', 'q2'], 'a.b': {'c': 3}}, 'answer': {'text': 'a'}, 'scores': [[0.5], [2]],
  'x.y': 7, 'cell': '{"r": [1, {"n": 4}]}', 'python': "{'r': [True, None]}",
}  # fmt: skip


@pytest.mark.parametrize(
  'path, number',
  [
    ('scores.1.0', 2.0), ('scores[1][0]', 2.0), ('scores.-1[0]', 2.0), ('scores[0].0', 0.5), ('x.y', 7.0),
    ('chat.a.b.c', 3.0), ('cell.r.1.n', 4.0), ('python.r[0]', 1.0),
  ],
)  # fmt: skip
def test_a_path_leads_into_objects_lists_and_text_that_is_json(tmp_path, path, number):
  path_of_file = write(tmp_path / 't.jsonl', [NESTED])
  columns = f'prompt=chat.messages.1,response=answer.text,reward={path},hter={path}'
  (record,) = read(path_of_file, columns)
  assert (record.prompt, record.response, record.reward, record.columns['hter']) == (
    'q2',
    'a',
    number,
    number,
  )


@pytest.mark.parametrize(
  'path, message',
  [
    ('chat.message', "'chat' has messages, a.b"), ('scores.2', "'scores' is a list of 2"),
    ('scores.-3', "'scores' is a list of 2"),
    ('answer.text.x', "'answer.text' is 'a'"), ('nowhere.x', 'the record has chat'),
  ],
)  # fmt: skip
def test_the_error_of_a_path_to_no_value_says_how_far_it_leads(tmp_path, path, message):
  with pytest.raises(UsageError, match=f"field '{path}' .*missing.*{message}"):
    read(write(tmp_path / 't.jsonl', [NESTED]), f'prompt={path}')


def test_a_path_leads_into_parquet_and_csv(tmp_path):
  path = write(tmp_path / 't.parquet', [{'chat': {'q': 'p', 'a': 'r'}, 's': [1.5]}])
  assert read(path, 'prompt=chat.q,response=chat.a,reward=s.0')[0][1:4] == ('p', 'r', 1.5)
  path = write(tmp_path / 't.csv', [{'chat': '{"q": "p", "a": "r"}', 's': '[1.5]'}])
  assert read(path, 'prompt=chat.q,response=chat.a,reward=s.0')[0][1:4] == ('p', 'r', 1.5)


@pytest.mark.parametrize('name', ['t.jsonl', 't.csv', 't.parquet'])
def test_the_error_of_a_reward_in_a_list_names_the_path(tmp_path, name):
  value = '[1.5]' if name == 't.csv' else [1.5]
  path = write(tmp_path / name, [{'prompt': 'p', 'response': 'r', 'user-feedback': value}])
  with pytest.raises(
    UsageError, match=r'a list of 1; name one of its items: --columns reward=user-feedback\.0'
  ):
    read(path, 'reward=user-feedback')
  assert read(path, 'reward=user-feedback.0')[0].reward == 1.5


def test_the_error_of_a_reward_in_an_object_names_a_field(tmp_path):
  path = write(tmp_path / 't.jsonl', [dict(RECORDS[0], reward={'rating': 1, 'tag': 'x'})])
  with pytest.raises(UsageError, match=r'an object; name a field of it: --columns reward=reward\.rating'):
    read(path)
