import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dro_jax.errors import UsageError
from dro_jax.models.policy import smallest_rows
from dro_jax.models.t5.config import T5Config
from dro_jax.models.t5.network import T5
from dro_jax.models.value import READOUTS, ValueNetwork, start_from_policy
from tests.examples import layout, random_examples

CONFIG = T5Config(
  vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=1, num_decoder_layers=1
)
EXAMPLES = random_examples(4)
PACKED, PADDED = layout(EXAMPLES, 2, 2), layout(EXAMPLES, 4, 1)
STATES = jnp.zeros((1, 1, 8))


@functools.cache
def make(readout, shared=False, frozen_trunk=False):
  """(network, random parameters with a head away from 0)."""
  network = ValueNetwork(CONFIG, readout=readout, shared=shared, frozen_trunk=frozen_trunk)
  shapes = nn.unbox(
    jax.eval_shape(network.init, jax.random.key(0), smallest_rows(), STATES, STATES)['params']
  )
  rng = np.random.default_rng(0)
  return network, jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), shapes
  )


def apply(readout, rows):
  network, params = make(readout)
  return jax.device_get(jax.jit(network.apply)({'params': params}, rows))


def by_example(values, rows):
  ids, valid = np.asarray(rows.example_id), np.asarray(rows.valid)
  return values[valid][np.argsort(ids[valid])]


@pytest.mark.parametrize('readout', READOUTS)
def test_packed_equals_padded(readout):
  packed, padded = apply(readout, PACKED)[0], apply(readout, PADDED)[0]
  np.testing.assert_allclose(by_example(packed, PACKED), by_example(padded, PADDED), atol=1e-5)
  assert np.ptp(packed) > 0 or readout == 'scalar'


@pytest.mark.parametrize('readout', ['prompt', 'attention', 'batch'])
def test_prompt_values_never_see_the_response(readout):
  other = PACKED._replace(response_tokens=jnp.where(PACKED.response_segments > 0, 9, 0))
  np.testing.assert_array_equal(apply(readout, PACKED)[0], apply(readout, other)[0])
  assert set(make(readout)[1]['trunk']) == {'token_embedder', 'encoder'}


def test_the_attention_pool_is_a_softmax_over_the_prompts_own_tokens():
  """Independent numpy in float64."""
  network, params = make('attention', shared=True)
  rng = np.random.default_rng(1)
  states = rng.normal(size=(*PACKED.prompt_tokens.shape, 8))
  found = jax.jit(network.apply)({'params': params}, PACKED, jnp.asarray(states, jnp.float32))[0]
  query, key, value = (np.asarray(params['pool'][name], np.float64) for name in ('query', 'key', 'value'))
  for row in range(2):
    for slot in range(2):
      own = states[row][np.asarray(PACKED.prompt_segments[row]) == slot + 1]
      pooled = []
      for head in range(2):
        logits = own @ key[:, head] @ query[head] / 2.0
        weights = np.exp(logits) / np.exp(logits).sum()
        pooled.append(weights @ (own @ value[:, head]))
      wanted = np.concatenate(pooled) @ np.asarray(params['head']['kernel']) + params['head']['bias']
      assert float(found[row, slot]) == pytest.approx(float(wanted), rel=1e-5)


def test_padding_changes_no_attention_value():
  states = jnp.asarray(np.random.default_rng(1).normal(size=(*PACKED.prompt_tokens.shape, 8)), jnp.float32)
  network, params = make('attention', shared=True)
  other = jnp.where((PACKED.prompt_segments > 0)[:, :, None], states, 1e3)
  score = jax.jit(network.apply)
  found = [score({'params': params}, PACKED, x)[0] for x in (states, other)]
  np.testing.assert_array_equal(*found)


@pytest.mark.parametrize('readout', ['prompt', 'attention'])
def test_a_frozen_trunk_gets_no_gradient(readout):
  network, params = make(readout, frozen_trunk=True)
  gradient = jax.jit(jax.grad(lambda params: jnp.sum(network.apply({'params': params}, PACKED)[0])))(params)
  norms = {name: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(gradient[name])) for name in gradient}
  assert norms.pop('trunk') == 0.0 and all(norm > 0 for norm in norms.values())
  _, thawed = make(readout)
  jax.tree.map(np.testing.assert_array_equal, params, thawed)


def test_a_frozen_shared_trunk_has_no_gradient_in_the_policy():
  network, params = make('attention', shared=True, frozen_trunk=True)
  states = jnp.ones((*PACKED.prompt_tokens.shape, 8))
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(network.apply({'params': params}, PACKED, x)[0])))(states)
  assert not np.asarray(gradient).any() and 'trunk' not in params


def test_a_prompt_value_is_the_read_out_of_the_mean_state():
  network, params = make('prompt')
  rows = layout(EXAMPLES[:1], 1, 1, (len(EXAMPLES[0].prompt), 6))
  encode = jax.jit(functools.partial(T5(CONFIG).apply, method='encode'))
  prompts = rows.prompt_tokens, rows.prompt_segments, rows.prompt_positions
  states = encode({'params': params['trunk']}, *prompts)
  expected = np.mean(states[0], axis=0) @ np.asarray(params['head']['kernel']) + params['head']['bias']
  values, tokens = jax.jit(network.apply)({'params': params}, rows)
  np.testing.assert_allclose(values[0, 0], expected, rtol=1e-5)
  assert tokens is None


def test_token_values_see_only_earlier_tokens():
  values, tokens = apply('token', PACKED)
  segments, positions = np.asarray(PACKED.response_segments), np.asarray(PACKED.response_positions)
  assert (tokens[segments == 0] == 0).all()
  assert (tokens[segments > 0] != 0).all()
  for slot in range(2):
    first = (segments == slot + 1) & (positions == 0)
    np.testing.assert_array_equal(tokens[first], values[:, slot])
  changed = PACKED._replace(
    response_tokens=jnp.where(PACKED.response_positions == 1, 9, PACKED.response_tokens)
  )
  _, other = apply('token', changed)
  np.testing.assert_allclose(other[positions < 2], tokens[positions < 2], atol=1e-6)
  assert np.abs(other - tokens)[positions == 2].max() > 1e-3


def test_a_score_is_read_from_the_state_that_predicts_the_last_token_of_a_t5():
  """Which has read the prompt, the start token and all tokens before the last, as T5's classifiers have."""
  network, params = make('response')
  rows = layout(EXAMPLES[:1], 1, 1)
  t5, variables = T5(CONFIG), {'params': params['trunk']}
  sides = rows.prompt_tokens, rows.prompt_segments, rows.prompt_positions
  encoded = jax.jit(functools.partial(t5.apply, method='encode'))(variables, *sides)
  states = jax.jit(functools.partial(t5.apply, method='decode'))(
    variables, encoded, rows.prompt_segments, *rows[3:7]
  )
  last = states[0, len(EXAMPLES[0].response) - 1]
  expected = np.asarray(last) @ np.asarray(params['head']['kernel']) + params['head']['bias']
  scores, tokens = jax.jit(network.apply)({'params': params}, rows)
  np.testing.assert_allclose(scores[0, 0], expected, rtol=1e-5)
  assert tokens is None


def test_a_score_reads_the_prompt_and_the_response_of_its_own():
  found = apply('response', PACKED)[0]
  for side in ('prompt', 'response'):
    segments, tokens = getattr(PACKED, f'{side}_segments'), getattr(PACKED, f'{side}_tokens')
    # The first token of the row's first text alone: the other response does not see it.
    changed = PACKED._replace(**{f'{side}_tokens': tokens.at[:, 0].set((tokens[:, 0] + 7) % 32)})
    other = apply('response', changed)[0]
    long_enough = np.asarray((segments == 1).sum(axis=1)) > 1
    assert (np.abs(other - found)[long_enough, 0] > 1e-4).all() and long_enough.any()
    np.testing.assert_array_equal(other[:, 1], found[:, 1])


def test_missing_responses_have_value_0():
  rows = layout(EXAMPLES[:3], 2, 2)
  for readout in READOUTS:
    values, _ = apply(readout, rows)
    assert (values[~np.asarray(rows.valid)] == 0).all()
    assert (values[np.asarray(rows.valid)] != 0).all()


def test_initial_values_are_0():
  for readout in ('prompt', 'token', 'batch', 'scalar', 'response'):
    network, params = make(readout)
    shapes = {'params': {'head': params['head']}}
    head = nn.unbox(
      ValueNetwork(CONFIG, readout, shared=True).init(jax.random.key(0), smallest_rows(), STATES, STATES)
    )
    assert jax.tree.map(np.shape, head) == jax.tree.map(np.shape, shapes)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(head))
    assert network.readout == readout


@pytest.mark.parametrize('readout', ['prompt', 'token', 'batch', 'response'])
def test_shared_values_have_a_gradient_in_the_policys_states(readout):
  network, params = make(readout, shared=True)
  assert set(params) == {'head'}
  rng = np.random.default_rng(1)
  encoded = jnp.asarray(rng.normal(size=(2, 32, 8)), jnp.float32)
  hidden = jnp.asarray(rng.normal(size=(2, 24, 8)), jnp.float32)
  pulled = jax.grad(lambda states: jnp.sum(network.apply({'params': params}, PACKED, *states)[0]), argnums=0)(
    (encoded, hidden)
  )
  seen, unseen = pulled[::-1] if readout in ('token', 'response') else pulled
  assert jnp.abs(seen).max() > 0
  assert jnp.abs(unseen).max() == 0


def test_start_from_policy_copies_the_trunk():
  _, policy = make('token')
  policy = policy['trunk'] | {'decoder': policy['trunk']['decoder'] | {'logits_dense': {'kernel': STATES}}}
  for readout in ('prompt', 'token'):
    _, params = make(readout)
    start = start_from_policy(jax.tree.map(jnp.zeros_like, params), policy)
    assert jax.tree.structure(start) == jax.tree.structure(params)
    copied, source = start['trunk']['token_embedder']['embedding'], policy['token_embedder']['embedding']
    np.testing.assert_array_equal(copied, source)
    assert copied.unsafe_buffer_pointer() != source.unsafe_buffer_pointer()
  _, scalar = make('scalar')
  assert start_from_policy(scalar, policy) is scalar


def test_a_trunk_that_the_policy_lacks_is_refused():
  _, params = make('prompt')
  policy = params['trunk']
  with pytest.raises(UsageError, match='no trunk/encoder'):
    start_from_policy(params, {'token_embedder': policy['token_embedder']})
  wider = policy | {'token_embedder': {'embedding': jnp.zeros((33, 8))}}
  with pytest.raises(UsageError, match=r'token_embedder/embedding is \(32, 8\)'):
    start_from_policy(params, wider)


def test_an_unknown_readout_is_refused():
  with pytest.raises(UsageError, match="readout='tokens'"):
    dataclasses.replace(make('prompt')[0], readout='tokens').init(jax.random.key(0), smallest_rows())
