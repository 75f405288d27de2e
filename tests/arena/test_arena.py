import json

import pytest

from dro_jax.arena import arena as run
from dro_jax.arena import cells
from dro_jax.arena.suite import Report, Suite
from dro_jax.arena.trials import Range
from dro_jax.errors import UsageError
from dro_jax.printing.tables import Table
from dro_jax.run.folder.configs import Recorded


class World:
  """A suite whose cells only say that they were run."""

  def __init__(self):
    self.ran = []

  def suite(self, noise=(0,), steps=5) -> Suite:
    grid = {'temperature': Range(0.1, 1.0), 'learning_rate': Range(1e-3, 1e-2)}
    return Suite(
      'mine', {'steps': steps}, {'a': grid, 'b': grid}, [{'noise': x} for x in noise], self.run, report
    )

  def run(self, cell):
    self.ran.append(cell)
    return {'score': cell.hyperparameters.get('temperature')}


def report(finished):
  rows = [{'method': cell.cell.algorithm, 'score': cell.result['score']} for cell in finished]
  return Report([Table('Scores', rows)], {'scores.png': lambda figure: figure.subplots().plot([0, 1])})


def test_the_arena_runs_only_missing_cells(tmp_path):
  world, folder = World(), str(tmp_path / 'arena')

  def arena(**settings):
    before = len(world.ran)
    noise = settings.pop('noise', (0,))
    result = run.arena(folder, lambda: world.suite(noise), **settings)
    assert result['cells_run'] == len(world.ran) - before
    return result['cells_run']

  assert arena(algorithms='a', seeds=1) == 4
  assert arena(algorithms='a', seeds=1) == 0
  assert arena(algorithms='a', seeds=2) == 4
  assert arena(seeds=2) == 8
  assert arena(seeds=2, noise=(0, 1)) == 16
  assert arena(seeds=1, noise=(1,), widen=True) == 2 * (16 - 4)
  assert len(set(map(cells.describe, world.ran))) == len(world.ran)


def test_whoever_competes_gets_as_many_trials(tmp_path):
  world = World()
  suite = world.suite()
  suite = suite._replace(grids=suite.grids | {'c': {'learning_rate': Range(1e-3, 1e-2)}})
  assert run.arena(str(tmp_path / 'arena'), lambda: suite, algorithms='c', seeds=1)['cells_run'] == 4


def test_a_cell_that_fails_loses_no_other(tmp_path):
  world = World()

  def stop_at_the_third(cell):
    if len(world.ran) == 2:
      raise KeyboardInterrupt
    return world.run(cell)

  with pytest.raises(KeyboardInterrupt):
    run.arena(str(tmp_path / 'arena'), lambda: world.suite()._replace(run=stop_at_the_third), seeds=1)
  assert run.arena(str(tmp_path / 'arena'), world.suite, seeds=1)['cells_run'] == 6


def test_results_tell_of_every_finished_cell(tmp_path, capsys):
  folder = tmp_path / 'arena'
  run.arena(str(folder), World().suite, algorithms='a', seeds=1)
  run.arena(
    str(folder), World().suite, algorithms='b', seeds=1, configs=lambda: Recorded({'config.gin': 'X = 1\n'})
  )
  results = json.loads((folder / 'results.json').read_text())
  assert [row['method'] for row in results['tables'][0]['rows']] == ['a'] * 4 + ['b'] * 4
  assert '| a | 0.1000 |' in (folder / 'results.md').read_text()
  assert (folder / 'scores.png').read_bytes()[1:4] == b'PNG'
  assert (folder / 'config.gin').read_text() == 'X = 1\n'
  shown = capsys.readouterr().err
  assert 'mine: 4 cells, 0 of them done' in shown and 'Scores' in shown


def test_unknown_methods_no_seeds_and_other_settings_are_refused(tmp_path):
  world, folder = World(), str(tmp_path / 'arena')
  with pytest.raises(UsageError, match=r"the suite mine has no method 'aa' \(did you mean a\?\)"):
    run.arena(folder, world.suite, algorithms='aa')
  with pytest.raises(UsageError, match='seeds=0'):
    run.arena(folder, world.suite, seeds=0)
  run.arena(folder, world.suite, algorithms='a', seeds=1)
  with pytest.raises(UsageError, match='steps is 5, and now it is 6'):
    run.arena(folder, lambda: world.suite(steps=6), seeds=1)


def test_without_a_name_the_usual_ones_compete(tmp_path):
  world = World()
  run.arena(str(tmp_path / 'arena'), lambda: world.suite()._replace(usual=['b']), seeds=1)
  assert {cell.algorithm for cell in world.ran} == {'b'}
