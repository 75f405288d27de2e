import ast
import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dro_jax import algorithms
from dro_jax.checkpoints import folders
from dro_jax.configs.text import read
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import UsageError
from dro_jax.models import layers
from dro_jax.ops import logprobs
from dro_jax.parallel import partitioning
from dro_jax.run import networks, schedule
from dro_jax.step import optimizers, state
from tests import runs
from tests.examples import CONFIG
from tests.run.test_train import records, write_triplets

STEPS = 3


def train_on_mesh(triplets: str, model_dir: str, steps: int) -> None:
  """KTO, whose reference point couples all hosts' rows, on data 2 × fsdp 2 × model 2."""
  cache = os.path.join(model_dir, f'cache{jax.process_index()}')
  runs.train(
    model_dir,
    functools.partial(
      load_triplets,
      triplets,
      prompt_length=32,
      response_length=16,
      validation_fraction=0.2,
      cache_dir=cache,
    ),
    algorithms.kto,
    model=CONFIG.__class__(**{**vars(CONFIG), 'vocab_size': None}),
    policy_optimizer=functools.partial(optimizers.adamw, 1e-3),
    mesh=partitioning.MeshSpec(2, 2, 2),
    schedule=functools.partial(
      schedule.Schedule,
      steps=steps,
      log_every=1,
      eval_every=STEPS,
      checkpoint_every=0,
      sample_prompts=1,
      kl_prompts=0,
    ),
    batch_size=8,
    num_microbatches=2,
  )


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def start_two(triplets: str, model_dir: str, steps: int) -> list[subprocess.Popen]:
  """A run of two processes with four devices each, under way; they compile as the tests do."""
  root = pathlib.Path(__file__).parents[2]
  quick = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  environment = os.environ | {'PYTHONPATH': str(root), 'XLA_FLAGS': ' '.join(quick), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, str(root / 'tests' / 'two_processes.py'), str(free_port())]
  return [
    subprocess.Popen(
      [*command, str(i), '2', triplets, model_dir, str(steps)],
      env=environment, stderr=subprocess.PIPE, text=True,
    )
    for i in range(2)
  ]  # fmt: skip


@pytest.mark.long
def test_two_processes_of_four_devices_give_one_process_of_eight_until_a_signal_stops_both(tmp_path):
  """Ctrl-C in one, which passes it on as SIGTERM, saves the same step in both, and they exit with 75."""
  triplets = write_triplets(tmp_path / 'triplets.jsonl')
  processes = start_two(triplets, str(tmp_path / 'two'), 100_000)
  train_on_mesh(triplets, str(tmp_path / 'one'), STEPS)
  samples, deadline = tmp_path / 'two' / 'samples.jsonl', time.monotonic() + 240
  # The first samples are those of step 0.
  mark = f'"step": {STEPS}'
  while not (samples.exists() and mark in samples.read_text()) and time.monotonic() < deadline:
    time.sleep(0.1)
  processes[1].send_signal(signal.SIGINT)
  logs = [process.communicate(timeout=120)[1] for process in processes]
  assert [process.returncode for process in processes] == [75, 75], logs[0][-3000:]
  one, two = records(tmp_path / 'one'), records(tmp_path / 'two')
  assert folders.newest_step(tmp_path / 'two') == two[-1]['step'] >= STEPS
  assert [record.keys() for record in one] == [record.keys() for record in two[: len(one)]]
  for a, b in zip(one, two):
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=2e-3, atol=1e-5)
  one, two = ((tmp_path / name / 'samples.jsonl').read_text().splitlines()[0] for name in ('one', 'two'))
  assert json.loads(one)['response'] == json.loads(two)['response']


def test_a_mesh_takes_what_devices_are_left():
  assert dict(partitioning.make_mesh().shape) == {'data': 8, 'fsdp': 1, 'model': 1}
  assert dict(partitioning.make_mesh(fsdp=2, model=2).shape) == {'data': 2, 'fsdp': 2, 'model': 2}


def test_a_mesh_can_be_laid_out_on_devices_given_to_it():
  some = jax.devices()[2:6]
  mesh = partitioning.make_mesh(fsdp=2, devices=some)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'model': 1}
  assert set(mesh.devices.flat) == set(some)


@pytest.mark.parametrize('sizes', [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (2, 2, 1), (0, 1, 8)])
def test_a_mesh_that_does_not_divide_the_devices_is_refused(sizes):
  with pytest.raises(UsageError, match='does not divide the 8 devices'):
    partitioning.make_mesh(*sizes)


MESHES = sorted((pathlib.Path(__file__).parents[2] / 'gin_configs' / 'meshes').glob('*.gin'))
SHAPES = {
  'data': (8, 1, 1), 'fsdp': (1, 8, 1), 'model': (1, 1, 8), 'data_fsdp': (2, 4, 1), 'data_model': (4, 1, 2),
  'fsdp_model': (1, 4, 2), 'sequence': (8, 1, 1), 'slices': (1, 8, 1), 'slices_fsdp': (1, 8, 1),
}  # fmt: skip


def bound(path: pathlib.Path) -> dict:
  """What a gin file gives make_mesh."""
  bindings = read(path.read_text(), path.name)
  prefix = 'make_mesh.'
  return {
    b.name.removeprefix(prefix): ast.literal_eval(b.value) for b in bindings if b.name.startswith(prefix)
  }


@pytest.mark.parametrize('path', MESHES, ids=lambda path: path.stem)
def test_meshes_as_gin_files(path):
  assert tuple(partitioning.make_mesh(**bound(path)).shape.values()) == SHAPES[path.stem]


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device that is not here."""

  id: int
  slice_index: int
  process_index: int = 0
  device_kind: str = 'a chip'
  platform: str = 'none'


def two_slices() -> list[Chip]:
  return [Chip(i, i % 2) for i in range(8)]


@pytest.mark.parametrize(
  'name, shape',
  [('slices', (2, 4, 1)), ('slices_fsdp', (1, 8, 1)), ('data', (8, 1, 1)), ('data_model', (4, 1, 2))],
)
def test_a_mesh_of_two_slices_crosses_their_border_once(name, shape):
  mesh = partitioning.make_mesh(**bound(MESHES[0].with_stem(name)), devices=two_slices())
  assert mesh.devices.shape == shape
  assert [chip.slice_index for chip in mesh.devices.flat] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_more_slices_than_the_mesh_has_room_for_are_refused():
  with pytest.raises(UsageError, match='dcn_data=3, dcn_fsdp=1 does not divide the 2 slices'):
    partitioning.make_mesh(dcn_data=3, devices=two_slices())


def kernels(rules, shape=(1, 4, 2)) -> dict:
  """Specs of an encoder's MLP and of the embedding table."""
  mesh = partitioning.make_mesh(*shape, rules=rules)
  where = networks.shardings(networks.build(CONFIG, uses_value=False), mesh)['policy']
  wi = where['encoder']['layers_0']['mlp']['wi_0']['kernel'].spec
  return {'wi': tuple(wi), 'embedding': tuple(where['token_embedder']['embedding'].spec)}


@pytest.mark.parametrize(
  'rules, expected',
  {
    (): {'wi': ('fsdp', 'model'), 'embedding': ('model', 'fsdp')},
    (('embed', None),): {'wi': (None, 'model'), 'embedding': ('model', None)},
    (('vocab', ('fsdp', 'model')), ('embed', 'fsdp'), ('embed', None)): {
      'wi': ('fsdp', 'model'), 'embedding': (('fsdp', 'model'), None),
    },
    # Width comes first, and the MLP gives way.
    (('embed', 'model'), ('mlp', 'model'), ('mlp', 'fsdp'), ('vocab', 'fsdp'), *(
      (name, None) for name in ('joined_kv', 'heads')
    )): {'wi': ('model', 'fsdp'), 'embedding': ('fsdp', 'model')},
  }.items(),
)  # fmt: skip
def test_rules_override_cuts_by_logical_axis(rules, expected):
  assert kernels(rules) == expected


def test_a_mapping_of_rules_keeps_the_order_of_the_table():
  names = lambda rules: [name for name, _ in partitioning.make_mesh(rules=rules).rules]  # noqa: E731
  assert names({'activation_length': 'model', 'mlp': None}) == names(())
  assert names([('activation_length', 'model')])[0] == 'activation_length'


@pytest.mark.parametrize(
  'rules, message',
  [
    ({'width': 'fsdp'}, "no logical axis 'width'. Logical axes are vocab, embed"),
    ({'vocab': 'tensor'}, "no mesh axis 'tensor'"),
    ({'vocab': 'fsdp'}, "would be cut twice by 'fsdp', along 'vocab' and 'embed'"),
    ([('mlp', ['fsdp', 'model'])], "would be cut twice by 'fsdp', along 'mlp' and 'embed'"),
  ],
)
def test_rules_that_cannot_be_are_refused(rules, message):
  with pytest.raises(UsageError, match=re.escape(message)):
    kernels(rules)


def test_lengths_are_cut_between_layers_alone():
  mesh = partitioning.make_mesh(4, 1, 2, rules={'activation_length': 'model'})

  @jax.jit
  def cut(x):
    hidden = layers.constrain_hidden(x)
    inner = layers.constrain(x, 'activation_batch', 'activation_length', 'activation_mlp')
    return hidden, inner, layers.constrain_hidden(x[:, :1])

  with partitioning.use_mesh(mesh):
    specs = [x.sharding.shard_shape(x.shape) for x in cut(jnp.zeros((8, 16, 32)))]
  assert specs == [(2, 8, 32), (2, 16, 16), (2, 1, 32)]
  partitioning.refuse_length(mesh, 'prompt', 24)
  with pytest.raises(UsageError, match='by model, 2 ways, .* rows of 25 prompt tokens'):
    partitioning.refuse_length(mesh, 'prompt', 25)


@pytest.mark.parametrize('chunk_size, tied', [(None, False), (4, True)])
def test_logits_are_never_gathered(chunk_size, tied):
  """Vectors looked up, projected and scored, and the gradient, on fsdp 2 × model 4: numbers, and HLO."""
  config = dataclasses.replace(CONFIG, vocab_size=1152, logits_via_embedding=tied)
  nets = networks.build(config, uses_value=False)
  rng, mesh = np.random.default_rng(0), partitioning.make_mesh(1, 2, 4)
  where = networks.shardings(nets, mesh)['policy']
  where = {'token_embedder': where['token_embedder']} | ({} if tied else {'decoder': where['decoder']})
  shapes = networks.abstract_on(nets, mesh)['policy']
  params = jax.tree.map(
    lambda _, x: rng.normal(size=x.shape).astype('f'), where, {k: shapes[k] for k in where}
  )
  tokens = rng.integers(0, 1152, (8, 16), np.int32)

  def logps(params, tokens):
    apply = functools.partial(nets.policy.apply, {'params': params})
    hidden = apply(tokens, method=lambda model, tokens: model.token_embedder(tokens))
    logits = functools.partial(apply, method='logits')
    return logprobs.response_token_logps(logits, hidden, tokens[:, ::-1], tokens > 9, chunk_size).sum()

  expected = jax.jit(jax.value_and_grad(logps))(params, tokens)
  with partitioning.use_mesh(mesh):
    step = jax.jit(jax.value_and_grad(logps), out_shardings=(partitioning.replicated(mesh), where))
    compiled = step.lower(jax.device_put(params, where), partitioning.global_rows(mesh, tokens, 8)).compile()
  found = compiled(jax.device_put(params, where), partitioning.global_rows(mesh, tokens, 8))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
  text = compiled.as_text()
  # 1152 / 4 of the vocabulary a device, never more; what is gathered over fsdp is a parameter, to project.
  assert re.search(r'f32\[(\d+,)*288\]', text) and not re.search(r'f32\[(\d+,)*1152(,\d+)*\]', text)
  gathered = re.findall(r'(f32\[[\d,]*\])[^=]* (?:all-gather|all-to-all)(?:-start)?\(', text)
  assert {shape for shape in gathered if '288' in shape} == {'f32[16,288]'}


def state_on(mesh: partitioning.Mesh, config=CONFIG):
  """Shapes and shardings of a state: AdamW for the policy, Adafactor with momentum for the value network."""
  nets = networks.build(config, uses_value=True)
  adafactor = optimizers.adafactor(1e-3, min_dim_size_to_factor=4, momentum=0.9)
  txs = {'policy': optimizers.adamw(1e-3), 'value': adafactor}
  create = functools.partial(state.create, optimizers=txs, uses_reference=True, keeps_initial=True)
  abstract = jax.eval_shape(create, networks.abstract_on(nets, mesh))
  return abstract, partitioning.state_shardings(abstract, networks.shardings(nets, mesh), mesh)


def moments(where, *names: str) -> dict[str, tuple]:
  """Specs of an optimiser's leaves with all of the names in their paths, by the kind of moment."""
  paths = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(where)]
  found = [(path, leaf.spec) for path, leaf in paths if all(f"'{name}'" in path for name in names)]
  return {re.findall(r'\.(\w+)\[', path)[-1]: tuple(spec) for path, spec in found}


def test_parameters_and_moments_are_sharded():
  _, where = state_on(partitioning.make_mesh(1, 4, 2))
  kernel = where.params['policy']['encoder']['layers_0']['mlp']['wi_0']['kernel']
  assert kernel.spec == PartitionSpec('fsdp', 'model')
  for held in (where.reference, where.initial):
    assert held['encoder']['layers_0']['mlp']['wi_0']['kernel'] == kernel
  whole = ('fsdp', 'model')
  assert moments(where.opt_state['policy'], 'encoder', 'wi_0') == {'mu': whole, 'nu': whole}


@pytest.mark.parametrize('scan', [False, True])
def test_factored_moments_are_sharded_like_the_axes_of_their_parameters(scan):
  # Widths 16, MLP 16 (square), heads together 32.
  config = dataclasses.replace(CONFIG, num_encoder_layers=2, scan_layers=scan, mlp_dim=16)
  _, where = state_on(partitioning.make_mesh(1, 4, 2), config)
  first, trees = (None,) * scan, where.opt_state['value']
  rows, columns, placeholder = (*first, 'fsdp'), (*first, 'model'), ()
  assert moments(trees, 'encoder', 'wi_0') == {
    'v_row': rows, 'v_col': columns, 'v': placeholder, 'ema': (*first, 'fsdp', 'model'),
  }  # fmt: skip
  # (embed, joined_kv) is (16, 32): the factor of the rows drops the longer axis.
  found = moments(trees, 'encoder', 'query')
  assert (found['v_row'], found['v_col']) == (rows, columns)
  found = moments(trees, 'encoder', 'attention', 'out')
  assert (found['v_row'], found['v_col']) == (rows, columns)
  assert moments(trees, 'encoder', 'pre_mlp_layer_norm')['v'] == rows


def test_every_host_holds_its_own_rows():
  mesh = partitioning.make_mesh(4, 1, 2)
  assert partitioning.host_rows(mesh, 8) == (0, 8)
  rows = partitioning.global_rows(mesh, {'x': np.arange(8.0)}, 8)
  assert rows['x'].sharding.spec == PartitionSpec(('data', 'fsdp'))
  np.testing.assert_array_equal(rows['x'], np.arange(8.0))


def test_jit_on_runs_on_the_mesh_and_leaves_the_whole_result_on_every_device():
  mesh = partitioning.make_mesh(2, 2, 2)
  doubled = partitioning.jit_on(mesh, lambda x: 2 * layers.constrain_hidden(x))
  x = np.arange(8 * 4 * 2.0).reshape(8, 4, 2)
  assert partitioning.divisible_rows(mesh, 5) == partitioning.divisible_rows(mesh, 8) == 8
  result = doubled(partitioning.place_rows(mesh, x))
  assert result.sharding.is_fully_replicated and len(result.sharding.device_set) == 8
  np.testing.assert_array_equal(result, 2 * x)
  rows = partitioning.rows_sharding(mesh)
  assert partitioning.jit_on(mesh, lambda x: x, out_shardings=rows)(x).sharding.spec == rows.spec


def test_jit_on_compiles_with_the_options_of_every_program_that_scores(monkeypatch):
  monkeypatch.setitem(partitioning.COMPILER_OPTIONS, 'no_such_option', True)
  with pytest.raises(Exception, match='no_such_option'):
    partitioning.jit_on(partitioning.make_mesh(), lambda x: x + 1)(np.zeros(8))
