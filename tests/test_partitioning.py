import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dro_jax import algorithms, networks, optimizers, partitioning, train, train_state
from dro_jax.data import tasks
from dro_jax.errors import UsageError
from tests.examples import CONFIG


def train_on_mesh(triplets: str, model_dir: str) -> None:
  """Three KTO steps, whose reference point couples all hosts' rows, on data 2 × fsdp 2 × model 2."""
  cache = os.path.join(model_dir, f'cache{jax.process_index()}')
  train.train(
    model_dir,
    functools.partial(
      tasks.load_triplets,
      triplets,
      prompt_length=32,
      response_length=16,
      validation_fraction=0.2,
      cache_dir=cache,
    ),
    algorithms.kto,
    model=CONFIG.__class__(**{**vars(CONFIG), 'vocab_size': None}),
    policy_optimizer=functools.partial(optimizers.adamw, 1e-3),
    mesh=functools.partial(partitioning.make_mesh, 2, 2, 2),
    schedule=functools.partial(
      train.Schedule, steps=3, log_every=1, eval_every=3, checkpoint_every=0, sample_prompts=1
    ),
    batch_size=8,
    num_microbatches=2,
  )


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def test_two_processes_of_four_devices_give_one_process_of_eight(tmp_path):
  from tests.test_train import records, write_triplets

  triplets = write_triplets(tmp_path / 'triplets.jsonl')
  root = pathlib.Path(__file__).parents[1]
  environment = os.environ | {'PYTHONPATH': str(root), 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, str(root / 'tests' / 'two_processes.py'), str(free_port())]
  processes = [
    subprocess.Popen(
      [*command, str(i), '2', triplets, str(tmp_path / 'two')],
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  train_on_mesh(triplets, str(tmp_path / 'one'))
  for process in processes:
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-3000:]
  one, two = records(tmp_path / 'one'), records(tmp_path / 'two')
  assert [record.keys() for record in one] == [record.keys() for record in two]
  for a, b in zip(one, two):
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=2e-3, atol=1e-5)
  answers = [(tmp_path / name / 'samples.jsonl').read_text() for name in ('one', 'two')]
  assert json.loads(answers[0]) == json.loads(answers[1])


def test_a_mesh_takes_what_devices_are_left():
  assert dict(partitioning.make_mesh().shape) == {'data': 8, 'fsdp': 1, 'model': 1}
  assert dict(partitioning.make_mesh(fsdp=2, model=2).shape) == {'data': 2, 'fsdp': 2, 'model': 2}


@pytest.mark.parametrize('sizes', [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (2, 2, 1), (0, 1, 8)])
def test_a_mesh_that_does_not_divide_the_devices_is_refused(sizes):
  with pytest.raises(UsageError, match='does not divide the 8 devices'):
    partitioning.make_mesh(*sizes)


def test_parameters_and_moments_are_sharded_and_factored_moments_whole():
  mesh = partitioning.make_mesh(1, 4, 2)
  nets = networks.build(CONFIG, uses_value=True)
  txs = {'policy': optimizers.adamw(1e-3), 'value': optimizers.adafactor(1e-3, min_dim_size_to_factor=4)}
  create = functools.partial(train_state.create, optimizers=txs, uses_reference=True)
  abstract = jax.eval_shape(create, networks.abstract_on(nets, mesh))
  where = partitioning.state_shardings(abstract, networks.shardings(nets, mesh), mesh)
  kernel = where.params['policy']['encoder']['layers_0']['mlp']['wi_0']['kernel']
  assert kernel.spec == PartitionSpec('fsdp', 'model')
  assert where.reference['encoder']['layers_0']['mlp']['wi_0']['kernel'] == kernel
  moments = [
    sharding.spec
    for path, sharding in jax.tree_util.tree_leaves_with_path(where.opt_state['policy'])
    if "'wi_0'" in jax.tree_util.keystr(path) and 'encoder' in jax.tree_util.keystr(path)
  ]
  assert moments == [kernel.spec, kernel.spec]
  assert {s.spec for s in jax.tree.leaves(where.opt_state['value'])} >= {PartitionSpec()}


def test_every_host_holds_its_own_rows():
  mesh = partitioning.make_mesh(4, 1, 2)
  assert partitioning.host_rows(mesh, 8) == (0, 8)
  rows = partitioning.global_rows(mesh, {'x': np.arange(8.0)}, 8)
  assert rows['x'].sharding.spec == PartitionSpec(('data', 'fsdp'))
  np.testing.assert_array_equal(rows['x'], np.arange(8.0))
