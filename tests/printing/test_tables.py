import json

import pytest
from rich.console import Console

from dro_jax.printing import tables
from dro_jax.statistics.bootstrap import Estimate

TABLE = tables.Table(
  'Regret',
  [
    {'method': 'dro_v', 'regret': Estimate(0.12, 0.1, 0.15), 'seeds': 2, 'edge': None},
    {'method': 'a|b', 'regret': Estimate(0.5, float('nan'), float('nan')), 'seeds': 1, 'agrees': True},
  ],
  'mean [low, high]',
)


@pytest.mark.parametrize(
  'value, expected',
  [
    (None, '–'), (float('nan'), '–'), (True, 'yes'), (3, '3'), (0.12345, '0.1235'), (12.345, '12.35'),
    (-0.5, '−0.5000'), (1e-7, '1.00e-07'), (0.0, '0.0000'), ('text', 'text'),
    (Estimate(0.12, 0.1, 0.15), '0.1200 [0.1000, 0.1500]'),
    (Estimate(0.12, float('nan'), float('nan')), '0.1200'),
  ],
)  # fmt: skip
def test_numbers_print_with_four_digits_and_missing_ones_as_a_dash(value, expected):
  assert tables.text(value) == expected


def test_numbers_stand_to_the_right_and_one_row_is_bold():
  rows = [{'method': 'dro_v', 'solved': '12.3%'}, {'method': 'kto', 'solved': '1.0%'}]
  shown = tables.for_terminal(tables.Table('Solved', rows), emphasised='kto')
  assert [column.justify for column in shown.columns] == ['left', 'right']
  assert [row.style for row in shown.rows] == [None, 'bold']


def test_markdown_and_json():
  lines = tables.for_markdown(TABLE).splitlines()
  assert lines[2] == '| method | regret | seeds | edge | agrees |'
  assert lines[4] == '| dro_v | 0.1200 [0.1000, 0.1500] | 2 | – | – |'
  assert lines[5] == '| a\\|b | 0.5000 | 1 | – | yes |'
  assert lines[-1] == 'mean [low, high]'
  row = tables.for_json(TABLE)['rows'][0]
  assert json.loads(json.dumps(row))['regret'] == {'value': 0.12, 'low': 0.1, 'high': 0.15}


def test_the_terminal_shows_brackets():
  console = Console(width=100, record=True, file=open('/dev/null', 'w'))  # noqa: SIM115
  console.print(tables.for_terminal(TABLE))
  text = console.export_text()
  assert '0.1200 [0.1000, 0.1500]' in text and 'mean [low, high]' in text
  console.file.close()
