"""What the benchmarks make of what they measure; what they measure is not looked at."""

import importlib
import pathlib
import types

import pytest


@pytest.fixture
def benchmark(monkeypatch):
  """From a benchmark's name to its module; they import one another by name."""
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent.parent / 'benchmarks'))
  return importlib.import_module


@pytest.mark.parametrize('rounds, quartiles', [(1, (1, 1, 1)), (2, (1.25, 1.5, 1.75)), (3, (1.5, 2, 2.5))])
def test_quartiles_lie_between_the_rounds(benchmark, rounds, quartiles):
  found = benchmark('timing').ratio([1.0, 2.0, 3.0][:rounds], [1.0] * rounds)
  assert (found['low'], found['median'], found['high']) == quartiles


def test_the_arena_repeats_the_leading_methods_and_dro_v(benchmark, tmp_path):
  arena = benchmark('arena')
  assert arena.leading(tmp_path) == ['dro_v']
  gains = {'rft': (0.2, 0.1), 'dro_v': (0.0, 0.0), 'kto': (-0.1, 0.4), 'dpo': (0.1, 0.0)}
  rows = [
    {'method': name, **{f'habits, draw {draw}': {'value': gain} for draw, gain in enumerate(of_method)}}
    for name, of_method in gains.items()
  ]
  tables = [{'title': 'Reward less SFT’s, by world and draw', 'rows': rows}]
  (tmp_path / 'results.json').write_text(arena.json.dumps({'tables': tables}))
  assert arena.leading(tmp_path, 2) == ['rft', 'kto', 'dro_v']
  assert arena.leading(tmp_path) == ['rft', 'kto', 'dpo', 'dro_v']


def test_a_folder_of_the_arena_is_of_one_suite_and_no_command_runs_twice(benchmark, tmp_path):
  stages = list(benchmark('arena').stages(tmp_path, 2, 2))
  commands = [tuple(command) for stage in stages for command in stage]
  assert len(set(commands)) == len(commands)
  suites = {}
  for suite, folder, *_ in commands:
    suites.setdefault(folder, set()).add(suite)
  assert all(len(found) == 1 for found in suites.values()), suites


def test_a_step_that_fails_is_a_row_beside_the_others(benchmark, monkeypatch, capsys):
  accelerator = benchmark('accelerator')
  row = {'device': 'd', 'peak': 1.0, 'model': 'm', 'lengths': '1/1', 'step': 'sft', 'fits': False}
  ended = [
    types.SimpleNamespace(returncode=-9, stdout=''),
    types.SimpleNamespace(returncode=0, stdout=accelerator.json.dumps([row])),
  ]
  monkeypatch.setattr(accelerator.subprocess, 'run', lambda *_, **__: ended.pop(0))
  accelerator.show([accelerator.apart(('large', '512/128', step)) for step in ('dro_v_live', 'sft')])
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert [line[2:] for line in lines] == [
    ['1.0', 'operations/s'], ['dro_v_live', 'failed:', 'exit', '-9'], ['sft', 'does', 'not', 'fit'],
  ]  # fmt: skip


def test_the_heaviest_imports_are_summed_by_package(benchmark):
  start = benchmark('start')
  modules = start.imports(
    'import time: self [us] | cumulative | imported package\n'
    'import time:       100 |       2500 |   numpy.core\n'
    'import time:       500 |       9000 | numpy\n'
    'import time:       550 |        550 |   re\n'
    'a warning\n'
    'import time:        10 |      90000 | dro_jax\n'
  )
  assert [module.name for module in modules] == ['numpy.core', 'numpy', 're', 'dro_jax']
  assert start.heaviest(modules, 2) == {'numpy': 0.6, 're': 0.55}
