import dataclasses
import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dro_jax.cli import bindings, flags, tables
from dro_jax.errors import UsageError
from dro_jax.models.policy import smallest_rows
from dro_jax.models.stacks import convert_layers
from dro_jax.models.t5.config import T5Config
from dro_jax.models.t5.network import T5
from dro_jax.step import optimizers

CONFIG = T5Config(
  vocab_size=24, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=2, num_decoder_layers=3
)


def three_steps(params, tx, gradient):
  def step(carry, g):
    params, state = carry
    updates, state = tx.update(g, state, params)
    return (optax.apply_updates(params, updates), state), None

  gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[gradient(i) for i in range(3)])
  return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), gradients))()[0][0]


@pytest.mark.parametrize('min_dim_size_to_factor', [4, 128])
def test_three_adafactor_steps_scanned_equal_unrolled(min_dim_size_to_factor):
  rng = np.random.default_rng(0)
  layer = {'mlp': {'wi': {'kernel': (8, 12)}}, 'pre_mlp_layer_norm': {'scale': (8,)}}
  sides = {
    'encoder': {'layers_0': layer, 'layers_1': layer, 'encoder_norm': {'scale': (8,)}},
    'decoder': {'layers_0': layer, 'layers_1': layer, 'layers_2': layer, 'logits_dense': {'kernel': (8, 24)}},
  }
  unrolled = jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    sides,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  # Layers of very different gradients: taken as one block, they would share one clip.
  sizes = {'layers_0': 100.0, 'layers_1': 1.0, 'layers_2': 0.01}

  def gradient(i):
    def of_leaf(path, x):
      noise = np.random.default_rng([i, x.size, len(str(path))]).normal(size=x.shape).astype(np.float32)
      return noise * next((sizes[str(k.key)] for k in path if str(k.key) in sizes), 1.0)

    return jax.tree_util.tree_map_with_path(of_leaf, unrolled)

  tx = optimizers.adafactor(1e-2, min_dim_size_to_factor=min_dim_size_to_factor)
  expected = convert_layers(three_steps(unrolled, tx, gradient), scan=True)
  scanned = three_steps(
    convert_layers(unrolled, scan=True), tx, lambda i: convert_layers(gradient(i), scan=True)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), scanned, expected)

  plain = optax.adafactor(1e-2, min_dim_size_to_factor=min_dim_size_to_factor)
  blocks = three_steps(
    convert_layers(unrolled, scan=True), plain, lambda i: convert_layers(gradient(i), scan=True)
  )
  with pytest.raises(AssertionError):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-7), blocks, expected)


def test_scanned_stacks_are_recognised():
  scanned = jax.eval_shape(
    lambda: nn.unbox(
      T5(dataclasses.replace(CONFIG, scan_layers=True)).init(jax.random.key(0), smallest_rows())
    )
  )['params']
  kinds = jax.tree_util.tree_map_with_path(lambda path, _: optimizers.kind_of_parameter(path), scanned)
  assert set(jax.tree.leaves(kinds['encoder']['encoder'])) == {'encoder'}
  assert kinds['encoder']['encoder_norm']['scale'] == 'plain'
  assert kinds['encoder']['relpos_bias']['rel_embedding'] == 'plain'


def test_adafactor_is_the_papers():
  """arXiv 1804.04235, Algorithm 4 in float64: unfactored, β₂(t) = 1 − t^−.8, clip at 1, parameter scale."""
  x = np.array([0.3, -0.2, 0.5])
  params, v = {'w': jnp.asarray(x, jnp.float32)}, np.zeros(3)
  gradients = np.random.default_rng(0).normal(size=(3, 3)) * np.array([[1.0], [5.0], [0.2]])
  for t, g in enumerate(gradients, start=1):
    beta = 1 - t**-0.8
    v = beta * v + (1 - beta) * (g**2 + 1e-30)
    u = g / np.sqrt(v)
    u /= max(1, np.sqrt(np.mean(u**2)))
    x = x - 1e-2 * max(1e-3, np.sqrt(np.mean(x**2))) * u
  result = three_steps(
    params, optimizers.adafactor(1e-2), lambda i: {'w': jnp.asarray(gradients[i], jnp.float32)}
  )
  np.testing.assert_allclose(result['w'], x, rtol=1e-5)


def test_a_value_head_at_zero_moves_and_would_not_with_parameter_scaling():
  """Toward a target of 1, 10,000 steps at 1e-4 move an unscaled scalar .84 and a scaled one .001."""

  def run(params):
    tx = optimizers.adafactor(1e-4)

    def step(carry, _):
      params, state = carry
      updates, state = tx.update(
        jax.grad(lambda p: sum((x - 1) ** 2 for x in jax.tree.leaves(p)))(params), state, params
      )
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, length=10_000)
    return float(jax.tree.leaves(params)[0])

  assert 0.8 < run({'head': {'value': jnp.zeros(())}}) < 1
  assert run({'other': {'value': jnp.zeros(())}}) < 0.01


def test_gradient_norms_are_clipped_by_network():
  tx = optimizers.adamw(1.0, eps=1e3, max_gradient_norm=1.0)
  params = {'w': jnp.zeros(2)}
  big, _ = tx.update({'w': jnp.array([300.0, 400.0])}, tx.init(params), params)
  unit, _ = tx.update({'w': jnp.array([0.6, 0.8])}, tx.init(params), params)
  np.testing.assert_allclose(big['w'], unit['w'], rtol=1e-6)


def test_schedules_have_their_published_shapes():
  warmup = optimizers.warmup_constant(1e-4, warmup_steps=150)
  np.testing.assert_allclose(
    [warmup(0), warmup(75), warmup(150), warmup(9999)], [0, 5e-5, 1e-4, 1e-4], rtol=1e-5
  )
  cosine = optimizers.warmup_cosine(1.0, decay_steps=100, warmup_steps=10)
  np.testing.assert_allclose([cosine(10), cosine(55), cosine(100)], [1.0, 0.5, 0.0], atol=1e-6)
  assert optimizers.constant(0.5)(7) == 0.5


@pytest.mark.parametrize(
  'schedule', [optimizers.warmup_constant, optimizers.warmup_cosine, optimizers.warmup_linear]
)
def test_no_warmup_is_the_full_rate_from_the_first_step(schedule):
  more = {} if schedule is optimizers.warmup_constant else {'decay_steps': 10}
  rate = schedule(0.5, warmup_steps=0, **more)
  assert rate(0) == 0.5
  params = {'w': jnp.ones(2)}
  for optimizer in (optimizers.adafactor, optimizers.adamw):
    tx = optimizer(rate)
    updates, _ = tx.update({'w': jnp.ones(2)}, tx.init(params), params)
    assert np.all(updates['w'] < 0)


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
  'make, wrong',
  [
    (optimizers.constant, {'value': [-1e-4, NAN, INF]}),
    (
      functools.partial(optimizers.warmup_constant, peak_value=1e-4),
      {'peak_value': [-1e-4, NAN, INF], 'warmup_steps': [-1]},
    ),
    (
      functools.partial(optimizers.warmup_cosine, peak_value=1e-4, decay_steps=10, warmup_steps=2),
      {'peak_value': [-1.0, NAN], 'warmup_steps': [-1, 10, 11], 'decay_steps': [0, 2], 'end_value': [-1.0]},
    ),
    (
      optimizers.adafactor,
      {
        'learning_rate': [-1e-4, NAN], 'decay_rate': [0.0, -0.8, 1.5, NAN],
        'clipping_threshold': [0.0, -1.0, NAN], 'min_dim_size_to_factor': [0], 'momentum': [1.0, -0.1, NAN],
        'max_gradient_norm': [0.0, -1.0, NAN],
      },
    ),
    (
      optimizers.adamw,
      {
        'learning_rate': [-1e-4, NAN], 'b1': [1.0, -0.1, NAN], 'b2': [1.0, -0.1, NAN],
        'eps': [0.0, -1.0, NAN], 'weight_decay': [-0.1, NAN], 'max_gradient_norm': [0.0, -1.0, NAN],
      },
    ),
  ],
)  # fmt: skip
def test_settings_that_would_train_nothing_or_increase_the_loss_are_refused(make, wrong):
  for name, values in wrong.items():
    for value in values:
      with pytest.raises(UsageError, match=f'{name}={value}'):
        make(**{name: value})


def test_settings_at_the_edge_of_their_range_are_accepted():
  optimizers.adafactor(0.0, decay_rate=1.0, clipping_threshold=None, momentum=0.0, max_gradient_norm=None)
  optimizers.adamw(0.0, b1=0.0, b2=0.0, weight_decay=0.0, max_gradient_norm=1.0)


def test_rate_at_gives_the_learning_rate_of_each_step():
  warmup = optimizers.warmup_constant(1.0, warmup_steps=4)
  for tx in (optimizers.adafactor(warmup), optimizers.adamw(warmup, max_gradient_norm=1.0)):
    assert [float(optimizers.rate_at(tx, step)) for step in (0, 2, 9)] == [0.0, 0.5, 1.0]
  assert optimizers.rate_at(optimizers.adamw(0.25), 3) == 0.25
  assert optimizers.rate_at(optax.sgd(0.1), 3) is None


def test_a_policy_that_waits_for_its_value_has_fewer_steps_of_its_own():
  txs = {'policy': optimizers.adamw(optimizers.warmup_constant(1e-3, 10)), 'value': optimizers.adamw(1e-3)}
  assert optimizers.notes(txs, 20) == optimizers.notes(txs, 30, {'policy': 10}) == []
  [rises] = optimizers.notes(txs, 20, {'policy': 15})
  assert 'still rises when the run ends, after 5 steps' in rises
  [idle] = optimizers.notes(txs, 20, {'policy': 20})
  assert 'the policy network does not train: the value is trained alone for 20 steps' in idle


def test_a_run_without_steps_is_not_blamed_on_its_learning_rate():
  tx = {'policy': optimizers.adamw(optimizers.warmup_constant(1e-3, 10))}
  assert optimizers.notes(tx, 0) == []
  assert 'its learning rate is 0' in optimizers.notes({'policy': optimizers.adamw(0.0)}, 5)[0]


def test_a_rate_that_still_rises_when_the_run_ends_is_noted():
  tx = optimizers.adamw(optimizers.warmup_constant(1.0, warmup_steps=4))
  assert [optimizers.still_rises(tx, steps) for steps in (2, 4, 5, 100)] == [True, True, False, False]
  assert not optimizers.still_rises(optimizers.adamw(optimizers.constant(1.0)), 1)
  cosine = optimizers.warmup_cosine(1.0, decay_steps=10, warmup_steps=2)
  assert not optimizers.still_rises(optimizers.adamw(cosine), 10)
  assert not optimizers.still_rises(optax.sgd(0.1), 10)


@pytest.mark.parametrize('warmup_steps', [0, 10])
def test_a_linear_decay_equals_transformers(warmup_steps):
  """`get_linear_schedule_with_warmup`: s / warm-up, then (end − s) / (end − warm-up), then 0."""
  schedule = optimizers.warmup_linear(2e-5, decay_steps=50, warmup_steps=warmup_steps)
  expected = [
    2e-5 * (step / warmup_steps if step < warmup_steps else max(0, (50 - step) / (50 - warmup_steps)))
    for step in range(60)
  ]
  np.testing.assert_allclose([schedule(step) for step in range(60)], expected, rtol=1e-5, atol=1e-12)


def test_a_linear_decay_ends_at_end_value():
  schedule = optimizers.warmup_linear(2e-5, decay_steps=50, warmup_steps=0, end_value=1e-5)
  np.testing.assert_allclose([schedule(0), schedule(25), schedule(50)], [2e-5, 1.5e-5, 1e-5], rtol=1e-5)


@pytest.mark.parametrize('warmup_steps, decay_steps', [(-1, 10), (10, 10), (11, 10), (0, 0)])
def test_a_linear_decay_needs_steps_to_decay_in(warmup_steps, decay_steps):
  with pytest.raises(UsageError, match='0 ≤ warmup_steps < decay_steps'):
    optimizers.warmup_linear(1e-4, decay_steps, warmup_steps)


# Gin files


def bound(*arguments):
  """The optimisers that a command line makes."""
  values = flags.parse_flags('train', ['--triplets=x', '--model_dir=y', *arguments])
  bindings.configure('train', tables.COMMANDS['train'], values)
  made = gin.get_bindings('dro_jax.train.Optimizers')
  return {network: made[network]() for network in ('policy', 'value')}


def two_updates(tx):
  params, gradient = {'w': jnp.array([3.0, 4.0])}, {'w': jnp.array([30.0, 40.0])}
  state, found = tx.init(params), []
  for _ in range(2):
    updates, state = tx.update(gradient, state, params)
    found.append(updates['w'])
  return jnp.stack(found)


@pytest.mark.parametrize(
  'name, schedule, decay',
  [
    ('constant', lambda rate: optimizers.warmup_constant(rate, 1), 0.0),
    ('linear', lambda rate: optimizers.warmup_linear(rate, 8, 1, 0.5), 0.01),
    ('cosine', lambda rate: optimizers.warmup_cosine(rate, 8, 1, 0.5), 0.0),
  ],
)
def test_gin_files_bind_optimisers_and_schedules(name, schedule, decay):
  arguments = ['--gin_file=optimizers/adamw.gin', f'--gin_file=schedules/{name}.gin']
  settings = {
    'WARMUP_STEPS': 1, 'STEPS': 8, 'POLICY_LEARNING_RATE': 1.0, 'VALUE_LEARNING_RATE': 2.0,
    'MAX_GRADIENT_NORM': 0.5, 'WEIGHT_DECAY': decay,
  }  # fmt: skip
  settings |= {} if name == 'constant' else {'END_LEARNING_RATE': 0.5}
  arguments += [f'--set={macro}={value}' for macro, value in settings.items()]
  made = bound(*arguments)
  for network, rate in (('policy', 1.0), ('value', 2.0)):
    expected = optimizers.adamw(schedule(rate), weight_decay=decay, max_gradient_norm=0.5)
    np.testing.assert_array_equal(two_updates(made[network]), two_updates(expected))


def test_the_default_is_adafactor_with_warmup_then_constant():
  plain, named = bound(), bound('--gin_file=optimizers/adafactor.gin', '--gin_file=schedules/constant.gin')
  expected = two_updates(optimizers.adafactor(optimizers.warmup_constant(1e-4)))
  for made in (plain, named):
    np.testing.assert_array_equal(two_updates(made['policy']), expected)


@pytest.mark.parametrize('make', [optimizers.adamw, optimizers.adafactor])
def test_a_rate_that_is_a_text_is_refused(make):
  with pytest.raises(UsageError, match='learning_rate=fast: pass a number, or a function of the step'):
    make('fast')
