"""A decoder-only model gives one device's loss and gradient on every mesh, in every layout of a step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dro_jax import algorithms
from dro_jax.models import scoring
from dro_jax.models.causal.config import CausalConfig
from dro_jax.parallel import partitioning
from dro_jax.run import networks
from dro_jax.step import reference, train_step
from dro_jax.step import state as train_state
from tests.examples import layout, random_examples

# Two heads of keys for four of queries, tied logits, a window in one of two layers, scanned.
CONFIG = CausalConfig(
  vocab_size=32, emb_dim=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=32,
  qk_norm='head', window=3, window_pattern=(True, False), scan_layers=True,
)  # fmt: skip
NINE = dataclasses.replace(CONFIG, num_heads=9, num_kv_heads=3)
CUT_LENGTHS = (
  *((name, None) for name in ('activation_heads', 'activation_mlp', 'activation_vocab')),
  ('activation_length', 'model'),
)
EXAMPLES = random_examples(16)


def rows():
  """Rows of two prompts and two responses; in every other row both responses are to the first prompt."""
  mismatches = [8 * (1 - i // 8) + (i % 8 - 1) % 8 for i in range(16)]
  made = layout(EXAMPLES, 8, 2, mismatches=mismatches)
  first = jnp.minimum(made.response_prompt, 1)
  return made._replace(response_prompt=made.response_prompt.at[::2].set(first[::2]))


@functools.cache
def start(config):
  """Parameters far from their start, and a reference other than the policy."""
  nets = networks.build(config, uses_value=False)
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  params = jax.device_get(networks.initial_params(nets, mesh, 0, None))
  rng = np.random.default_rng(0)
  noisy = lambda tree, size: jax.tree.map(  # noqa: E731
    lambda x: (x + size * rng.normal(size=x.shape)).astype(np.float32), tree
  )
  params = noisy(params, 0.2)
  return nets, params, noisy(params['policy'], 0.05)


@functools.cache
def step_on(config, sizes=None, rules=(), num_microbatches=1, chunk_size=None):
  """Parameters after a step of gradient descent by KTO, which scores mismatched pairs too; its metrics."""
  nets, params, other = start(config)
  mesh = partitioning.make_mesh(
    *(sizes or (1, 1, 1)), rules=rules, devices=jax.devices()[: 8 if sizes else 1]
  )
  txs = {'policy': optax.sgd(0.1)}
  score = scoring.make_score(nets.policy, chunk_size=chunk_size)
  step = train_step.make_train_step(
    score, algorithms.kto(), txs, reference.Frozen().build(score), num_microbatches=num_microbatches
  )
  state = train_state.create(params, txs, True)._replace(reference=other)
  where = partitioning.state_shardings(state, networks.shardings(nets, mesh), mesh)
  state = jax.device_put(state, where)
  with partitioning.use_mesh(mesh):
    jitted = jax.jit(step, out_shardings=(where, partitioning.replicated(mesh)))
    state, output = jitted(state, partitioning.global_batch(mesh, rows(), 8))
  return jax.device_get((state.params, output.metrics))


def assert_same(config, *arguments):
  got, expected = step_on(config, *arguments), step_on(config)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), got, expected)


@pytest.mark.long
def test_the_step_moves_every_parameter_and_scores_mismatched_pairs():
  after, metrics = step_on(CONFIG)
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after, start(CONFIG)[1])
  assert min(jax.tree.leaves(moved)) > 1e-5
  assert metrics['gradient_norm/policy'] > 0.1


def test_microbatches_and_chunks_on_a_mesh_of_all_axes():
  assert_same(CONFIG, (2, 2, 2), (), 2, 5)


@pytest.mark.long
def test_fewer_heads_of_keys_than_the_model_axis_cuts():
  """Four parts of two heads: keys are repeated for each head of queries."""
  assert_same(CONFIG, (1, 2, 4))


@pytest.mark.long
def test_lengths_cut_by_the_model_axis():
  assert_same(CONFIG, (2, 1, 4), CUT_LENGTHS)
  assert_same(CONFIG, (2, 2, 2), (('activation_length', 'model'),), 2)


@pytest.mark.long
def test_heads_that_the_model_axis_does_not_divide_stay_whole():
  assert_same(NINE, (2, 2, 2))


@pytest.mark.long
@pytest.mark.parametrize('data', [1, 2, 4, 8])
@pytest.mark.parametrize('fsdp', [1, 2, 4, 8])
def test_every_mesh_gives_the_numbers_of_one_device(data, fsdp):
  if data * fsdp <= 8 and 8 // (data * fsdp) <= 4:
    assert_same(CONFIG, (data, fsdp, 8 // (data * fsdp)))
