"""The JobSet (jobset.x-k8s.io/v1alpha2) of a run: one Job for each slice, one pod for each machine.

Exit code 2 ends it. Exit code 1 ends it too, but not on spot machines: there, when a machine is taken away,
the processes of the others end with code 1. There the launcher ends a set that fails twice without losing a
machine. Every other end of a pod, such as 75 after saving or a preemption, restarts the whole set, at most
`max_restarts` times. GKE sets the worker and the slice of each pod in TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and
MEGASCALE_*, which jax reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from dro_jax.parallel import processes
from launch import slices

API = 'jobset.x-k8s.io/v1alpha2'
CONTAINER, REPLICATED = 'dro-jax', 'slice'
LABEL = 'dro-jax/run'  # The label of the set and of its pods; its value is the set's name.
# A slice of several machines is a node pool, which must not hold pods of another Job.
_EXCLUSIVE = {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
_BUCKETS = {'gke-gcsfuse/volumes': 'true'}  # The driver that mounts buckets requires it.
_SPOT = 'cloud.google.com/gke-spot'
_VOLUME = 'runs'
# A checkpoint appears when its folder is renamed; on a flat bucket gcsfuse does so only with this option.
_MOUNT_OPTIONS = 'implicit-dirs,rename-dir-limit=200000'


def manifest(job: config_dict.ConfigDict, name: str, arguments: Sequence[str]) -> dict[str, Any]:
  """The JobSet, as JSON, that runs `dro_jax ARGUMENTS` on all machines of the job's slices."""
  where = slices.parse(job.topology, job.chips_per_host)
  queue = {'kueue.x-k8s.io/queue-name': job.queue} if job.queue else {}
  work = {
    'parallelism': where.hosts,
    'completions': where.hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,
    'podFailurePolicy': {'rules': _pod_rules(job)},
    'template': {
      'metadata': {'labels': {LABEL: name}, 'annotations': _BUCKETS if job.bucket else {}},
      'spec': _pod(job, where, arguments),
    },
  }
  return {
    'apiVersion': API,
    'kind': 'JobSet',
    'metadata': {
      'name': name,
      'labels': {LABEL: name, **queue},
      'annotations': _EXCLUSIVE if where.hosts > 1 else {},
    },
    'spec': {
      'ttlSecondsAfterFinished': job.keep_seconds,
      'failurePolicy': _failure_policy(job),
      'replicatedJobs': [{'name': REPLICATED, 'replicas': where.count, 'template': {'spec': work}}],
    },
  }


def final_codes(job: config_dict.ConfigDict) -> list[int]:
  """Exit codes after which a run is not restarted."""
  return [2] if job.spot else [1, 2]


def _pod_rules(job: config_dict.ConfigDict) -> list[dict[str, Any]]:
  ends = {'containerName': CONTAINER, 'operator': 'In', 'values': final_codes(job)}
  return [
    # First, because the exit code of a lost machine is not that of the run.
    {'action': 'Count', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]},
    {'action': 'FailJob', 'onExitCodes': ends},
  ]


def _failure_policy(job: config_dict.ConfigDict) -> dict[str, Any]:
  rule = {'name': 'failed', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}
  return {'maxRestarts': job.max_restarts, 'rules': [rule]}


def _pod(job: config_dict.ConfigDict, where: slices.Slice, arguments: Sequence[str]) -> dict[str, Any]:
  chips = {'google.com/tpu': str(where.chips)}
  variables = {processes.VARIABLE: 'auto', 'PYTHONUNBUFFERED': '1', **_pairs(job.env)}
  volume = _volume(job)
  container = {
    'name': CONTAINER,
    'image': job.image,
    'command': [_verbatim(text) for text in ('python', '-m', 'dro_jax.main', *arguments)],
    'env': [{'name': key, 'value': _verbatim(value)} for key, value in variables.items()],
    'resources': {'requests': chips, 'limits': chips},
  }
  if volume:
    container['volumeMounts'] = [{'name': _VOLUME, 'mountPath': job.shared_dir}]
  pod = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': int(job.save_seconds),
    # The first process of a container ignores SIGTERM until it installs a handler.
    'shareProcessNamespace': True,
    'nodeSelector': _node_selector(job, where),
    'containers': [container],
  }
  if job.spot:
    pod['tolerations'] = [{'key': _SPOT, 'operator': 'Equal', 'value': 'true', 'effect': 'NoSchedule'}]
  if job.service_account:
    pod['serviceAccountName'] = job.service_account
  if volume:
    pod['volumes'] = [{'name': _VOLUME, **volume}]
  return pod


def _node_selector(job: config_dict.ConfigDict, where: slices.Slice) -> dict[str, str]:
  labels = {
    'cloud.google.com/gke-tpu-accelerator': where.accelerator,
    'cloud.google.com/gke-tpu-topology': where.shape,
  }
  return {**labels, **({_SPOT: 'true'} if job.spot else {}), **_pairs(job.node_selector)}


def _volume(job: config_dict.ConfigDict) -> dict[str, Any]:
  if job.claim:
    return {'persistentVolumeClaim': {'claimName': job.claim}}
  if job.bucket:
    options = {'bucketName': job.bucket, 'mountOptions': _MOUNT_OPTIONS}
    return {'csi': {'driver': 'gcsfuse.csi.storage.gke.io', 'volumeAttributes': options}}
  return {}


def _verbatim(text: str) -> str:
  """A text with $$ for $, as Kubernetes, which expands $(NAME), reads it."""
  return text.replace('$', '$$')


def _pairs(texts: Sequence[str]) -> Mapping[str, str]:
  """NAME=VALUE texts as a mapping."""
  return {name: value for name, _, value in (text.partition('=') for text in texts)}
