import contextlib
import json

import pytest

from dro_jax.arena import arena as run
from dro_jax.arena import cells, trials
from dro_jax.arena.suite import Report, Suite
from dro_jax.arena.trials import Range
from dro_jax.errors import InUse, UsageError
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


def test_two_commands_on_one_folder_share_its_cells(tmp_path):
  folder, world, other = str(tmp_path / 'arena'), World(), World()

  def others_begin(cell):
    if not world.ran:
      run.arena(folder, other.suite, algorithms='b', seeds=1)
    return world.run(cell)

  found = run.arena(folder, lambda: world.suite()._replace(run=others_begin), algorithms='a,b', seeds=1)
  assert found['cells_run'] == 4 and {cell.algorithm for cell in world.ran} == {'a'}
  assert len(other.ran) == 4


def test_what_another_command_runs_or_prepares_waits_for_the_rest(tmp_path, monkeypatch, capsys):
  folder, world, refused, elsewhere = str(tmp_path / 'arena'), World(), [], contextlib.ExitStack()
  cells.claim(tmp_path / 'arena', 'mine', world.suite().settings)
  # Another command runs the first cell until this one has nothing else to do.
  [first, *_] = cells.plan('mine', trials.make_trials(world.suite().grids, 2), 1, [{'noise': 0}])
  elsewhere.enter_context(cells.running(tmp_path / 'arena', first))
  monkeypatch.setattr(run.time, 'sleep', lambda seconds: elsewhere.close())

  def prepares(cell):
    """The world of the third cell is being made elsewhere."""
    if len(world.ran) == 1 and not refused:
      refused.append(cell)
      raise InUse('the world is in use')
    with pytest.raises(InUse, match='is in use by another run'), cells.running(tmp_path / 'arena', cell):
      pass
    return world.run(cell)

  suite = world.suite()._replace(run=prepares)
  assert run.arena(folder, lambda: suite, algorithms='a', seeds=1)['cells_run'] == 4
  assert world.ran[-2:] == [*refused, first]
  assert not any((tmp_path / 'arena' / 'running').iterdir())
  assert capsys.readouterr().err.count(' waits: ') == 2


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


def test_a_dry_run_tells_the_missing_cells_and_touches_nothing(tmp_path, capsys):
  world, folder = World(), tmp_path / 'arena'
  told = run.arena(str(folder), world.suite, algorithms='a', seeds=1, dry_run=True)
  assert told['cells'] == 4 and told['cells_run'] == 0 and not world.ran and not folder.exists()
  shown = capsys.readouterr().err
  assert 'a (noise 0, temperature 0.1, learning_rate 0.001, seed 0)' in shown
  assert '4 cells, 4 of them missing' in shown
  run.arena(str(folder), world.suite, algorithms='a', seeds=1)
  run.arena(str(folder), world.suite, algorithms='a', seeds=2, dry_run=True)
  assert '8 cells, 4 of them missing. About 0 min at 0 s a cell' in capsys.readouterr().err


def test_fewer_trials_are_asked_for(tmp_path):
  world = World()
  run.arena(str(tmp_path / 'arena'), world.suite, algorithms='a', seeds=1, trials=2)
  assert [cell.hyperparameters['learning_rate'] for cell in world.ran] == [1e-2, 1e-2]


def test_only_the_chosen_trial_is_repeated(tmp_path):
  world = World()

  def judged(cell):
    world.ran.append(cell)
    return {'last': {'validation': abs(cell.hyperparameters['temperature'] - 1) + cell.seed}, 'score': 0.5}

  suite = world.suite(noise=(0, 1))._replace(run=judged, checkpoint='last')
  told = run.arena(str(tmp_path / 'arena'), lambda: suite, algorithms='a', seeds=1, repeats=2)
  assert told['cells'] == told['cells_run'] == 2 * (4 + 2)
  again = [cell for cell in world.ran if cell.seed > 0]
  assert [(cell.axes['noise'], cell.seed) for cell in again] == [(0, 1), (0, 2), (1, 1), (1, 2)]
  assert all(cell.hyperparameters == {'temperature': 1.0, 'learning_rate': 1e-3} for cell in again)
  with pytest.raises(UsageError, match='repeats=2: the suite mine chooses no trial'):
    run.arena(str(tmp_path / 'other'), world.suite, seeds=1, repeats=2)


def test_a_method_that_cannot_run_at_a_point_is_skipped_there(tmp_path):
  world = World()
  suite = world.suite(noise=(0, 1))._replace(skips=lambda cell: cell.algorithm == 'b' and cell.axes['noise'])
  run.arena(str(tmp_path / 'arena'), lambda: suite, seeds=1)
  assert [cell.axes['noise'] for cell in world.ran if cell.algorithm == 'b'] == [0] * 4


def test_without_a_name_the_usual_ones_compete(tmp_path):
  world = World()
  run.arena(str(tmp_path / 'arena'), lambda: world.suite()._replace(usual=['b']), seeds=1)
  assert {cell.algorithm for cell in world.ran} == {'b'}
