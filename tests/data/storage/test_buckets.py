import json
import os

import numpy as np
import pytest

from dro_jax import files
from dro_jax.data.records import triplets as sources
from dro_jax.data.sources import find
from dro_jax.data.storage import buckets
from dro_jax.data.table import table
from dro_jax.data.table.cache import build_table
from dro_jax.errors import UsageError

TRIPLETS = [{'prompt': f'p{i // 2}', 'response': f'r{i}', 'reward': float(i)} for i in range(6)]
LENGTHS = {'prompt_length': 16, 'response_length': 16}


def write(path, records=TRIPLETS):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def build(cache='bucket://tables', triplets='bucket://data.jsonl') -> table.TokenTable:
  return build_table(find.find(triplets), 'bytes', cache, **LENGTHS)


def test_a_path_with_a_scheme_stays_unchanged(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(files.absolute('gs://bucket/runs/1')) == 'gs://bucket/runs/1'
  assert str(files.absolute('runs/1')) == str(tmp_path / 'runs' / '1')


def test_triplets_in_a_bucket_are_copied_once_and_again_after_a_change(bucket, tmp_path):
  write(bucket / 'data.jsonl')
  [first] = sources.expand('bucket://data.jsonl')
  assert first.startswith(str(tmp_path / 'here')) and os.path.basename(first) == 'data.jsonl'
  assert sources.expand('bucket://data.jsonl') == [first]
  write(bucket / 'data.jsonl', TRIPLETS[:3])
  [second] = sources.expand('bucket://data.jsonl')
  assert second != first
  assert len(list(sources.read_triplets('bucket://data.jsonl'))) == 3


def test_a_file_in_a_bucket_that_changes_while_it_is_read_is_refused(bucket):
  write(bucket / 'data.jsonl')
  before = find.stamps(['bucket://data.jsonl'])
  find.refuse_changed(before)
  write(bucket / 'data.jsonl', TRIPLETS[:3])
  with pytest.raises(UsageError, match='bucket://data.jsonl: the file changed while it was read'):
    find.refuse_changed(before)


def test_patterns_match_files_in_a_bucket(bucket):
  (bucket / 'd').mkdir()
  for name in ('a-1.jsonl', 'a-0.jsonl', 'b.jsonl'):
    write(bucket / 'd' / name)
  assert [os.path.basename(path) for path in sources.expand('bucket://d/a-*.jsonl')] == [
    'a-0.jsonl',
    'a-1.jsonl',
  ]
  with pytest.raises(UsageError, match=r"'bucket://d/c\*.jsonl': there is no such file"):
    sources.expand('bucket://d/c*.jsonl')
  with pytest.raises(UsageError, match=r"'bucket://c.jsonl': there is no such file"):
    sources.expand('bucket://c.jsonl')


def test_a_table_is_built_locally_and_uploaded_for_others(bucket, tmp_path, monkeypatch):
  write(bucket / 'data.jsonl')
  built = build()
  assert built.directory.startswith(str(tmp_path / 'here'))
  name = os.path.basename(built.directory)
  assert sorted(os.listdir(bucket / 'tables' / name)) == sorted(os.listdir(built.directory))

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'elsewhere'))
  monkeypatch.setattr(table._Writer, 'add', lambda *_: pytest.fail('the table was built again'))
  fetched = build()
  assert fetched.directory.startswith(str(tmp_path / 'elsewhere'))
  assert fetched.fingerprint() == built.fingerprint() and isinstance(
    fetched._tokens['prompt'][0].base, np.memmap
  )
  monkeypatch.setattr(buckets, 'copy', lambda *_: pytest.fail('it was copied again'))
  build()


@pytest.mark.parametrize('name', ['response_tokens.bin', 'table.json'])
def test_a_damaged_table_in_a_bucket_is_made_again(bucket, tmp_path, monkeypatch, name, caplog):
  write(bucket / 'data.jsonl')
  built = build()
  damaged = bucket / 'tables' / os.path.basename(built.directory) / name
  sound = damaged.read_bytes()
  damaged.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'elsewhere'))
  assert build().fingerprint() == built.fingerprint()
  assert name == 'table.json' or 'is damaged and is made again' in caplog.text
  assert [entry for entry in os.listdir(tmp_path / 'elsewhere' / 'dro_jax') if entry.startswith('.')] == []
  table.load(damaged.parent)
  assert name == 'table.json' or damaged.read_bytes() == sound


def test_a_description_cannot_name_files_outside_its_folder(bucket):
  folder = bucket / 'tables' / 't'
  folder.mkdir(parents=True)
  meta = {'version': table.VERSION, 'fingerprint': 'x', 'files': {'../../secret': 1}}
  (folder / 'table.json').write_text(json.dumps(meta))
  assert not table.fetch('bucket://tables/t', str(bucket / 'out'))


def test_the_error_of_an_unreachable_bucket_names_it():
  with pytest.raises(UsageError, match=r'nowhere://x.jsonl cannot be reached from here'):
    sources.expand('nowhere://x.jsonl')
