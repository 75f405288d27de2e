import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dro_jax import algorithms, losses
from dro_jax.algorithms.batch import Batch
from dro_jax.costs import flops
from dro_jax.errors import UsageError
from dro_jax.models import policy as models_policy
from dro_jax.models import scoring
from dro_jax.models.t5.network import T5
from dro_jax.parallel import partitioning
from dro_jax.step import metrics, optimizers, reference, train_step
from dro_jax.step import state as train_state
from dro_jax.types import LossOutput, LossTerm, Units
from tests.examples import CONFIG, init_params, layout, random_examples
from tests.tiers import long, tiers

EXAMPLES = random_examples(16)
MISMATCHES = [8 * (1 - i // 8) + (i % 8 - 1) % 8 for i in range(16)]
ROWS = layout(EXAMPLES, 8, 2, mismatches=MISMATCHES)
# Each prompt's best response first; the last group is smaller.
PAIRS = Units(jnp.array([[2 * i, 2 * i + 1] for i in range(8)]), jnp.ones((8, 2), bool))
GROUPS = Units(
  jnp.array([[0, 5, 9, 14], [1, 4, 8, 15], [2, 7, 10, 13], [3, 6, 0, 0]]),
  jnp.array([[True] * 4] * 3 + [[True, True, False, False]]),
)
ALGORITHMS = {
  'sft': algorithms.sft,
  'dro_v': algorithms.dro_v,
  'dro_v_residual': algorithms.dro_v_residual,
  'dro_p': algorithms.dro_p,
  'kto': algorithms.kto,
  'kto_label': functools.partial(algorithms.kto, labels=algorithms.column_labels),
  'a_lol_sequence': algorithms.a_lol_sequence,
  'bco': algorithms.bco,
  'copg': algorithms.copg,
  'dpo': algorithms.dpo,
  'oreo': algorithms.oreo,
  'pro': algorithms.pro,
  'reinforce': algorithms.reinforce,
  'dro_v_kl': lambda: algorithms.with_next_token_kl(algorithms.dro_v(tau=0.5), 2.0),
  'dpo_kl': lambda: algorithms.with_next_token_kl(algorithms.dpo(), 2.0, 'forward'),
}


def distinct_reference(params):
  """Another policy than the trained one, so that ρ ≠ 0."""
  return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(7), x.shape), params['policy'])


def make(algorithm, *, num_microbatches=1, readout='prompt', shared=False, optimizer=None):
  algorithm = algorithm()
  algorithm = algorithms.with_batch_value(algorithm) if readout == 'batch' else algorithm
  policy, value, params = init_params(readout=readout if algorithm.uses_value else None, shared=shared)
  txs = {name: optimizer or optimizers.adafactor(1e-2) for name in params}
  score = scoring.make_score(policy, value, kl_direction=algorithm.kl_direction)
  score_reference = scoring.make_score(policy, keeps_states=algorithm.kl_direction is not None)
  frozen = reference.Frozen().build(score_reference) if algorithm.uses_reference else None
  state = train_state.create(params, txs, algorithm.uses_reference, algorithm.statistics)
  if algorithm.uses_reference:
    state = state._replace(reference=distinct_reference(params))
  step = train_step.make_train_step(score, algorithm, txs, frozen, num_microbatches=num_microbatches)
  return step, state


def rows_for(algorithm):
  """The batch as this algorithm's loader would bring it, with every column that it may derive."""
  rng = np.random.default_rng(3)
  derived = {
    name: jnp.asarray(rng.normal(size=ROWS.rewards.shape), jnp.float32) for name in algorithm.columns
  }
  units = {'response': None, 'pair': PAIRS, 'group': GROUPS}[algorithm.unit]
  return ROWS._replace(
    columns=dict(ROWS.columns) | derived,
    mismatched=ROWS.mismatched if algorithm.uses_mismatched else None,
    units=units,
  )


def assert_close(a, b, rtol=2e-4, atol=2e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@functools.cache
def one_step(name, num_microbatches=1, readout='prompt', shared=False):
  """Metrics and parameters after one step of gradient descent, which keeps gradients' sizes visible."""
  readout = 'token' if ALGORITHMS[name]().uses_token_values else readout
  settings = {'num_microbatches': num_microbatches, 'readout': readout, 'shared': shared}
  step, state = make(ALGORITHMS[name], optimizer=optax.sgd(0.1), **settings)
  state, output = jax.jit(step)(state, rows_for(ALGORITHMS[name]()))
  return jax.device_get((state.params, output.metrics))


# Single responses, and pairs.
@pytest.mark.parametrize('name', tiers(('dro_v', 'dpo'), ALGORITHMS))
def test_microbatches_change_no_number(name):
  for num_microbatches in (2, 4) if name in ('dro_v', 'kto') else (2,):
    assert_close(one_step(name), one_step(name, num_microbatches))


@pytest.mark.long
def test_microbatches_change_no_number_of_a_shared_token_value():
  assert_close(one_step('dro_v', 1, 'token', True), one_step('dro_v', 4, 'token', True))


SECOND_AND_SHARED = pytest.mark.parametrize(
  'shared', [*long(False), True], ids=['second network', 'shared trunk']
)


@functools.cache
def batch_value_step(shared, num_microbatches=1):
  """Parameters with a head away from 0, those after one step of gradient descent, and the step's metrics."""
  step, state = make(
    algorithms.dro_v,
    num_microbatches=num_microbatches,
    readout='batch',
    shared=shared,
    optimizer=optax.sgd(0.1),
  )
  head = {'kernel': 0.3 * jax.random.normal(jax.random.key(5), (CONFIG.emb_dim,)), 'bias': jnp.asarray(0.2)}
  params = dict(state.params) | {'value': state.params['value'] | {'head': head}}
  after, output = jax.jit(step)(state._replace(params=params), rows_for(algorithms.dro_v()))
  return params, jax.device_get(after.params), jax.device_get(output.metrics)


def scored(params, shared):
  """(log-probs, reference log-probs, values by prompt) of the batch's 16 responses."""
  policy, value, start = init_params(readout='batch', shared=shared)
  rows = ROWS._replace(mismatched=None)
  scores = jax.jit(scoring.make_score(policy, value))(params, rows, None)
  reference_scores = jax.jit(scoring.make_score(policy))({'policy': distinct_reference(start)}, rows, None)
  return scores.logps, reference_scores.logps, scores.values


@SECOND_AND_SHARED
def test_microbatches_change_no_number_of_a_batch_value(shared):
  assert_close(batch_value_step(shared), batch_value_step(shared, 4))


@SECOND_AND_SHARED
def test_a_batch_value_is_one_number_in_both_losses(shared):
  """Independent numpy in float64, from the values by prompt."""
  params, _, metrics = batch_value_step(shared)
  logps, reference_logps, values = (np.asarray(x, np.float64) for x in scored(params, shared))
  assert values.std() > 0.01
  rho, value = logps - reference_logps, values.mean()
  advantages = np.asarray(ROWS.rewards, np.float64) - value
  np.testing.assert_allclose(metrics['loss/policy'], np.mean(-advantages * logps + rho**2 / 2), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss/value'], np.mean((advantages - rho) ** 2) / 2, rtol=1e-5)
  np.testing.assert_allclose(metrics['value'], value, rtol=1e-5)
  assert abs(metrics['value_explained_variance']) < 1e-5


@SECOND_AND_SHARED
def test_a_batch_value_trains_the_network_that_it_reads(shared):
  """Against one `grad` of the loss by hand; the second network's trunk moves, or the policy's for V too."""
  before, after, _ = batch_value_step(shared)

  def objective(params, weight):
    logps, reference_logps, values = scored(params, shared)
    rho, stop = logps - reference_logps, jax.lax.stop_gradient
    policy_loss = jnp.mean(-(ROWS.rewards - stop(jnp.mean(values))) * logps + jnp.square(rho) / 2)
    return policy_loss + weight * jnp.mean(jnp.square(jnp.mean(values) - stop(ROWS.rewards - rho))) / 2

  gradient = jax.jit(jax.grad(objective))
  stepped = lambda weight: jax.tree.map(lambda p, g: p - 0.1 * g, before, gradient(before, weight))  # noqa: E731
  assert_close(after, stepped(1.0))
  moves = optax.tree.norm(optax.tree.sub(after['policy'], stepped(0.0)['policy']))
  assert (moves > 1e-3) == shared
  assert ('trunk' in before['value']) != shared
  if not shared:
    trunks = (tree['value']['trunk']['encoder'] for tree in (after, before))
    assert optax.tree.norm(optax.tree.sub(*trunks)) > 1e-3


def test_kto_couples_so_that_microbatch_means_would_differ():
  """The test above can fail: KTO on each half alone has another gradient."""
  half = jax.tree.map(lambda x: x[:4], ROWS)
  step, state = make(algorithms.kto, optimizer=optax.sgd(0.1))
  halved, _ = jax.jit(step)(state, half)
  with pytest.raises(AssertionError):
    assert_close(halved.params, one_step('kto')[0])


@pytest.mark.parametrize('name', ['dro_v', *long('dro_p')])
def test_gradient_is_plain_autodiff_of_the_papers_loss(name):
  """Against one `grad` of the loss written out by hand, without cotangents or microbatches."""
  algorithm = ALGORITHMS[name]()
  policy, value, params = init_params(readout='prompt' if algorithm.uses_value else None)
  score = scoring.make_score(policy, value)
  reference_logps = jax.jit(scoring.make_score(policy))(
    {'policy': distinct_reference(params)}, ROWS._replace(mismatched=None)
  ).logps

  def objective(params):
    scores = score(params, ROWS._replace(mismatched=None), None)
    rho = scores.logps - reference_logps
    if name == 'dro_p':
      e = ROWS.rewards - rho
      return jnp.mean(jnp.square(e - jax.lax.stop_gradient(jnp.mean(e)))) / 2
    advantage = ROWS.rewards - jax.lax.stop_gradient(scores.values)
    policy_loss = jnp.mean(-advantage * scores.logps + jnp.square(rho) / 2)
    return policy_loss + jnp.mean(jnp.square(scores.values - jax.lax.stop_gradient(ROWS.rewards - rho))) / 2

  expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.jit(jax.grad(objective))(params))
  assert_close(one_step(name)[0], expected)


def test_next_token_kl_is_plain_autodiff_of_whole_distributions():
  """Against one `grad` of the loss written out by hand, from both policies' logits."""
  policy, value, params = init_params()
  rows, other = ROWS._replace(mismatched=None), distinct_reference(params)

  def log_distributions(own):
    states = models_policy.run(policy, own, rows)[1]
    return jax.nn.log_softmax(models_policy.logits(policy, own, states))

  reference_BTV = jax.jit(log_distributions)(other)

  def objective(params):
    logp_BTV = log_distributions(params['policy'])
    chosen = jnp.take_along_axis(logp_BTV - reference_BTV, rows.response_tokens[:, :, None], -1)[:, :, 0]
    logps = jnp.take_along_axis(logp_BTV, rows.response_tokens[:, :, None], -1)[:, :, 0]
    in_slot = [rows.response_segments == r + 1 for r in range(2)]
    rho, logps = (jnp.stack([jnp.sum(x * slot, 1) for slot in in_slot], 1) for x in (chosen, logps))
    kl_BT = jnp.sum(jnp.exp(logp_BTV) * (logp_BTV - reference_BTV), -1) * (rows.response_segments > 0)
    values = scoring.make_score(policy, value)(params, rows, None).values
    stop = jax.lax.stop_gradient
    dro = jnp.mean(-(rows.rewards - stop(values)) * logps + 0.25 * jnp.square(rho))
    dro += jnp.mean(jnp.square(values - stop(rows.rewards - 0.5 * rho))) / 2
    return dro + 2.0 * 0.5 * jnp.sum(kl_BT) / 16, jnp.sum(kl_BT) / 16

  gradient, kl = jax.jit(jax.grad(objective, has_aux=True))(params)
  after, metrics = one_step('dro_v_kl')
  assert_close(after, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
  np.testing.assert_allclose(metrics['next_token_kl'], kl, rtol=1e-4)
  np.testing.assert_allclose(metrics['loss/next_token_kl'], kl, rtol=1e-4)
  assert kl > 0.01


MESHES = [(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]


@functools.cache
def steps_on(mesh_shape, name='dro_v', num_microbatches=1, rules=(), readout='prompt'):
  """Two optimiser steps on a mesh, laid out as a run lays it out; `None`: one device."""
  step, state = make(ALGORITHMS[name], num_microbatches=num_microbatches, readout=readout)
  rows = rows_for(ALGORITHMS[name]())
  if mesh_shape is None:
    step = jax.jit(step)
  else:
    mesh = partitioning.make_mesh(*mesh_shape, rules=rules)
    policy, value, _ = init_params()
    boxed = jax.eval_shape(policy.init, jax.random.key(0), rows)['params']
    shardings = {'policy': partitioning.parameter_shardings(boxed, mesh)}
    if 'value' in state.params:
      encoded = jax.ShapeDtypeStruct((8, 32, CONFIG.emb_dim), jnp.float32)
      hidden = jax.ShapeDtypeStruct((8, 24, CONFIG.emb_dim), jnp.float32)
      boxed = jax.eval_shape(value.init, jax.random.key(0), rows, encoded, hidden)['params']
      shardings['value'] = partitioning.parameter_shardings(boxed, mesh)
    state_shardings = partitioning.state_shardings(state, shardings, mesh)
    rows = partitioning.global_batch(mesh, rows, 8)
    # A copy: the step donates its buffers.
    state = jax.device_put(jax.tree.map(jnp.copy, state), state_shardings)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, partitioning.replicated(mesh)))

    def step(state, rows):
      with partitioning.use_mesh(mesh):
        return jitted(state, rows)

  outputs = []
  for _ in range(2):
    state, output = step(state, rows)
    outputs.append(jax.device_get(output.metrics))
  return jax.device_get(state.params), outputs


@pytest.mark.parametrize('mesh_shape', tiers([(2, 2, 2)], MESHES))
def test_every_mesh_gives_the_numbers_of_one_device(mesh_shape):
  assert_close(steps_on(None), steps_on(mesh_shape), rtol=1e-3, atol=2e-5)


@pytest.mark.long
def test_microbatches_and_cut_lengths_on_a_mesh():
  cut = tuple((name, 'model') for name in ('activation_heads', 'activation_mlp', 'activation_vocab'))
  rules = (*cut, ('activation_length', 'model'))
  assert_close(steps_on(None, 'kto'), steps_on((4, 1, 2), 'kto', 2, rules), rtol=1e-3, atol=2e-5)


@pytest.mark.long
def test_next_token_kl_on_a_mesh_that_cuts_lengths_and_vocabulary():
  cut = tuple((name, 'model') for name in ('activation_heads', 'activation_mlp', 'activation_vocab'))
  rules = (*cut, ('activation_length', 'model'))
  one, meshed = steps_on(None, 'dro_v_kl'), steps_on((2, 2, 2), 'dro_v_kl', 2, rules)
  assert_close(one, meshed, rtol=1e-3, atol=2e-5)


@pytest.mark.long
def test_a_batch_value_is_the_global_batchs_on_a_mesh():
  one, meshed = steps_on(None, readout='batch'), steps_on((2, 2, 2), 'dro_v', 2, readout='batch')
  assert_close(one, meshed, rtol=1e-3, atol=2e-5)


def test_log_ratio_is_zero_to_a_rounding_at_step_zero():
  """Exactly 0 as users compile; without LLVM's optimisations some CPUs round the two passes differently."""
  policy, value, params = init_params()
  txs = {name: optimizers.adafactor(1e-3) for name in params}
  for num_microbatches in (1, 2):
    step = train_step.make_train_step(
      scoring.make_score(policy, value),
      algorithms.dro_v(),
      txs,
      reference.Frozen().build(scoring.make_score(policy)),
      num_microbatches=num_microbatches,
    )
    _, output = jax.jit(step)(train_state.create(params, txs, True), ROWS._replace(mismatched=None))
    assert output.metrics['log_ratio_max'] <= 2e-6


@pytest.mark.long
def test_log_ratio_is_exactly_zero_in_bfloat16_without_excess_precision():
  _, value, params = init_params()
  policy = T5(dataclasses.replace(CONFIG, dtype='bfloat16'))
  txs = {name: optimizers.adafactor(1e-3) for name in params}
  step = train_step.make_train_step(
    scoring.make_score(policy, value),
    algorithms.dro_v(),
    txs,
    reference.Frozen().build(scoring.make_score(policy)),
  )
  step = jax.jit(step, compiler_options=partitioning.COMPILER_OPTIONS)
  _, output = step(train_state.create(params, txs, True), ROWS._replace(mismatched=None))
  assert output.metrics['log_ratio_max'] == 0.0


@pytest.mark.parametrize(
  'readout, shared',
  [
    pytest.param('scalar', False, marks=pytest.mark.long),
    pytest.param('batch', False, marks=pytest.mark.long),
    pytest.param('batch', True, marks=pytest.mark.long),
    ('prompt', False),
    pytest.param('prompt', True, marks=pytest.mark.long),
    pytest.param('token', False, marks=pytest.mark.long),
    pytest.param('token', True, marks=pytest.mark.long),
  ],
)
def test_every_value_learns_the_mean_reward(readout, shared):
  """With the policy's learning rate at 0, ρ = 0: each value regresses on the reward."""
  policy, value, params = init_params(readout=readout, shared=shared)
  algorithm = algorithms.dro_v()
  algorithm = algorithms.with_batch_value(algorithm) if readout == 'batch' else algorithm
  txs = {'policy': optax.sgd(0.0), 'value': optimizers.adamw(0.1)}
  score = scoring.make_score(policy, value)
  step = jax.jit(
    train_step.make_train_step(score, algorithm, txs, reference.Frozen().build(scoring.make_score(policy)))
  )
  state = train_state.create(params, txs, True)
  rows = ROWS._replace(rewards=ROWS.rewards + 2.0, mismatched=None)
  for _ in range(60):
    state, output = step(state, rows)
  assert abs(output.metrics['value'] - rows.rewards.mean()) < 0.2
  if readout == 'prompt':
    assert output.metrics['value_explained_variance'] > 0.3


def value_first(num_microbatches=1, warmup_steps=2):
  """(the step whose first steps train the value alone, the plain step, the first state)."""
  policy, value, params = init_params()
  txs = {name: optimizers.adamw(optimizers.warmup_constant(1e-2, 4)) for name in params}
  make = functools.partial(
    train_step.make_train_step, scoring.make_score(policy, value), algorithms.dro_v(),
    reference=reference.Soft(every=1).build(scoring.make_score(policy)), num_microbatches=num_microbatches,
  )  # fmt: skip
  plain, value_step = make(txs), make({'value': txs['value']})
  state = train_state.create(params, txs, True, keeps_initial=True)
  return train_step.make_value_first_step(plain, value_step, warmup_steps), plain, state


@pytest.mark.parametrize('num_microbatches', [*long(1), 2])
def test_the_value_trains_alone_before_the_policy(num_microbatches):
  step, plain, state = value_first(num_microbatches)
  rows, states, norms, step = ROWS._replace(mismatched=None), [state], [], jax.jit(step)
  for _ in range(4):
    state, output = step(states[-1], rows)
    states.append(state)
    norms.append(float(output.metrics['gradient_norm/policy']))
  first, waited, third, last = (
    jax.tree.map(np.asarray, {'policy': s.params['policy'], 'optimizer': s.opt_state['policy']})
    for s in (states[0], *states[2:])
  )
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(waited)):
    assert a.tobytes() == b.tobytes()
  assert norms[:2] == [0, 0] and norms[2] > 0
  values = [s.params['value'] for s in states]
  assert optax.tree.norm(optax.tree.sub(values[2], values[0])) > 0
  # The policy's own warm-up begins: its first update has the rate 0, and its second has not.
  jax.tree.map(np.testing.assert_array_equal, third['policy'], first['policy'])
  assert optax.tree.norm(optax.tree.sub(last['policy'], third['policy'])) > 0
  assert_close(jax.jit(plain)(states[2], rows)[0].params, states[3].params)


def test_training_the_value_alone_runs_no_backward_pass_of_the_policy():
  policy, value, params = init_params()
  txs = {name: optimizers.adamw(1e-2) for name in params}
  make = functools.partial(train_step.make_train_step, scoring.make_score(policy, value), algorithms.dro_v())
  frozen = reference.Frozen().build(scoring.make_score(policy))
  state, rows = train_state.create(params, txs, True), ROWS._replace(mismatched=None)
  whole, alone = (flops.count(make(own, frozen), state, rows) for own in (txs, {'value': txs['value']}))
  assert alone < 0.75 * whole


def test_the_value_loss_has_a_gradient_in_the_policy_only_with_a_shared_trunk():
  def policy_gradient(shared):
    policy, value, params = init_params(shared=shared)
    params = jax.tree.map(lambda x: x + 0.1, params)
    score = scoring.make_score(policy, value)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(score(p, ROWS._replace(mismatched=None), None).values)))
    return gradient(params)['policy']

  size = {shared: optax.tree.norm(policy_gradient(shared)) for shared in (True, False)}
  assert size[True] > 0
  assert size[False] == 0


def test_a_step_names_the_examples_whose_loss_is_not_finite():
  step, state = make(algorithms.dro_v)
  rewards = ROWS.rewards.at[3, 1].set(np.nan)
  _, output = jax.jit(step)(state, ROWS._replace(rewards=rewards, mismatched=None))
  ids = np.asarray(output.nonfinite_ids)
  assert ids[ids >= 0].tolist() == [ROWS.example_id[3, 1]]


def test_kto_step_uses_the_mismatched_mean_of_the_global_batch():
  """z₀ from the mismatched pairs, each scored by itself as a row of its own."""
  step, state = make(algorithms.kto)
  policy, _, params = init_params(readout=None)
  score = jax.jit(scoring.make_score(policy))
  pairs = [type(EXAMPLES[0])(EXAMPLES[j].prompt, EXAMPLES[i].response, 0.0) for i, j in enumerate(MISMATCHES)]
  rows = layout(pairs, 16, 1)
  rho = score(params, rows).logps - score({'policy': distinct_reference(params)}, rows).logps
  _, output = jax.jit(step)(state, ROWS)
  np.testing.assert_allclose(output.metrics['reference_point'], max(0, np.mean(rho)), rtol=1e-4)
  assert output.metrics['unpaired'] == 0


def test_sft_steps_report_the_loss_of_the_losses_module():
  metrics = one_step('sft')[1]
  policy, _, params = init_params(readout=None)
  logps = jax.jit(scoring.make_score(policy))(params, ROWS._replace(mismatched=None)).logps
  np.testing.assert_allclose(metrics['loss'], np.mean(losses.sft(logps.reshape(-1))), rtol=1e-5)


@pytest.mark.parametrize('name, num_microbatches', [('dro_v', 1), ('kto', 1), ('kto', 2)])
def test_a_step_calls_the_loss_once(name, num_microbatches):
  batches = []

  def algorithm():
    counted = ALGORITHMS[name]()
    return counted._replace(loss=lambda batch: (batches.append(batch), counted.loss(batch))[1])

  step, state = make(algorithm, num_microbatches=num_microbatches)
  jax.eval_shape(step, state, rows_for(algorithm()))
  assert len(batches) == 1


def test_a_step_names_the_response_whose_next_token_kl_is_not_finite():
  """Of pairs too, whose own losses are by pair."""
  kls = jnp.zeros(16).at[3].set(np.nan)
  terms = {
    'policy': LossTerm(jnp.zeros(8), jnp.ones(8, bool)),
    'next_token_kl': LossTerm(kls, jnp.ones(16, bool)),
  }
  ids = np.asarray(metrics.nonfinite_ids(LossOutput(terms), {'loss': kls[3]}, ROWS._replace(units=PAIRS)))
  assert ids[ids >= 0].tolist() == [ROWS.example_id.reshape(-1)[3]]


@pytest.mark.parametrize('name', [*long('bradley_terry'), 'reward_regression'])
def test_a_reward_models_step_makes_no_pass_of_the_policy_and_microbatches_change_nothing(name):
  algorithm = getattr(algorithms, name)
  rows = rows_for(algorithm())
  policy, value, params = init_params(readout='response')
  # A head away from 0, without which the trunk has no gradient.
  head = {
    'kernel': jax.random.normal(jax.random.key(3), params['value']['head']['kernel'].shape),
    'bias': jnp.zeros(()),
  }
  params = params | {'value': params['value'] | {'head': head}}
  found = []
  for num_microbatches in (1, 4):
    txs = {'policy': optax.set_to_zero(), 'value': optax.sgd(1e-3)}
    score = scoring.make_score(policy, value, scores_policy=False)
    step = train_step.make_train_step(score, algorithm(), txs, num_microbatches=num_microbatches)
    state = train_state.create(params, txs, False)
    after, output = jax.jit(step)(state, rows)
    found.append((after.params['value'], output.metrics['loss']))
    jax.tree.map(np.testing.assert_array_equal, after.params['policy'], params['policy'])
    assert 'logp' not in output.metrics and float(output.metrics['gradient_norm/value']) > 0
  assert_close(*found)
  # The step goes downhill, and costs less than one that scores the policy too.
  loss = lambda params: step_loss(score, algorithm(), params, rows)  # noqa: E731
  moved = params | {'value': found[0][0]}
  assert loss(moved) < loss(params)
  products = flops.count(score, params, rows)
  assert products < flops.count(scoring.make_score(policy, value), params, rows)


def step_loss(score, algorithm, params, rows):
  output = algorithm.loss(Batch(jax.jit(score)(params, rows), None, rows))
  return float(sum(train_step.weighted_losses(output, train_step.total_weights(output)).values()))


def test_a_loss_that_is_a_mean_already_is_refused():
  """It would count the slots that hold no response."""
  output = LossOutput({'policy': LossTerm(jnp.float32(1.0), jnp.ones(8, bool))})
  with pytest.raises(
    UsageError, match=r"'policy' has the shape \(\) and its weights have \(8,\): return one"
  ):
    train_step.weighted_losses(output, train_step.total_weights(output))


def test_a_policy_that_is_not_trained_is_left_alone():
  step, state = make(algorithms.regression, shared=True)
  after, output = jax.jit(step)(state, rows_for(algorithms.regression()))
  jax.tree.map(np.testing.assert_array_equal, after.params['policy'], state.params['policy'])
  assert float(output.metrics['gradient_norm/policy']) == 0.0 < float(output.metrics['gradient_norm/value'])
