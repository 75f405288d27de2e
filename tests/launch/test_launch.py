import pytest

from launch import launch
from launch.backends import tpu_vm

# ml_collections loads a job's file in a way that importlib would rather it did not.
pytestmark = pytest.mark.filterwarnings('default:the load_module:DeprecationWarning')

LOCAL = ['--job=launch/jobs/local.py']


@pytest.fixture
def calls(monkeypatch):
  """What a backend that only remembers was called with."""
  made = []
  monkeypatch.setattr(tpu_vm, 'run', lambda *call, **named: made.append((*call, named)) or 75)
  return made


def test_a_job_goes_to_its_backend_with_its_fields_and_the_arguments_verbatim(calls):
  theirs = ['train', '--job.spot=False', '--', '--set', 'A=b c 🙂 \'"', '--dry_run']
  ours = ['--job=launch/jobs/v5e_16.py', '--job.spot=True', '--job.poll_seconds=1', '--job.max_restarts=3']
  assert launch.main([*ours, '--', *theirs]) == 75
  ((job, arguments, named),) = calls
  assert (job.spot, job.poll_seconds, job.max_restarts) == (True, 1.0, 3)
  assert job.accelerator_type == 'v5litepod-16'
  assert arguments == theirs
  assert named == {'dry_run': False}


@pytest.mark.parametrize('name, kind', [('v5e_16', 'v5litepod-16'), ('v5e_32', 'v5litepod-32')])
def test_jobs_may_be_named_without_their_folder(calls, name, kind):
  assert launch.main([f'--job={name}', '--dry_run', '--', 'train']) == 75
  ((job, _, named),) = calls
  assert job.accelerator_type == kind
  assert named == {'dry_run': True}


@pytest.mark.parametrize(
  'argv, words',
  [
    ([*LOCAL, '--job.procesess=3', '--', 'train'], "no field 'procesess' (did you mean processes?)"),
    (
      [*LOCAL, '--job.processes=two', '--', 'train'],
      'processes has the type int (its default is 0)',
    ),
    ([*LOCAL, '--job.peer_seconds=x', '--', 'train'], 'peer_seconds has the type float'),
    (['--job=v5e_16', '--job.spot=perhaps', '--', 'train'], 'spot has the type bool'),
    (['--job=v5e', '--', 'train'], "no job spec 'v5e' (did you mean v5e_"),
    (['--', 'train'], 'no job: pass --job=launch/jobs/NAME.py'),
    (LOCAL, 'no dro_jax command: pass one'),
    ([*LOCAL, 'train'], "'train' is not a flag of the launcher: pass flags of dro_jax after --"),
    ([*LOCAL, '--dri_run', '--', 'train'], 'dri_run'),
    ([*LOCAL, '--job.backend=launch.backends.slurm:run', '--', 'train'], 'Pass MODULE:FUNCTION'),
    ([*LOCAL, '--job.processes=-1', '--', 'train'], '--job.processes=-1: pass 0 or more'),
  ],
)
def test_bad_usage_is_said_in_one_line(capsys, argv, words):
  assert launch.main(argv) == 2
  said = capsys.readouterr().err
  assert words in said
  assert said.count('\n') == 1


@pytest.mark.parametrize(
  'text, words',
  [
    ('get_config = 3', 'not callable'),
    ('def get_config(:', 'invalid syntax'),
    ('import no_such_module', "No module named 'no_such_module'"),
  ],
)
def test_a_file_that_is_no_job_is_said(tmp_path, capsys, text, words):
  (tmp_path / 'mine.py').write_text(text)
  assert launch.main([f'--job={tmp_path}/mine.py', '--', 'train']) == 2
  said = capsys.readouterr().err
  assert f'--job={tmp_path}/mine.py: ' in said and words in said
  assert said.count('\n') == 1


def test_help_names_the_jobs(capsys):
  assert launch.main(['--help']) == 0
  assert 'launch/jobs/v5e_16.py' in capsys.readouterr().out
