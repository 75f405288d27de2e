import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from dro_jax.data.storage import folders
from dro_jax.data.table import beam
from dro_jax.errors import UsageError

OPTIONS = {'what': 'store', 'description': 'd.json', 'version': 1, 'mark': 'm', 'elsewhere': 'another folder'}
KILLED = """
import os, signal, sys
from dro_jax.data.storage import folders
with folders.Replacing(
  sys.argv[1], what='store', description='d.json', version=1, mark='m', elsewhere='x'
) as b:
  open(b + '/part', 'w').close()
  os.kill(os.getpid(), signal.SIGKILL)
"""


def build(directory):
  with folders.Replacing(str(directory), **OPTIONS) as building:
    folders.seal(building, 'd.json', {'version': 1, 'fingerprint': 'm'})


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def aged(*paths):
  for path in paths:
    os.utime(path, (time.time() - 3 * 86400,) * 2)


def test_the_next_builder_removes_the_files_of_a_killed_one(tmp_path):
  done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path / 'a')])
  assert done.returncode == -9
  assert len(names(tmp_path)) == 2
  build(tmp_path / 'b')
  assert names(tmp_path) == ['b']


def test_an_unfinished_folder_of_a_living_builder_stays(tmp_path):
  with folders.Replacing(str(tmp_path / 'a'), **OPTIONS) as building:
    aged(pathlib.Path(building))
    build(tmp_path / 'b')
    assert os.path.isdir(building)
    folders.seal(building, 'd.json', {'version': 1, 'fingerprint': 'm'})
  assert names(tmp_path) == ['a', 'b']


@pytest.mark.parametrize('lock', [None, '', 'x', json.dumps({'machine': 'another', 'process': 1})])
def test_a_builder_of_another_machine_or_version_counts_as_dead_after_a_silent_day(lock, tmp_path):
  building, other = tmp_path / '.building-x', tmp_path / '.building-y.lock'
  building.mkdir()
  (building / 'part').touch()
  other.touch()
  if lock is not None:
    (tmp_path / '.building-x.lock').write_text(lock)
  aged(building)
  build(tmp_path / 'a')
  assert (building / 'part').exists() and other.exists()
  aged(building / 'part', building, *tmp_path.glob('*.lock'))
  build(tmp_path / 'b')
  assert names(tmp_path) == ['a', 'b']


def test_the_files_of_a_killed_beam_job_are_removed_after_a_silent_day(tmp_path):
  for name in ('.beam-1-a', '.beam-2-b'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'part').touch()
  aged(tmp_path / '.beam-1-a' / 'part', tmp_path / '.beam-1-a')
  beam._sweep(str(tmp_path))
  assert names(tmp_path) == ['.beam-2-b']


def test_a_folder_with_other_files_is_refused_before_the_build(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'thesis.tex').write_text('mine')
  (tmp_path / 'b').write_text('mine')
  for name, message in (('a', 'holds something else'), ('b', 'a file has that name')):
    with pytest.raises(UsageError, match=message), folders.Replacing(str(tmp_path / name), **OPTIONS):
      raise AssertionError('built')
  assert names(tmp_path) == ['a', 'b']
