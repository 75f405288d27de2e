import json
import pathlib
import tempfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dro_jax import files
from dro_jax.errors import UsageError

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
