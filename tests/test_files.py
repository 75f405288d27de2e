import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dro_jax import files
from dro_jax.arena.text import answers
from dro_jax.arena.text import log as arena_text
from dro_jax.data.records import triplets
from dro_jax.data.table import table
from dro_jax.errors import UsageError
from dro_jax.evaluation import generate
from dro_jax.run.folder.trackers import keep_until

# Whatever ends a line for somebody, half a surrogate pair, and ordinary text.
SEPARATORS = '\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029'
TEXTS = st.text(st.characters() | st.sampled_from(SEPARATORS + '\0\x7f\ud800"\\'))


@given(st.lists(st.fixed_dictionaries({'prompt': TEXTS, 'response': TEXTS}), max_size=4))
@example([{'prompt': 'a\u2028b', 'response': '\x85'}])
@settings(deadline=None, max_examples=60)
def test_json_lines_come_back_as_they_were_written(records):
  text = ''.join(map(files.json_line, records))
  assert [json.loads(line) for line in text.splitlines()] == records
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'a.jsonl'
    path.write_text(text, encoding='utf-8')
    assert list(files.json_lines(path)) == records


# What a triplet's text may be: neither empty nor with a NUL character or half a surrogate pair.
SOUND = TEXTS.filter(lambda text: text.strip() and not re.search('[\0\ud800-\udfff]', text))


@given(st.lists(st.tuples(SOUND, SOUND), min_size=1, max_size=4))
@example([('a\u2028b\rc\x85', '\x1c{"x": 1}\u2029d')])
@settings(deadline=None, max_examples=40)
def test_files_of_generate_and_replay_are_read_as_triplets(pairs):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'a.jsonl'
    records = [{'id': str(i), 'prompt': a, 'response': b, 'reward': i} for i, (a, b) in enumerate(pairs)]
    generate._write(path, {}, [record['id'] for record in records], lambda count: [records[count:]])
    assert [(r.prompt, r.response) for r in triplets.read_triplets(str(path))] == pairs


@given(st.lists(TEXTS, max_size=4))
@settings(deadline=None, max_examples=40)
def test_resume_keeps_samples_of_earlier_steps_with_any_text(texts):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'samples.jsonl'
    records = [{'step': i, 'prompt': text, 'response': text} for i, text in enumerate(texts)]
    path.write_text(''.join(map(files.json_line, records)), encoding='utf-8')
    keep_until(path, 2)
    assert list(files.json_lines(path)) == records[:3]


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=3))
@settings(deadline=None, max_examples=30)
def test_the_arena_reads_back_its_log_with_any_text(pairs):
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'world' / 'log.jsonl'
    logged = answers.Samples(
      [a for a, _ in pairs], [np.arange(3)] * len(pairs), [b for _, b in pairs], *np.ones((2, len(pairs)))
    )
    arena_text._write(file, arena_text._records(logged, 'train'))
    read = arena_text._read(file)
    assert (list(read.prompts), list(read.texts)) == (logged.prompts, logged.texts)


def test_json_lines_of_others_end_in_line_feeds_only(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"a": "x\xe2\x80\xa8y\xc2\x85z"}\r\n\n{"a": "b"}')
  assert [record['a'] for record in files.json_lines(path)] == ['x\u2028y\x85z', 'b']


@pytest.mark.parametrize('torn', [b'{"a": 1', b'{"a": "\xe2\x80', b'12'])
def test_json_lines_pass_over_a_torn_last_line_and_refuse_another(torn, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"a": 0}\n' + torn)
  assert list(files.json_lines(path)) == [{'a': 0}]
  path.write_bytes(torn + b'\n{"a": 0}\n')
  with pytest.raises(UsageError, match=r'a\.jsonl:1: the line is no JSON object'):
    list(files.json_lines(path))


def test_json_writes_numbers_that_are_not_finite_as_null():
  record = {'loss': float('nan'), 'curve': [1.0, float('inf'), np.float32('-inf')], 'found': {'x': np.nan}}
  expected = {'loss': None, 'curve': [1.0, None, None], 'found': {'x': None}}
  for text in (files.json_line(record), files.json_text(record, indent=2)):
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == expected


def test_all_json_is_written_in_one_place():
  """Elsewhere `json.dumps` serves digests, with sorted keys, and comparisons, which are read at once.

  The worker that renders chat templates is a script of its own, which imports nothing of the package.
  """
  package = pathlib.Path(files.__file__).parent
  for path in package.rglob('*.py'):
    text = path.read_text()
    for match in re.finditer(r'json\.dumps?\(', text):
      rest = text[match.start() : text.index('\n', match.start())]
      at_once = text[: match.start()].endswith('json.loads(')
      assert path.name in ('files.py', 'jinja_worker.py') or 'sort_keys=True' in rest or at_once, (
        f'{path}: {rest}'
      )


def test_bad_paths_of_output_are_refused_before_the_work(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'file').touch()
  assert files.output_file('~/new.jsonl') == tmp_path / 'new.jsonl'
  assert files.output_file('~/file') == tmp_path / 'file'
  assert files.output_file('~/absent/b/a.jsonl') == tmp_path / 'absent' / 'b' / 'a.jsonl'
  assert files.output_folder('~/a/b') == tmp_path / 'a' / 'b'
  assert files.output_folder('gs://bucket/a').name == 'a'
  for path, message in {
    '~': 'is a folder: pass a file in it',
    '': 'is a folder',
    'gs://bucket/a.jsonl': 'pass a file on this machine',
    '~/file/a.jsonl': 'file is a file and not a folder. Pass another file',
  }.items():
    with pytest.raises(UsageError, match=f'--output={path}.*{message}'):
      files.output_file(path)
  for path in ('~/file', '~/file/a/b'):
    with pytest.raises(UsageError, match='--model_dir=.*file is a file and not a folder'):
      files.output_folder(path, '--model_dir')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


def test_an_output_replaces_no_pipe_or_device_and_goes_where_a_link_leads(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (str(tmp_path / 'pipe'), '/dev/null'):
    with pytest.raises(UsageError, match='is a pipe or device.*pass a file'):
      files.output_file(path)
  (tmp_path / 'there').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'there' / 'file')
  assert files.output_file(str(tmp_path / 'link')) == tmp_path / 'there' / 'file'
  (tmp_path / 'torn').symlink_to(tmp_path / 'gone' / 'file')
  assert files.output_file(str(tmp_path / 'torn')) == tmp_path / 'gone' / 'file'


def test_an_output_replaces_no_input_by_whatever_name(tmp_path):
  file, link = tmp_path / 'a.jsonl', tmp_path / 'link.jsonl'
  file.touch()
  link.symlink_to(file)
  files.refuse_input(tmp_path / 'b.jsonl', [str(file), str(link)])
  for target, read in ((file, file), (file, link), (tmp_path / 'absent' / '..' / 'a.jsonl', file)):
    with pytest.raises(UsageError, match='is among the files to read, and would be replaced: pass another'):
      files.refuse_input(target, ['b.jsonl', str(read)])


def test_a_folder_without_leave_to_write_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda path, mode: False)  # Root may write everywhere.
  for check, path in ((files.output_file, 'a.jsonl'), (files.output_folder, 'a/b')):
    with pytest.raises(UsageError, match=f'the folder {tmp_path} cannot be written to'):
      check(str(tmp_path / path))


@pytest.fixture
def project(tmp_path):
  """A folder with a user's file, what that imports, and what it does not."""
  for name, text in {
    'mine.py': 'import helper\nfrom package import inner\nimport os\ndef reward(p, r):\n  return [0.0]\n',
    'helper.py': 'import mine\nX = 1\n',
    'package/__init__.py': '',
    'package/inner.py': 'from . import deep\nfrom ..x import y\n',
    'package/deep.py': 'D = 1\n',
    'other.py': 'O = 1\n',
  }.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  return tmp_path


@pytest.mark.parametrize('name', ['mine.py', 'helper.py', 'package/__init__.py', 'package/deep.py'])
def test_a_files_digest_follows_the_files_beside_it_that_it_imports(name, project):
  before = files.code_digest(project / 'mine.py')
  (project / 'other.py').write_text('O = 2\n')
  assert files.code_digest(project / 'mine.py') == before
  (project / name).write_text((project / name).read_text() + 'CHANGED = 1\n')
  assert files.code_digest(project / 'mine.py') != before


def test_a_digest_follows_no_import_of_what_is_installed_and_no_other_folder(project, tmp_path_factory):
  copy = shutil.copytree(project, tmp_path_factory.mktemp('moved') / 'copy')
  assert files.code_digest(copy / 'mine.py') == files.code_digest(project / 'mine.py')
  assert files.source_of(json.loads) is None
  assert files.source_of(pytest.fixture) is None
  assert files.source_of(functools.partial(files.json_line)) is None
  assert files.source_of(len) is None


def test_the_code_of_a_function_counts_its_bound_numbers():
  def reward(prompts, responses, scale):
    return [scale] * len(responses)

  found = [files.source_of(functools.partial(reward, scale=scale)) for scale in (1, 1, 2)]
  assert found[0] == found[1] != found[2]
  assert files.source_of(reward) not in found


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
  files.write_atomically(tmp_path / 'a', 'first \u2028')
  assert (tmp_path / 'a').read_text(encoding='utf-8') == 'first \u2028'
  files.write_atomically(tmp_path / 'a', b'\xff')
  with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / 'a') as temporary:
    temporary.write_text(f'half, then {1 // 0}')
  assert (tmp_path / 'a').read_bytes() == b'\xff'
  assert os.listdir(tmp_path) == ['a']


@pytest.mark.parametrize('make', [pathlib.Path, files.absolute], ids=['pathlib', 'epath'])
def test_a_folder_is_replaced_whole_or_not_at_all(make, tmp_path):
  folder = make(tmp_path / 'folder')
  for name in ('first', 'second'):
    with files.replacing(folder) as temporary:
      temporary.mkdir()
      (temporary / name).write_text(name)
    assert os.listdir(folder) == [name]
  with pytest.raises(ZeroDivisionError), files.replacing(folder) as temporary:
    temporary.mkdir(1 // (len(temporary.name) - len('.folder.tmp')))
  assert (os.listdir(tmp_path), os.listdir(folder)) == (['folder'], ['second'])


def test_a_users_file_is_imported_anew_unless_it_is_registered(tmp_path):
  path = tmp_path / 'only_for_this_test.py'
  path.write_text('NUMBERS = []')
  first, second = (files.import_module(str(path), 'MODULE') for _ in range(2))
  assert first.NUMBERS is not second.NUMBERS and path.stem not in sys.modules
  first, second = (files.import_module(str(path), 'MODULE', register=True) for _ in range(2))
  assert first is second is sys.modules.pop(path.stem)
  assert files.import_module('json', 'MODULE') is json


@pytest.mark.parametrize(
  'code, said',
  [
    ('\n1 / 0', r'ZeroDivisionError: division by zero \(.*own.py, line 2\). Mend the file.'),
    ('x = (', r"SyntaxError: '\(' was never closed \(.*own.py, line 1\)"),
    ('\n\nimport no_such_package', r"ModuleNotFoundError: No module named 'no_such_.*own.py, line 3\)"),
    ('raise SystemExit(3)', r'SystemExit: 3 \(.*own.py, line 1\)'),
    # The user's line, and not that of an installed package or of the standard library below it.
    ('import json\njson.loads("{")', r'JSONDecodeError: .*own.py, line 2\)'),
    ('import numpy as np\nnp.linalg.inv(np.zeros((2, 3)))', r'LinAlgError: .*own.py, line 2\)'),
    ('import own_helper_of_this_test', r'KeyError: 1 \(.*own_helper_of_this_test.py, line 1\)'),
  ],
)
def test_a_users_module_that_raises_is_refused_with_its_line(tmp_path, monkeypatch, code, said):
  (tmp_path / 'own.py').write_text(code)
  (tmp_path / 'own_helper_of_this_test.py').write_text('{}[1]')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UsageError, match=f'^METRICS=own.py:f: importing own.py raised {said}'):
    files.import_function('own.py:f', 'METRICS')


@pytest.mark.parametrize(
  'text, said',
  [
    (
      'absent.py:f',
      r'METRICS=absent.py:f: cannot import absent.py \(.*No such file.*\): pass a .py file',
    ),
    ('no.such:f', r"METRICS=no.such:f: cannot import no.such \(No module named 'no'\)"),
    ('.own:f', r'cannot import .own \('),
    ('json:f', r"METRICS=json:f: json has no function 'f': pass the name of a function."),
    ('json:__name__', r"json has no function '__name__'"),
    ('own.py', r"METRICS='own.py' names no function: pass FILE.py:NAME or MODULE:NAME"),
    ('own.py:', r"METRICS='own.py:' names no function"),
    (':f', r"METRICS=':f' names no function"),
  ],
)
def test_a_text_that_names_no_function_is_refused(tmp_path, monkeypatch, text, said):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UsageError, match=said):
    files.import_function(text, 'METRICS')


def test_a_registered_module_that_raised_is_imported_again_once_it_is_mended(tmp_path):
  path = tmp_path / 'only_for_this_test_too.py'
  path.write_text('1 / 0')
  with pytest.raises(UsageError, match='raised ZeroDivisionError'):
    files.import_module(str(path), 'MODULE', register=True)
  path.write_text('NUMBER = 11')
  assert files.import_module(str(path), 'MODULE', register=True).NUMBER == 11
  del sys.modules[path.stem]


def test_the_hash_of_stored_content_never_changes():
  """Tables, stores and runs that were saved hold these: another version must find the same ones."""
  joined, parted = files.hash_parts([b'prompt 1']), files.hash_parts([b'prompt', memoryview(b' 1')])
  assert joined == parted == hashlib.blake2b(b'prompt 1', digest_size=16).hexdigest()
  assert table.fingerprint('a', 1, None, '\ud800') == '826b35043c84868a18c316daa3d18d50'
