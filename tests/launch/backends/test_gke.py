import json
import os
import pathlib
import sys
from typing import NamedTuple

import pytest

from dro_jax.errors import UsageError
from launch.backends import gke, jobset

TRAIN = ['train', '--model_dir=/mnt/runs/a', '--triplets=hh_helpful']
ARGUMENTS = [*TRAIN, '--set', 'TEMPLATE=it\'s a "$(HOME)" 🙂\n  {prompt}', '']
DONE = {'type': 'Completed', 'status': 'True'}
FAILED = {'type': 'Failed', 'status': 'True', 'message': 'jobset failed'}


def pod(index=0, attempt=0, code=None, waiting=None, disrupted=False):
  """One machine of the only slice."""
  state = {'running': {}}
  if waiting:
    state = {'waiting': {'reason': waiting, 'message': 'why'}}
  if code is not None:
    state = {'terminated': {'exitCode': code, 'finishedAt': f'2026-01-01T00:00:0{index}Z'}}
  labels = {
    'jobset.sigs.k8s.io/job-index': '0',
    'batch.kubernetes.io/job-completion-index': str(index),
    'jobset.sigs.k8s.io/restart-attempt': str(attempt),
  }
  status = {'containerStatuses': [{'name': 'dro-jax', 'state': state}]}
  if disrupted:
    status['conditions'] = [{'type': 'DisruptionTarget', 'status': 'True'}]
  return {
    'kind': 'Pod',
    'metadata': {'name': f'pod-{attempt}-{index}', 'labels': labels},
    'status': status,
  }


def scene(*pods, restarts=0, over=None, **more):
  return {'status': {'restarts': restarts, 'conditions': [over] if over else []}, 'pods': pods, **more}


RUNNING = scene(pod(0), pod(1))


class Cluster(NamedTuple):
  """The stand-in's folder."""

  folder: pathlib.Path

  def script(self, *scenes, **more) -> None:
    """What is to happen."""
    usual = {'deleting': [None], 'apply': ['ok'], 'delete': ['ok'], 'log': ['one', 'two 🙂']}
    (self.folder / 'script.json').write_text(json.dumps({'scenes': scenes, **usual, **more}))

  def verbs(self) -> list[str]:
    """What was called, but for mere looks."""
    file = self.folder / 'calls.jsonl'
    calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [call[0] for call in calls if call[0] != 'get']


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  (tmp_path / 'bin').mkdir()
  source = (pathlib.Path(__file__).parent / 'stand_in_kubectl.py').read_text()
  (tmp_path / 'bin' / 'kubectl').write_text(f'#!{sys.executable} -SE\n{source}')
  (tmp_path / 'bin' / 'kubectl').chmod(0o755)
  monkeypatch.setenv('STAND_IN', str(tmp_path))
  monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
  return Cluster(tmp_path)


def job(**fields):
  spec = gke.spec()
  quick = {'poll_seconds': 0.01, 'retry_seconds': 0.01, 'attempts': 2, 'preflight': False}
  spec.update({'image': 'registry/dro_jax:1', 'claim': 'runs', **quick, **fields})
  return spec


def test_a_whole_life_with_a_restart(cluster, capsys):
  cluster.script(
    scene(pod(0, waiting='ContainerCreating'), pod(1)),
    RUNNING,
    'fail',
    scene(pod(0, 1), pod(1, 1), restarts=1),
    scene(pod(0, 1, code=0), pod(1, 1, code=0), restarts=1, over=DONE),
  )
  assert gke.run(job(), ARGUMENTS) == 0
  assert [verb for verb in cluster.verbs() if verb != 'logs'] == ['apply', 'delete']
  shown = capsys.readouterr()
  for words in (
    '1 of 2 pods run; ContainerCreating: why',
    '2 of 2 pods run',
    ': restart 1 of 20',
  ):
    assert words in shown.err
  # Each line once, without its time.
  last = [line for line in shown.out.splitlines() if line.endswith('pod-1-0')]
  assert last == ['one of pod-1-0', 'two 🙂 of pod-1-0']
  made = json.loads((cluster.folder / 'applied.json').read_text())
  assert made == jobset.manifest(job(), made['metadata']['name'], ARGUMENTS)


@pytest.mark.parametrize(
  'codes, code, words',
  [
    ((2, 137), 2, 'failed with exit code 2:\n[pod] its last line'),
    ((75, 75), 75, 'no restart is left'),
    ((None, None), 1, 'jobset failed'),
  ],
)
def test_a_set_that_failed_ends_with_its_pods_code(cluster, capsys, codes, code, words):
  pods = [pod(i, code=number) for i, number in enumerate(codes)]
  cluster.script(RUNNING, scene(*pods, over=FAILED))
  assert gke.run(job(), ARGUMENTS) == code
  assert words in capsys.readouterr().err
  assert cluster.verbs()[-1] == 'delete'


STOP = scene(pod(0), pod(1), signal='SIGTERM')


@pytest.mark.parametrize(
  'deleting, code',
  [
    ([RUNNING, scene(pod(0, code=75), pod(1, code=75)), None], 75),
    ([RUNNING, None], 143),
    ([scene(pod(0), signal='SIGINT'), RUNNING], 143),
  ],
)
def test_a_signal_asks_the_pods_to_save_and_a_second_one_waits_for_none(cluster, deleting, code):
  cluster.script(STOP, RUNNING, deleting=deleting)
  assert gke.run(job(), ARGUMENTS) == code
  assert cluster.verbs().count('delete') == 1


def test_a_deletion_that_failed_is_tried_again_whatever_comes(cluster):
  cluster.script(STOP, RUNNING, delete=['SIGINT fail', 'ok'])
  assert gke.run(job(), ARGUMENTS) == 143
  assert cluster.verbs().count('delete') == 2


def test_a_failed_deletion_after_an_error_of_the_launcher_is_repeated(cluster, monkeypatch):
  cluster.script(RUNNING, delete=['fail', 'ok'])
  monkeypatch.setattr(gke, '_follow', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    gke.run(job(), ARGUMENTS)
  assert cluster.verbs() == ['apply', 'delete', 'delete']


def failing(attempt, **fields):
  pods = [pod(0, attempt, code=1), pod(1, attempt, **fields)]
  return scene(*pods, restarts=attempt)


@pytest.mark.parametrize(
  'scenes, code',
  [
    ([failing(0), failing(1)], 1),
    # A machine that was taken away takes the others' runs with it.
    ([failing(0), failing(1, disrupted=True)], 0),
    ([failing(0, disrupted=True), failing(1, code=75)], 0),
    # What is between them has run for a while.
    ([failing(0), scene(pod(0, 1, code=75), pod(1, 1, code=75), restarts=1), failing(2)], 0),
  ],
)
def test_a_run_that_fails_twice_without_losing_a_machine_is_ended(cluster, capsys, scenes, code):
  cluster.script(*scenes, scene(restarts=2), scene(restarts=2, over=DONE))
  assert gke.run(job(spot=True), ARGUMENTS) == code
  assert ('failed twice in succession, and lost no machine' in capsys.readouterr().err) == (code == 1)
  assert cluster.verbs()[-1] == 'delete'


def test_a_pod_that_cannot_begin_is_seen_behind_one_that_is_created(cluster, capsys):
  waiting = scene(pod(0, waiting='ContainerCreating'), pod(1, waiting='ImagePullBackOff'))
  cluster.script(*[waiting] * 5, scene(over=DONE))
  assert gke.run(job(), ARGUMENTS) == 1
  assert 'cannot start: ImagePullBackOff: why' in capsys.readouterr().err


@pytest.mark.parametrize('waiting', ['ContainerCreating', 'PodInitializing'])
def test_a_pod_that_is_created_for_too_long_is_described_and_ended(cluster, capsys, waiting):
  cluster.script(*[scene(pod(0), pod(1, waiting=waiting))] * 20, scene(over=DONE))
  assert gke.run(job(begin_seconds=0.05), ARGUMENTS) == 1
  said = capsys.readouterr().err
  assert 'pod-0-1 has not started in 0.05 s. kubectl describe pods pod-0-1:\nFailedMount: no such' in said
  assert cluster.verbs()[-1] == 'delete'


@pytest.mark.parametrize(
  'scenes, outcomes, words',
  [
    ([RUNNING], {'apply': ['fail']}, 'creating dro-jax-'),
    ([None], {}, 'was deleted from elsewhere'),
    ([scene(pod(waiting='ImagePullBackOff'))], {}, 'cannot start: ImagePullBackOff: why'),
    (['fail'], {}, 'the cluster has not described'),
    ([scene(over=DONE)], {'delete': ['fail']}, 'IT MAY STILL RUN AND COST MONEY'),
  ],
)
def test_a_permanent_failure_is_reported_and_the_set_is_deleted(cluster, capsys, scenes, outcomes, words):
  cluster.script(*scenes, **outcomes)
  assert gke.run(job(silence_seconds=0.1), ARGUMENTS) == 1
  assert words in capsys.readouterr().err
  assert cluster.verbs()[-1] == 'delete'


def test_an_error_of_the_launcher_deletes_the_set(cluster, monkeypatch):
  cluster.script(RUNNING)
  monkeypatch.setattr(gke, '_follow', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    gke.run(job(), ARGUMENTS)
  assert cluster.verbs() == ['apply', 'delete']


def test_a_set_that_is_over_is_kept_where_asked(cluster, capsys):
  cluster.script(scene(over=DONE))
  assert gke.run(job(keep=True), ARGUMENTS) == 0
  assert cluster.verbs() == ['apply']
  assert 'is over, and kept until you run: kubectl delete jobset dro-jax-' in capsys.readouterr().err


def test_a_set_that_never_started_is_deleted_even_with_keep(cluster):
  cluster.script(scene(pod(waiting='ImagePullBackOff')))
  assert gke.run(job(keep=True), ARGUMENTS) == 1
  assert cluster.verbs()[-1] == 'delete'


def test_a_dry_run_prints_the_manifest_and_every_command_and_calls_none(cluster, capsys):
  assert gke.run(job(context='c', namespace='n', preflight=True), ARGUMENTS, dry_run=True) == 0
  assert cluster.verbs() == []
  first, _, rest = capsys.readouterr().out.partition("<< 'END_OF_FILE'\n")
  text, _, commands = rest.partition('\nEND_OF_FILE\n')
  assert 'dro_jax.main preflight' in first and '--topology=v5e:4x8' in first
  assert json.loads(text)['kind'] == 'JobSet'
  for verb in ('apply', 'logs', 'delete'):
    assert f'kubectl --context=c --namespace=n {verb}' in commands


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'image': ''}, 'docker build --file=launch/Dockerfile'),
    ({'claim': ''}, '--model_dir=/mnt/runs/a would be deleted with its pod'),
    ({'shared_dir': '/mnt/other'}, 'would be deleted with its pod'),
    ({'bucket': 'b'}, 'Pass one of them'),
    ({'topology': 'v5e:4'}, 'pass KIND:SHAPE'),
    ({'topology': 'v5p:4x4'}, 'v5p slices have 3 dimensions'),
    ({'topology': '2xv5e:2x2'}, 'GKE joins several slices only if each has several machines'),
    ({'name': 'a' * 40}, '2 characters shorter'),
    ({'env': ('A',)}, 'pass NAME=VALUE'),
    ({'topology': 'v5e:0x8'}, 'pass KIND:SHAPE'),
    ({'topology': '0xv5e:4x8'}, 'pass KIND:SHAPE'),
    ({'chips_per_host': -4}, 'do not divide over machines of -4'),
  ],
)
def test_jobs_that_would_lose_their_runs_are_refused(fields, words):
  with pytest.raises(UsageError, match=words):
    gke.run(job(**fields), ARGUMENTS, dry_run=True)


def test_a_run_without_a_folder_is_refused():
  with pytest.raises(UsageError, match='train needs MODEL_DIR, which has no value: pass --model_dir'):
    gke.run(job(), ['train', '--triplets=hh_helpful'], dry_run=True)
