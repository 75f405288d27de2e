"""The manifest, against a schema of the fields that it uses and, where it is at hand, the CRD's own."""

import copy
import os

import jsonschema
import pytest

from launch.backends import gke, jobset

ARGUMENTS = ['train', '--set=TEMPLATE=$(HOME) $$ {prompt}']
KINDS = {
  'one slice': {},
  'spot': {'spot': True, 'claim': 'runs', 'queue': 'mine', 'env': ('A=b=$c',)},
  'two slices': {'topology': '2xv6e:4x8', 'bucket': 'mine', 'service_account': 'me'},
  'one machine': {'topology': 'v5e:2x4', 'node_selector': ('cloud.google.com/gke-nodepool=mine',)},
}


def made(**fields):
  job = gke.spec()
  job.update({'image': 'registry/dro_jax:1', **fields})
  return jobset.manifest(job, 'dro-jax-1', ARGUMENTS)


# --- the fields that we use, as Kubernetes 1.37 and JobSet's v1alpha2 have them -----------------------------


def closed(required, **optional):
  """An object that has these properties and no others."""
  properties = {**required, **optional}
  return {
    'type': 'object',
    'properties': properties,
    'required': [*required],
    'additionalProperties': False,
  }


def array(items):
  return {'type': 'array', 'items': items, 'minItems': 1}


def one_of(*words):
  return {'enum': [*words]}


TEXT, WHOLE, YES = {'type': 'string', 'minLength': 1}, {'type': 'integer', 'minimum': 0}, {'const': True}
TEXTS = {'type': 'object', 'additionalProperties': {'type': 'string'}}
CHIPS = closed({'google.com/tpu': {'type': 'string', 'pattern': '^[1-8]$'}})
CONTAINER = closed(
  {
    'name': {'type': 'string', 'pattern': '^[a-z0-9]([-a-z0-9]*[a-z0-9])?$', 'maxLength': 63},
    'image': TEXT,
    'command': array(TEXT),
    'env': array(closed({'name': TEXT, 'value': {'type': 'string'}})),
    'resources': closed({'requests': CHIPS, 'limits': CHIPS}),
  },
  volumeMounts=array(closed({'name': TEXT, 'mountPath': TEXT})),
)
CSI = closed({'driver': TEXT, 'volumeAttributes': TEXTS})
POD = closed(
  {
    'restartPolicy': {'const': 'Never'},  # Or there may be no podFailurePolicy.
    'terminationGracePeriodSeconds': WHOLE,
    'shareProcessNamespace': YES,
    'nodeSelector': TEXTS,
    'containers': array(CONTAINER),
  },
  serviceAccountName=TEXT,
  tolerations=array(
    closed(
      {
        'key': TEXT,
        'operator': one_of('Equal', 'Exists'),
        'value': TEXT,
        'effect': one_of('NoSchedule', 'PreferNoSchedule', 'NoExecute'),
      }
    )
  ),
  volumes=array(closed({'name': TEXT}, persistentVolumeClaim=closed({'claimName': TEXT}), csi=CSI)),
)
CODES = closed(
  {
    'containerName': TEXT,
    'operator': one_of('In', 'NotIn'),
    'values': {'type': 'array', 'items': {'type': 'integer', 'not': {'const': 0}}, 'uniqueItems': True},
  }
)
CONDITIONS = array(closed({'type': TEXT, 'status': one_of('True', 'False', 'Unknown')}))
POD_RULE = closed(
  {'action': one_of('FailJob', 'FailIndex', 'Ignore', 'Count')}, onExitCodes=CODES, onPodConditions=CONDITIONS
)
JOB = closed(
  {
    'parallelism': WHOLE,
    'completions': WHOLE,
    'completionMode': one_of('Indexed', 'NonIndexed'),
    'backoffLimit': WHOLE,
    'podFailurePolicy': closed({'rules': array(POD_RULE)}),
    'template': closed({'metadata': closed({'labels': TEXTS, 'annotations': TEXTS}), 'spec': POD}),
  }
)
ACTIONS = one_of('FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts', 'RestartJob')
REASONS = one_of('BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'MaxFailedIndexesExceeded')
RULE = closed(
  {
    'name': {'type': 'string', 'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$', 'maxLength': 128},
    'action': ACTIONS,
    'onJobFailureReasons': array(one_of(*REASONS['enum'], 'PodFailurePolicy')),
  }
)
REPLICATED = closed({'name': TEXT, 'replicas': WHOLE, 'template': closed({'spec': JOB})})
SCHEMA = closed(
  {
    'apiVersion': {'const': 'jobset.x-k8s.io/v1alpha2'},
    'kind': {'const': 'JobSet'},
    'metadata': closed({'name': TEXT, 'labels': TEXTS, 'annotations': TEXTS}),
    'spec': closed(
      {
        'ttlSecondsAfterFinished': WHOLE,
        'failurePolicy': closed({'maxRestarts': WHOLE, 'rules': array(RULE)}),
        'replicatedJobs': array(REPLICATED),
      }
    ),
  }
)


@pytest.mark.parametrize('kind', KINDS)
def test_the_manifest_has_only_fields_that_there_are(kind):
  jsonschema.validate(made(**KINDS[kind]), SCHEMA)


def strict(schema):
  """An OpenAPI schema that refuses fields which it does not know, as the cluster's would drop them."""
  if isinstance(schema, list):
    return [strict(part) for part in schema]
  if not isinstance(schema, dict):
    return schema
  found = {name: strict(part) for name, part in schema.items()}
  if found.get('x-kubernetes-int-or-string') is True:
    found.pop('type', None)
  # A property may be called `properties`, too.
  if isinstance(found.get('properties'), dict) and found.get('type') == 'object':
    found.setdefault('additionalProperties', False)
  return found


def test_the_manifest_is_what_the_crd_says():
  file = os.environ.get('DRO_JAX_JOBSET_CRD')
  if not file:
    pytest.skip(
      'DRO_JAX_JOBSET_CRD is not set: the path of jobset.x-k8s.io_jobsets.yaml, of kubernetes-sigs/jobset'
    )
  import yaml

  with open(file) as stream:
    versions = yaml.load(stream, Loader=getattr(yaml, 'CSafeLoader', yaml.SafeLoader))['spec']['versions']
  schema = strict(next(v for v in versions if v['name'] == 'v1alpha2')['schema']['openAPIV3Schema'])
  schema['properties']['metadata'] = {'type': 'object'}
  validator = jsonschema.Draft7Validator(schema)
  for fields in KINDS.values():
    validator.validate(made(**fields))
  wrong = copy.deepcopy(made())
  wrong['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']['nodeSelectors'] = {}
  assert not validator.is_valid(wrong)


def parts(**fields):
  """(the replicated Job, its spec, its pod's, its container)."""
  (replicated,) = made(**fields)['spec']['replicatedJobs']
  job = replicated['template']['spec']
  pod = job['template']['spec']
  return replicated, job, pod, pod['containers'][0]


@pytest.mark.parametrize(
  'topology, per_host, slices, hosts, chips, accelerator, shape',
  [
    ('v5e:4x8', 0, 1, 8, '4', 'tpu-v5-lite-podslice', '4x8'),
    ('v5e:2x4', 0, 1, 1, '8', 'tpu-v5-lite-podslice', '2x4'),
    ('v5e:2x4', 4, 1, 2, '4', 'tpu-v5-lite-podslice', '2x4'),
    ('2xv6e:4x4', 0, 2, 4, '4', 'tpu-v6e-slice', '4x4'),
    ('v5p:2x2x1', 0, 1, 1, '4', 'tpu-v5p-slice', '2x2x1'),
    ('v4:2x2x4', 0, 1, 4, '4', 'tpu-v4-podslice', '2x2x4'),
  ],
)
def test_a_pod_a_machine_and_a_job_a_slice(topology, per_host, slices, hosts, chips, accelerator, shape):
  replicated, job, pod, container = parts(topology=topology, chips_per_host=per_host)
  assert replicated['replicas'] == slices
  assert job['parallelism'] == job['completions'] == hosts
  assert container['resources']['limits'] == {'google.com/tpu': chips}
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': accelerator,
    'cloud.google.com/gke-tpu-topology': shape,
  }


@pytest.mark.parametrize('spot, codes', [(False, [1, 2]), (True, [2])])
def test_exit_codes_and_disruptions_restart_or_end_the_job(spot, codes):
  """75, preemption and a lost peer begin it again; bad data do not, nor a failure where nothing is lost."""
  _, job, pod, container = parts(spot=spot, save_seconds=900.0, max_restarts=7)
  disrupted, ends = job['podFailurePolicy']['rules']
  assert disrupted['action'] == 'Count' and ends['action'] == 'FailJob'
  assert ends['onExitCodes'] == {'containerName': container['name'], 'operator': 'In', 'values': codes}
  policy = made(max_restarts=7)['spec']['failurePolicy']
  assert policy['maxRestarts'] == 7
  assert policy['rules'][0]['action'] == 'FailJobSet'
  assert job['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'
  assert pod['terminationGracePeriodSeconds'] == 900
  assert ('cloud.google.com/gke-spot' in pod['nodeSelector']) == spot


@pytest.mark.parametrize('kind', KINDS)
def test_only_a_slice_of_several_machines_has_its_node_pool_alone(kind):
  assert bool(made(**KINDS[kind])['metadata']['annotations']) == (kind != 'one machine')


def test_a_bucket_lets_checkpoints_be_renamed():
  _, _, pod, _ = parts(bucket='mine')
  options = pod['volumes'][0]['csi']['volumeAttributes']
  assert options == {'bucketName': 'mine', 'mountOptions': 'implicit-dirs,rename-dir-limit=200000'}


def test_kubernetes_expands_nothing():
  _, _, _, container = parts(env=('A=$(B)',))
  assert container['command'][3:] == ['train', '--set=TEMPLATE=$$(HOME) $$$$ {prompt}']
  assert {'name': 'A', 'value': '$$(B)'} in container['env']
  assert {'name': 'DRO_JAX_CLUSTER', 'value': 'auto'} in container['env']
