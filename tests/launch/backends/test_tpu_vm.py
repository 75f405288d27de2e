import contextlib
import shlex
import subprocess
import tarfile

import pytest

from dro_jax.errors import UsageError
from launch.backends import machines, tpu_vm

TRAIN = ['train', '--triplets=hh_helpful']
ARGUMENTS = [*TRAIN, '--model_dir=/mnt/runs/a', '--set', 'TEMPLATE=it\'s a "$HOME" 🙂\n  {prompt}', '']


def job(**fields):
  """Two machines' spot job without waits."""
  spec = tpu_vm.spec()
  quick = {'poll_seconds': 0.01, 'retry_seconds': 0.01, 'ssh_attempts': 3, 'delete_attempts': 3}
  spec.update({'spot': True, 'shared_dir': '/mnt/runs', 'preflight': False, **quick, **fields})
  return spec


def test_a_whole_life_with_a_restart_and_a_preemption(cloud, capsys):
  cloud.script(
    codes='75 preempted 0',
    queue=['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ok'],
    node=['CREATING', 'ok'],
  )
  assert tpu_vm.run(job(mount='echo mounted'), ARGUMENTS) == 0
  assert cloud.machines() == ['somebodys']
  made = ['create', 'scp', 'install', 'mount']
  assert cloud.events() == [*made, 'start', 'start', 'delete', *made, 'start', 'delete']
  names = [call[5] for call in cloud.calls() if call[0] == 'create']
  assert len(set(names)) == 2
  for worker in (0, 1):
    assert cloud.arguments(worker) == ['-m', 'dro_jax.main', *ARGUMENTS]
  shown = capsys.readouterr()
  # A preempted machine may take its last words with it.
  assert {'run 1 of worker 0 🙂 of auto', 'run 3 of worker 0 🙂 of auto'} <= set(shown.out.splitlines())
  for words in ('is WAITING_FOR_RESOURCES', 'is PREEMPTED', 'stopped after saving', 'with 2 workers'):
    assert words in shown.err


def test_create_passes_the_jobs_fields_to_gcloud(cloud):
  fields = {'project': 'p', 'zone': 'z', 'valid_until': '6h', 'create_flags': ('--network=n',)}
  assert tpu_vm.run(job(**fields), ARGUMENTS) == 0
  _, *call = next(call for call in cloud.calls() if call[0] == 'create')
  assert call[:4] == ['compute', 'tpus', 'queued-resources', 'create']
  assert set(call[5:]) == {
    f'--node-id={call[4]}',
    *('--accelerator-type=v5litepod-16', '--runtime-version=v2-alpha-tpuv5-lite', '--spot'),
    *('--valid-until-duration=6h', '--network=n', '--project=p', '--zone=z'),
  }


def test_without_a_queue_the_machine_is_asked_for_directly(cloud):
  assert tpu_vm.run(job(queued=False, spot=False), ARGUMENTS) == 0
  calls = cloud.calls()
  assert {call[3] for call in calls} == {'tpu-vm'}
  assert '--version=v2-alpha-tpuv5-lite' in calls[0] and '--spot' not in calls[0]
  assert cloud.machines() == ['somebodys']


PHASES = {
  'create': (['SIGINT ok'], 130),
  'queue': (['SIGTERM WAITING_FOR_RESOURCES'], 143),
  'node': (['SIGHUP CREATING', 'ok'], 129),
  'scp': (['SIGINT ok'], 130),
  'install': (['SIGINT ok'], 130),
  'start': (['SIGINT ok'], 75),
  'status': (['SIGTERM ok', 'ok'], 75),
  'log': (['ok', 'SIGINT ok', 'ok'], 75),
  'stop': (['SIGINT ok'], 130),
  'delete': (['SIGINT ok'], 0),
}


@pytest.mark.parametrize('phase', PHASES)
def test_a_signal_in_any_phase_leaves_no_machine(cloud, phase):
  outcomes, code = PHASES[phase]
  first = {'status': ['SIGINT ok', 'ok']} if phase == 'stop' else {}
  codes = 'wait' if code != 0 else '0'
  cloud.script(codes=codes, **{**first, phase: outcomes})
  found = tpu_vm.run(job(), ARGUMENTS)
  # A run that was stopped before it began, or before it had set its handler, had nothing to save.
  assert found == code or (phase == 'start' and found in (130, 143))
  assert cloud.machines() == ['somebodys']
  assert 'delete' in cloud.events()


@pytest.mark.parametrize(
  'outcomes, code',
  [
    ({'create': ['refuse']}, 1),
    ({'create': ['late', 'ok']}, 0),
    ({'queue': ['FAILED']}, 1),
    (
      {
        'scp': ['fail', 'fail', 'ok'],
        'start': ['fail', 'ok'],
        'status': ['fail', 'ok'],
        'log': ['fail', 'ok'],
      },
      0,
    ),
    ({'install': ['fail']}, 1),
    ({'queue': ['fail', 'ok'], 'node': ['fail', 'ok']}, 0),
    ({'delete': ['fail', 'stays', 'ok']}, 0),
  ],
)
def test_a_refused_creation_is_repeated_and_leaves_no_machine(cloud, outcomes, code):
  cloud.script(**outcomes)
  assert tpu_vm.run(job(), ARGUMENTS) == code
  assert cloud.machines() == ['somebodys']
  assert all(call[5] != 'somebodys' for call in cloud.calls())


def test_a_deletion_that_fails_is_loud(cloud, capsys):
  cloud.script(delete=['fail'])
  assert tpu_vm.run(job(), ARGUMENTS) == 1
  (name, _) = cloud.machines()
  words = capsys.readouterr().err
  assert f'{name} MAY STILL RUN AND COST MONEY' in words
  assert f'  gcloud compute tpus queued-resources delete {name} --force --quiet\n' in words
  assert cloud.events().count('delete') == 3


def test_an_error_of_the_launcher_deletes_the_machine(cloud, monkeypatch):
  monkeypatch.setattr(machines, 'copy', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    tpu_vm.run(job(), ARGUMENTS)
  assert cloud.machines() == ['somebodys']


def test_a_failed_run_shows_its_end_and_is_not_begun_again(cloud, capsys):
  cloud.script(codes=('wait', '2'))
  assert tpu_vm.run(job(spot=False), ARGUMENTS) == 2
  assert cloud.events().count('start') == 1
  assert 'failed with exit code 2:\n[worker-' in capsys.readouterr().err
  assert cloud.machines() == ['somebodys']


def test_the_launcher_stops_after_max_restarts(cloud):
  cloud.script(codes='75 75 75 75')
  assert tpu_vm.run(job(max_restarts=1), ARGUMENTS) == 75
  assert cloud.events().count('start') == 2
  assert cloud.machines() == ['somebodys']


def test_a_machine_is_kept_where_asked(cloud, capsys):
  assert tpu_vm.run(job(keep=True), ARGUMENTS) == 0
  assert len(cloud.machines()) == 2
  assert 'is kept and costs money until you run: gcloud' in capsys.readouterr().err


def test_a_dry_run_prints_every_command_and_calls_none(cloud, capsys):
  assert tpu_vm.run(job(mount='echo mounted'), ARGUMENTS, dry_run=True) == 0
  assert cloud.calls() == []
  words = shlex.split(capsys.readouterr().out)
  for word in ('create', 'scp', '--command=echo mounted', 'delete'):
    assert word in words
  assert words.count('gcloud') == 14


@pytest.mark.parametrize(
  'folder, fields, words',
  [
    ('runs/a', {'spot': False}, 'is another folder on each machine'),
    ('runs/a', {'accelerator_type': 'v5litepod-8'}, 'on a spot v5litepod-8 is deleted with the machine'),
    ('/mnt/runs/../a', {}, 'on a spot v5litepod-16'),
    ('gs://bucket/a', {}, 'a run appends to its metrics'),
  ],
)
@pytest.mark.parametrize(
  'form', ['--model_dir={}', '--model_dir {}', '--set MODEL_DIR={}', "--gin.MODEL_DIR='{}'"]
)
def test_a_model_dir_that_would_be_lost_is_refused(folder, fields, words, form):
  with pytest.raises(UsageError, match=words):
    tpu_vm.refuse(job(**fields), [*TRAIN, *form.format(folder).split()])


def test_a_model_dir_that_lasts_is_not_refused():
  tpu_vm.refuse(job(), ARGUMENTS)
  tpu_vm.refuse(job(), ['arena'])
  tpu_vm.refuse(job(spot=False, keep=True, accelerator_type='v4-8'), [*TRAIN, '--model_dir=a'])


def test_a_run_without_a_folder_is_refused_before_a_machine_is_asked_for(cloud):
  with pytest.raises(UsageError, match='train needs MODEL_DIR'):
    tpu_vm.run(job(), TRAIN)
  assert cloud.calls() == []


@pytest.mark.parametrize(
  'name, count',
  [
    ('v5litepod-16', 4),
    ('v5litepod-8', 1),
    ('v6e-32', 8),
    ('v4-8', 1),
    ('v3-32', 4),
    ('odd', 0),
    ('new-4', 0),
  ],
)
def test_hosts_of_a_slice(name, count):
  assert machines.hosts(name) == count


def test_the_bundle_holds_tracked_files_as_they_are(tmp_path, monkeypatch):
  def git(*words):
    who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run(['git', '-C', str(tmp_path), *who, *words], check=True, capture_output=True)

  # Who has not told git a name may launch too.
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.setattr(tpu_vm, 'ROOT', tmp_path)
  with pytest.raises(UsageError, match='Launch from a git checkout'):
    tpu_vm.pack(str(tmp_path / 'bundle'))
  git('init', '-q')
  (tmp_path / 'kept.py').write_text('old')
  git('add', 'kept.py')
  git('commit', '-q', '-m', 'x')
  for expected in ('old', 'new'):
    (tmp_path / 'kept.py').write_text(expected)
    (tmp_path / 'secret').write_text('untracked')
    tpu_vm.pack(str(tmp_path / 'bundle'))
    with contextlib.closing(tarfile.open(tmp_path / 'bundle')) as bundle:
      assert bundle.getnames() == ['kept.py']
      assert bundle.extractfile('kept.py').read().decode() == expected
  assert (tmp_path / 'kept.py').read_text() == 'new'
