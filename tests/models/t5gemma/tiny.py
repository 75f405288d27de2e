"""Tiny models of both kinds of T5Gemma, made by transformers with random weights, and the same here."""

import functools

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import traverse_util

from dro_jax.checkpoints.huggingface import t5gemma_config
from dro_jax.models.t5gemma import names

_SIDE = {
  'vocab_size': 99, 'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2,
  'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 8, 'query_pre_attn_scalar': 16,
  'max_position_embeddings': 64, 'sliding_window': 5,
  'layer_types': ['sliding_attention', 'full_attention'], 'pad_token_id': 0, 'bos_token_id': 2,
  'eos_token_id': 1,
}  # fmt: skip
_CAPS = {'attn_logit_softcapping': 2.0, 'final_logit_softcapping': 3.0}
_ROPE = {
  'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
  'full_attention': {'rope_type': 'linear', 'rope_theta': 10_000.0, 'factor': 8.0},
}
_WIDE = {'hidden_size': 48, 'intermediate_size': 80, 'num_attention_heads': 6, 'num_key_value_heads': 3}
_VISION = {
  'model_type': 'siglip_vision_model', 'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1,
  'num_attention_heads': 1, 'image_size': 4, 'patch_size': 2,
}  # fmt: skip


def _first(encoder, decoder):
  return transformers.T5GemmaConfig(encoder=encoder, decoder=decoder, vocab_size=99)


def _second(side):
  encoder = {
    'text_config': dict(side), 'vision_config': _VISION, 'mm_tokens_per_image': 4, 'image_token_index': 98,
    'boi_token_index': 200, 'eoi_token_index': 201,
  }  # fmt: skip
  return transformers.T5Gemma2Config(encoder=encoder, decoder=dict(side), image_token_index=200)


KINDS = {
  't5gemma': lambda: _first(_SIDE | _CAPS, _SIDE | _CAPS),
  # An encoder that is wider and deeper than the decoder, as in 9B-2B.
  'unequal': lambda: _first(
    _SIDE | _WIDE | {'num_hidden_layers': 4, 'layer_types': _SIDE['layer_types'] * 2}, _SIDE
  ),
  't5gemma2': lambda: _second(_SIDE | {'rope_parameters': _ROPE}),
  # Of an even window an encoder's token sees one more later token than earlier ones.
  'even': lambda: _second(_SIDE | {'sliding_window': 4, 'final_logit_softcapping': 3.0}),
}


@functools.cache
def torch_model(kind):
  """A model of transformers with random weights that no start value hides: norms too."""
  torch.manual_seed(sum(map(ord, kind)))
  config = KINDS[kind]()
  model = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation='eager').eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.3))
  return model


def config(kind):
  return t5gemma_config.read_config(torch_model(kind).config.to_dict(), kind)


def weights(kind):
  """The arrays of the model's text, by their names in a file."""
  named = {names.stored_name(name): tensor.numpy() for name, tensor in torch_model(kind).state_dict().items()}
  copies = names.copies(config(kind))
  for name, original in copies.items():
    np.testing.assert_array_equal(named[name], named[original])
  return {name: x for name, x in named.items() if name not in copies and not names.is_of_images(name)}


def params(kind):
  """The same weights as a tree of ours whose layers are not scanned."""
  arrays = weights(kind)
  flat = {}
  for stored in names.stored(config(kind)):
    flat.update(zip(stored.paths, stored.layout.split(arrays[stored.name], 4), strict=True))
  return traverse_util.unflatten_dict({path: jnp.asarray(array) for path, array in flat.items()})
