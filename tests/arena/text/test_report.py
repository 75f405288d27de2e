import numpy as np
import pytest

from dro_jax.arena.cells import Cell, Finished
from dro_jax.arena.text import report

# Two prompts, a kind each, with two answers of the reference to both.
REFERENCE = {
  'reward': [0.5, 0.25], 'best': [1.0, 0.5], 'exact': [0.5, 0.0], 'length': [3, 3], 'different': [1, 1],
  'junk': [0.0, 0.0], 'distinct_1': 0.5, 'distinct_2': 0.5, 'distinct_3': 0.5,
}  # fmt: skip
OWN = REFERENCE | {'win': [0.75, 0.5], 'kl': [1.0, 3.0], 'junk': [0.5, 0.0], 'expected': [0.5, 0.5]}


def finished(method, rate, reward, seed=0, draw=0, validation=-1.0, kept=(1.0, 1.0, 1.0, 1.0)):
  judged = {
    'validation': validation, 'test': OWN | {'reward': reward}, 'ratios': [1.0] * 4, 'kept': list(kept),
  }  # fmt: skip
  world = {
    'reference': REFERENCE,
    'log': REFERENCE | {'rewards': [1.0, 0.0, 0.5, 0.0], 'predicted': [0.5] * 4, 'reward': [0.1, 0.3]},
    'kinds': ['sort', 'add'],
    'ceilings': {'greedy decoding': {'reward': [1.0, 0.25], 'kl': 2.0}},
  }
  cell = Cell('text', method, {'learning_rate': rate}, seed, {'world': 'habits', 'draw': draw})
  return Finished(cell, {'best': judged, 'last': judged, 'steps': 5, 'flops': 1e6} | world, 1.0)


CELLS = [
  finished('dro_v', 1e-4, [0.9, 0.9], validation=0.0),
  finished('dro_v', 1e-3, [0.75, 0.75], kept=(2.0, 0.0, 0.0, 0.0)),
  finished('dro_v', 3e-4, [0.9, 0.9], validation=0.0),
  finished('rft', 1e-4, [0.5, 0.75], validation=0.0),
  finished('rft', 3e-4, [1.0, 0.75]),
  finished('rft', 1e-3, [0.5, 0.75], validation=0.0),
]


@pytest.fixture(scope='module')
def tables():
  return {table.title: table for table in report.report(('dro_v', 'rft'), CELLS).tables}


def test_scores_are_means_beside_the_references(tables):
  reference, dro_v, rft = tables['Answers to test prompts'].rows
  assert reference['method'] == 'SFT (reference)' and reference['reward'].value == 0.375
  assert dro_v['reward'].value == 0.75 and rft['reward'].value == 0.875
  assert dro_v['minus SFT’s'].value == pytest.approx(0.375)
  assert (dro_v['minus SFT’s'].low, dro_v['minus SFT’s'].high) == (0.25, 0.5)
  assert dro_v['win rate'].value == 0.625 and dro_v['KL'].value == 2.0 and dro_v['junk'] == 0.25


def test_mass_kept_comes_with_its_effective_number_of_answers(tables):
  _, dro_v, rft = tables['Answers to test prompts'].rows
  assert (dro_v['mass kept'], dro_v['effective']) == (0.5, 1.0)
  assert (rft['mass kept'], rft['effective']) == (1.0, 4.0)


def test_an_optimum_at_an_edge_of_the_grid_is_marked_and_told(tables):
  table = tables['Answers to test prompts']
  assert [row['method'] for row in table.rows] == ['SFT (reference)', 'dro_v †', 'rft']
  assert '† the best value was at an end of the grid (dro_v: learning_rate ≥ 0.001): --widen.' in table.note


def test_rewards_are_told_by_kind_of_task(tables):
  reference, dro_v, rft = tables['Reward by kind of task'].rows
  assert [reference[kind].value for kind in ('sort', 'add')] == [0.5, 0.25]
  assert [rft[kind].value for kind in ('sort', 'add')] == [1.0, 0.75]
  assert dro_v['sort'].value == 0.75


def test_ceilings_stand_beside_the_log(tables):
  greedy, log = tables['Ceilings'].rows
  assert greedy['reward'].value == 0.625 and greedy['minus SFT’s'].value == 0.25 and greedy['KL'] == 2.0
  assert log['reward'].value == pytest.approx(0.2)


def test_seeds_are_pooled_and_unequal_ones_told():
  more = [*CELLS, finished('rft', 3e-4, [0.5, 0.75], seed=1)]
  tables = {table.title: table for table in report.report(('dro_v', 'rft'), more).tables}
  rft = tables['Answers to test prompts'].rows[2]
  assert rft['reward'].value == pytest.approx(0.75) and rft['minus SFT’s'].value == pytest.approx(0.375)
  assert 'Unequal numbers of seeds: dro_v 1, others 2' in tables['Answers to test prompts'].note


def test_draws_of_a_world_are_told_apart_and_side_by_side():
  more = [*CELLS, finished('dro_v', 1e-3, [0.5, 0.5], draw=1)]
  found = report.report(('dro_v', 'rft'), more)
  over, *rest = found.tables
  dro_v, rft = over.rows
  assert dro_v['habits, draw 0'].value == pytest.approx(0.375)
  assert dro_v['habits, draw 1'].value == pytest.approx(0.125)
  assert 'habits, draw 1' not in rft
  assert {'Ceilings (habits, draw 0)', 'Ceilings (habits, draw 1)'} <= {table.title for table in rest}
  assert 'frontier-habits-1.png' in found.figures


def test_a_figure_shows_every_trial_and_the_reference():
  from matplotlib.figure import Figure

  figure = Figure()
  report.report(('dro_v', 'rft'), CELLS).figures['frontier.png'](figure)
  labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  assert labels == ['dro_v', 'rft', 'SFT (reference)', 'SFT, best of K']
  assert np.isclose(figure.axes[0].collections[-1].get_offsets()[0, 1], 0.375)
