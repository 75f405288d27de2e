import json
import logging
import threading

import numpy as np
import pytest

from dro_jax.arena import cells
from dro_jax.arena.cells import Cell, Finished
from dro_jax.errors import UsageError

CELL = Cell('exact', 'dro_v', {'temperature': 0.3, 'learning_rate': 1e-3}, 0, {'spread': 1})
RESULT = {'regret': np.array([0.1, 0.25]), 'diverged': float('nan'), 'step': np.int64(3)}


def test_a_cell_is_read_as_it_was_written(tmp_path):
  assert cells.read(tmp_path, CELL) is None
  cells.write(tmp_path, Finished(CELL, RESULT, 1.5))
  found = cells.read(tmp_path, CELL)
  assert found.cell == CELL
  assert found.seconds == 1.5
  assert found.result == {'regret': [0.1, 0.25], 'diverged': None, 'step': 3}
  assert cells.read_all(tmp_path) == [found]


def test_cells_with_any_difference_have_different_files(tmp_path):
  others = [
    CELL._replace(algorithm='kto'),
    CELL._replace(seed=1),
    CELL._replace(axes={'spread': 2}),
    CELL._replace(axes={}),
    CELL._replace(hyperparameters={'temperature': 0.3, 'learning_rate': 1e-4}),
  ]
  files = {cells.file_of(tmp_path, cell) for cell in [CELL, *others]}
  assert len(files) == 6
  reordered = CELL._replace(hyperparameters=dict(reversed(CELL.hyperparameters.items())))
  assert cells.file_of(tmp_path, reordered) == cells.file_of(tmp_path, CELL)


@pytest.mark.parametrize('damage', ['cut', 'changed', 'empty', 'list', 'moved'])
def test_a_damaged_cell_is_run_again_and_that_is_told(tmp_path, caplog, damage):
  cells.write(tmp_path, Finished(CELL, RESULT, 1.5))
  file = cells.file_of(tmp_path, CELL)
  text = file.read_text()
  if damage == 'moved':
    other = CELL._replace(seed=5)
    cells.write(tmp_path, Finished(other, RESULT, 1.5))
    text = cells.file_of(tmp_path, other).read_text()
    cells.file_of(tmp_path, other).unlink()
  damaged = {'cut': text[:-9], 'changed': text.replace('0.25', '0.05'), 'empty': '', 'list': '[1]'}
  file.write_text(damaged.get(damage, text))
  with caplog.at_level(logging.WARNING):
    assert cells.missing(tmp_path, [CELL]) == [CELL]
  assert 'damaged' in caplog.text and 'dro_v (spread 1' in caplog.text
  cells.write(tmp_path, Finished(CELL, RESULT, 1.5))
  assert cells.missing(tmp_path, [CELL]) == []


def test_no_name_leads_out_of_the_folder(tmp_path):
  outside = CELL._replace(suite='../..', algorithm='../../up', axes={'/etc': '..'})
  assert cells.file_of(tmp_path, outside).parent == tmp_path / 'cells'


def test_a_plan_keeps_together_what_shares_a_world_and_a_seed():
  planned = cells.plan('exact', {'a': [{'x': 1}, {'x': 2}], 'b': [{'x': 1}]}, 2, [{'noise': 0}, {'noise': 1}])
  assert len(planned) == 12
  places = [(cell.axes['noise'], cell.seed, cell.algorithm) for cell in planned]
  assert places == sorted(places)


def test_a_folder_is_one_suites_and_one_worlds(tmp_path):
  folder = tmp_path / 'arena'
  settings = {'world': {'gain': 0.5, 'ease': (1, 2)}, 'steps': 10}
  cells.claim(folder, 'exact', settings)
  cells.claim(folder, 'exact', settings)
  with pytest.raises(UsageError, match=r"suite is 'exact', and now it is 'bandit'"):
    cells.claim(folder, 'bandit', settings)
  with pytest.raises(UsageError, match='steps is 10, and now it is 20: results would not compare'):
    cells.claim(folder, 'exact', settings | {'steps': 20})
  with pytest.raises(UsageError, match='world is'):
    cells.claim(folder, 'exact', settings | {'world': {'gain': 0.6, 'ease': (1, 2)}})
  assert json.loads((folder / 'arena.json').read_text())['world'] == {'gain': 0.5, 'ease': [1, 2]}
  # An earlier version did not record them.
  cells.claim(folder, 'exact', settings | {'contents': 'x'})
  with pytest.raises(UsageError, match="contents is 'x', and now it is 'y'"):
    cells.claim(folder, 'exact', settings | {'contents': 'y'})


def test_commands_that_begin_at_the_same_moment_share_a_new_folder(tmp_path):
  failed = []

  def begin(folder, start):
    start.wait()
    try:
      cells.claim(folder, 'exact', {'steps': 10})
      (folder / 'worlds').mkdir(exist_ok=True)
    except Exception as error:
      failed.append(error)

  for i in range(4):
    start = threading.Barrier(4)
    threads = [threading.Thread(target=begin, args=(tmp_path / str(i), start)) for _ in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert not failed


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('mine')
  with pytest.raises(UsageError, match='holds other files'):
    cells.claim(tmp_path, 'exact', {})
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']
