import socket
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


def refuse():
  raise UsageError('no place to write')


def test_a_process_alone_is_the_first():
  assert processes.from_first(lambda: 7) == 7
  with pytest.raises(UsageError, match='no place to write'):
    processes.from_first(refuse)


TOLD = """
import jax
from dro_jax.errors import UsageError
from dro_jax.parallel import processes
processes.join()

def refuse():
  raise UsageError('no place to write')

def other():
  return 1 / 0 if jax.process_index() else 2**30 + 7

print(processes.from_first(other))
try:
  processes.from_first(refuse)
except UsageError as error:
  print(error)
"""


def test_the_first_process_tells_the_others_its_number_and_its_refusal():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  environment = {
    'PYTHONPATH': ':'.join(sys.path), 'JAX_PLATFORMS': 'cpu', 'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
  }  # fmt: skip
  both = [
    subprocess.Popen(
      [sys.executable, '-c', TOLD], env=environment | {processes.VARIABLE: f'{i}/2@{address}'},
      stdout=subprocess.PIPE, text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  said = [process.communicate(timeout=120)[0].splitlines()[-2:] for process in both]
  assert said == [
    [str(2**30 + 7), 'no place to write'],
    [str(2**30 + 7), 'the first process refused to go on. Its message has the cause.'],
  ]
