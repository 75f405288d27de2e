"""Two runs in one folder: the second is refused, and a claim ends with its process."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from dro_jax.errors import UsageError
from dro_jax.run.folder import lock

# A process that claims the folder as claims.py does, and keeps it.
HOLDER = textwrap.dedent("""
  import fcntl, os, sys, time
  lock = os.open(os.path.join(sys.argv[1], '.lock'), os.O_RDWR | os.O_CREAT)
  fcntl.flock(lock, fcntl.LOCK_EX)
  print('held', flush=True)
  time.sleep(60)
""")


def test_a_second_claim_is_refused_and_says_by_whom(tmp_path):
  folder = tmp_path / 'run'
  with lock.locked(folder):
    assert json.loads((folder / '.lock').read_text())['process'] == os.getpid()
    with (
      pytest.raises(UsageError, match=rf'in use by another run \(process {os.getpid()} on'),
      lock.locked(folder),
    ):
      pass
    (folder / 'metrics.jsonl').touch()
  with lock.locked(folder):
    pass


def test_a_killed_process_leaves_no_claim(tmp_path):
  holder = subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
  assert holder.stdout.readline() == b'held\n'
  with pytest.raises(UsageError, match='in use'), lock.locked(tmp_path):
    pass
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  holder.stdout.close()
  with lock.locked(tmp_path):
    pass


def test_a_folder_that_got_nothing_is_not_left_behind(tmp_path):
  with pytest.raises(KeyError), lock.locked(tmp_path / 'new'):
    raise KeyError
  assert not (tmp_path / 'new').exists()
  (tmp_path / 'old').mkdir()
  with lock.locked(tmp_path / 'old'):
    pass
  assert (tmp_path / 'old').exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').touch()
  with (
    pytest.raises(UsageError, match='cannot write to .*file/run: Not a directory'),
    lock.locked(tmp_path / 'file' / 'run'),
  ):
    pass
