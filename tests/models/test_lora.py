"""Adapters on networks of both families: what they compute, and what trains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from dro_jax import algorithms
from dro_jax.errors import UsageError
from dro_jax.models import lora, scoring
from dro_jax.models import policy as models_policy
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.lora import Lora
from dro_jax.models.policy import make_network, smallest_rows
from dro_jax.models.stacks import convert_layers
from dro_jax.parallel import partitioning
from dro_jax.run import networks
from dro_jax.step import optimizers, reference, train_step
from dro_jax.step import state as train_state
from tests.examples import CONFIG, layout, random_examples
from tests.tiers import long

T5 = dataclasses.replace(CONFIG, num_encoder_layers=2, num_decoder_layers=2, scan_layers=True)
CAUSAL = CausalConfig(
  vocab_size=32, emb_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=32, num_layers=2, qkv_bias=True,
  scan_layers=True,
)  # fmt: skip
ROWS = layout(random_examples(8), 4, 2)
SETTINGS = Lora(rank=3, alpha=12)
families = pytest.mark.parametrize('config', [T5, CAUSAL], ids=['t5', 'causal'])
# Where each compiles for seconds.
slow_families = pytest.mark.parametrize('config', [*long(T5), CAUSAL], ids=['t5', 'causal'])


@functools.cache
def whole(config):
  network = make_network(config)
  return nn.unbox(jax.jit(network.init)(jax.random.key(0), smallest_rows())['params'])


@functools.cache
def adapter(config, settings=SETTINGS, moved=True):
  boxed = jax.eval_shape(make_network(config).init, jax.random.key(0), smallest_rows())['params']
  fresh = lora.init_adapter(lora.abstract_adapter(boxed, settings), jax.random.key(1), settings.zero)
  noise = lambda path, x: x + 0.1 * jax.random.normal(jax.random.key(sum(map(ord, str(path)))), x.shape)  # noqa: E731
  return jax.tree_util.tree_map_with_path(noise, fresh) if moved else fresh


def base_of(config, settings=SETTINGS):
  return lora.Base(lora.split_base(whole(config), settings.base_kernels), settings.scale)


@functools.cache
def scorer(config):
  score = scoring.make_score(make_network(config))
  return jax.jit(lambda policy: score({'policy': policy}, ROWS).logps)


@slow_families
def test_an_adapter_that_is_off_or_fresh_leaves_the_base_to_the_bit(config):
  plain = scorer(config)(whole(config))
  np.testing.assert_array_equal(scorer(config)(lora.join_policy(base_of(config), None)), plain)
  for zero in 'ab':
    fresh = adapter(config, dataclasses.replace(SETTINGS, zero=zero), moved=False)
    np.testing.assert_array_equal(scorer(config)(lora.join_policy(base_of(config), fresh)), plain)
  assert jnp.abs(scorer(config)(lora.join_policy(base_of(config), adapter(config))) - plain).max() > 0.1


@slow_families
def test_an_adapter_equals_its_base_with_w_plus_s_a_b_by_hand(config):
  own = traverse_util.flatten_dict(adapter(config))
  merged = {}
  for path, x in traverse_util.flatten_dict(whole(config)).items():
    if (*path[:-1], 'a') in own and path[-1] == 'kernel':
      a, b = (np.asarray(own[*path[:-1], name], np.float64) for name in 'ab')
      x = np.asarray(x) + np.stack([4.0 * a[:, i] @ b[:, i] for i in range(a.shape[1])], axis=1)
    merged[path] = jnp.asarray(x, jnp.float32)
  by_hand = traverse_util.unflatten_dict(merged)
  joined = lora.join_policy(base_of(config), adapter(config))
  on = scorer(config)(joined)
  np.testing.assert_allclose(on, scorer(config)(by_hand), rtol=2e-5, atol=1e-5)
  np.testing.assert_allclose(on, scorer(config)(lora.merge(joined)), rtol=2e-5, atol=1e-5)


@pytest.mark.long
@families
def test_scanned_layers_are_those_one_after_the_other(config):
  unrolled = dataclasses.replace(config, scan_layers=False)
  base = lora.Base({'params': convert_layers(whole(config), scan=False)}, SETTINGS.scale)
  policy = lora.join_policy(base, convert_layers(adapter(config), scan=False))
  joined = lora.join_policy(base_of(config), adapter(config))
  np.testing.assert_allclose(scorer(unrolled)(policy), scorer(config)(joined), rtol=1e-5, atol=1e-5)


@slow_families
def test_an_adapters_gradient_is_that_of_the_merged_kernels_pulled_through_a_and_b(config):
  """dA = s dW Bᵀ and dB = s Aᵀ dW, in float64, with dW of a network without adapters."""
  score = scoring.make_score(make_network(config))
  loss = lambda policy: jnp.sum(jnp.sin(score({'policy': policy}, ROWS).logps))  # noqa: E731
  base, own = base_of(config), adapter(config)
  found = jax.jit(jax.grad(lambda own: loss(lora.join_policy(base, own))))(own)
  full = jax.jit(jax.grad(loss))(lora.merge(lora.join_policy(base, own)))
  flat, full = traverse_util.flatten_dict(own), traverse_util.flatten_dict(full)
  for path, gradient in traverse_util.flatten_dict(found).items():
    a, b = (np.asarray(flat[*path[:-1], name], np.float64) for name in 'ab')
    dw = np.asarray(full[*path[:-1], 'kernel'], np.float64)
    expected = {'a': np.einsum('ilo,rlo->ilr', dw, b), 'b': np.einsum('ilr,ilo->rlo', a, dw)}[path[-1]]
    np.testing.assert_allclose(gradient, 4.0 * expected, rtol=2e-4, atol=1e-4, err_msg=str(path))


@pytest.mark.parametrize('kind', [*long('bfloat16', 'int8'), 'nf4'])
def test_a_base_in_fewer_bits_is_its_dequantised_kernels_with_their_gradient(kind):
  settings = dataclasses.replace(SETTINGS, base_kernels=kind)
  base, own = base_of(CAUSAL, settings), adapter(CAUSAL)
  assert {x.dtype.itemsize for x in jax.tree.leaves(base.variables['frozen'])} <= {1, 2, 4}
  rounded = lora.Base({'params': lora.base_params(base)}, settings.scale)
  assert jnp.abs(scorer(CAUSAL)(lora.join_policy(rounded, None)) - scorer(CAUSAL)(whole(CAUSAL))).max() > 1e-5
  score = scoring.make_score(make_network(CAUSAL))
  loss = lambda own, base: jnp.sum(jnp.sin(score({'policy': lora.join_policy(base, own)}, ROWS).logps))  # noqa: E731
  gradient = jax.jit(jax.value_and_grad(loss))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
    gradient(own, base),
    gradient(own, rounded),
  )
  assert lora.num_parameters(base) == sum(x.size for x in jax.tree.leaves(whole(CAUSAL)))


# --- a step -------------------------------------------------------------------------------------------------


def first_state(config, nets, settings=SETTINGS):
  own = nn.unbox(networks.abstract_params(nets))
  value = jax.tree.map(lambda x: jnp.zeros(x.shape), own['value'])
  params = {'policy': adapter(config), 'value': value}
  params['value'] = networks.start_from_policy(value, params['policy'])
  txs = {name: optimizers.adamw(1e-2) for name in params}
  state = train_state.create(params, txs, False)._replace(base=base_of(config, settings))
  return state, txs


def stepped(config, num_microbatches=1, mesh=None, settings=SETTINGS):
  nets = networks.build(config, uses_value=True, lora=settings)
  state, txs = first_state(config, nets, settings)
  score = scoring.make_score(nets.policy, nets.value)
  ref = reference.AdapterOff().build(scoring.make_score(nets.policy))
  step = train_step.make_train_step(score, algorithms.dro_v(), txs, ref, num_microbatches=num_microbatches)
  if mesh is None:
    return state, jax.jit(step)(state, ROWS)[0]
  where = networks.shardings(nets, mesh)
  base = jax.tree.map(lambda x: x.sharding, networks.abstract_base_on(nets, mesh))
  shardings = partitioning.state_shardings(jax.eval_shape(lambda: state._replace(base=None)), where, mesh)
  placed = jax.device_put(state, shardings._replace(base=base))
  with partitioning.use_mesh(mesh):
    return state, jax.jit(step)(placed, partitioning.place_rows(mesh, jax.device_get(ROWS)))[0]


close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@families
def test_dro_v_trains_two_adapters_and_a_head_on_one_base_whatever_the_microbatches_and_the_mesh(config):
  before, after = stepped(config)
  assert jax.tree.structure(after) == jax.tree.structure(before)
  jax.tree.map(np.testing.assert_array_equal, before.base, after.base)
  moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), before.params, after.params)
  # The value's kernel is 0 at first, so that no gradient reaches the adapter of its trunk yet.
  assert all(jax.tree.leaves(moved['policy'])) and all(jax.tree.leaves(moved['value']['head']))
  moments = {x.shape for x in jax.tree.leaves(after.opt_state['policy']) if x.ndim}
  assert moments == {x.shape for x in jax.tree.leaves(before.params['policy'])}
  mesh = partitioning.make_mesh(1, 2, 2, devices=jax.devices()[:4])
  cut = stepped(config, num_microbatches=2, mesh=mesh)[1]
  jax.tree.map(close, jax.device_get(cut.params), jax.device_get(after.params))
  a = cut.params['policy']['decoder']['decoder']['mlp']['wo']['a']
  assert a.sharding.spec[0] == 'model' and a.shape == (32, 2, 3)


@pytest.mark.long
def test_a_value_that_trains_first_leaves_the_policys_adapter_and_the_base_as_they_are():
  nets = networks.build(CAUSAL, uses_value=True, lora=SETTINGS)
  before, txs = first_state(CAUSAL, nets)
  score, ref = scoring.make_score(nets.policy, nets.value), reference.AdapterOff()
  make = lambda own: train_step.make_train_step(  # noqa: E731
    score, algorithms.dro_v(), own, ref.build(scoring.make_score(nets.policy))
  )
  step = jax.jit(train_step.make_value_first_step(make(txs), make({'value': txs['value']}), warmup_steps=1))
  first, _ = step(before, ROWS)
  second, _ = step(first, ROWS)
  unmoved = jax.tree.map(lambda x, y: bool(jnp.all(x == y)), before, first)
  assert all(jax.tree.leaves((unmoved.params['policy'], unmoved.opt_state['policy'], unmoved.base)))
  assert not any(jax.tree.leaves(unmoved.params['value']['head']))
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first.base, second.base)))
  assert not any(
    jax.tree.leaves(jax.tree.map(np.array_equal, first.params['policy'], second.params['policy']))
  )


def test_next_token_kl_is_taken_to_the_base_with_the_adapter_off():
  nets = networks.build(CAUSAL, uses_value=True, lora=SETTINGS)
  state, _ = first_state(CAUSAL, nets)
  algorithm = algorithms.with_next_token_kl(algorithms.dro_v(), 3.0)
  ref = reference.AdapterOff().build(scoring.make_score(nets.policy, keeps_states=True))
  score = scoring.make_score(nets.policy, nets.value, kl_direction='reverse', chunk_size=5)
  _, _, output = jax.jit(train_step.make_evaluate(score, algorithm, ref))(state, ROWS)

  @jax.jit
  def log_distributions(policy):
    states = models_policy.run(nets.policy, policy, ROWS)[1]
    return jax.nn.log_softmax(models_policy.logits(nets.policy, policy, states))

  logps, base_logps = map(log_distributions, (state.networks['policy'], state.policy_of(None)))
  kls_BT = jnp.sum(jnp.exp(logps) * (logps - base_logps), -1) * (ROWS.response_segments > 0)
  expected = float(jnp.sum(kls_BT)) / 8
  assert expected > 0.01
  np.testing.assert_allclose(output.metrics['next_token_kl'], expected, rtol=1e-4)


@pytest.mark.long
def test_a_quantised_base_is_cut_over_a_mesh_as_its_kernels_are():
  settings = dataclasses.replace(SETTINGS, base_kernels='int8')
  _, alone = stepped(CAUSAL, settings=settings)
  _, cut = stepped(CAUSAL, mesh=partitioning.make_mesh(2, 2, 2), settings=settings)
  jax.tree.map(close, jax.device_get(cut.params), jax.device_get(alone.params))
  kernel = cut.base.variables['frozen']['decoder']['decoder']['mlp']['wi_0']['kernel']['int8']
  assert kernel.sharding.spec == jax.sharding.PartitionSpec('fsdp', None, 'model')


def test_adafactor_moves_the_factor_that_starts_at_zero_as_far_as_the_other():
  fresh = adapter(CAUSAL, moved=False)
  tx = optimizers.adafactor(1e-2)
  update = jax.jit(lambda params: tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[0])
  updates = update(fresh)
  sizes = jax.tree.map(lambda x: float(jnp.abs(x).max()), updates)
  assert min(jax.tree.leaves(sizes)) > 0.9e-2
  scanned = optax.apply_updates(fresh, updates)
  unrolled = convert_layers(fresh, scan=False)
  alone = convert_layers(optax.apply_updates(unrolled, update(unrolled)), scan=True)
  jax.tree.map(close, alone, scanned)


def test_a_moving_reference_moves_the_adapter_and_holds_no_base():
  settings = reference.Soft(alpha=0.5, every=1).build(scoring.make_score(make_network(CAUSAL)))
  nets = networks.build(CAUSAL, uses_value=True, lora=SETTINGS)
  state, _ = first_state(CAUSAL, nets)
  zeros = jax.tree.map(jnp.zeros_like, state.params['policy'])
  moved = jax.jit(settings.update)(state._replace(step=jnp.ones((), jnp.int32), reference=zeros))
  jax.tree.map(lambda r, p: np.testing.assert_array_equal(r, p / 2), moved.reference, state.params['policy'])


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'alpha': 8}, 'LORA_ALPHA=8 is a setting of adapters, and without a rank there are none'),
    ({'targets': 'mlp'}, 'LORA_TARGETS=mlp is a setting of adapters'),
    ({'rank': 0}, 'LORA_RANK=0: pass 1 or more'),
    ({'rank': 2, 'alpha': 0}, 'LORA_ALPHA=0: pass a number above 0'),
    ({'rank': 2, 'zero': 'c'}, "LORA_ZERO='c': pass a or b"),
    (
      {'rank': 2, 'base_kernels': 'int4'},
      "LORA_BASE_KERNELS='int4' is unknown: pass one of float32, bfloat16",
    ),
  ],
)
def test_settings_that_make_no_adapter_are_refused(settings, message):
  with pytest.raises(UsageError, match=message):
    Lora(**settings)


def test_products_are_named_or_grouped_and_a_name_of_none_is_refused():
  assert Lora(rank=2, targets='query, value').names == ('query', 'value')
  own = adapter(CAUSAL, Lora(rank=2, targets=('attention', 'wo')))
  products = {path[-2] for path in traverse_util.flatten_dict(own)}
  assert products == {'query', 'key', 'value', 'out', 'wo'}
  with pytest.raises(UsageError, match="'q_proj'. Pass names of key, out, query, value, wi[^l]*,"):
    adapter(CAUSAL, Lora(rank=2, targets='query,q_proj'))
