import dataclasses
import json

import pytest
import transformers

from dro_jax.checkpoints.huggingface import causal_config
from dro_jax.errors import UsageError
from tests.models.causal import tiny

# config.json as the hub has it, from before `rope_parameters`: the fields that decide a number.
LLAMA_3_2 = {
  'model_type': 'llama', 'vocab_size': 128256, 'hidden_size': 2048, 'num_hidden_layers': 16,
  'num_attention_heads': 32, 'num_key_value_heads': 8, 'head_dim': 64, 'intermediate_size': 8192,
  'hidden_act': 'silu', 'rms_norm_eps': 1e-5, 'rope_theta': 500000.0, 'tie_word_embeddings': True,
  'rope_scaling': {
    'factor': 32.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0,
    'original_max_position_embeddings': 8192, 'rope_type': 'llama3',
  },
  'bos_token_id': 128000, 'eos_token_id': [128001, 128008, 128009], 'max_position_embeddings': 131072,
}  # fmt: skip
GEMMA_3 = {
  'model_type': 'gemma3_text', 'vocab_size': 262144, 'hidden_size': 1152, 'num_hidden_layers': 26,
  'num_attention_heads': 4, 'num_key_value_heads': 1, 'head_dim': 256, 'intermediate_size': 6912,
  'hidden_activation': 'gelu_pytorch_tanh', 'rms_norm_eps': 1e-6, 'rope_theta': 1000000,
  'rope_local_base_freq': 10000, 'rope_scaling': None, 'query_pre_attn_scalar': 256, 'sliding_window': 512,
  'sliding_window_pattern': 6, 'bos_token_id': 2, 'eos_token_id': 1, 'pad_token_id': 0,
  'max_position_embeddings': 32768,
}  # fmt: skip
PYTHIA = {
  'model_type': 'gpt_neox', 'vocab_size': 50304, 'hidden_size': 512, 'num_hidden_layers': 6,
  'num_attention_heads': 8, 'intermediate_size': 2048, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-5,
  'rotary_pct': 0.25, 'rotary_emb_base': 10000, 'use_parallel_residual': True, 'bos_token_id': 0,
  'eos_token_id': 0, 'tie_word_embeddings': False, 'max_position_embeddings': 2048,
}  # fmt: skip


@pytest.mark.parametrize('kind', list(tiny.KINDS))
def test_a_configuration_returns_from_config_json_and_means_the_same_to_transformers(kind):
  config = tiny.config(kind)
  raw = json.loads(json.dumps(causal_config.config_json(config, 'float32')))
  again = causal_config.read_config(raw, 'config.json')
  assert dataclasses.replace(
    again, rope_pattern=config.rope_pattern, window_pattern=config.window_pattern
  ) == (config)
  theirs = transformers.AutoConfig.for_model(**raw)
  assert causal_config.read_config(theirs.to_dict(), 'transformers') == again


def test_older_files_give_what_transformers_makes_of_them():
  for raw in (LLAMA_3_2, GEMMA_3, PYTHIA):
    theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw))).to_dict()
    assert causal_config.read_config(raw, 'hub') == causal_config.read_config(theirs, 'transformers')


def test_older_files_facts():
  llama = causal_config.read_config(LLAMA_3_2, 'hub')
  assert llama.rope_scaling == ('llama3', 32.0, 1.0, 4.0, 8192) and llama.rope_theta == 500000.0
  assert (llama.eos, llama.pad, llama.start) == (128001, 128001, 128000)
  gemma = causal_config.read_config(GEMMA_3, 'hub')
  assert gemma.windowed == ((True,) * 5 + (False,)) * 4 + (True, True)
  assert gemma.rope_local_theta == 10_000.0 and gemma.query_scale == 256**-0.5


@pytest.mark.parametrize(
  'changes, text',
  [
    ({'model_type': 'mamba'}, "its model_type is 'mamba'"),
    ({'hidden_act': 'swiglu'}, "its activation is 'swiglu'"),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "stretched by 'yarn'"),
    ({'num_attention_heads': 7}, 'does not divide num_heads=7'),
  ],
)
def test_a_model_that_is_not_here_is_refused(changes, text):
  with pytest.raises(UsageError, match=f'folder: .*{text}'):
    causal_config.read_config(LLAMA_3_2 | changes, 'folder')


def test_a_missing_size_is_named():
  with pytest.raises(UsageError, match="lacks 'intermediate_size'"):
    causal_config.read_config({k: v for k, v in LLAMA_3_2.items() if k != 'intermediate_size'}, 'folder')


def test_switches_that_no_model_has_together_are_not_exported():
  odd = dataclasses.replace(tiny.config('llama'), norm_place='after', window=4)
  with pytest.raises(UsageError, match='transformers has no model with these switches'):
    causal_config.config_json(odd, 'float32')
