import json
import threading

import pytest

from dro_jax.data.storage.journal import Journal
from dro_jax.errors import UsageError


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_appended_and_read_again(tmp_path):
  path = tmp_path / 'made' / 'a.jsonl'
  journal = Journal(path)
  journal.append({'a': 1})
  assert lines(path) == [{'a': 1}]  # On disk before the journal is closed.
  journal.close()
  again = Journal(path)
  again.append({'text': 'two\nlines\u2028'})
  again.close()
  assert again.records == [{'a': 1}] and lines(path) == [{'a': 1}, {'text': 'two\nlines\u2028'}]


def test_several_records_are_appended_at_once_and_all_are_removed(tmp_path):
  journal = Journal(tmp_path / 'a.jsonl')
  journal.append({'a': 1}, {'b': 2})
  assert lines(tmp_path / 'a.jsonl') == [{'a': 1}, {'b': 2}]
  journal.clear()
  journal.append({'c': 3})
  journal.close()
  assert lines(tmp_path / 'a.jsonl') == [{'c': 3}]


def test_two_writers_do_not_mix(tmp_path):
  journal = Journal(tmp_path / 'a.jsonl')
  journal.append({'a': 1})
  with pytest.raises(UsageError, match=r'a\.jsonl is being written by another process'):
    Journal(tmp_path / 'a.jsonl')
  journal.close()
  Journal(tmp_path / 'a.jsonl').close()
  assert lines(tmp_path / 'a.jsonl') == [{'a': 1}]


@pytest.mark.parametrize('torn', [b'{"b": 2', b'{"b": "\xe6\x97', b'{'])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"a": 1}\n' + torn)
  journal = Journal(path)
  journal.append({'c': 3})
  journal.close()
  assert lines(path) == [{'a': 1}, {'c': 3}]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"a": 1}\n{"b": 2}')
  journal = Journal(path)
  assert journal.records == [{'a': 1}, {'b': 2}]
  journal.append({'c': 3})
  journal.close()
  assert lines(path) == [{'a': 1}, {'b': 2}, {'c': 3}]


def test_a_damaged_line_within_the_file_is_refused(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"a": \n{"b": 2}\n')
  with pytest.raises(UsageError, match=r'a\.jsonl:1: the line is no JSON object'):
    Journal(path)


def test_threads_do_not_mix_their_lines(tmp_path):
  journal = Journal(tmp_path / 'a.jsonl')
  threads = [
    threading.Thread(target=lambda i=i: [journal.append({'i': i, 'k': k, 'x': 'y' * 999}) for k in range(20)])
    for i in range(6)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  journal.close()
  assert len({(line['i'], line['k']) for line in lines(tmp_path / 'a.jsonl')}) == 120
