import json

import pytest
from matplotlib.figure import Figure

from dro_jax.evaluation.judge.judge import judge
from dro_jax.recipes.reproduce import win_rates

SIDES = ('sft', 'dro_v', 'kto')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A judge's report on three files: dro_v is right on 3 of 4 prompts, kto on 2 of 4, sft on 1 of 4."""
  root = tmp_path_factory.mktemp('root')
  for number, name in zip((1, 3, 2), SIDES):
    lines = (
      {'prompt': f'sort: {"ba" * (i % 7 + 1)}{i}', 'response': 'right' if i % 4 < number else 'wrong'}
      for i in range(40)
    )
    (root / f'{name}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  sides = [f'{name}={root / name}.jsonl' for name in SIDES]
  judge(sides, str(root / 'judged' / 'report'), function=longer, folds=4, resamples=50)
  return root


def longer(prompt, first, second):
  return 'tie' if first == second else 'A' if first == 'right' else 'B'


def test_a_rate_is_the_same_from_both_sides(root):
  found = win_rates.read(root, 'judged')
  one, other = (win_rates.rate(found, *pair) for pair in (('dro_v', 'sft'), ('sft', 'dro_v')))
  assert one.rate.value == pytest.approx(0.75) and one.mean == pytest.approx(0.75)
  assert other.rate == pytest.approx((1 - one.rate.value, 1 - one.rate.high, 1 - one.rate.low))
  assert other.mean == pytest.approx(1 - one.mean) and other.sd == one.sd


def test_columns_have_the_papers_numbers_beside_ours(root):
  found = win_rates.read(root, 'judged')
  shown = win_rates.columns(found, 'kto', 'sft', (67.5, 0.7))
  assert shown['win rate, %'].startswith('62.5 ± ') and shown['paper, %'] == '67.5 ± 0.7'
  assert win_rates.columns(found, 'kto', 'sft', (61.9, None))['paper, %'] == '61.9'


def test_the_matrix_and_its_transpose_sum_to_100(root):
  rows = win_rates.matrix(win_rates.read(root, 'judged'), {'sft': 'SFT', 'dro_v': 'DRO-V', 'kto': 'KTO'})
  assert [row['against SFT'] for row in rows] == [None, 75.0, 62.5]
  assert rows[0]['against DRO-V'] == 25.0 and rows[2]['against DRO-V'] == 37.5


def test_examples_have_the_answers_of_all_sides(root):
  table = win_rates.examples(root, 'judged', most=3)
  assert len(table.rows) == 3 and set(table.rows[0]) == {'prompt', *SIDES}


def test_figures_are_drawn(root):
  found = win_rates.read(root, 'judged')
  rows = [
    {'policy': 'KTO', 'against': 'SFT', 'size': 'L'} | win_rates.columns(found, 'kto', 'sft', (67.5, 0.7))
  ]
  figure = Figure()
  win_rates.bars(figure, rows)
  assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ['KTO\nvs SFT\nL']
  figure = Figure()
  points = [(0.1, win_rates.rate(found, 'kto', 'sft')), (1.0, win_rates.rate(found, 'dro_v', 'sft'))]
  win_rates.lines(figure, {'τ': {'KTO': points}, 'rate': {'both': points}})
  assert [axes.get_xlabel() for axes in figure.axes] == ['τ', 'rate']
  figure = Figure()
  win_rates.heat(figure, win_rates.matrix(found, {'sft': 'SFT', 'kto': 'KTO'}))
  assert {text.get_text() for text in figure.axes[0].texts} == {'–', '37.5', '62.5'}
