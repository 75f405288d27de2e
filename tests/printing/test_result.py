import json

import numpy as np
import pytest

from dro_jax.printing.result import Sections, print_result

ROWS = {'Meshes': [{'mesh': 'data=8', 'fits': True}, {'mesh': '[fsdp=8]', 'note': 'x' * 60}], 'Empty': []}


@pytest.mark.parametrize('as_json', [False, True])
@pytest.mark.parametrize('result', [None, {}, Sections({}, {})])
def test_no_result_prints_nothing(capsys, result, as_json):
  print_result(result, as_json=as_json)
  assert capsys.readouterr().out == ''


def test_json_is_one_object_without_nan(capsys):
  result = {'loss': float('nan'), 'counts': np.arange(3), 'inner': {'path': pytest}}
  print_result(result, as_json=True)
  [line] = capsys.readouterr().out.splitlines()
  printed = json.loads(line)
  assert (printed['loss'], printed['counts']) == (None, [0, 1, 2])
  assert printed['inner']['path'].startswith('<module')


def test_a_mapping_prints_one_line_for_each_leaf(capsys):
  print_result({'steps': 10, 'eval': {'loss': 0.123456789, 'kl': {'mean': 2.0}}}, as_json=False)
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert lines == [['steps', '10'], ['eval/loss', '0.123457'], ['eval/kl/mean', '2']]


def test_a_mapping_prints_long_values_whole_and_brackets_as_they_are(capsys):
  print_result({'path': '/folder' * 20, 'note': '[bold]'}, as_json=False)
  assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
    ['path', '/folder' * 20], ['note', '[bold]'],
  ]  # fmt: skip


def test_sections_print_their_titles_rows_and_note(capsys):
  print_result(
    Sections({'n': 2}, ROWS, note='One chip.', verbatim='dro_jax train ' + 'a' * 300), as_json=False
  )
  lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
  title = lines.index('Meshes')
  assert lines[title + 1].split() == ['mesh', 'fits', 'note']
  assert lines[title + 2].split() == ['data=8', 'True']
  assert lines[title + 3].split() == ['[fsdp=8]', 'x' * 60]  # Brackets are text here, and no markup.
  assert 'Empty' not in lines
  assert 'One chip.' in lines
  assert lines[-1] == 'dro_jax train ' + 'a' * 300


def test_sections_are_their_content_in_json(capsys):
  print_result(Sections({'n': 2}, ROWS), as_json=True)
  assert json.loads(capsys.readouterr().out) == {'n': 2}


def test_columns_without_names_have_no_header(capsys):
  print_result(Sections({'n': 1}, {'Data': [{'': 'records', ' ': '12'}]}), as_json=False)
  assert [line.split() for line in capsys.readouterr().out.splitlines()] == [[], ['Data'], ['records', '12']]
