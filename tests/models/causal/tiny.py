"""Tiny models of every decoder-only family, made by transformers with random weights, and the same here."""

import functools

import jax.numpy as jnp
import torch
import transformers
from flax import traverse_util

from dro_jax.checkpoints.huggingface import causal_config
from dro_jax.models.causal import names

_BASE = {
  'vocab_size': 99, 'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2,
  'num_attention_heads': 4, 'max_position_embeddings': 64, 'pad_token_id': 0, 'bos_token_id': 1,
  'eos_token_id': 2,
}  # fmt: skip
_GROUPED = _BASE | {'num_key_value_heads': 2}
_WINDOWS = _GROUPED | {
  'head_dim': 8, 'query_pre_attn_scalar': 16, 'sliding_window': 8,
  'layer_types': ['sliding_attention', 'full_attention'],
}  # fmt: skip
_LLAMA3 = {
  'rope_theta': 500.0, 'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
  'high_freq_factor': 4.0, 'original_max_position_embeddings': 16,
}  # fmt: skip
_GEMMA3_ROPE = {
  'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
  'full_attention': {'rope_type': 'linear', 'rope_theta': 10_000.0, 'factor': 8.0},
}
KINDS = {
  'llama': lambda: transformers.LlamaConfig(**_GROUPED),
  'llama3': lambda: transformers.LlamaConfig(
    **_GROUPED, rope_parameters=_LLAMA3, attention_bias=True, mlp_bias=True
  ),
  'smollm2': lambda: transformers.LlamaConfig(**_GROUPED, tie_word_embeddings=True),
  'mistral': lambda: transformers.MistralConfig(**_GROUPED, sliding_window=8),
  'qwen2': lambda: transformers.Qwen2Config(**_GROUPED),
  'qwen3': lambda: transformers.Qwen3Config(**_GROUPED, head_dim=16),
  'smollm3': lambda: transformers.SmolLM3Config(**_GROUPED, no_rope_layers=[1, 0]),
  'olmo2': lambda: transformers.Olmo2Config(**_GROUPED),
  'gemma2': lambda: transformers.Gemma2Config(
    **_WINDOWS, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
  ),
  'gemma3': lambda: transformers.Gemma3TextConfig(**_WINDOWS, rope_parameters=_GEMMA3_ROPE),
  'neox': lambda: transformers.GPTNeoXConfig(**_BASE, rotary_pct=0.25, use_parallel_residual=True),
  'gpt2': lambda: transformers.GPT2Config(
    vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
  ),
}


@functools.cache
def torch_model(kind):
  """A model of transformers with random weights that no start value hides: norms and biases too."""
  torch.manual_seed(sum(map(ord, kind)))
  config = KINDS[kind]()
  config._attn_implementation = 'eager'
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.3))
  return model


def config(kind, **changes):
  raw = torch_model(kind).config.to_dict() | changes
  return causal_config.read_config(raw, kind)


def params(kind):
  """The same weights as a tree of ours whose layers are not scanned."""
  weights = torch_model(kind).state_dict()
  if kind == 'neox':
    weights['embed_out.weight'] = weights['lm_head.weight']
  ours = config(kind)
  flat = {}
  for stored in names.stored(ours):
    arrays = stored.layout.split(weights[stored.name].numpy(), ours.num_heads)
    flat.update(zip(stored.paths, arrays, strict=True))
  return traverse_util.unflatten_dict({path: jnp.asarray(array) for path, array in flat.items()})
