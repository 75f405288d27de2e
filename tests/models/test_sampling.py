import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dro_jax.errors import UsageError
from dro_jax.models import sampling
from dro_jax.models.policy import smallest_rows
from dro_jax.models.stacks import convert_layers
from dro_jax.models.t5.config import T5Config
from dro_jax.models.t5.network import T5
from dro_jax.names import SpecialTokens
from dro_jax.ops import logprobs
from dro_jax.parallel import partitioning
from dro_jax.types import Rows

CONFIG = T5Config(
  vocab_size=12, emb_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=2,
  relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip
LENGTH, EOS = 14, SpecialTokens().eos
RNG = np.random.default_rng(0)
SEGMENTS = (np.arange(7)[None] < np.array([7, 3, 1, 5])[:, None]).astype(np.int32)
TOKENS = RNG.integers(2, 12, SEGMENTS.shape).astype(np.int32) * SEGMENTS


@functools.cache
def params():
  shapes = nn.unbox(jax.eval_shape(T5(CONFIG).init, jax.random.key(0), smallest_rows())['params'])
  # Larger than at initialisation, so that every position's distribution differs.
  return jax.tree.map(lambda leaf: jnp.asarray(0.6 * RNG.normal(size=leaf.shape), jnp.float32), shapes)


def sample(config=CONFIG, tree=None, rows=slice(None), tokens=TOKENS, segments=SEGMENTS, **settings):
  prompts = jnp.asarray(tokens[rows]), jnp.asarray(segments[rows])
  settings = {'prompt_ids': jnp.arange(4)[rows]} | settings
  out = sampling.sample(T5(config), tree or params(), prompts, LENGTH, jax.random.key(3), **settings)
  return jax.device_get(out)


def score(samples):
  """Logits of every step, and log-probs of the tokens, from one pass over the whole responses."""
  inside = (np.arange(LENGTH)[None] < samples.lengths[:, None]).astype(np.int32)
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), inside.shape)
  rows = Rows(
    prompt_tokens=TOKENS, prompt_segments=SEGMENTS, prompt_positions=np.zeros_like(TOKENS),
    response_tokens=samples.tokens, response_segments=inside, response_positions=positions,
    response_prompt=inside,
    rewards=np.zeros((4, 1), np.float32), example_id=np.zeros((4, 1), np.int32), valid=np.ones((4, 1), bool),
  )  # fmt: skip
  logits = jax.jit(T5(CONFIG).apply)({'params': params()}, rows)
  token_logps = logprobs.token_logps(logits, jnp.asarray(samples.tokens))
  return np.asarray(logits), np.sum(np.asarray(token_logps) * inside, axis=-1), inside


def test_greedy_is_the_argmax_of_the_full_decode():
  samples = sample(temperature=0.0)
  logits, logps, inside = score(samples)
  np.testing.assert_allclose(samples.logps, logps, rtol=1e-5)
  np.testing.assert_array_equal(np.argmax(logits, axis=-1) * inside, samples.tokens)
  assert len(np.unique(samples.tokens)) > 4


@pytest.mark.parametrize(
  'settings', [{}, {'temperature': 0.7, 'top_k': 5, 'top_p': 0.9}], ids=['plain', 'truncated']
)
def test_sampled_log_probs_equal_scored_ones(settings):
  samples = sample(**settings)
  _, logps, _ = score(samples)
  np.testing.assert_allclose(samples.logps, logps, rtol=1e-5)


def test_responses_end_with_eos_or_at_the_limit():
  samples = sample()
  assert 1 < samples.lengths.min() < samples.lengths.max() == LENGTH
  for tokens, length in zip(samples.tokens, samples.lengths, strict=True):
    assert (tokens[: length - 1] != EOS).all()
    assert (tokens[length - 1] == EOS) == (length < LENGTH) or length == LENGTH
    assert (tokens[length:] == 0).all()


def test_batches_and_padding_change_no_sample():
  together = sample()
  for rows in ([2, 0], [3], [1, 1]):
    apart = sample(rows=np.array(rows))
    np.testing.assert_array_equal(apart.tokens, together.tokens[rows])
    np.testing.assert_allclose(apart.logps, together.logps[rows], rtol=1e-5)
  wider = sample(tokens=np.pad(TOKENS, ((0, 0), (0, 3))), segments=np.pad(SEGMENTS, ((0, 0), (0, 3))))
  np.testing.assert_array_equal(wider.tokens, together.tokens)
  others = sample(prompt_ids=jnp.arange(4) + 4)
  assert (others.tokens != together.tokens).any()


def test_a_mesh_changes_no_sample():
  together = sample()
  with partitioning.use_mesh(partitioning.make_mesh(data=4, fsdp=1, model=2)):
    sharded = sample()
  np.testing.assert_array_equal(sharded.tokens, together.tokens)


def test_a_row_of_padding_gets_an_empty_response():
  alone = sample()
  padded = sample(segments=SEGMENTS * np.array([[1], [0], [1], [1]], np.int32))
  assert padded.lengths[1] == 0
  assert padded.logps[1] == 0
  np.testing.assert_array_equal(padded.tokens[[0, 2, 3]], alone.tokens[[0, 2, 3]])


def test_scanned_layers_sample_the_same():
  scanned = dataclasses.replace(CONFIG, scan_layers=True)
  actual, expected = sample(scanned, convert_layers(params(), scan=True)), sample()
  np.testing.assert_array_equal(actual.tokens, expected.tokens)
  np.testing.assert_allclose(actual.logps, expected.logps, rtol=1e-5)


def test_layers_with_equal_biases_sample_as_with_a_shared_one():
  own, tree = dataclasses.replace(CONFIG, relative_bias_per_layer=True), params()
  for side in ('encoder', 'decoder'):
    rest = {name: x for name, x in tree[side].items() if name != 'relpos_bias'}
    bias = {'relpos_bias': tree[side]['relpos_bias']}
    layers = {name: x | bias for name, x in rest.items() if name.startswith('layers_')}
    tree = tree | {side: rest | layers}
  np.testing.assert_array_equal(sample(own, tree).tokens, sample().tokens)


def numpy_truncate(logits, top_k, top_p):
  kept = np.full(logits.shape, -np.inf)
  order = np.argsort(-logits)
  order = order[: top_k or None]
  probabilities = np.exp(logits[order] - logits[order].max())
  probabilities /= probabilities.sum()
  mass = 0.0
  for token, probability in zip(order, probabilities, strict=True):
    if mass >= top_p:
      break
    kept[token] = logits[token]
    mass += probability
  return kept


@pytest.mark.parametrize('top_k, top_p', [(0, 1.0), (3, 1.0), (50, 1.0), (0, 0.6), (0, 0.05), (5, 0.8)])
def test_truncation_equals_numpy(top_k, top_p):
  logits = 2 * np.random.default_rng(1).normal(size=(6, 20)).astype(np.float32)
  actual = sampling.truncate(jnp.asarray(logits), top_k, top_p)
  np.testing.assert_array_equal(actual, np.stack([numpy_truncate(row, top_k, top_p) for row in logits]))


def test_draws_follow_the_tempered_distribution():
  logits = jnp.broadcast_to(jnp.asarray([0.0, 1.0, 2.0, -1.0]), (20_000, 4))
  keys = jax.random.split(jax.random.key(0), 20_000)
  drawn = sampling.choose(logits, keys, jnp.asarray(0), temperature=2.0, top_k=0, top_p=1.0)
  expected = jax.nn.softmax(logits[0] / 2.0)
  np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, expected, atol=0.012)


@pytest.mark.parametrize('temperature', [1e-4, 1e-30, 1e-38, 1e-45, 1e-320])
@pytest.mark.parametrize('top_k, top_p', [(0, 1.0), (3, 0.9)])
def test_a_temperature_by_which_logits_overflow_is_greedy(temperature, top_k, top_p):
  logits = 40 * jnp.asarray(np.random.default_rng(0).normal(size=(64, 9)), jnp.float32)
  keys = jax.random.split(jax.random.key(0), 64)
  drawn = sampling.choose(logits, keys, jnp.asarray(0), temperature, top_k, top_p)
  np.testing.assert_array_equal(drawn, np.argmax(logits, axis=-1))


def test_a_bfloat16_policy_samples():
  samples = sample(dataclasses.replace(CONFIG, dtype='bfloat16'))
  assert samples.logps.dtype == np.float32
  assert np.isfinite(samples.logps).all()


@pytest.mark.parametrize('settings', [{'temperature': -1.0}, {'top_k': -1}, {'top_p': 0.0}, {'top_p': 1.5}])
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(UsageError, match=next(iter(settings))):
    sample(**settings)
