import decimal
import gzip
import io
import json
import os
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dro_jax.data.records import readers, text_files, triplets
from dro_jax.data.sources import find
from dro_jax.errors import UsageError

LINE = b'{"prompt": "p", "response": "r", "reward": 1}\n'


def read(path, **options) -> list[triplets.Record]:
  return list(triplets.read_triplets(str(path), **options))


def zipped() -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as file:
    file.writestr('t.jsonl', LINE)
  return buffer.getvalue()


def deep(depth: int) -> bytes:
  return b'{"prompt": ' + b'[' * depth + b']' * depth + b', "response": "r", "reward": 1}\n'


TEXT = '{"prompt": "Übergröße", "response": "naïve café", "reward": 1}\n'
MARK = b'\xef\xbb\xbf'
TOO_DEEP = r":1: (not JSON that can be read|field 'prompt')"
BAD = {
  'Windows-1252': ('t.jsonl', LINE + TEXT.encode('cp1252'), ':2: not UTF-8 .*: byte 58 .* 0xdc;.*WINDOWS'),
  'Windows-1252 after a mark': ('t.jsonl', MARK + TEXT.encode('cp1252'), 'byte 15 of the file is 0xdc'),
  'Shift-JIS': ('t.jsonl', '{"prompt": "日本語のテキスト"}'.encode('shift_jis'), ':1: not UTF-8.*SHIFT_JIS'),
  'UTF-16': ('t.jsonl', TEXT.encode('utf-16'), ':1: not .jsonl; it is UTF-16 text.*iconv'),
  'UTF-16 without a mark': ('t.csv', 'prompt,response,reward\n'.encode('utf-16-le'), 'every other byte is 0'),
  'cut in a letter': ('t.jsonl', LINE + TEXT.encode()[:13], ':2: .*byte 58.*cut short'),
  'gzip by another name': ('t.jsonl', gzip.compress(LINE, mtime=0), ':1: .*gzip data: give its name the end'),
  'text called gzip': ('t.csv.gz', b'prompt,response,reward\n', 'plain text, take .gz off its name'),
  'cut gzip': ('t.jsonl.gz', gzip.compress(LINE, mtime=0)[:-9], 't.jsonl.gz:.* cut short .*whole lines'),
  'zip': ('t.jsonl', zipped(), ':1: .*a zip archive: unpack it'),
  'zip called gzip': ('t.jsonl.gz', zipped(), 'a zip archive: unpack it'),
  'zip called parquet': ('t.parquet', zipped(), 'a zip archive: unpack it'),
  'web page': ('t.csv', b'\n <!DOCTYPE html><html>no such file</html>', 'web page'),
  'web page called parquet': ('t.parquet', b'<html>404</html>', 'web page'),
  'LFS': ('t.jsonl', b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
  'parquet by another name': ('t.jsonl', b'PAR1\0\0\0', 'the ending .parquet'),
  'empty parquet': ('t.parquet', b'', 'holds no records'),
  'empty gzip': ('t.jsonl.gz', b'', 'holds no records'),
  'zipped nothing': ('t.jsonl.gz', gzip.compress(b'', mtime=0), 'holds no records'),
  'lone CR': ('t.jsonl', LINE.replace(b'\n', b'\r') * 3, r"lone carriage return: convert it by tr"),
  'lone CR in csv': ('t.csv', b'prompt,response,reward\rp,r,1\r', ':1: .*end lines in a line feed'),
  'other delimiter': ('t.csv', b'prompt;response;reward\np;r;1\n', "by ',', and this .* delimited by ';'"),
  'tabs in csv': ('t.csv', b'prompt\tresponse\n', r"by '\\t'"),
  'quote never closed': ('t.csv', b'prompt,response\n\n"p,r\np,r\n', 'row that begins at line 3'),
  'NUL in JSON': ('t.jsonl', LINE.replace(b'p"', b'\0"', 1), ':1: not JSON'),
  'NUL by escape': ('t.jsonl', LINE.replace(b'"r"', b'"\\u0000"', 1), "field 'response' holds a NUL"),
  'NUL in csv': ('t.csv', b'prompt,response,reward\np\0,r,1\n', 'holds a NUL|contains NUL'),
  'two keys': ('t.jsonl', b'{"reward": 1, "prompt": "p", "reward": 0}\n', "'reward' occurs twice"),
  'two keys below': ('t.jsonl', b'{"a": {"b": 1, "b": 1}}\n', "'b' occurs twice"),
  'deep': ('t.jsonl', deep(100_000), TOO_DEEP),
  'less deep': ('t.jsonl', deep(900), TOO_DEEP),
  'huge int': ('t.jsonl', LINE.replace(b'1', b'1' * 5000), ':1: not JSON that can be read'),
  'large int': ('t.jsonl', LINE.replace(b'1', b'1' * 4000), 'a reward must be finite'),
  'infinity': ('t.jsonl', LINE.replace(b'1', b'-Infinity'), 'a reward must be finite'),
  'boolean id': ('t.jsonl', LINE.replace(b'{', b'{"id": true, '), "'id' is True; an id must be"),
  'id of a line': ('t.jsonl', LINE + LINE.replace(b'{', b'{"id": "t.jsonl:1", '), "'t.jsonl:1' .*before"),
}  # fmt: skip


@pytest.mark.parametrize('case', BAD)
def test_a_bad_file_is_refused_with_file_line_and_problem(tmp_path, case):
  name, content, message = BAD[case]
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UsageError, match=message) as error:
    read(path)
  assert str(error.value).startswith(str(path))
  assert len(str(error.value)) < 700


@pytest.mark.parametrize(
  'name, content',
  [
    ('t.jsonl', b'\xef\xbb\xbf' + LINE),
    ('t.jsonl', LINE.replace(b'\n', b'\r\n') + b'\r\n'),
    ('t.jsonl', b'\n\n' + LINE.strip()),
    ('t.jsonl', LINE.replace(b'"p"', b'"p", "n": NaN')),
    ('t.csv', b'\xef\xbb\xbfprompt,response,reward\r\np,r,1\r\n'),
    ('t.csv', b'\r\n\r\nprompt,response,reward\n\np,r,1'),
    ('t.tsv', b'prompt\tresponse\treward\np\tr\t1\n'),
    (
      't.jsonl.gz',
      gzip.compress(b'', mtime=0)
      + gzip.compress(LINE[:9], mtime=0)
      + gzip.compress(LINE[9:], mtime=0)
      + b'\0' * 9,
    ),
  ],
)
def test_unusual_but_valid_files_are_read(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  (record,) = read(tmp_path / name)
  assert record[1:4] == ('p', 'r', 1.0)


def test_surrogate_pairs_are_one_letter(tmp_path):
  (tmp_path / 't.jsonl').write_bytes(LINE.replace(b'"p"', b'"\\ud83d\\udc4d"'))
  assert read(tmp_path / 't.jsonl')[0].prompt == '👍'


@pytest.mark.parametrize('name', ['t.jsonl', 't.jsonl.gz', 't.csv'])
def test_a_line_over_the_limit_is_refused(tmp_path, monkeypatch, name):
  monkeypatch.setattr(text_files, 'LINE_LIMIT', 2**20)
  text = b'prompt,response,reward\n' if name.endswith('csv') else LINE
  content = text + b'"' + b'x' * (2**20 + 1)
  (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith('gz') else content)
  with pytest.raises(UsageError, match=rf'{name}:2: the line is longer than 1 MiB.*jq'):
    read(tmp_path / name)


def test_a_csv_field_of_many_lines_over_the_limit_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, 'LINE_LIMIT', 2**10)
  (tmp_path / 't.csv').write_bytes(b'prompt,response,reward\n"' + b'x\n' * 2**10)
  with pytest.raises(UsageError, match='larger than field limit .1024. in the row that begins at line 2'):
    read(tmp_path / 't.csv')


def test_the_error_of_a_cut_gzip_says_how_much_was_read(tmp_path):
  parts = gzip.compress(LINE * 3, mtime=0) + gzip.compress(LINE * 5, mtime=0)[:-9]
  (tmp_path / 't.jsonl.gz').write_bytes(parts)
  with pytest.raises(UsageError, match=r't.jsonl.gz:\d: .*cut short .* after [3-8] whole lines'):
    read(tmp_path / 't.jsonl.gz')


@pytest.mark.parametrize(
  'field, values, message',
  [
    ('prompt', [3], "'prompt' is 3, a int; it must be text"),
    ('prompt', [b'\xff'], r"'prompt' is b'\\xff', a bytes"),
    ('prompt', [{'a': 1}], "'prompt' is {'a': 1}, a dict"),
    ('reward', ['1'], "'reward' is '1', not a number"),
    ('reward', [[1.0]], r"'reward' is \[1.0\], not a number"),
    ('reward', [float('nan')], "'reward' is nan; a reward must be finite"),
    ('id', [1.5], "'id' is 1.5; an id must be text"),
  ],
)
def test_the_error_of_a_parquet_value_of_the_wrong_type_names_the_field(tmp_path, field, values, message):
  columns = {'prompt': ['p'], 'response': ['r'], 'reward': [1.0]} | {field: values}
  pq.write_table(pa.table(columns), tmp_path / 't.parquet')
  with pytest.raises(UsageError, match=rf't.parquet:1: field {message}'):
    read(tmp_path / 't.parquet')


def test_dictionary_encoded_parquet_numbers_are_read(tmp_path):
  numbers = {name: pa.array(x).dictionary_encode() for name, x in {'reward': [1.5], 'grade': [7]}.items()}
  pq.write_table(pa.table({'prompt': ['p'], 'response': ['r'], **numbers}), tmp_path / 't.parquet')
  (record,) = read(tmp_path / 't.parquet')
  assert (record.reward, record.columns) == (1.5, {'grade': 7.0})


def test_parquet_with_repeated_or_broken_columns_is_refused(tmp_path):
  names = ['prompt', 'prompt']
  pq.write_table(pa.Table.from_arrays([pa.array(['p'])] * 2, names), tmp_path / 't.parquet')
  with pytest.raises(UsageError, match='a column name occurs twice'):
    read(tmp_path / 't.parquet')
  bad = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b'\xff')]
  )
  pq.write_table(pa.table({'prompt': bad, 'response': ['r'], 'reward': [1]}), tmp_path / 'u.parquet')
  with pytest.raises(UsageError, match=r'u.parquet:1: not readable as parquet'):
    read(tmp_path / 'u.parquet')


def test_folders_and_pipes_are_refused(tmp_path):
  (tmp_path / 'd.jsonl').mkdir()
  with pytest.raises(UsageError, match=r"d.jsonl': it is a folder; pass its files: '.*\*.jsonl'"):
    read(tmp_path / 'd.jsonl')
  (tmp_path / 'd.jsonl' / 'a.json.gz').write_bytes(b'')
  with pytest.raises(UsageError, match=r"pass its files: '.*/\*\.json\.gz'"):
    read(tmp_path / 'd.jsonl')
  os.mkfifo(tmp_path / 'p.jsonl')
  with pytest.raises(UsageError, match='a pipe or device'):
    read(tmp_path / 'p.jsonl')


def test_a_file_named_twice_is_refused(tmp_path):
  (tmp_path / 't.jsonl').write_bytes(LINE)
  with pytest.raises(UsageError, match='t.jsonl.: the file is named twice'):
    read(f'{tmp_path}/t.jsonl,{tmp_path}/*.jsonl')


def test_ids_differ_between_files_of_the_same_name(tmp_path):
  for name in 'ab':
    (tmp_path / name).mkdir()
    (tmp_path / name / 't.jsonl').write_bytes(LINE)
  found = read(f'{tmp_path}/*/t.jsonl')
  assert [record.id for record in found] == ['t.jsonl:1', f'{tmp_path}/b/t.jsonl:1']


def test_the_error_of_a_file_that_vanishes_or_cannot_be_read_names_it(tmp_path, monkeypatch):
  path = tmp_path / 't.jsonl'
  path.write_bytes(LINE)
  records = triplets.read_triplets(str(path))
  source = find.find(str(path))
  path.unlink()
  for reading, message in ((records, 't.jsonl: cannot read it'), (source.records(), 'there is no such file')):
    with pytest.raises(UsageError, match=message):
      list(reading)

  def refuse(*args, **options):
    raise PermissionError(13, 'Permission denied')

  path.write_bytes(LINE)
  monkeypatch.setattr('builtins.open', refuse)
  for start in (lambda: read(path), lambda: find.find(str(path))):
    with pytest.raises(UsageError, match=r't.jsonl: cannot read it .*Permission denied'):
      start()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
  path = tmp_path / 't.jsonl'
  path.write_bytes(LINE)
  source = find.find(str(path))
  path.write_bytes(LINE * 2)
  with pytest.raises(UsageError, match='changed while it was read'):
    list(source.records())


def test_errors_abbreviate_long_values(tmp_path):
  record = {'prompt': 'p', 'response': ['x' * 10**5] * 50, 'reward': 1} | {f'c{i}': 'x' for i in range(1000)}
  (tmp_path / 't.jsonl').write_text(json.dumps(record))
  for columns in (None, 'response=none'):
    with pytest.raises(UsageError) as error:
      read(tmp_path / 't.jsonl', columns=columns)
    assert len(str(error.value)) < 700


HEADER = 'prompt\tresponse\treward\n'


@pytest.mark.parametrize(
  'text, want',
  [
    # Quotes that were never meant as such.
    ('p1\t"He left\t1\np2\tshe said\t0\n', [('p1', '"He left'), ('p2', 'she said')]),
    ('p1\t"He" left\t1\np2\t"Go."\t0\n', [('p1', '"He" left'), ('p2', '"Go."')]),
    ('"Hi" she said\tr\t1\n', [('"Hi" she said', 'r')]),
    ('p\ta 5" disk\t1\n', [('p', 'a 5" disk')]),
    ('"a, b"\t"c" d\t1\n', [('"a, b"', '"c" d')]),
    (r'p\q	a \"b\"	1', [(r'p\q', r'a \"b\"')]),
    # As Python's csv and pandas write: doubled quotes, tabs and line breaks in quotes.
    ('p\t"a ""b"" c"\t1\n', [('p', 'a "b" c')]),
    ('p\t"a\nb"\t1\np\t"""c"""\t1\n', [('p', 'a\nb'), ('p', '"c"')]),
    ('p\t"a\tb"\t1\r\n', [('p', 'a\tb')]),
  ],
)
def test_quotes_in_a_tsv_are_text_unless_csv_rules_wrote_the_file(tmp_path, text, want):
  (tmp_path / 't.tsv').write_text(HEADER + text, newline='')
  assert [(r.prompt, r.response) for r in read(tmp_path / 't.tsv')] == want
  (tmp_path / 't.tsv.gz').write_bytes(gzip.compress((HEADER + text).encode()))
  assert [(r.prompt, r.response) for r in read(tmp_path / 't.tsv.gz')] == want


def test_a_tsv_that_quotes_its_header_quotes_everything(tmp_path):
  (tmp_path / 't.tsv').write_text('"prompt"\t"response"\t"reward"\n"a, b"\t"r"\t"1"\n')
  assert read(tmp_path / 't.tsv')[0][1:4] == ('a, b', 'r', 1.0)
  (tmp_path / 't.tsv').write_text('"prompt"\t"response"\t"reward"\n"a" b\t"r"\t"1"\n')
  with pytest.raises(UsageError, match='t.tsv:2: .*quote fields'):
    read(tmp_path / 't.tsv')


@pytest.mark.parametrize(
  'lines',
  [
    'p\t"Yes, I did."\t1\n', 'p\t"Yes"\t1\n', 'p\t""\t1\n',
    # The second quote would end what the first began, and two records would be one.
    'p1\t"He left\t1\np2\tshe said"\t0\n',
  ],
)  # fmt: skip
def test_a_tsv_with_ambiguous_quotes_is_refused(tmp_path, lines):
  (tmp_path / 't.tsv').write_text(f'{HEADER}p\tr\t1\n{lines}')
  with pytest.raises(UsageError, match=r't.tsv:3: .*quotes.*belong to the text, or.*\.jsonl'):
    read(tmp_path / 't.tsv')


def test_a_tsv_that_cannot_be_read_either_way_is_refused(tmp_path):
  (tmp_path / 't.tsv').write_text(f'{HEADER}p\t"r" x\t1\np\tr\n')
  with pytest.raises(UsageError, match='t.tsv:3: 2 fields, but the header has 3'):
    read(tmp_path / 't.tsv')
  (tmp_path / 't.tsv').write_text(f'{HEADER}p\tr\t1\np\tr\ts\t1\n')
  with pytest.raises(UsageError, match='t.tsv:3: 4 fields, but the header has 3'):
    read(tmp_path / 't.tsv')


def test_a_lone_carriage_return_in_a_tsv_is_refused(tmp_path):
  (tmp_path / 't.tsv').write_bytes(HEADER.encode() + b'p\t"r\rs" x\t1\n')
  with pytest.raises(UsageError, match='t.tsv:2: .*line feed'):
    read(tmp_path / 't.tsv')


class Odd:
  """A parquet file whose other columns Python cannot hold, or nobody needs."""

  rows = 3
  columns = {
    'prompt': ['p'] * rows, 'response': list('abc'), 'reward': [1.0, 0.5, 0.0], 'note': ['x', None, 'y'],
    'when': pa.array([1, 2, 3], pa.timestamp('ns')), 'took': pa.array([1, 2, 3], pa.duration('ns')),
    'far': pa.array([10**15] * rows, pa.timestamp('ms')), 'cost': pa.array([decimal.Decimal('0.25')] * rows),
    'count': [1, 2, 3], 'seen': [True, False, True], 'blob': [b'\xff'] * rows,
    'half': pa.array([1, 2, 3], pa.float32()),
    'nested': pa.array([[{'at': 1}]] * rows, pa.list_(pa.struct([('at', pa.timestamp('ns'))]))),
  }  # fmt: skip

  @classmethod
  def write(cls, path, **columns) -> str:
    pq.write_table(pa.table(cls.columns | columns), path)
    return str(path)


def test_unused_parquet_columns_of_odd_types_are_not_read_and_logged(tmp_path, caplog):
  path = Odd.write(tmp_path / 't.parquet')
  with caplog.at_level('INFO', 'dro_jax'):
    found = read(path)
  assert [(r.response, r.reward) for r in found] == [('a', 1.0), ('b', 0.5), ('c', 0.0)]
  numbers = {'cost': 0.25, 'count': 1.0, 'seen': 1.0, 'half': 1.0}
  assert found[0].columns == numbers
  (message,) = [r.getMessage() for r in caplog.records if 'not read' in r.getMessage()]
  for name in ('when', 'took', 'far', 'blob', 'nested'):
    assert f'{name} (' in message
  assert 'note' not in message and 'cost' not in message


def test_parquet_reads_only_the_columns_in_use(tmp_path, monkeypatch):
  read_columns = []
  plain = pq.ParquetFile.iter_batches
  monkeypatch.setattr(
    pq.ParquetFile,
    'iter_batches',
    lambda self, columns=None, **k: read_columns.append(columns) or plain(self, columns=columns, **k),
  )
  path = Odd.write(tmp_path / 't.parquet', question=['q'] * 3, label=[1, 0, 1], chat=[{'a': 'b'}] * 3)
  read(path, columns='prompt=question,response=chat.a')
  assert set(read_columns[0]) == {
    'question', 'reward', 'cost', 'count', 'seen', 'half', 'label', 'chat',
  }  # fmt: skip


@pytest.mark.parametrize('name', ['when', 'nested', 'far'])
def test_the_error_of_a_named_parquet_column_that_cannot_be_read_names_it(tmp_path, name):
  path = Odd.write(tmp_path / 't.parquet')
  # Where pandas is, it holds what Python cannot.
  with pytest.raises(
    UsageError, match=rf"t.parquet:1: (.*column '{name}' \(.*\) cannot be read|field '{name}')"
  ):
    read(path, columns=f'reward={name}')


def test_the_error_of_a_missing_field_lists_unread_columns_too(tmp_path):
  path = Odd.write(tmp_path / 't.parquet')
  with pytest.raises(UsageError, match='the record has prompt, response, reward, note, when'):
    read(path, columns='prompt=notes')


RECORDS = [{'prompt': f'p{i} é "x" [', 'response': f'r{i}', 'reward': i / 4} for i in range(5)]
SPELLINGS = {
  'an array': json.dumps(RECORDS),
  'an indented array': '\ufeff \n' + json.dumps(RECORDS, indent=2, ensure_ascii=False) + '\n ',
  'lines': '\n'.join(map(json.dumps, RECORDS)),
  'objects over several lines': '\n\n'.join(json.dumps(record, indent=1) for record in RECORDS),
  'an array with blanks': '[ ' + ' ,\r\n\t'.join(map(json.dumps, RECORDS)) + ' ] ',
}


@pytest.mark.parametrize('spelling', SPELLINGS)
@pytest.mark.parametrize('block', [1, 7, 2**20])
@pytest.mark.parametrize('name', ['t.json', 't.json.gz'])
def test_a_json_file_is_an_array_or_objects_one_after_the_other(tmp_path, monkeypatch, spelling, block, name):
  monkeypatch.setattr(text_files, '_BLOCK', block)
  data = SPELLINGS[spelling].encode()
  (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
  found = read(tmp_path / name)
  assert [{'prompt': r.prompt, 'response': r.response, 'reward': r.reward} for r in found] == RECORDS
  assert [r.id for r in found] == [f'{name}:{i}' for i in range(1, 6)]


BAD_JSON = {
  'cut in a record': (json.dumps(RECORDS)[:-30], r't.json:5: .*cut short'),
  'cut after a record': (json.dumps(RECORDS)[:-1], r't.json:5: .*array .*cut short'),
  'more after the array': (json.dumps(RECORDS) + '{}', r't.json:5: .*after the end of the array'),
  'no comma': (json.dumps(RECORDS[:2]).replace('}, ', '} '), r't.json:2: no comma'),
  'a comma too many': ('[{"prompt": "p", "response": "r", "reward": 1},]', 't.json:2: not JSON'),
  'a list in it': ('[[1]]', 't.json:1: a JSON list, not an object'),
  'a number': ('7', 't.json:1: a JSON int, not an object'),
  'a key twice': ('[{"prompt": 1, "prompt": 2}]', "t.json:1: the key 'prompt' occurs twice"),
  'not JSON': ('[{"prompt": p}]', r't.json:1: not JSON \(Expecting value, character 12'),
  'too deep': ('[{"a": ' + '[' * 100_000, 't.json:1: not JSON that can be read|t.json:1: .*cut short'),
  'nothing': ('[]', 't.json: the file holds no records'),
  'records in a field': ('{"data": [{"prompt": "p"}], "meta": {}}', r"jq -c '\.data\[\]'"),
}


@pytest.mark.parametrize('case', BAD_JSON)
@pytest.mark.parametrize('block', [5, 2**20])
def test_the_error_of_a_bad_json_file_names_its_record(tmp_path, monkeypatch, case, block):
  monkeypatch.setattr(text_files, '_BLOCK', block)
  text, message = BAD_JSON[case]
  (tmp_path / 't.json').write_text(text)
  with pytest.raises(UsageError, match=message):
    read(tmp_path / 't.json')


def test_reading_a_json_array_takes_the_memory_of_one_record(tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, '_BLOCK', 2**12)
  record = json.dumps({'prompt': 'p' * 1000, 'response': 'r', 'reward': 1})
  (tmp_path / 't.json').write_text('[' + ','.join([record] * 5000) + ']')
  tracemalloc.start()
  assert sum(1 for _ in readers.located(str(tmp_path / 't.json'))) == 5000
  assert tracemalloc.get_traced_memory()[1] < 2**18
  tracemalloc.stop()


def test_a_json_record_over_the_limit_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, 'LINE_LIMIT', 2**20)
  monkeypatch.setattr(text_files, '_BLOCK', 2**16)
  (tmp_path / 't.json').write_text('[{"prompt": "' + 'x' * 2**21 + '"}]')
  with pytest.raises(UsageError, match='t.json:1: the record is longer than 1 MiB'):
    read(tmp_path / 't.json')


def test_the_error_of_damaged_bytes_in_a_json_file_names_the_place(tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, '_BLOCK', 8)
  (tmp_path / 't.json').write_bytes(b'\xef\xbb\xbf[{"prompt": "caf\xe9 au lait"}]')
  with pytest.raises(UsageError, match='t.json: not UTF-8 text: byte 19 of the file is 0xe9'):
    read(tmp_path / 't.json')
  (tmp_path / 't.json.gz').write_bytes(gzip.compress(json.dumps(RECORDS).encode())[:-9])
  with pytest.raises(UsageError, match='t.json.gz:.*gzip data is damaged or cut short'):
    read(tmp_path / 't.json.gz')


def test_dates_that_python_lacks_are_numbers_within_a_conversation(tmp_path):
  turn = pa.struct(
    [('role', pa.string()), ('content', pa.string()), ('at', pa.timestamp('ns')), ('took', pa.duration('ns'))]
  )
  turns = [[{'role': role, 'content': role[0], 'at': 1, 'took': 3} for role in ('user', 'assistant')]]
  for kind in (pa.list_(turn), pa.large_list(turn)):
    pq.write_table(pa.table({'messages': pa.array(turns, kind), 'reward': [1.0]}), tmp_path / 't.parquet')
    assert read(tmp_path / 't.parquet')[0][1:4] == ('user: u', 'a', 1.0)
  talk = pa.array(
    [{'m': turns[0], 'at': 10**15}], pa.struct([('m', pa.list_(turn)), ('at', pa.timestamp('ms'))])
  )
  pq.write_table(pa.table({'chat': talk, 'reward': [1.0]}), tmp_path / 't.parquet')
  assert read(tmp_path / 't.parquet', columns='messages=chat.m')[0][1:4] == ('user: u', 'a', 1.0)
