"""The JobSet (jobset.x-k8s.io/v1alpha2) of a run: a Job a slice, a pod a machine; a pure function of its job.

What ends it: exit code 2 (and 1, but on spot machines, where a machine that is taken away takes the others'
processes with it by exit code 1; there the launcher ends what fails so twice and lost no machine). Whatever
else ends a pod, 75 after saving and preemption among them, begins the whole set again, at most `max_restarts`
times. GKE tells the pods which worker of which slice they are (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES,
MEGASCALE_*), which jax reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from dro_jax.parallel import processes
from launch import slices

API = 'jobset.x-k8s.io/v1alpha2'
CONTAINER, REPLICATED = 'dro-jax', 'slice'
LABEL = 'dro-jax/run'  # Of the set and of its pods: its name.
# A slice of several machines is a node pool: no other Job's pods may come into it.
_EXCLUSIVE = {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
_BUCKETS = {'gke-gcsfuse/volumes': 'true'}  # What mounts buckets looks for it.
_SPOT = 'cloud.google.com/gke-spot'
_VOLUME = 'runs'
# A checkpoint appears as its folder is renamed, which gcsfuse refuses on a flat bucket unless it is told to.
_MOUNT_OPTIONS = 'implicit-dirs,rename-dir-limit=200000'


def manifest(job: config_dict.ConfigDict, name: str, arguments: Sequence[str]) -> dict[str, Any]:
  """The JobSet that runs `dro_jax ARGUMENTS` on all machines of the job's slices, as JSON has it."""
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
  """Exit codes after which a run is not begun again."""
  return [2] if job.spot else [1, 2]


def _pod_rules(job: config_dict.ConfigDict) -> list[dict[str, Any]]:
  ends = {'containerName': CONTAINER, 'operator': 'In', 'values': final_codes(job)}
  return [
    # First, as its code says nothing of the run.
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
    # A container's first process would not hear SIGTERM before it has asked to.
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
  """A text as Kubernetes reads it: it expands $(NAME), and takes $$ for $."""
  return text.replace('$', '$$')


def _pairs(texts: Sequence[str]) -> Mapping[str, str]:
  """NAME=VALUE texts."""
  return {name: value for name, _, value in (text.partition('=') for text in texts)}
