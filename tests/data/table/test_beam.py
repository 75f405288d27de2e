import collections
import filecmp
import functools
import gzip
import json
import os
import pathlib
import tempfile
import types

import pytest

from dro_jax import main
from dro_jax.data.records import comparisons
from dro_jax.data.storage import disk_index
from dro_jax.data.table import beam, parts, table
from dro_jax.data.table.writer import NAMED
from dro_jax.errors import UsageError
from dro_jax.recipes import build_table

RUNNER = '--runner=apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner'


class Steps(list):
  """Elements of a pipeline in a list, with Beam's operators."""

  def __or__(self, step):
    return Steps(step.act(self))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    return None


class Step:
  def __init__(self, act):
    self.act = act

  def __rrshift__(self, _):
    return self

  def __ror__(self, several):
    return Steps(self.act(several))


def grouped(pairs):
  groups = collections.defaultdict(list)
  for key, value in pairs:
    groups[key].append(value)
  return reversed(groups.items())


# As much of Beam as is used, in order but that of groups; Beam itself is tried where it is installed.
PLAIN = types.SimpleNamespace(
  Create=lambda items: Step(lambda _: items),
  Reshuffle=lambda: Step(lambda items: reversed(items)),
  Map=lambda f, *rest: Step(lambda items: [f(item, *rest) for item in items]),
  FlatMap=lambda f, *rest: Step(lambda items: [made for item in items for made in f(item, *rest)]),
  GroupByKey=lambda: Step(grouped),
  Flatten=lambda: Step(lambda several: [item for items in several for item in items]),
  combiners=types.SimpleNamespace(ToList=lambda: Step(lambda items: [list(items)])),
)


@pytest.fixture(params=['plain', 'beam'])
def runner(request, monkeypatch):
  if request.param == 'beam':
    pytest.importorskip('apache_beam', reason="apache-beam is not installed: pip install 'dro_jax[beam]'")
    return RUNNER
  monkeypatch.setattr(beam, '_pipeline', lambda _: (PLAIN, Steps()))
  return ''


def records(count: int, **more) -> list[dict]:
  """Prompts come again, near and far; some are longer than is kept, and so are some responses."""
  prompts = [f'{"ü" * (i % 23)} {i * i % 17}' for i in range(count)]
  return [
    {'prompt': prompt, 'response': 'y' * (1 + i % 13), 'reward': i / 7, 'n': i, **more}
    for i, prompt in enumerate(prompts)
  ]


def write(path, rows, end='\n') -> str:
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows).removesuffix('\n') + end
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
  return str(path)


def build(files, cache, **options) -> str:
  given = {'cache_dir': str(cache), 'prompt_length': 16, 'response_length': 12}
  return build_table.build_table(files, **given | options)['table']


def split(monkeypatch, files, cache, runner, piece=600, **options) -> str:
  """Built in pieces so small that every kind of boundary occurs."""
  monkeypatch.setattr(beam, 'PIECE_BYTES', piece)
  whole = beam.build
  monkeypatch.setattr(beam, 'build', lambda *a, **k: whole(*a, **k | {'piece_bytes': piece}))
  return build(files, cache, beam_options=runner, **options)


def same(one: str, many: str) -> None:
  names = sorted(os.listdir(one))
  assert sorted(os.listdir(many)) == names and os.path.basename(one) == os.path.basename(many)
  assert filecmp.cmpfiles(one, many, names, shallow=False)[1:] == (['table.json'], [])
  first, second = (json.loads(pathlib.Path(path, 'table.json').read_text()) for path in (one, many))
  for meta in (first, second):
    meta.pop('seal')
    meta['report'].pop('seconds')
  assert first == second


@pytest.mark.parametrize('overlong', ['truncate', 'drop'])
def test_beam_builds_the_same_table_byte_for_byte(tmp_path, monkeypatch, runner, overlong):
  files = [
    write(tmp_path / 'a.jsonl', records(60)),
    write(tmp_path / 'b.jsonl.gz', records(9, extra=1.0)),
    write(tmp_path / 'c.jsonl', records(25)[::-1], end=''),
  ]
  one = build(files, tmp_path / 'one', overlong=overlong)
  same(one, split(monkeypatch, files, tmp_path / 'many', runner, overlong=overlong))
  assert os.listdir(tmp_path / 'many') == [os.path.basename(one)]


def test_pieces_of_any_size_hold_every_line_once(tmp_path, monkeypatch):
  monkeypatch.setattr(beam, '_pipeline', lambda _: (PLAIN, Steps()))
  path = tmp_path / 'a.jsonl'
  write(path, records(3))
  path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes().replace(b'\n', b'\n\n', 2))
  one = build(str(path), tmp_path / 'one')
  for size in (23, 10_000):
    same(one, split(monkeypatch, str(path), tmp_path / str(size), '', piece=size))


@pytest.mark.parametrize(
  'spoilt, message',
  [
    ([{'prompt': 'p', 'response': ''}], r"b.jsonl:1: field 'response' is empty"),
    ([{'prompt': 'p', 'response': 'r', 'reward': 1, 'label': 1}], "field 'label' is in some records"),
    (
      [{'prompt': 'p', 'response': 'r', 'reward': 1, 'id': 'a.jsonl:3'}],
      'b.jsonl:1: its id was used',
    ),
  ],
)
def test_a_bad_file_raises_one_error_and_leaves_no_files(tmp_path, monkeypatch, runner, spoilt, message):
  files = [write(tmp_path / 'a.jsonl', records(20)), write(tmp_path / 'b.jsonl', spoilt)]
  with pytest.raises(UsageError, match=message):
    split(monkeypatch, files, tmp_path / 'many', runner)
  assert os.listdir(tmp_path / 'many') == []


def test_an_existing_table_is_not_built_again(tmp_path, monkeypatch):
  monkeypatch.setattr(beam, '_pipeline', lambda _: (PLAIN, Steps()))
  path = write(tmp_path / 'a.jsonl', records(20))
  one = build(path, tmp_path / 'cache')
  monkeypatch.setattr(beam, '_run', lambda *_: pytest.fail('it was built again'))
  assert split(monkeypatch, path, tmp_path / 'cache', '') == one


def test_files_that_change_between_the_pipelines_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(beam, '_pipeline', lambda _: (PLAIN, Steps()))
  path, surveyed = tmp_path / 'a.jsonl', beam._survey
  write(path, records(20))

  def survey(*args):
    found = surveyed(*args)
    write(path, records(21))
    return found

  monkeypatch.setattr(beam, '_survey', survey)
  with pytest.raises(UsageError, match='a.jsonl: the file changed while it was read'):
    split(monkeypatch, str(path), tmp_path / 'many', '')
  assert os.listdir(tmp_path / 'many') == []


def test_the_error_of_a_file_that_workers_cannot_read_names_it(tmp_path, monkeypatch, runner):
  path, cut = write(tmp_path / 'a.jsonl', records(20)), beam._pieces

  def pieces(*args):
    yield from cut(*args)
    os.remove(path)

  monkeypatch.setattr(beam, '_pieces', pieces)
  with pytest.raises(UsageError, match='a.jsonl: cannot read it .*; workers read it too'):
    split(monkeypatch, path, tmp_path / 'many', runner)


def test_an_error_says_when_workers_write_to_another_disk(tmp_path, monkeypatch):
  monkeypatch.setattr(beam, '_pipeline', lambda _: (PLAIN, Steps()))
  monkeypatch.setattr(beam, '_write_json', lambda *_: None)
  with pytest.raises(UsageError, match='where this machine does not see it.*CACHE_DIR=gs://'):
    split(monkeypatch, write(tmp_path / 'a.jsonl', records(20)), tmp_path / 'many', '')


def test_the_description_of_a_part_does_not_grow_with_its_records(tmp_path, monkeypatch):
  monkeypatch.setattr(beam, '_pipeline', lambda _: (PLAIN, Steps()))
  held, assemble = [], parts.assemble

  def spied(directory, dtype, metas, *args):
    held.extend(map(dict, metas))
    assemble(directory, dtype, metas, *args)

  monkeypatch.setattr(parts, 'assemble', spied)
  path = write(tmp_path / 'a.jsonl', records(60))
  found = split(monkeypatch, path, tmp_path / 'many', '', prompt_length=2, response_length=2)
  report = table.load(found).report
  assert report['truncated_prompts'] > NAMED == len(report['truncated_prompt_examples'])
  assert len(held) > 1
  assert all(len(x) <= NAMED for part in held for x in part.values() if isinstance(x, list | dict))


def test_scratch_files_are_not_in_the_table(tmp_path, monkeypatch):
  """Also where an unnamed file has a name for as long as it is open, as on NFS."""
  monkeypatch.setattr(beam, '_pipeline', lambda _: (PLAIN, Steps()))
  path = write(tmp_path / 'a.jsonl', records(60))
  one = build(path, tmp_path / 'one')
  monkeypatch.setattr(disk_index, '_MEMORY_BITS', -99)
  named = functools.partial(tempfile.NamedTemporaryFile, delete=False)
  monkeypatch.setattr(tempfile, 'TemporaryFile', named)
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  same(one, split(monkeypatch, path, tmp_path / 'many', ''))
  assert list(tmp_path.glob('tmp*'))


def test_a_damaged_table_in_a_bucket_is_made_again(bucket, tmp_path, monkeypatch, runner):
  path = write(bucket / 'a.jsonl', records(60))
  one = build(path, tmp_path / 'one')
  first = split(monkeypatch, 'bucket://a.jsonl', 'bucket://tables', runner)
  same(one, first)
  there = bucket / 'tables' / os.path.basename(one)
  assert os.listdir(bucket / 'tables') == [there.name]
  damaged = there / 'response_tokens.bin'
  damaged.write_bytes(damaged.read_bytes()[:-1] + b'?')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'elsewhere'))
  assert split(monkeypatch, 'bucket://a.jsonl', 'bucket://tables', runner) != first
  same(one, str(there))


def test_a_packed_file_in_a_bucket_is_copied_only_while_it_is_read(bucket, tmp_path):
  write(bucket / 'a.jsonl.gz', [*records(2), {'prompt': 'p'}])
  piece = beam.Piece(0, 'bucket://a.jsonl.gz', 0, None)
  read = beam._read(piece, beam.Job('', '', '', {}, {}))
  assert [next(read).where for _ in range(2)] == ['bucket://a.jsonl.gz:1', 'bucket://a.jsonl.gz:2']
  with pytest.raises(UsageError, match='^bucket://a.jsonl.gz:3: '):
    next(read)
  assert not (tmp_path / 'here').exists()


def test_the_error_without_beam_names_the_extra_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'apache_beam', None)
  path = write(tmp_path / 'a.jsonl', records(2))
  with pytest.raises(UsageError, match=r"pip install 'dro_jax\[beam\]'"):
    build(path, tmp_path / 'cache', beam_options=RUNNER)


def test_the_command_build_table_prints_the_table(tmp_path, capsys):
  path = write(tmp_path / 'a.jsonl', records(20))
  assert main.main(['build_table', path, '--set', f'CACHE_DIR={tmp_path / "cache"}', '--json']) == 0
  assert json.loads(capsys.readouterr().out)['records'] == 20


def test_comparisons_in_pieces_have_the_same_numbers(tmp_path, monkeypatch, runner):
  rows = [{'prompt': f'p{i % 7}', 'chosen': 'y' * (1 + i % 9), 'rejected': 'n'} for i in range(60)]
  file = write(tmp_path / 'c.jsonl', rows)
  one = build(file, tmp_path / 'one')
  same(one, split(monkeypatch, file, tmp_path / 'many', runner))
  built = table.load(one)
  assert built.columns['comparison'].tolist() == [
    comparisons.number(f'c.jsonl:{i // 2 + 1}') for i in range(120)
  ]
