"""Names of a decoder-only model's parameters, here and in Hugging Face's files: one map for both directions.

Three layouts are in use: Llama's, which most families share; GPT-NeoX's, whose queries, keys and values are
one matrix, head by head; and GPT-2's, which keeps matrices the other way round.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.stacks import Path
from dro_jax.models.stored import PLAIN, TURNED, Layout, Stored

EMBEDDING: Path = ('token_embedder', 'embedding')
POSITIONS: Path = ('position_embedder', 'embedding')
LOGITS: Path = ('decoder', 'logits_dense', 'kernel')
_QKV = ('query', 'key', 'value')


def _split_heads(array: np.ndarray, heads: int) -> list[np.ndarray]:
  """Rows ordered (head, q k v, width) as three arrays, outputs last."""
  by_head = array.reshape(heads, 3, -1, *array.shape[1:])
  return [by_head[:, i].reshape(-1, *array.shape[1:]).T for i in range(3)]


def _join_heads(arrays: Sequence[np.ndarray], heads: int) -> np.ndarray:
  by_head = [array.T.reshape(heads, 1, -1, *array.shape[:-1]) for array in arrays]
  return np.concatenate(by_head, axis=1).reshape(-1, *arrays[0].shape[:-1])


_JOINED = Layout(
  lambda array, heads: np.split(array, 3, axis=-1), lambda arrays, heads: np.concatenate(arrays, axis=-1)
)
_BY_HEAD = Layout(_split_heads, _join_heads)


def stored(config: CausalConfig) -> list[Stored]:
  """Every stored array of a model, by the tree whose layers are not scanned."""
  if config.norm_place == 'parallel':
    return list(_neox(config))
  return list(_gpt2(config) if config.positions == 'learned' else _llama(config))


def _llama(config: CausalConfig) -> Iterator[Stored]:
  yield Stored('model.embed_tokens.weight', (EMBEDDING,), PLAIN)
  for i in range(config.num_layers):
    layer, name = ('decoder', f'layers_{i}'), f'model.layers.{i}'
    yield from _linears(layer, f'{name}.self_attn', config)
    for ours, its in zip(config.mlp_inputs, ('gate_proj', 'up_proj')[-len(config.mlp_inputs) :]):
      yield from _linear((*layer, 'mlp', ours), f'{name}.mlp.{its}', config.mlp_bias)
    yield from _linear((*layer, 'mlp', 'wo'), f'{name}.mlp.down_proj', config.mlp_bias)
    for ours, its in _LLAMA_NORMS[config.norm_place].items():
      yield Stored(f'{name}.{its}.weight', ((*layer, ours, 'scale'),), PLAIN)
  yield Stored('model.norm.weight', (('decoder', 'decoder_norm', 'scale'),), PLAIN)
  if not config.logits_via_embedding:
    yield Stored('lm_head.weight', (LOGITS,), TURNED)


_LLAMA_NORMS = {
  'before': {'pre_attention_norm': 'input_layernorm', 'pre_mlp_norm': 'post_attention_layernorm'},
  'after': {
    'post_attention_norm': 'post_attention_layernorm',
    'post_mlp_norm': 'post_feedforward_layernorm',
  },
  'sandwich': {
    'pre_attention_norm': 'input_layernorm',
    'post_attention_norm': 'post_attention_layernorm',
    'pre_mlp_norm': 'pre_feedforward_layernorm',
    'post_mlp_norm': 'post_feedforward_layernorm',
  },
}


def _linears(layer: Path, name: str, config: CausalConfig) -> Iterator[Stored]:
  for ours, its, bias in (
    ('query', 'q_proj', config.qkv_bias),
    ('key', 'k_proj', config.qkv_bias),
    ('value', 'v_proj', config.qkv_bias),
    ('out', 'o_proj', config.out_bias),
  ):
    yield from _linear((*layer, 'attention', ours), f'{name}.{its}', bias)
  if config.qk_norm:
    for ours, its in (('query_norm', 'q_norm'), ('key_norm', 'k_norm')):
      yield Stored(f'{name}.{its}.weight', ((*layer, 'attention', ours, 'scale'),), PLAIN)


def _linear(path: Path, name: str, bias: bool, layout: Layout = TURNED) -> Iterator[Stored]:
  yield Stored(f'{name}.weight', ((*path, 'kernel'),), layout)
  if bias:
    yield Stored(f'{name}.bias', ((*path, 'bias'),), PLAIN)


def _layer_norm(path: Path, name: str) -> Iterator[Stored]:
  yield Stored(f'{name}.weight', ((*path, 'scale'),), PLAIN)
  yield Stored(f'{name}.bias', ((*path, 'bias'),), PLAIN)


def _joined(layer: Path, name: str, weight: Layout, bias: Layout) -> Iterator[Stored]:
  for its, ours, layout in (('weight', 'kernel', weight), ('bias', 'bias', bias)):
    yield Stored(f'{name}.{its}', tuple((*layer, 'attention', part, ours) for part in _QKV), layout)


def _neox(config: CausalConfig) -> Iterator[Stored]:
  yield Stored('gpt_neox.embed_in.weight', (EMBEDDING,), PLAIN)
  for i in range(config.num_layers):
    layer, name = ('decoder', f'layers_{i}'), f'gpt_neox.layers.{i}'
    yield from _joined(layer, f'{name}.attention.query_key_value', _BY_HEAD, _BY_HEAD)
    yield from _linear((*layer, 'attention', 'out'), f'{name}.attention.dense', config.out_bias)
    yield from _linear((*layer, 'mlp', 'wi'), f'{name}.mlp.dense_h_to_4h', config.mlp_bias)
    yield from _linear((*layer, 'mlp', 'wo'), f'{name}.mlp.dense_4h_to_h', config.mlp_bias)
    yield from _layer_norm((*layer, 'pre_attention_norm'), f'{name}.input_layernorm')
    yield from _layer_norm((*layer, 'pre_mlp_norm'), f'{name}.post_attention_layernorm')
  yield from _layer_norm(('decoder', 'decoder_norm'), 'gpt_neox.final_layer_norm')
  if not config.logits_via_embedding:
    # transformers calls it lm_head in memory; files have Pythia's own name for it as well.
    yield Stored('embed_out.weight', (LOGITS,), TURNED)


def _gpt2(config: CausalConfig) -> Iterator[Stored]:
  yield Stored('transformer.wte.weight', (EMBEDDING,), PLAIN)
  yield Stored('transformer.wpe.weight', (POSITIONS,), PLAIN)
  for i in range(config.num_layers):
    layer, name = ('decoder', f'layers_{i}'), f'transformer.h.{i}'
    yield from _joined(layer, f'{name}.attn.c_attn', _JOINED, _JOINED)
    yield from _linear((*layer, 'attention', 'out'), f'{name}.attn.c_proj', config.out_bias, PLAIN)
    yield from _linear((*layer, 'mlp', 'wi'), f'{name}.mlp.c_fc', config.mlp_bias, PLAIN)
    yield from _linear((*layer, 'mlp', 'wo'), f'{name}.mlp.c_proj', config.mlp_bias, PLAIN)
    yield from _layer_norm((*layer, 'pre_attention_norm'), f'{name}.ln_1')
    yield from _layer_norm((*layer, 'pre_mlp_norm'), f'{name}.ln_2')
  yield from _layer_norm(('decoder', 'decoder_norm'), 'transformer.ln_f')
