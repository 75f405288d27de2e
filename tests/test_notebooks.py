"""The notebooks run from top to bottom, and say what they claim."""

import inspect
import pathlib
import re

import pytest

from dro_jax import losses

nbclient = pytest.importorskip('nbclient')
nbformat = pytest.importorskip('nbformat')

ROOT = pathlib.Path(__file__).parent.parent


def read(name):
  return nbformat.read(ROOT / 'notebooks' / name, as_version=4)


def outputs(name, folder, *changes):
  """Runs a notebook in a folder, with some of its text replaced."""
  notebook = read(name)
  for before, after in changes:
    [cell] = [cell for cell in notebook.cells if before in cell.source]
    cell.source = cell.source.replace(before, after)
  resources = {'metadata': {'path': str(folder)}}
  nbclient.NotebookClient(notebook, timeout=240, kernel_name='python3', resources=resources).execute()
  return [output for cell in notebook.cells for output in cell.get('outputs', ())]


@pytest.mark.long
def test_losses_finds_the_optimum():
  shown = outputs('losses.ipynb', ROOT)
  printed = ''.join(output.text for output in shown if output.output_type == 'stream')
  found = {
    name: [float(x) for x in re.findall(rf'^{name} +(.+)$', printed, re.M)[0].split()]
    for name in ('DRO-V', 'optimum')
  }
  assert found['optimum'] == [0.70538, 0.25950, 0.03512, 2.12520]
  assert found['DRO-V'] == pytest.approx(found['optimum'], abs=1e-4)
  regrets = {name: float(x) for name, x in re.findall(r'^(\S+) +regret .* = (\S+)$', printed, re.M)}
  assert regrets['DRO-V'] < 1e-3 < regrets['DRO-P'] < regrets['KTO']


@pytest.mark.long
def test_arena_reads_what_it_has_run(tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  shown = outputs('arena.ipynb', tmp_path)
  tables = [output.data['text/markdown'] for output in shown if 'text/markdown' in output.get('data', {})]
  assert any('Population fixed points' in table and 'dro_v' in table for table in tables)
  assert sum('image/png' in output.get('data', {}) for output in shown) == 2
  assert (tmp_path / 'arena' / 'bandit' / 'results.json').exists()


@pytest.mark.long
def test_quickstart_goes_from_thumbs_to_a_verdict(tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  shown = outputs('quickstart.ipynb', tmp_path, ('STEPS = 400', 'STEPS = 8'), ('range(1000)', 'range(200)'))
  data = [output.data for output in shown if 'data' in output]
  tables = [each['text/html'] for each in data if 'text/html' in each]
  assert any('dro_v_binary' in table for table in tables), 'inspect shows no table'
  assert any('responses a batch in' in table for table in tables), 'the built run shows no table'
  assert sum('image/png' in each for each in data) == 1
  printed = ''.join(output.text for output in shown if output.output_type == 'stream')
  assert re.search(r'before: .* after: ', printed)
  assert re.search(r'^gain: [+-]\d\.\d\d, 95 % interval', printed, re.M)


def test_quickstart_shows_no_gin():
  source = '\n'.join(cell.source for cell in read('quickstart.ipynb').cells)
  assert 'gin' not in re.findall(r'[a-z]+', source) and '--set' not in source


@pytest.mark.parametrize('path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda path: path.name)
def test_committed_without_outputs(path):
  for cell in read(path.name).cells:
    assert not cell.get('outputs')
    assert cell.get('execution_count') is None


def test_losses_shows_every_loss():
  cells = [cell.source for cell in read('losses.ipynb').cells]
  [lists] = [source for source in cells if 'RESPONSES = ' in source]
  names = {'inspect': inspect, 'losses': losses}
  exec(lists, names)
  drawn = {*names['RESPONSES'], *names['COMPARISONS']}
  by_name = {name for name in losses.__all__ if any(f"'{name}'" in s or f'losses.{name}' in s for s in cells)}
  assert {'copg', 'ppo_token'} < drawn - by_name and drawn | by_name == set(losses.__all__)
