import dataclasses
import functools
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dro_jax.errors import UsageError
from dro_jax.models.attention import blockwise, fused, ways
from dro_jax.models.policy import smallest_rows
from dro_jax.models.stacks import convert_layers
from dro_jax.models.t5.config import T5Config
from dro_jax.models.t5.network import T5, shift_right
from tests.examples import layout, random_examples
from tests.tiers import long

CONFIG = T5Config(
  vocab_size=32, emb_dim=16, num_heads=2, head_dim=6, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=1,
  relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip
TIED = dataclasses.replace(CONFIG, mlp_activations=('relu',), logits_via_embedding=True)
DEEP = dataclasses.replace(CONFIG, num_encoder_layers=2, num_decoder_layers=3)
EXAMPLES = random_examples(6)
ROWS = layout(EXAMPLES, 2, 3)
GIN_MODELS = pathlib.Path(__file__).parents[3] / 'gin_configs' / 'models'


def init(config):
  """Random parameters of about the initialiser's size, from numpy: compiling `T5.init` takes seconds."""
  shapes = nn.unbox(jax.eval_shape(T5(config).init, jax.random.key(0), smallest_rows())['params'])
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    embeds = path[-1].key in ('embedding', 'rel_embedding')
    values = rng.normal(size=leaf.shape) * (1.0 if embeds else leaf.shape[0] ** -0.5)
    return jnp.asarray(values + (path[-1].key == 'scale'), leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def compiled(config):
  return jax.jit(T5(config).apply, static_argnames='enable_dropout')


def logits(config, params, rows, **kwargs):
  return np.asarray(compiled(config)({'params': params}, rows, **kwargs))


def by_example(logits, rows):
  """Each response's own logits, in the order of `example_id`."""
  found = {}
  for b, r in np.argwhere(np.asarray(rows.valid)):
    found[int(rows.example_id[b, r])] = logits[b][np.asarray(rows.response_segments[b]) == r + 1]
  return [found[i] for i in sorted(found)]


def largest_difference(a, b):
  return max(np.abs(x - y).max() for x, y in zip(a, b, strict=True))


def test_packed_equals_padded_equals_one_by_one():
  params = init(CONFIG)
  alone = [logits(CONFIG, params, layout([x], 1, 1))[0, : len(x.response)] for x in EXAMPLES]
  for i, x in enumerate(EXAMPLES[:2]):
    unpadded = logits(CONFIG, params, layout([x], 1, 1, (len(x.prompt), len(x.response))))
    assert largest_difference(unpadded, alone[i : i + 1]) < 1e-5
  padded = layout(EXAMPLES, 6, 1)
  for rows in (padded, ROWS):
    assert largest_difference(by_example(logits(CONFIG, params, rows), rows), alone) < 1e-5


@pytest.mark.parametrize('per_layer', [False, *long(True)], ids=['shared bias', 'bias by layer'])
def test_blockwise_attention_gives_the_logits_and_gradients_of_dense_attention(per_layer, monkeypatch):
  """Blocks of 8, so that a row has several, some of which no token reads."""
  monkeypatch.setattr(blockwise, 'BLOCK', 8)
  dense = dataclasses.replace(CONFIG, relative_bias_per_layer=per_layer, attention='dense')
  params, weights = init(dense), np.random.default_rng(1).normal(size=(*ROWS.response_tokens.shape, 32))
  weights *= (np.asarray(ROWS.response_segments) > 0)[:, :, None]

  def results(config):
    def total(params):
      scores = T5(config).apply({'params': params}, ROWS)
      return jnp.sum(jax.nn.log_softmax(scores) * weights), scores * (weights != 0)

    return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

  (_, ours), gradients = results(dataclasses.replace(dense, attention='blockwise'))
  (_, expected), expected_gradients = results(dense)
  assert largest_difference(ours, expected) < 1e-4
  of_bias = [
    x for path, x in jax.tree.leaves_with_path(expected_gradients) if path[-1].key == 'rel_embedding'
  ]
  assert len(of_bias) == 2 and min(np.abs(x).max() for x in of_bias) > 0.1
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4 * float(np.abs(y).max()), rtol=1e-3),
    gradients, expected_gradients,
  )  # fmt: skip


def test_the_tpu_kernel_gives_the_logits_of_dense_attention(monkeypatch):
  monkeypatch.setattr(ways, '_device', lambda: ('tpu', 'TPU v5'))
  interpreted = functools.partial(fused.attend, multiple=8, interpret=True)
  monkeypatch.setitem(ways._FUNCTIONS, 'fused', interpreted)
  dense = dataclasses.replace(CONFIG, attention='dense')
  params, shown = init(dense), (np.asarray(ROWS.response_segments) > 0)[:, :, None]
  ours = jax.jit(T5(dataclasses.replace(dense, attention='fused')).apply)({'params': params}, ROWS)
  assert largest_difference(ours * shown, logits(dense, params, ROWS) * shown) < 1e-4


def test_auto_is_blockwise_for_long_rows_on_a_cpu(monkeypatch):
  params = jax.eval_shape(T5(CONFIG).init, jax.random.key(0), smallest_rows())

  def is_blockwise(length):
    tokens = jnp.ones((1, length), jnp.int32)
    encode = functools.partial(T5(CONFIG).apply, method='encode')
    return 'custom_vjp' in str(jax.make_jaxpr(encode)(params, tokens, tokens, tokens))

  assert is_blockwise(ways.LONG_ON_CPU) and not is_blockwise(ways.LONG_ON_CPU - 1)
  monkeypatch.setattr(ways, '_device', lambda: ('tpu', 'TPU v5'))
  assert not is_blockwise(2 * ways.LONG)


def test_blockwise_attention_drops_no_weights():
  config = dataclasses.replace(CONFIG, attention='blockwise', dropout_rate=0.1)
  run = functools.partial(T5(config).apply, rngs={'dropout': jax.random.key(0)}, enable_dropout=True)
  with pytest.raises(UsageError, match='only dense attention drops weights'):
    jax.eval_shape(run, {'params': init(config)}, ROWS)


def test_responses_that_share_a_prompt_are_encoded_once():
  params = init(CONFIG)
  shared = [dataclasses.replace(x, prompt=EXAMPLES[0].prompt) for x in EXAMPLES[:3]]
  apart = layout(shared, 3, 1)
  packed = layout(shared, 1, 3)
  once = packed._replace(
    prompt_tokens=packed.prompt_tokens * (packed.prompt_segments == 1),
    prompt_segments=packed.prompt_segments * (packed.prompt_segments == 1),
    response_prompt=(packed.response_prompt > 0).astype(jnp.int32),
  )
  expected = by_example(logits(CONFIG, params, apart), apart)
  assert largest_difference(by_example(logits(CONFIG, params, once), once), expected) < 1e-5


def test_a_response_reads_the_prompt_it_points_at():
  """Swapped pointers are swapped prompts."""
  params = init(CONFIG)
  rows = layout(EXAMPLES[:2], 1, 2)
  swapped = rows._replace(response_prompt=jnp.where(rows.response_prompt > 0, 3 - rows.response_prompt, 0))
  exchanged = layout(
    [dataclasses.replace(EXAMPLES[i], prompt=EXAMPLES[1 - i].prompt) for i in range(2)], 1, 2
  )
  actual = by_example(logits(CONFIG, params, swapped), rows)
  assert largest_difference(actual, by_example(logits(CONFIG, params, exchanged), rows)) < 1e-5
  assert largest_difference(actual, by_example(logits(CONFIG, params, rows), rows)) > 0.1


def test_a_token_changes_only_later_states():
  params = init(CONFIG)
  positions, inside = np.asarray(ROWS.response_positions), np.asarray(ROWS.response_segments) > 0
  changed = jnp.where(inside & (positions == 1), (ROWS.response_tokens + 1) % 32, ROWS.response_tokens)
  difference = logits(CONFIG, params, ROWS._replace(response_tokens=changed)) - logits(CONFIG, params, ROWS)
  assert (difference[inside & (positions <= 1)] == 0).all()
  assert (np.abs(difference[inside & (positions > 1)]).max(axis=-1) > 1e-3).all()


def test_shift_right_starts_every_segment_with_0():
  tokens, positions = jnp.asarray([[5, 6, 7, 8, 0]]), jnp.asarray([[0, 1, 0, 1, 0]])
  np.testing.assert_array_equal(shift_right(tokens, positions), [[0, 5, 0, 7, 0]])


@pytest.mark.parametrize('per_layer', [False, True], ids=['shared bias', 'bias by layer'])
def test_scanned_equals_unrolled(per_layer):
  plain = dataclasses.replace(DEEP, relative_bias_per_layer=per_layer)
  scanned, params = dataclasses.replace(plain, scan_layers=True), init(plain)
  assert ('relpos_bias' in params['decoder']['layers_1']) == per_layer
  stacked = convert_layers(params, scan=True)
  own = nn.unbox(jax.eval_shape(T5(scanned).init, jax.random.key(0), smallest_rows())['params'])
  assert jax.tree.map(np.shape, stacked) == jax.tree.map(np.shape, own)
  np.testing.assert_allclose(logits(scanned, stacked, ROWS), logits(plain, params, ROWS), atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, convert_layers(stacked, scan=False), params)
  jax.tree.map(np.testing.assert_array_equal, convert_layers(stacked, scan=True), stacked)


def test_scanned_and_rematerialised_gradients_are_the_plain_ones():
  params = init(CONFIG)

  def gradient(config, params):
    return jax.jit(jax.grad(lambda p: jnp.square(T5(config).apply({'params': p}, ROWS)).mean()))(params)

  other = dataclasses.replace(CONFIG, scan_layers=True, remat=True)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
    convert_layers(gradient(other, convert_layers(params, scan=True)), scan=False),
    gradient(CONFIG, params),
  )


@pytest.mark.parametrize('config', [CONFIG, TIED], ids=['1.1', '1.0'])
def test_bfloat16_activations_have_float32_logits(config):
  half = dataclasses.replace(config, dtype='bfloat16')
  rows, params = ROWS, init(half)
  prompts = (rows.prompt_tokens, rows.prompt_segments, rows.prompt_positions)
  encoded = jax.eval_shape(functools.partial(T5(half).apply, method='encode'), {'params': params}, *prompts)
  assert encoded.dtype == jnp.bfloat16
  actual, expected = logits(half, params, rows), logits(config, params, rows)
  assert actual.dtype == np.float32
  mask = np.asarray(rows.response_segments) > 0
  assert 0 < np.abs(actual - expected)[mask].max() < 0.05 * np.abs(expected[mask]).max()


def test_initial_parameters_have_t5s_scales():
  params = nn.unbox(jax.jit(T5(CONFIG).init)(jax.random.key(0), smallest_rows())['params'])
  layer = params['decoder']['layers_0']
  spread = {
    'embedding': (params['token_embedder']['embedding'], 1.0),
    'query': (layer['self_attention']['query']['kernel'], 16**-0.5 * 6**-0.5),
    'key': (layer['self_attention']['key']['kernel'], 16**-0.5),
    'wo': (layer['mlp']['wo']['kernel'], 24**-0.5),
  }
  for x, expected in spread.values():
    np.testing.assert_allclose(np.std(x), expected, rtol=0.15)
  np.testing.assert_array_equal(layer['pre_mlp_layer_norm']['scale'], 1.0)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}


def test_a_forward_pass_under_grad_gives_the_same_logits():
  """ρ is exactly 0 at the first step: the policy's pass under grad gives the reference pass's bits."""
  rows, params = ROWS, init(CONFIG)

  def forward(p):
    out = T5(CONFIG).apply({'params': p}, rows)
    return out.sum(), out

  (_, under_grad), _ = jax.jit(jax.value_and_grad(forward, has_aux=True))(params)
  np.testing.assert_array_equal(under_grad, logits(CONFIG, params, rows))


def test_dropout_is_on_only_where_enabled():
  config = dataclasses.replace(CONFIG, dropout_rate=0.5)
  rows, params = ROWS, init(config)
  rngs = {'dropout': jax.random.key(0)}
  off = logits(config, params, rows, rngs=rngs)
  np.testing.assert_allclose(off, logits(CONFIG, params, rows), atol=1e-5)
  on = logits(config, params, rows, enable_dropout=True, rngs=rngs)
  assert np.abs(on - off).max() > 0.1


def test_logical_axes_have_t5xs_names():
  boxed = jax.eval_shape(
    T5(dataclasses.replace(CONFIG, scan_layers=True)).init, jax.random.key(0), smallest_rows()
  )
  names = {
    '/'.join(key.key for key in path): box.names
    for path, box in jax.tree_util.tree_leaves_with_path(
      boxed['params'], is_leaf=lambda x: hasattr(x, 'names')
    )
  }
  expected = {
    'token_embedder/embedding': ('vocab', 'embed'),
    'encoder/relpos_bias/rel_embedding': ('heads', 'relpos_buckets'),
    'encoder/encoder/pre_attention_layer_norm/scale': ('embed', 'layers'),
    'encoder/encoder/attention/query/kernel': ('embed', 'layers', 'joined_kv'),
    'encoder/encoder/attention/out/kernel': ('joined_kv', 'layers', 'embed'),
    'encoder/encoder/mlp/wi_0/kernel': ('embed', 'layers', 'mlp'),
    'encoder/encoder_norm/scale': ('embed',),
    'decoder/decoder/pre_self_attention_layer_norm/scale': ('embed', 'layers'),
    'decoder/decoder/self_attention/value/kernel': ('embed', 'layers', 'joined_kv'),
    'decoder/decoder/pre_cross_attention_layer_norm/scale': ('embed', 'layers'),
    'decoder/decoder/encoder_decoder_attention/key/kernel': ('embed', 'layers', 'joined_kv'),
    'decoder/decoder/pre_mlp_layer_norm/scale': ('embed', 'layers'),
    'decoder/decoder/mlp/wo/kernel': ('mlp', 'layers', 'embed'),
    'decoder/decoder_norm/scale': ('embed',),
    'decoder/logits_dense/kernel': ('embed', 'vocab'),
  }
  assert {path: names[path] for path in expected} == expected
  assert 'wi' in init(TIED)['encoder']['layers_0']['mlp']
  assert 'logits_dense' not in init(TIED)['decoder']


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('mlp_activations', ('gleu',), 'mlp_activations'),
    ('dtype', 'float16', 'dtype'),
    ('num_decoder_layers', 0, 'num_decoder_layers=0'),
  ],
)
def test_a_config_out_of_range_is_refused(field, value, message):
  with pytest.raises(UsageError, match=message):
    dataclasses.replace(CONFIG, **{field: value})


def test_a_config_without_vocabulary_size_is_refused():
  with pytest.raises(UsageError, match='vocab_size is None'):
    T5(dataclasses.replace(CONFIG, vocab_size=None)).init(jax.random.key(0), smallest_rows())


# Parameters with the released checkpoints' 32128 rows of embeddings.
SIZES = {
  't5_1_0_small': 60_506_624,
  't5_1_0_base': 222_903_552,
  't5_1_0_large': 737_668_096,
  't5_1_0_xl': 2_851_598_336,
  't5_1_0_xxl': 11_307_321_344,
  't5_1_1_small': 76_961_152,
  't5_1_1_base': 247_577_856,
  't5_1_1_large': 783_150_080,
  't5_1_1_xl': 2_849_757_184,
  't5_1_1_xxl': 11_135_332_352,
}


def read_gin(path):
  configurable = gin.external_configurable(T5Config, module='dro_jax.models.t5')
  with gin.unlock_config():
    gin.clear_config()
    # The files also bind the parameter that takes the model; its owner is not registered here.
    gin.parse_config_file(str(path), skip_unknown=['Policy'])
    config = configurable()
    gin.clear_config()
  return config


@pytest.mark.parametrize('path', sorted(GIN_MODELS.glob('t5_1_*.gin')), ids=lambda path: path.stem)
def test_gin_files_have_the_released_numbers_of_parameters(path):
  config = read_gin(path)
  assert type(config) is T5Config
  assert config.vocab_size is None
  config = dataclasses.replace(config, vocab_size=32128, scan_layers=True)
  shapes = jax.eval_shape(T5(config).init, jax.random.key(0), smallest_rows())
  count = sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(shapes))
  if path.stem in SIZES:
    assert count == SIZES[path.stem]
  else:
    assert count < 10e6


def test_every_released_size_has_a_file():
  assert set(SIZES) | {'t5_1_0_tiny', 't5_1_1_tiny'} == {path.stem for path in GIN_MODELS.glob('t5_1_*.gin')}
