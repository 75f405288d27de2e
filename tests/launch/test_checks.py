import contextlib
import json
import pathlib
import sys

import pytest

from dro_jax.errors import UsageError
from launch import arguments as words
from launch import checks, commands, signals, slices
from launch.backends import tpu_vm

DATA = ['--triplets=hh_helpful']
TRAIN = ['train', '--model_dir=/mnt/runs/a', '--gin_file=models/t5_1_1_xl.gin', '--json', *DATA]


@pytest.mark.parametrize(
  'arguments, found',
  [
    (['--triplets=a,b'], ['a,b']),
    (['--triplets', 'a', '--set', 'TRIPLETS = b'], ['b', 'a']),
    (['--set=TRIPLETS=a', '--gin.TRIPLETS=b', '--set', 'TRIPLETS=c'], ['b', 'a', 'c']),
    (["--gin.TRIPLETS='a'", '--gin_binding=TRIPLETS="b"'], ['a', 'b']),
    (['--eval_triplets=a', '--set=EVAL_TRIPLETS=a', '--json', '--triplets'], []),
  ],
)
def test_a_flag_is_found_in_any_of_its_ways(arguments, found):
  assert [*words.values(['train', *arguments], 'triplets')] == found
  left = words.without(['train', *arguments, '--x=1'], ['triplets'])
  assert [*words.values(left, 'triplets')] == [] and left[0] == 'train' and left[-1] == '--x=1'


@pytest.mark.parametrize(
  'arguments', [['--model_dir=flag', '--set=MODEL_DIR=set'], ['--set=MODEL_DIR=set', '--model_dir=flag']]
)
def test_a_flag_holds_over_a_setting_whatever_the_order(arguments):
  assert (
    words.value(['train', '--gin.MODEL_DIR="gin"', *arguments, "--gin.MODEL_DIR='gin'"], 'model_dir')
    == 'flag'
  )


@pytest.mark.parametrize(
  'name, topology',
  [
    *(('v5litepod-4', 'v5e:2x2'), ('v5litepod-8', 'v5e:2x4'), ('v5litepod-32', 'v5e:4x8')),
    *(('v6e-256', 'v6e:16x16'), ('v4-8', 'v4:2x2x1'), ('v4-32', 'v4:2x2x4'), ('v5p-128', 'v5p:4x4x4')),
    *(('v3-32', ''), ('odd', ''), ('v5litepod-12', '')),
  ],
)
def test_a_slice_by_the_name_that_gcloud_has_for_it(name, topology):
  assert slices.of_accelerator_type(name) == topology


def test_files_that_are_here_only_are_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'feedback.jsonl').write_text('{}')
  (tmp_path / 'mine.gin').write_text('')
  (tmp_path / 'mine.py').write_text('')
  (tmp_path / 'exact_match').write_text('')
  for given in (
    ['--triplets=feedback.jsonl'],
    ['--triplets=/mnt/runs/a.jsonl,feedback.jsonl'],
    [f'--eval_triplets={tmp_path}/feedback.jsonl'],
    ['--set', f'INIT_FROM={tmp_path}'],
    ['--set', f'REFERENCE_STORE={tmp_path}'],
    ['--set', f'DATA_DIR={tmp_path}'],
    ['--set', 'REWARD=mine.py:length'],
    ['--gin_file=mine.gin'],
  ):
    with pytest.raises(
      UsageError, match='is on this machine, and not on those of the run: put it in /mnt/runs'
    ):
      tpu_vm.refuse(_job(), [*TRAIN, *given])
  with pytest.raises(UsageError, match='neither here nor, as a tracked file, in the checkout'):
    tpu_vm.refuse(_job(), [*TRAIN, '--triplets=fedback.jsonl'])
  there = ['--triplets=/mnt/runs/feedback.jsonl,hh_helpful,gs://bucket/a.jsonl', '--init_from=/mnt/runs/t5']
  tpu_vm.refuse(_job(), [*TRAIN, *there])
  tpu_vm.refuse(_job(), [*TRAIN, '--set', 'REWARD=exact_match'])
  # What is tracked is packed, and the run begins where it is.
  tpu_vm.refuse(_job(), [*TRAIN, '--gin_file=gin_configs/meshes/fsdp.gin'])


@pytest.mark.parametrize('flag, parameter', [
  ('INIT_FROM', 'Policy.init_from'), ('TRIPLETS', 'load_triplets.triplets'),
  ('EVAL_TRIPLETS', 'load_triplets.eval_triplets'), ('VOCABULARY', 'Policy.vocabulary'),
  ('REFERENCE_STORE', 'cached.store'), ('COLUMNS_FROM', 'load_triplets.columns_from'),
  ('DATA_DIR', 'load_triplets.data_dir'),
])  # fmt: skip
def test_paths_in_a_gin_file_are_checked(flag, parameter, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(checks, '_is_tracked', lambda path: path.endswith('.gin'))
  (tmp_path / 'here.jsonl').write_text('{}')
  train = [argument for argument in TRAIN if argument not in DATA]
  for name in (flag, parameter):
    for path, refusal in (
      ('here.jsonl', 'is on this machine, and not on those of the run: put it in /mnt/runs'),
      ('away.jsonl', 'neither here nor, as a tracked file, in the checkout'),
      ('/mnt/runs/there.jsonl', None),
    ):
      (tmp_path / 'outer.gin').write_text("include 'mine.gin'")
      (tmp_path / 'mine.gin').write_text(f"{name} = '{path}'")
      given = [*train, '--gin_file=outer.gin']
      checks.refuse_unbound([*given, '--triplets=hh_helpful'])
      with contextlib.nullcontext() if refusal is None else pytest.raises(UsageError, match=refusal) as told:
        tpu_vm.refuse(_job(), given if flag == 'TRIPLETS' else [*given, *DATA])
      if refusal:
        assert f'mine.gin:1: {name}={path}' in str(told.value)
      if refusal and name == flag:
        # The command line holds over a file.
        tpu_vm.refuse(_job(), [*given, *DATA, '--set', f'{flag}=/mnt/runs/there.jsonl'])
  bound = [*train, *(DATA if flag != 'TRIPLETS' else []), f"--gin.{parameter}='away.jsonl'"]
  with pytest.raises(UsageError, match=f'--gin.{parameter}=away.jsonl is neither here'):
    tpu_vm.refuse(_job(), bound)


def test_paths_of_an_experiment_that_the_pod_lacks_are_refused_before_renting():
  train = ['train', '--model_dir=/mnt/runs/a', '--gin_file=experiments/dro/t5_l.gin']
  with pytest.raises(
    UsageError, match=r'experiments/dro/t5_l.gin:\d+: INIT_FROM=checkpoints/.*--init_from=\.\.\.'
  ):
    tpu_vm.refuse(_job(), train)
  there = [*train, '--init_from=/mnt/runs/flan-t5-large']
  tpu_vm.refuse(_job(), there)
  # Preflight has neither the checkpoint nor the data, whatever the file binds.
  command = checks.command(_job(preflight_flags=('--gin_file=models/t5_1_1_large.gin',)), there, 'v5e:4x4')
  assert {'--set=INIT_FROM=None', '--set=TRIPLETS=None'} <= set(command)
  assert '--set=INIT_FROM=None' in checks.command(_job(), there, 'v5e:4x4')  # The experiment names its size.
  with pytest.raises(UsageError, match='it alone says how large the model is'):
    checks.command(_job(), [*train[:2], '--init_from=/mnt/runs/flan-t5-large'], 'v5e:4x4')


def test_a_hubs_model_is_no_folder():
  tpu_vm.refuse(_job(), ['import_checkpoint', '--init_from=google/flan-t5-large', '--model_dir=/mnt/runs/a'])


def test_a_queue_is_not_waited_for_without_data(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.gin').write_text("TRIPLETS = 'away.jsonl'")
  with pytest.raises(UsageError, match='mine.gin:1: TRIPLETS=away.jsonl: no such file'):
    checks.refuse_missing(['train', '--model_dir=a', '--gin_file=mine.gin'])
  (tmp_path / 'away.jsonl').write_text('{}')
  checks.refuse_missing(['train', '--model_dir=a', '--gin_file=mine.gin', '--init_from=not/yet/made'])


@pytest.mark.parametrize(
  'arguments, binds',
  [
    (['--triplets=hh'], True),
    (['--set', 'TRIPLETS=hh'], True),
    (['--gin_file=data/hh.gin'], True),
    (['--gin_file=experiments/dro/t5_l'], True),
    (['--gin_file', 'mine.gin'], True),
    (['--gin_file=/mnt/runs/there.gin'], True),
    (["--gin.load_triplets.triplets='hh'"], True),
    ([], False),
    (['--gin_file=models/t5_1_1_xl.gin', '--gin.TAU=1.0', '--set', 'EVAL_TRIPLETS=hh'], False),
    (['--gin_file=data/packed.gin', '--gin_binding', 'TAU = 1.0'], False),
  ],
)
def test_a_run_without_data_is_refused(tmp_path, monkeypatch, arguments, binds):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.gin').write_text("TRIPLETS = 'hh'")
  for command in ('train', 'evaluate'):
    with (
      contextlib.nullcontext()
      if binds or command == 'evaluate'
      else pytest.raises(UsageError, match='train needs TRIPLETS, which has no value: pass --triplets')
    ):
      checks.refuse_unbound([command, '--model_dir=a', *arguments])


def _job(**fields):
  job = tpu_vm.spec()
  job.update({'shared_dir': '/mnt/runs', **fields})
  return job


REPORT = {
  'fits': True,
  'memory': {'total': 9 * 2**30, 'available': 16 * 2**30},
  'roofline_seconds': 0.71,
  'chip_hours': 6.3,
  'steps': 1000,
}


def printed(report):
  """Python that prints it as JSON."""
  return f'print({json.dumps(report)!r})'


@pytest.fixture
def found(monkeypatch):
  """Has preflight answer by a line of Python; libtpu is there or not."""

  def answer(line, libtpu=True):
    program = ['env', sys.executable, '-c', line]
    monkeypatch.setattr(checks, 'command', lambda *_: program)
    monkeypatch.setattr(checks.importlib.util, 'find_spec', lambda name: libtpu or None)

  return answer


def ask(job=None, arguments=TRAIN):
  with signals.watching() as watch:
    how = commands.real(watch)
    checks.preflight(job or _job(), arguments, 'v5e:4x8', how, dry_run=False)


def test_a_run_that_fits_prints_memory_time_and_chip_hours(found, capsys):
  found(f'print("a word"); {printed(REPORT)}')
  ask()
  said = capsys.readouterr().err
  assert (
    'the run fits v5e:4x8: 9.0 of 16.0 GiB a chip; at best 0.71 s a step, 6.3 chip-hours for 1000 steps'
    in said
  )


SMALL = {
  'fits': False,
  'memory': {'total': 20 * 2**30, 'available': 16 * 2**30},
  'remedy': '--set REMAT=true',
}
UNTOLD = {'fits': False, 'memory': {'total': None, 'available': 16 * 2**30}, 'remedy': None}


@pytest.mark.parametrize(
  'line, libtpu, refusal',
  [
    (
      printed(SMALL),
      True,
      '20.0 of 16.0 GiB a chip',
    ),
    (
      printed(SMALL),
      True,
      'A remedy: --set REMAT=true',
    ),
    (printed(UNTOLD), True, 'more than a chip has.*take a larger slice'),
    ('import sys; sys.exit("dro_jax: no setting X")', True, 'exit code 1: dro_jax: no setting X'),
    ('', False, r"pip install 'jax\[tpu\]'; --job.preflight=False skips this check"),
  ],
)
def test_a_run_that_does_not_fit_is_refused_with_the_remedy(found, line, libtpu, refusal):
  found(line, libtpu)
  with pytest.raises(UsageError, match=refusal):
    ask()


def test_preflight_is_skipped_on_request_and_for_commands_that_do_not_train(found):
  found('', libtpu=False)
  ask(_job(preflight=False))
  ask(arguments=['evaluate', '--model_dir=/mnt/runs/a'])


def test_an_unknown_slice_is_asked_for():
  with pytest.raises(UsageError, match='pass --job.topology=KIND:SHAPE'):
    checks.preflight(_job(accelerator_type='v3-32'), TRAIN, '', commands.dry(), dry_run=True)


def test_preflight_is_of_the_same_run_but_for_files_that_are_not_here(tmp_path):
  here = tmp_path / 'f.jsonl'
  here.write_text('')
  given = [*TRAIN, '--set', 'BATCH=8', '--init_from=/mnt/runs/t5', f'--replay={here}']
  given += ['--set', 'REFERENCE_STORE=/mnt/runs/store']
  command = checks.command(_job(), [*given, '--triplets', '/mnt/runs/f.jsonl'], 'v5e:4x8')
  assert command[command.index('preflight') :] == [
    'preflight',
    '--gin_file=models/t5_1_1_xl.gin',
    '--set=BATCH=8',
    f'--replay={here}',
    '--topology=v5e:4x8',
    '--json',
  ]


@pytest.mark.parametrize(
  'vocabulary, kept', [('bytes', True), ('/mnt/runs/mine.model', False), ('None', True), ('HERE', True)]
)
def test_a_vocabulary_that_is_not_here_takes_the_data_with_it(tmp_path, vocabulary, kept):
  here = str(tmp_path / 'here')
  pathlib.Path(here).write_text('')
  given = [f'--triplets={here}', '--set', f'VOCABULARY={vocabulary.replace("HERE", here)}']
  command = checks.command(_job(), ['train', *given], 'v5e:4x8')
  for flag in ('triplets', 'vocabulary'):
    assert any(words.values(command, flag)) == kept


def test_preflight_needs_a_model_size_where_only_the_checkpoint_has_it():
  given = ['train', '--init_from=/mnt/runs/t5']
  with pytest.raises(UsageError, match='--job.preflight_flags='):
    checks.command(_job(), given, 'v5e:4x8')
  flags = ('--gin_file=models/t5_1_1_xl.gin',)
  assert flags[0] in checks.command(_job(preflight_flags=flags), given, 'v5e:4x8')


def test_no_machine_is_created_for_a_run_that_does_not_fit(cloud, found):
  found(printed(SMALL))
  with pytest.raises(UsageError, match='does not fit v5e:4x4'):
    tpu_vm.run(_job(), TRAIN)
  assert cloud.calls() == []
