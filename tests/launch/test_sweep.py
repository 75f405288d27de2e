import importlib
import json
import shlex
import signal
import subprocess
import sys
import time

import pytest

from dro_jax.cli import bindings, flags, registry
from dro_jax.cli.tables import COMMANDS
from dro_jax.errors import UsageError
from launch import launch
from launch import sweep as cells
from launch.backends import local, tpu_vm

pytestmark = pytest.mark.filterwarnings('default:the load_module:DeprecationWarning')

# What runs in each cell, instead of dro_jax: a line of Python for what SEED says, in the cell's folder.
MEMBER = """
import os, pathlib, signal, sys, time
settings = dict(text.removeprefix('--set=').split('=', 1) for text in sys.argv if text.startswith('--set='))
folder = pathlib.Path([text for text in sys.argv if text.startswith('--model_dir=')][-1].split('=', 1)[1])
folder.mkdir(parents=True, exist_ok=True)
log = folder.parent / 'log'
open(log, 'a').write(f'{folder.name} begins\\n')
code = int(settings['SEED'])
if code in (75, 143):
  signal.signal(signal.SIGTERM, lambda *_: (folder / 'saved').touch() or sys.exit(code))
  print('up', flush=True)
  (folder.parent / 'up').touch()
  time.sleep(30)
time.sleep(0.2)
open(log, 'a').write(f'{folder.name} ends\\n')
sys.exit(code)
"""
SWEEP = """
from launch import cells
def get_config():
  sweep = cells.spec()
  sweep.product.SEED = (0, 1, 2)
  return sweep
"""


def sweep(product=None, together=None):
  spec = cells.spec()
  for name, values in (product or {}).items():
    spec.product[name] = values
  for name, values in (together or {}).items():
    spec.together[name] = values
  return spec


def test_every_combination_is_a_cell_with_a_name_of_its_own():
  found = cells.cells(
    sweep(
      {'TAU': (0.1, 1.0), 'gin_file': ('algorithms/kto.gin', 'algorithms/dro_v.gin')},
      {'SEED': (0, 1), 'STEPS': (5, 6)},
    )
  )
  assert len(found) == len({cell.name for cell in found}) == 8
  first = found[0]
  assert first.name == 'seed_0-steps_5-tau_0.1-gin_file_kto'
  assert first.arguments == [
    '--set=SEED=0',
    '--set=STEPS=5',
    '--set=TAU=0.1',
    '--gin_file=algorithms/kto.gin',
  ]
  assert {cell.settings['STEPS'] - cell.settings['SEED'] for cell in found} == {5}


@pytest.mark.parametrize(
  'product, together, words',
  [
    ({}, {}, 'no settings'),
    ({'TAU': 'abc'}, {}, "the sweep sets TAU to 'abc'"),
    ({'TAU': 1.0}, {}, r'\(1.0,\) for one'),
    ({'TAU': ()}, {}, 'pass a tuple of values'),
    ({}, {'TAU': (1,), 'SEED': (1, 2)}, 'need the same number of values'),
    ({'TAU': (1,)}, {'TAU': (1,)}, 'TAU: pass values in `product` or in `together`'),
    ({'gin_file': ('a/x.gin', 'b/x.gin')}, {}, '2 cells of the sweep have the name gin_file_x'),
  ],
)
def test_specs_that_give_no_cells_are_refused(product, together, words):
  with pytest.raises(UsageError, match=words):
    cells.cells(sweep(product, together))


@pytest.fixture
def command(tmp_path, monkeypatch):
  (tmp_path / 'member.py').write_text(MEMBER)
  (tmp_path / 'sweep.py').write_text(SWEEP)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  ours = ['--job=local', '--job.module=member', '--job.processes=1', f'--sweep={tmp_path}/sweep.py']
  return ours, ['--', 'train', f'--model_dir={tmp_path}/runs']


def test_a_failed_cell_stops_no_other_and_what_is_done_is_not_done_again(command, tmp_path, capsys):
  ours, theirs = command
  assert launch.main([*ours, *theirs]) == 1
  shown = capsys.readouterr()
  table = [line.split() for line in shown.out.splitlines()[:4]]
  assert table == [['cell', 'SEED'], *([f'seed_{i}', str(i), 'to', 'do'] for i in range(3))]
  assert '2 of 3 cells failed: seed_1, seed_2' in shown.err
  # One after another, on this machine.
  log = (tmp_path / 'runs' / 'log').read_text().splitlines()
  assert log == [f'seed_{i} {what}' for i in range(3) for what in ('begins', 'ends')]
  assert launch.main([*ours, '--sweep.product.SEED=(0,)', *theirs]) == 0
  assert len((tmp_path / 'runs' / 'log').read_text().splitlines()) == 6
  assert 'seed_0  0     done' in capsys.readouterr().out


def test_a_cell_repeats_after_a_change_in_a_file_that_it_names(command, tmp_path, capsys):
  ours, theirs = command
  files = {'triplets': tmp_path / 'a.jsonl', 'gin_file': tmp_path / 'mine.gin'}
  for file in files.values():
    file.write_text('# mine\n')
  (tmp_path / 'score.py').write_text('def f(p, r):\n  return [0.0]\n')
  described = tmp_path / 'policy' / 'metadata' / 'metadata'
  described.parent.mkdir(parents=True)
  described.write_text('{"digest": "x"}')
  given = [f'--{flag}={file}' for flag, file in files.items()]
  given += ['--set=REWARD=score.py:f', f'--init_from={tmp_path}/policy']
  again = [*ours, '--sweep.product.SEED=(0,)', *theirs, *given]
  log = tmp_path / 'runs' / 'log'
  assert launch.main(again) == launch.main(again) == 0
  runs = 1
  for file in (*files.values(), tmp_path / 'score.py', described):
    assert len(log.read_text().splitlines()) == 2 * runs
    file.write_text(file.read_text() + '\n')
    assert launch.main(again) == 0
    runs += 1
    assert f'{file.name} changed, and runs again' in capsys.readouterr().err
  note = tmp_path / 'runs' / 'seed_0' / cells.NOTE
  note.write_text(json.dumps({'arguments': json.loads(note.read_text())['arguments']}))
  assert launch.main(again) == 0  # An earlier version noted no contents.
  assert len(log.read_text().splitlines()) == 2 * runs


def test_a_note_that_cannot_be_written_stops_no_cell(command, tmp_path, capsys):
  ours, theirs = command
  (tmp_path / 'runs' / 'seed_0' / cells.NOTE).mkdir(parents=True)
  assert launch.main([*ours, "--sweep.product.SEED=('0','0 ')", *theirs]) == 0
  said = capsys.readouterr().err
  assert 'launched.json' in said and 'the same command would repeat this cell' in said
  assert len((tmp_path / 'runs' / 'log').read_text().splitlines()) == 4


def test_after_an_error_of_the_launcher_running_cells_save(command, tmp_path, monkeypatch):
  ours, theirs = command
  start = cells.children.start

  def second_fails(name, program):
    if name == 'seed_0':
      while not (tmp_path / 'runs' / 'up').exists():
        time.sleep(0.02)
      raise OSError('no more processes')
    return start(name, program)

  monkeypatch.setattr(cells.children, 'start', second_fails)
  with pytest.raises(OSError, match='no more processes'):
    launch.main([*ours, '--job.at_once=2', "--sweep.product.SEED=('75','0')", *theirs])
  assert (tmp_path / 'runs' / 'seed_75' / 'saved').exists()


def interrupted(command, seeds):
  """The exit code and standard error of a sweep that gets a SIGINT once two of its cells are up."""
  ours, theirs = command
  program = [sys.executable, launch.__file__, *ours, '--job.at_once=2']
  program += [f'--sweep.product.SEED={seeds}', *theirs]
  process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  ups = 0
  while ups < 2:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    ups += line.endswith('up\n')
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=20)
  return process.returncode, said


def test_a_cell_that_a_signal_ends_before_it_has_begun_was_stopped(command):
  code, said = interrupted(command, "('143','75')")
  assert code == 75
  assert '2 of 2 cells stopped or never started' in said


def test_a_cells_own_setting_holds_over_the_sweeps_flag():
  cell = cells.Cell('a', {'INIT_FROM': 'own', 'triplets': 'own', 'gin_file': 'own.gin', 'TAU': 1})
  theirs = ['train', '--init_from', 'old', '--triplets=old', '--gin_file=old.gin', '--set', 'BATCH=8']
  assert cells._arguments(theirs, cell, 'f') == [
    *('train', '--gin_file=old.gin', '--set=BATCH=8'),
    *('--set=INIT_FROM=own', '--triplets=own', '--gin_file=own.gin', '--set=TAU=1', '--model_dir=f'),
  ]
  # What is not concerned is as it was typed.
  assert cells._arguments(['report', '--json', 'a'], cells.Cell('a', {'TAU': 1}), 'f')[:3] == [
    'report',
    '--json',
    'a',
  ]


def test_preflight_is_of_one_cell_for_all_that_take_the_same_step(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  asked, begun = [], []
  monkeypatch.setattr(cells.checks, 'preflight', lambda job, given, *_, dry_run: asked.append(given))
  monkeypatch.setattr(cells.children, 'start', lambda name, program: begun.append(program) or 1 / 0)
  theirs = ['train', '--model_dir=/mnt/runs/a', '--triplets=hh_helpful']
  spec = sweep({'TAU': (0.1, 1.0), 'SEED': (0, 1), 'BATCH': (8, 16)})
  with pytest.raises(ZeroDivisionError):
    cells.run(tpu_vm.spec(), spec, ['--job=v5e_16'], theirs)
  assert [{text for text in given if text.startswith('--set')} for given in asked] == [
    {'--set=TAU=0.1', '--set=SEED=0', f'--set=BATCH={batch}'} for batch in (8, 16)
  ]
  assert '--job.preflight=False' in begun[0]


def test_a_cell_that_is_refused_is_refused_before_any_begins(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  given = ['--job=v5e_16', '--sweep=tau', '--job.shared_dir=/mnt/runs']
  assert launch.main([*given, '--', 'train', '--model_dir=/mnt/runs/a']) == 2
  assert 'train needs TRIPLETS' in capsys.readouterr().err


# The grids of the papers' figures, or around the values that they state.
PAPERS = {
  'dro_rate': [{'LEARNING_RATE': rate} for rate in (1e-5, 5e-5, 1e-4, 5e-4)],
  'dro_value_rate': [{'VALUE_LEARNING_RATE': rate} for rate in (1e-5, 5e-5, 1e-4, 5e-4)],
  'dro_tau': [{'TAU': tau} for tau in (0.1, 1.0, 5.0)],
  'dro_sharing': [
    {'VALUE_SHARED': shared, 'VALUE_READOUT': readout}
    for shared in (False, True)
    for readout in ('prompt', 'batch')
  ],
  'kto_tau': [{'TAU': tau} for tau in (0.1, 1.0, 5.0)],
}
# What each setting of a sweep must reach: the parameters of the run that it is a sweep of.
REACHED = {
  'LEARNING_RATE': ('policy/warmup_constant.peak_value', 'value/warmup_constant.peak_value'),
  'VALUE_LEARNING_RATE': ('value/warmup_constant.peak_value',),
  'TAU': ('dro_v.tau', 'kto.beta'),
  'VALUE_SHARED': ('Value.shared',),
  'VALUE_READOUT': ('Value.readout',),
  'COPG_BETA': ('copg.beta',),
  'DPO_BETA': ('dpo.beta',),
  'IPO_BETA': ('ipo.tau',),
  'BETA': ('dpo.beta',),
  'TRUST_REGION_ALPHA': ('soft.alpha',),
  'TRUST_REGION_EVERY': ('soft.every', 'hard.every'),
}
SWEEPS = sorted(path.stem for path in launch.SWEEPS.glob('*.py') if path.stem not in ('__init__', 'tau'))


def _by_name(settings):
  return sorted(settings.items())


@pytest.mark.parametrize('name', SWEEPS)
def test_a_sweep_of_a_paper_binds_its_values(name):
  """The command of its docstring, cell by cell, as dro_jax reads it."""
  module = importlib.import_module(f'launch.sweeps.{name}')
  program, *given = shlex.split(module.__doc__.partition('python ')[2])
  launcher, command = launch.split(given)
  assert program == 'launch/launch.py' and f'--sweep=launch/sweeps/{name}.py' in launcher
  _, spec, _ = launch.parse(launcher)
  found = cells.cells(spec)
  if name in PAPERS:
    assert sorted(map(_by_name, (cell.settings for cell in found))) == sorted(map(_by_name, PAPERS[name]))
  for cell in found:
    verb, *arguments = cells._arguments(command, cell, f'{cells._base(command)}/{cell.name}')
    values = flags.parse_flags(verb, arguments, COMMANDS[verb].bare)
    bindings.configure(verb, COMMANDS[verb], values)
    for setting, value in cell.settings.items():
      if setting in ('ALGORITHM', 'REFERENCE'):
        assert registry.bound_value(setting).selector.endswith(value)
      for parameter in REACHED.get(setting, ()):
        assert registry.bound_value(parameter) == value, (cell.name, parameter)
  assert set(spec.product) <= {*REACHED, 'ALGORITHM', 'REFERENCE'}


def test_a_bound_on_how_many_run_and_a_signal_that_all_hear(command, tmp_path):
  code, said = interrupted(command, "('75','75 ','75  ')")
  assert code == 75
  assert '2 cells are asked to stop, 1 have not started' in said
  assert '3 of 3 cells stopped or never started' in said
  assert len((tmp_path / 'runs' / 'log').read_text().splitlines()) == 2


def test_a_dry_run_prints_the_cells_and_their_commands(command, tmp_path, capsys):
  ours, theirs = command
  assert launch.main([*ours, '--dry_run', *theirs]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 7
  assert lines[4].endswith(f'--set=SEED=0 --model_dir={tmp_path}/runs/seed_0')
  assert '--dry_run' not in lines[4] and '--sweep' not in lines[4]
  assert not (tmp_path / 'runs').exists()


def test_jobs_have_names_and_notes_of_runs_elsewhere_are_kept_here(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  job = tpu_vm.spec()
  job.shared_dir = '/mnt/runs'
  theirs = ['train', '--model_dir=/mnt/runs/a']
  note = cells.Note(cells._note_file(job, '/mnt/runs/a/seed_1'), [])
  assert note.file.parent == cells._ELSEWHERE
  note._replace(arguments=[*theirs, '--set=SEED=1', '--model_dir=/mnt/runs/a/seed_1']).write()
  assert cells.run(job, sweep({'SEED': (1, 2)}), ['--job=v5e_16'], theirs, dry_run=True) == 0
  table, printed = capsys.readouterr().out.split('seed_2  2     to do\n')
  assert 'seed_1  1     done' in table
  preflight, command = printed.splitlines()
  assert 'dro_jax.main preflight' in preflight
  assert '--job.name=dro-jax-1 --job.preflight=False -- train' in command


def test_a_sweep_needs_a_folder(tmp_path):
  with pytest.raises(UsageError, match='Pass --model_dir=FOLDER'):
    cells.run(local.spec(), sweep({'SEED': (1,)}), [], ['train'])


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--sweep=tua'], "no sweep spec 'tua' (did you mean tau?)"),
    (['--sweep=tau', '--sweep.product.TUA=(1,)'], '--sweep.product.TUA=(1,): the sweep has no such setting'),
    (['--sweep=tau', '--job.at_once=0'], '--job.at_once=0: pass 1 or more'),
  ],
)
def test_bad_usage_is_said_in_one_line(capsys, argv, words):
  assert launch.main(['--job=local', *argv, '--', 'train', '--model_dir=a']) == 2
  said = capsys.readouterr().err
  assert words in said
  assert said.count('\n') == 1
