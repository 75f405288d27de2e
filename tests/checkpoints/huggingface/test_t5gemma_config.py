import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from safetensors import numpy as safetensors

from dro_jax.checkpoints.huggingface import causal_config, t5gemma_config
from dro_jax.errors import UsageError
from dro_jax.models.causal.config import RopeScaling
from dro_jax.models.t5gemma import names
from dro_jax.models.t5gemma.config import T5GemmaConfig
from tests.models.t5gemma import tiny


def _written(config):
  return json.loads(json.dumps(t5gemma_config.config_json(config, 'float32')))


@pytest.mark.parametrize('kind', list(tiny.KINDS))
def test_a_configuration_returns_from_config_json_and_means_the_same_to_transformers(kind):
  config = tiny.config(kind)
  raw = _written(config)
  assert t5gemma_config.read_config(raw, 'config.json') == config
  theirs = transformers.AutoConfig.for_model(**raw)
  assert t5gemma_config.read_config(theirs.to_dict(), 'transformers') == config


@pytest.mark.parametrize('kind', ['unequal', 't5gemma2'])
def test_transformers_loads_a_written_folder_and_computes_the_same(kind, tmp_path):
  config, weights, original = tiny.config(kind), tiny.weights(kind), tiny.torch_model(kind)
  (tmp_path / 'config.json').write_text(json.dumps(_written(config)))
  arrays = {stored.name: np.ascontiguousarray(weights[stored.name]) for stored in names.stored(config)}
  safetensors.save_file(arrays, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
  again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation='eager').eval()
  tokens = torch.tensor([[5, 9, 11, 30, 7, 8, 22, 41]])
  with torch.no_grad():
    both = [model(input_ids=tokens, decoder_input_ids=tokens).logits for model in (original, again)]
  np.testing.assert_array_equal(*both)


@pytest.mark.parametrize(
  'config, architecture',
  [
    (T5GemmaConfig(vocab_size=99), 'T5Gemma2ForConditionalGeneration'),
    (
      T5GemmaConfig(
        vocab_size=99, rope_scaling=RopeScaling('linear', 8.0), window=1024, encoder_reach=(511, 512)
      ),
      'T5Gemma2ForConditionalGeneration',
    ),
    (
      T5GemmaConfig(
        vocab_size=99, merged_attention=False, shared_embedding=False, qk_norm=None, rope_local_theta=None,
        attention_softcap=50.0, logits_softcap=30.0, window=None, encoder_emb_dim=64,
      ),
      'T5GemmaForConditionalGeneration',
    ),
  ],
)  # fmt: skip
def test_the_kind_follows_from_the_switches(config, architecture):
  raw = _written(config)
  assert raw['architectures'] == [architecture]
  read = t5gemma_config.read_config(raw, 'config.json')
  for side in ('encoder', 'decoder'):
    pair = [causal_config.explicit(getattr(one, side)) for one in (config, read)]
    assert pair[0] == pair[1]


def test_special_tokens_that_a_file_leaves_out_are_gemmas():
  raw = _written(T5GemmaConfig(vocab_size=99, pad=5, eos=6, start=7))
  for side in (raw['encoder']['text_config'], raw['decoder']):
    for name in ('pad_token_id', 'eos_token_id', 'bos_token_id'):
      del side[name]
  read = t5gemma_config.read_config(raw, 'config.json')
  assert (read.pad, read.eos, read.start) == (0, 1, 2)


def _changed(**changes):
  raw = _written(tiny.config('t5gemma'))
  return raw | {'encoder': raw['encoder'] | changes}


@pytest.mark.parametrize(
  'raw, text',
  [
    ({'model_type': 't5'}, "its model_type is 't5': pass a checkpoint of t5gemma or t5gemma2"),
    ({'model_type': 't5gemma'}, "lacks 'encoder'"),
    ({'model_type': 't5gemma2', 'tie_word_embeddings': False}, 'its logits have weights of their own'),
    (_changed(rms_norm_eps=1e-5, vocab_size=50), 'differ in norm_epsilon, vocab_size,'),
    (_changed(layer_types=['full_attention'] * 2), 'differ in .*window'),
    (_changed(hidden_activation='swiglu'), "its activation is 'swiglu'"),
  ],
)
def test_a_model_that_is_not_here_is_refused(raw, text):
  with pytest.raises(UsageError, match=f'folder: .*{text}'):
    t5gemma_config.read_config(raw, 'folder')


def test_switches_that_no_model_has_together_are_not_exported():
  odd = dataclasses.replace(tiny.config('t5gemma'), shared_embedding=True)
  with pytest.raises(UsageError, match='transformers has no model with these switches'):
    t5gemma_config.config_json(odd, 'float32')
