import dataclasses
import pathlib

import gin
import jax
import numpy as np
import pytest

from dro_jax.checkpoints.huggingface import t5gemma_config
from dro_jax.errors import UsageError
from dro_jax.models.policy import smallest_rows
from dro_jax.models.t5gemma.config import T5GemmaConfig
from dro_jax.models.t5gemma.network import T5Gemma


def test_an_encoder_has_the_decoders_sizes_where_it_has_none_of_its_own():
  config = T5GemmaConfig(
    encoder_emb_dim=64, encoder_num_heads=8, num_encoder_layers=7, merged_attention=False,
    shared_embedding=False, window=16, encoder_reach=[3, 4],
  )  # fmt: skip
  assert (config.encoder.emb_dim, config.encoder.num_heads, config.encoder.num_layers) == (64, 8, 7)
  assert (config.decoder.emb_dim, config.decoder.num_heads, config.decoder.num_layers) == (640, 4, 18)
  assert config.encoder.head_dim == config.decoder.head_dim == 256
  assert (config.encoder.window, config.decoder.window) == (8, 16)
  assert config.encoder.windowed == (True,) * 5 + (False, True)
  assert hash(config)


@pytest.mark.parametrize(
  'fields, text',
  [
    ({'num_decoder_layers': 0}, 'num_decoder_layers=0'),
    ({'encoder_mlp_dim': 0}, 'encoder_mlp_dim=0'),
    ({'num_kv_heads': 3}, 'num_kv_heads=3 does not divide num_heads=4'),
    ({'encoder_reach': (1, -1)}, 'encoder_reach='),
    ({'encoder_emb_dim': 64}, 'encoder_emb_dim=64 and emb_dim=640'),
    ({'mlp_activations': ('swish',)}, 'mlp_activations='),
    ({'qk_norm': 'some'}, "qk_norm='some'"),
  ],
)
def test_a_field_out_of_its_range_is_refused(fields, text):
  with pytest.raises(UsageError, match=text):
    T5GemmaConfig(**fields)


def test_rope_scaling_is_read_by_place_and_by_name():
  for given in (['linear', 8.0], {'kind': 'linear', 'factor': 8.0}):
    assert T5GemmaConfig(rope_scaling=given).decoder.rope_scaling.factor == 8.0


# With the released tables of 256,000 (T5Gemma) and 262,144 rows. Exact: Keras Hub's counts of S-S and B-B;
# by hand L-L and XL-XL, which have T5 1.1's sizes as those do. Google publishes the others rounded.
SIZES = {
  't5gemma_s': 312_517_632, 't5gemma_b': 591_490_560, 't5gemma_l': 1_241_761_792,
  't5gemma_xl': 3_766_980_608,
  't5gemma_2b': 5.6e9, 't5gemma_9b_2b': 12.3e9, 't5gemma_9b': 20.3e9,
  't5gemma2_270m': 0.37e9, 't5gemma2_1b': 1.7e9, 't5gemma2_4b': 7.1e9,
}  # fmt: skip
FOLDER = pathlib.Path(__file__).parents[3] / 'gin_configs' / 'models'


@pytest.mark.parametrize('path', sorted(FOLDER.glob('t5gemma*.gin')), ids=lambda path: path.stem)
def test_gin_files_have_the_released_numbers_of_parameters(path):
  configurable = gin.external_configurable(T5GemmaConfig, module='dro_jax.models.t5gemma')
  with gin.unlock_config():
    gin.clear_config()
    gin.parse_config_file(str(path), skip_unknown=['Policy'])
    config = configurable()
    gin.clear_config()
  assert config.vocab_size is None
  rows = 262_144 if config.merged_attention else 256_000
  network = T5Gemma(dataclasses.replace(config, vocab_size=rows, scan_layers=True))
  shapes = jax.eval_shape(network.init, jax.random.key(0), smallest_rows())
  count = sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(shapes))
  released = SIZES[path.stem]
  assert count == released if isinstance(released, int) else abs(count / released - 1) < 0.03
  assert t5gemma_config.config_json(network.config, 'bfloat16')['architectures'] == [
    'T5Gemma2ForConditionalGeneration' if config.merged_attention else 'T5GemmaForConditionalGeneration'
  ]


def test_every_released_size_has_a_file():
  assert {*SIZES} == {path.stem for path in FOLDER.glob('t5gemma*.gin')}
