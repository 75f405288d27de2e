import subprocess
import sys

import pytest

from dro_jax.errors import UsageError
from dro_jax.parallel import processes


@pytest.mark.parametrize(
  'text, arguments',
  [
    ('auto', {}),
    ('1/2@host:80', {'process_id': 1, 'num_processes': 2, 'coordinator_address': 'host:80'}),
    ('0/1@[::1]:80', {'process_id': 0, 'num_processes': 1, 'coordinator_address': '[::1]:80'}),
  ],
)
def test_descriptions_of_a_cluster_are_parsed(text, arguments):
  assert processes.parse(text) == arguments


@pytest.mark.parametrize('text', ['2', '2/2@host:80', '0/2@host', '0/2', '-1/2@host:80'])
def test_other_descriptions_are_refused(text):
  with pytest.raises(UsageError, match='pass auto, or INDEX/COUNT@HOST:PORT'):
    processes.parse(text)


def test_a_process_alone_joins_nothing_and_prints(monkeypatch):
  monkeypatch.delenv(processes.VARIABLE, raising=False)
  processes.join()
  assert processes.is_first()


ENDING = """
import atexit, sys
from dro_jax.parallel import processes as cluster
atexit.register(lambda: print('waited for the others'))
with cluster.failing_at_once():
  exec(sys.argv[1])
"""


@pytest.mark.parametrize('code, waits', [(1, False), (2, True), (75, True), (130, False)])
def test_a_process_alone_does_not_wait_after_a_failure_or_an_interrupt(code, waits):
  done = subprocess.run(
    [sys.executable, '-c', ENDING, f'sys.exit({code})'],
    env={'PYTHONPATH': ':'.join(sys.path)},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, 'waited' in done.stdout) == (code, waits)


@pytest.mark.parametrize(
  'ending, code, waits',
  [('sys.exit(0)', 0, True), ('sys.exit(75)', 75, True), ('sys.exit(2)', 2, False), ('1/0', 1, False)],
)
def test_a_process_that_fails_does_not_wait_for_the_others(ending, code, waits):
  done = subprocess.run(
    [sys.executable, '-c', ENDING, ending],
    env={processes.VARIABLE: 'auto', 'PYTHONPATH': ':'.join(sys.path)},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, 'waited' in done.stdout) == (code, waits)
  assert ('ZeroDivisionError' in done.stderr) == (ending == '1/0')
