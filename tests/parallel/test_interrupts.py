import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from dro_jax.checkpoints import folders
from dro_jax.parallel import interrupts
from tests.run.test_train import write_triplets

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Where the tests are a job in the background, their children ignore Ctrl-C.
FRONT = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '
DOOR = FRONT + 'from dro_jax import main; main.run()'


@pytest.fixture(autouse=True)
def in_front():
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_is_a_request_and_the_second_interrupts():
  before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
  with interrupts.noticed() as request:
    assert not request
    signal.raise_signal(signal.SIGINT)
    assert request and request.by_interrupt
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_after_sigterm_is_a_request_too():
  with interrupts.noticed() as request:
    signal.raise_signal(signal.SIGTERM)
    assert request and not request.by_interrupt
    signal.raise_signal(signal.SIGINT)
    assert request.by_interrupt


def test_with_several_processes_an_interrupt_becomes_the_sigterm_that_jax_handles(monkeypatch):
  sent, before = [], signal.getsignal(signal.SIGTERM)
  monkeypatch.setattr(os, 'kill', lambda *arguments: sent.append(arguments))
  with interrupts.noticed(several=True):
    assert signal.getsignal(signal.SIGTERM) is before
    signal.raise_signal(signal.SIGINT)
  assert sent == [(os.getpid(), signal.SIGTERM)]


def test_a_job_in_the_background_still_ignores_interrupts():
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with interrupts.noticed() as request:
    signal.raise_signal(signal.SIGINT)
    assert not request


def test_another_thread_gets_no_requests_and_changes_no_handlers():
  seen = []

  def work():
    with interrupts.noticed() as request:
      seen.append((bool(request), signal.getsignal(signal.SIGINT)))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [(False, signal.default_int_handler)]


@pytest.fixture
def start():
  """Starts a Python program with its output to read; what is left of it is killed after the test."""
  started = []

  def start(program, *arguments):
    # One device, which compiles in a fraction of eight devices' time.
    flags = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
    changes = {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags)}
    environment = os.environ | changes
    pipes = dict.fromkeys(('stdout', 'stderr'), subprocess.PIPE)
    command = [sys.executable, '-c', program, *arguments]
    started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    return started[-1]

  yield start
  for process in started:
    process.kill()
    process.communicate()


DEAF = """
import signal, time
from dro_jax.parallel import interrupts
signal.signal(signal.SIGINT, lambda *_: None)
with interrupts.second_ends():
  print('ready', flush=True)
  while True:
    time.sleep(1)
"""


def test_a_second_interrupt_ends_any_program_at_once(start):
  process = start(DEAF)
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGINT)
  assert read_until(process, 'Press it again') is not None
  process.send_signal(signal.SIGINT)
  text = process.communicate(timeout=30)[1]
  assert process.returncode == interrupts.ENDED
  assert 'ended at once' in text and 'Traceback' not in text


@pytest.mark.long
def test_ctrl_c_while_a_run_compiles_saves_its_first_step(start, tmp_path):
  folder, files = tmp_path / 'run', write_triplets(tmp_path / 'triplets.jsonl')
  settings = (
    'BATCH=8',
    'PROMPT_LENGTH=32',
    'RESPONSE_LENGTH=16',
    'SAMPLE_PROMPTS=0',
    'VALIDATION_FRACTION=0.2',
    f'CACHE_DIR={tmp_path}',
  )
  process = start(
    DOOR, 'train', '--gin_file=models/t5_1_1_tiny.gin', f'--triplets={files}', f'--model_dir={folder}',
    *(f'--set={setting}' for setting in settings),
  )  # fmt: skip
  assert read_until(process, 'starting: ') is not None
  process.send_signal(signal.SIGINT)
  text = process.communicate(timeout=240)[1]
  assert process.returncode == 75, text[-3000:]
  assert 'stopped by Ctrl-C after step' in text and 'Traceback' not in text
  assert folders.newest_step(folder) >= 1


def read_until(process, text, seconds=120):
  """The line of standard error that has a text; None where none comes."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline and (line := process.stderr.readline()):
    if text in line:
      return line
  return None
