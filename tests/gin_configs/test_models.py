"""The files of decoder-only models' sizes, against published counts and transformers' configurations."""

import dataclasses

import gin
import jax
import numpy as np
import pytest
import transformers

from dro_jax.checkpoints.huggingface import causal_config
from dro_jax.cli.tables import GIN_CONFIGS
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.causal.network import Causal
from dro_jax.models.policy import smallest_rows

FOLDER = GIN_CONFIGS / 'models'
PARAMETERS = {
  'smollm2_135m': 134_515_008, 'smollm2_360m': 361_821_120, 'smollm2_1_7b': 1_711_376_384,
  'llama_2_7b': 6_738_415_616, 'llama_3_8b': 8_030_261_248, 'llama_3_2_1b': 1_235_814_400,
  'llama_3_2_3b': 3_212_749_824, 'mistral_7b': 7_241_732_096,
  'qwen2_5_0_5b': 494_032_768, 'qwen2_5_1_5b': 1_543_714_304, 'qwen2_5_7b': 7_615_616_512,
  'qwen3_0_6b': 596_049_920, 'qwen3_1_7b': 1_720_574_976, 'qwen3_4b': 4_022_468_096,
  'qwen3_8b': 8_190_735_360,
  'pythia_160m': 162_322_944, 'pythia_1_4b': 1_414_647_808, 'pythia_2_8b': 2_775_208_960,
  'pythia_6_9b': 6_857_302_016, 'pythia_12b': 11_846_072_320,
  'gpt2': 124_439_808, 'gpt2_medium': 354_823_168,
  'gemma_2_2b': 2_614_341_888, 'gemma_2_9b': 9_241_705_984,
  'gemma_3_270m': 268_098_176, 'gemma_3_1b': 999_885_952, 'gemma_3_4b': 3_880_263_168,
  'olmo_2_1b': 1_484_916_736, 'olmo_2_7b': 7_298_617_344, 'smollm3_3b': 3_075_098_624,
}  # fmt: skip


def read_gin(name):
  configurable = gin.external_configurable(CausalConfig, module='dro_jax.models.causal')
  with gin.unlock_config():
    gin.clear_config()
    # The files also bind the parameter that takes the model; its owner is not registered here.
    gin.parse_config_file(str(FOLDER / f'{name}.gin'), skip_unknown=['Policy'])
    config = configurable()
    gin.clear_config()
  return config


@pytest.mark.parametrize('name', PARAMETERS)
def test_a_file_has_the_published_number_of_parameters(name):
  config = read_gin(name)
  shapes = jax.eval_shape(Causal(config).init, jax.random.key(0), smallest_rows())
  count = sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(shapes))
  assert count == PARAMETERS[name]
  assert f'{count:,} parameters' in (FOLDER / f'{name}.gin').read_text().partition('Causal')[0]


def test_every_published_size_has_a_file():
  files = {path.stem for path in FOLDER.glob('*.gin') if not path.stem.startswith('t5')}
  assert files == {*PARAMETERS, 'causal_tiny'}
  tiny = read_gin('causal_tiny')
  assert tiny.vocab_size is None and (tiny.pad, tiny.eos) == (0, 1)


# config.json as the hub has it, where transformers' defaults are not that model already.
_LLAMA = {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False}
_LLAMA3_ROPE = {
  'factor': 32.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0, 'rope_type': 'llama3',
  'original_max_position_embeddings': 8192,
}  # fmt: skip
PUBLISHED = {
  'llama_2_7b': lambda: transformers.LlamaConfig(max_position_embeddings=4096, rms_norm_eps=1e-5),
  'mistral_7b': lambda: transformers.MistralConfig(max_position_embeddings=32768, rms_norm_eps=1e-5),
  'gpt2': transformers.GPT2Config,
  'gemma_2_2b': transformers.Gemma2Config,
  'smollm3_3b': lambda: transformers.SmolLM3Config(
    max_position_embeddings=65536, rope_parameters={'rope_type': 'default', 'rope_theta': 5e6}
  ),
  'smollm2_135m': lambda: _LLAMA | {
    'model_type': 'llama', 'hidden_size': 576, 'intermediate_size': 1536, 'max_position_embeddings': 8192,
    'num_attention_heads': 9, 'num_hidden_layers': 30, 'num_key_value_heads': 3, 'rms_norm_eps': 1e-5,
    'rope_scaling': None, 'rope_theta': 100_000, 'tie_word_embeddings': True, 'vocab_size': 49152,
  },
  'llama_3_2_1b': lambda: _LLAMA | {
    'model_type': 'llama', 'head_dim': 64, 'hidden_size': 2048, 'intermediate_size': 8192,
    'max_position_embeddings': 131072, 'num_attention_heads': 32, 'num_hidden_layers': 16,
    'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'rope_scaling': _LLAMA3_ROPE, 'rope_theta': 500_000.0,
    'tie_word_embeddings': True, 'vocab_size': 128256,
  },
  'qwen2_5_7b': lambda: {
    'model_type': 'qwen2', 'hidden_act': 'silu', 'hidden_size': 3584, 'intermediate_size': 18944,
    'max_position_embeddings': 131072, 'num_attention_heads': 28, 'num_hidden_layers': 28,
    'num_key_value_heads': 4, 'rms_norm_eps': 1e-6, 'rope_theta': 1_000_000.0, 'sliding_window': 131072,
    'tie_word_embeddings': False, 'use_sliding_window': False, 'vocab_size': 152064,
  },
  'qwen3_0_6b': lambda: {
    'model_type': 'qwen3', 'hidden_act': 'silu', 'attention_bias': False, 'head_dim': 128,
    'hidden_size': 1024, 'intermediate_size': 3072, 'max_position_embeddings': 32768,
    'num_attention_heads': 16, 'num_hidden_layers': 28, 'num_key_value_heads': 8, 'rms_norm_eps': 1e-6,
    'rope_scaling': None, 'rope_theta': 1_000_000, 'sliding_window': None, 'tie_word_embeddings': True,
    'use_sliding_window': False, 'vocab_size': 151936,
  },
  'pythia_6_9b': lambda: {
    'model_type': 'gpt_neox', 'hidden_act': 'gelu', 'hidden_size': 4096, 'intermediate_size': 16384,
    'layer_norm_eps': 1e-5, 'max_position_embeddings': 2048, 'num_attention_heads': 32,
    'num_hidden_layers': 32, 'rotary_emb_base': 10_000, 'rotary_pct': 0.25, 'tie_word_embeddings': False,
    'use_parallel_residual': True, 'vocab_size': 50432,
  },
  'gemma_3_1b': lambda: {
    'model_type': 'gemma3_text', 'attention_bias': False, 'attn_logit_softcapping': None,
    'final_logit_softcapping': None, 'head_dim': 256, 'hidden_activation': 'gelu_pytorch_tanh',
    'hidden_size': 1152, 'intermediate_size': 6912, 'max_position_embeddings': 32768,
    'num_attention_heads': 4, 'num_hidden_layers': 26, 'num_key_value_heads': 1,
    'query_pre_attn_scalar': 256, 'rms_norm_eps': 1e-6, 'rope_local_base_freq': 10_000,
    'rope_scaling': None, 'rope_theta': 1_000_000, 'sliding_window': 512, 'sliding_window_pattern': 6,
    'vocab_size': 262144,
  },
  'olmo_2_1b': lambda: {
    'model_type': 'olmo2', 'attention_bias': False, 'hidden_act': 'silu', 'hidden_size': 2048,
    'intermediate_size': 8192, 'max_position_embeddings': 4096, 'num_attention_heads': 16,
    'num_hidden_layers': 16, 'num_key_value_heads': 16, 'rms_norm_eps': 1e-6, 'rope_scaling': None,
    'rope_theta': 500_000, 'tie_word_embeddings': False, 'vocab_size': 100352,
  },
}  # fmt: skip


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_file_is_the_configuration_that_a_checkpoint_brings(name):
  raw = PUBLISHED[name]()
  raw = raw if isinstance(raw, dict) else raw.to_dict()
  imported, ours = causal_config.read_config(raw, name), read_gin(name)
  same = {name: getattr(ours, name) for name in ('pad', 'eos', 'start', 'scan_layers')}
  assert dataclasses.replace(imported, **same) == ours
