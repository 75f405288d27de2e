"""A file that is made over hours: killed, gone on with, mixed with nothing else, and finished once."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from dro_jax.data.storage import partial
from dro_jax.errors import UsageError

SETTINGS = {'seed': 0, 'checkpoints': {'100': 'abc'}}
RECORDS = [{'id': f'r{i}', 'text': f'a\u2028b {i}'} for i in range(5)]
IDS = [record['id'] for record in RECORDS]


def begin(target, settings=SETTINGS):
  return partial.Partial(target, settings, IDS, 'answers')


def count_of(target, settings=SETTINGS):
  with begin(target, settings) as making:
    return making.count


def make(target, settings=SETTINGS, records=RECORDS, until=None):
  """Makes the file, or its records up to one of them."""
  with begin(target, settings) as making:
    making.add(records[making.count : until])
    if until is None:
      making.finish()
  return target


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_once_all_of_it_is(tmp_path):
  target = tmp_path / 'a.jsonl'
  make(target, until=2)
  assert names(tmp_path) == ['a.jsonl.partial']
  make(target)
  assert names(tmp_path) == ['a.jsonl', 'a.jsonl.settings']
  assert [json.loads(line) for line in target.read_text().split('\n')[:-1]] == RECORDS
  assert json.loads((tmp_path / 'a.jsonl.settings').read_text())['settings'] == SETTINGS


def test_what_was_made_is_not_made_again(tmp_path):
  target = tmp_path / 'a.jsonl'
  make(target)
  before = target.stat().st_mtime_ns
  assert count_of(target) == 5
  make(target)
  assert target.stat().st_mtime_ns == before and names(tmp_path) == ['a.jsonl', 'a.jsonl.settings']


def test_cut_anywhere_it_goes_on_to_the_same_bytes(tmp_path):
  whole, path = make(tmp_path / 'whole').read_bytes(), tmp_path / 'x.partial'
  make(tmp_path / 'x', until=5)
  content = path.read_bytes()
  ends = [i for i in range(len(content) + 1) if b'\n' in content[max(i - 2, 0) : i + 1] or i % 20 == 0]
  counts = set()
  for end in ends:
    path.write_bytes(content[:end])
    counts.add(count := count_of(tmp_path / 'x'))
    # Only records whose line is whole count.
    assert count == max(content[:end].count(b'\n') - 1, 0)
    assert make(tmp_path / 'x').read_bytes() == whole
    (tmp_path / 'x').unlink()
  assert counts == {0, 1, 2, 3, 4, 5}


def test_killed_as_it_finishes_it_finishes_again(tmp_path, monkeypatch):
  target = tmp_path / 'a.jsonl'
  before = make(target, SETTINGS | {'seed': 1}, [r | {'text': 'other'} for r in RECORDS]).read_bytes()
  for step, is_replaced in (('replacing', False), ('write_atomically', True)):
    with monkeypatch.context() as patch:
      patch.setattr(partial.files, step, lambda *_: 1 / 0)
      with pytest.raises(ZeroDivisionError):
        make(target)
    assert (target.read_bytes() != before) == is_replaced
  assert count_of(target) == 5
  make(target)
  assert names(tmp_path) == ['a.jsonl', 'a.jsonl.settings'] and count_of(target) == 5


def test_records_of_other_settings_are_refused_and_stay(tmp_path):
  target = make(tmp_path / 'a.jsonl', until=2)
  before = (tmp_path / 'a.jsonl.partial').read_bytes()
  changed = {'seed': 1, 'checkpoints': {'100': 'abd'}}
  with pytest.raises(UsageError, match=r'2 answers .*100: .abc. there, .abd. here; seed: 0 there'):
    begin(target, changed)
  assert (tmp_path / 'a.jsonl.partial').read_bytes() == before
  assert count_of(target) == 2


def test_nothing_is_left_of_a_maker_that_made_nothing(tmp_path):
  assert count_of(tmp_path / 'a.jsonl') == 0 and names(tmp_path) == []
  # Killed after its first line, it has made nothing that others could mix with.
  (tmp_path / 'a.jsonl.partial').write_bytes(partial._header({'seed': 1}) + b'{"id": "r0", "te')
  make(tmp_path / 'a.jsonl')
  assert names(tmp_path) == ['a.jsonl', 'a.jsonl.settings']


def test_a_file_of_other_settings_is_replaced_once_it_is_made_and_that_is_said(tmp_path, caplog):
  target, other = make(tmp_path / 'a.jsonl'), SETTINGS | {'seed': 1}
  before, new = target.read_bytes(), [record | {'text': 'new'} for record in RECORDS]
  make(target, other, new, until=3)
  assert 'made by other settings (seed: 0 there, 1 here), and are replaced' in caplog.text
  # So far the file is that of the first settings, which make nothing again.
  assert target.read_bytes() == before and count_of(target) == 5
  make(target, other, new)
  assert [json.loads(line) for line in target.read_text().split('\n')[:-1]] == new


def test_a_file_that_was_changed_is_not_replaced(tmp_path):
  target, other = make(tmp_path / 'a.jsonl'), SETTINGS | {'seed': 1}
  target.write_text(target.read_text().replace('"text"', '"reward": 1, "text"'))
  for settings in (SETTINGS, other):
    with pytest.raises(UsageError, match='was changed after its answers were made'):
      begin(target, settings)
  # Nor where it is changed while others are made.
  target = make(tmp_path / 'b.jsonl')
  make(target, other, until=4)
  target.write_text('mine')
  with pytest.raises(UsageError, match='was changed'):
    make(target, other)
  assert target.read_text() == 'mine'


def test_records_that_were_never_to_be_there_are_made_anew(tmp_path):
  whole = make(tmp_path / 'whole').read_bytes()
  make(tmp_path / 'a.jsonl', until=4)
  path = tmp_path / 'a.jsonl.partial'
  path.write_bytes(path.read_bytes().replace(b'"r2"', b'"x2"'))
  assert count_of(tmp_path / 'a.jsonl') == 2
  assert make(tmp_path / 'a.jsonl').read_bytes() == whole


def test_a_file_of_another_kind_is_not_touched(tmp_path):
  (tmp_path / 'a.jsonl.partial').write_text('my notes\n')
  with pytest.raises(UsageError, match='holds something else than unfinished answers'):
    begin(tmp_path / 'a.jsonl')
  assert (tmp_path / 'a.jsonl.partial').read_text() == 'my notes\n'


def test_two_makers_do_not_mix(tmp_path):
  with begin(tmp_path / 'a.jsonl'), pytest.raises(UsageError, match='is being written by another process'):
    begin(tmp_path / 'a.jsonl')
  assert count_of(tmp_path / 'a.jsonl') == 0


SLOW = """
  import pathlib, sys, time
  from dro_jax.data.storage import partial
  records = [{'id': f'r{i}', 'text': 'x' * 5000} for i in range(400)]
  making = partial.Partial(pathlib.Path(sys.argv[1]), {'seed': 0}, [record['id'] for record in records])
  print(making.count, flush=True)
  for record in records[making.count:]:
    making.add([record])
  making.finish()
"""


def test_killed_processes_leave_what_the_next_goes_on_with(tmp_path):
  command = [sys.executable, '-c', textwrap.dedent(SLOW)]
  subprocess.run([*command, str(tmp_path / 'whole')], check=True, stdout=subprocess.DEVNULL)
  counts = []
  for _ in range(2):
    process = subprocess.Popen([*command, str(tmp_path / 'cut')], stdout=subprocess.PIPE, text=True)
    counts.append(int(process.stdout.readline()))
    while process.poll() is None and (tmp_path / 'cut.partial').stat().st_size < 5000 * (counts[-1] + 20):
      pass
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
  subprocess.run([*command, str(tmp_path / 'cut')], check=True, stdout=subprocess.DEVNULL)
  assert counts[0] == 0 < counts[1]
  assert (tmp_path / 'cut').read_bytes() == (tmp_path / 'whole').read_bytes()
