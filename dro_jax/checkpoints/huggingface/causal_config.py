"""config.json of Hugging Face's decoder-only models, as ours and back.

Both forms of rotary settings are read: transformers 5 writes `rope_parameters`; the files on the hub are
older and have `rope_theta`, `rope_scaling` and the like.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.errors import UsageError
from dro_jax.models.causal.config import CausalConfig, RopeScaling

Raw = Mapping[str, Any]

# Names of activations there, and here.
_ACTIVATIONS = {
  'silu': 'silu', 'gelu': 'gelu_exact', 'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'relu': 'relu',
}  # fmt: skip
_SLIDING, _FULL = 'sliding_attention', 'full_attention'
# How a model is computed, and not which model it is.
COMPUTED = ('dtype', 'scan_layers', 'remat', 'attention', 'dropout_rate')


class Kind(NamedTuple):
  """One model_type: its class in transformers, the fields that config.json gives, and what it gets back."""

  architecture: str
  read: Callable[[Raw], dict[str, Any]]
  write: Callable[[CausalConfig], dict[str, Any]]


def read_config(raw: Raw, source: Any) -> CausalConfig:
  """The CausalConfig of a config.json, with dropout 0.

  Raises:
    UsageError: the model is of another kind, or has what no model here has.
  """
  kind = KINDS.get(raw.get('model_type', ''))
  if kind is None:
    raise UsageError(
      f'{source}: its model_type is {raw.get("model_type")!r}. dro_jax reads {", ".join(KINDS)} and t5: pass '
      'a checkpoint of one of these.'
    )
  try:
    return CausalConfig(vocab_size=raw['vocab_size'], **kind.read(raw), **_token_ids(raw))
  except KeyError as error:
    raise UsageError(f'{source}: config.json lacks {error}: pass a complete copy.') from error
  except UsageError as error:
    raise UsageError(f'{source}: {error}') from error


def config_json(config: CausalConfig, dtype: str) -> dict[str, Any]:
  """The config.json of a model: of the first kind that can say all that its configuration says.

  Raises:
    UsageError: no kind in transformers has these switches together.
  """
  for name, kind in KINDS.items():
    raw = {
      'architectures': [kind.architecture], 'model_type': name, 'vocab_size': config.vocab_size,
      'dtype': dtype, 'bos_token_id': config.start, 'eos_token_id': config.eos, 'pad_token_id': config.pad,
      'tie_word_embeddings': config.logits_via_embedding, 'use_cache': True, **kind.write(config),
    }  # fmt: skip
    if explicit(read_config(raw, 'export')) == explicit(config):
      return raw
  raise no_kind(config, KINDS)


def no_kind(config: Any, kinds: Iterable[str]) -> UsageError:
  """The refusal to export a model that no kind of transformers is."""
  return UsageError(
    'transformers has no model with these switches together, so that it cannot be exported there: '
    f'{config}. It has {", ".join(kinds)}.'
  )


def explicit(config: CausalConfig) -> CausalConfig:
  """A configuration with its defaults spelt out, and without what decides no number."""
  return dataclasses.replace(
    config, num_kv_heads=config.kv_heads, window=config.window if any(config.windowed) else None,
    query_scale=config.head_dim**-0.5 if config.query_scale is None else config.query_scale,
    window_pattern=config.windowed, rope_pattern=config.rotated,
    max_positions=config.max_positions if config.positions == 'learned' else None,
    **{field.name: field.default for field in dataclasses.fields(config) if field.name in COMPUTED},
  )  # fmt: skip


def _token_ids(raw: Raw) -> dict[str, int]:
  """The ids of special tokens; a missing one is EOS."""
  eos = raw.get('eos_token_id')
  eos = eos[0] if isinstance(eos, Sequence) else eos or 0
  ids = {'eos': eos, 'pad': raw.get('pad_token_id'), 'start': raw.get('bos_token_id')}
  return {name: eos if value is None else value for name, value in ids.items()}


# --- Llama and what is like it ------------------------------------------------------------------------------


def _read_llama(raw: Raw, **fields: Any) -> dict[str, Any]:
  activation = raw.get('hidden_activation') or raw['hidden_act']
  heads = raw['num_attention_heads']
  attention_bias = bool(raw.get('attention_bias', False))
  return {
    'emb_dim': raw['hidden_size'], 'num_layers': raw['num_hidden_layers'], 'num_heads': heads,
    'num_kv_heads': raw.get('num_key_value_heads') or heads,
    'head_dim': raw.get('head_dim') or raw['hidden_size'] // heads, 'mlp_dim': raw['intermediate_size'],
    'mlp_activations': (_activation(activation), 'linear'), 'norm_epsilon': raw['rms_norm_eps'],
    'qkv_bias': attention_bias, 'out_bias': attention_bias, 'mlp_bias': bool(raw.get('mlp_bias', False)),
    'max_positions': raw.get('max_position_embeddings'),
    'logits_via_embedding': bool(raw.get('tie_word_embeddings', False)),
    **_read_rope(raw), **_read_windows(raw), **fields,
  }  # fmt: skip


def _activation(name: str) -> str:
  if name not in _ACTIVATIONS:
    raise UsageError(f'its activation is {name!r}, and dro_jax has {", ".join(_ACTIVATIONS)}.')
  return _ACTIVATIONS[name]


def _read_rope(raw: Raw) -> dict[str, Any]:
  rope = raw.get('rope_parameters') or raw.get('rope_scaling') or {}
  if _FULL in rope:  # One for each kind of layer.
    local, rope = rope[_SLIDING]['rope_theta'], rope[_FULL]
  else:
    local = raw.get('rope_local_base_freq')
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  if kind not in ('default', 'linear', 'llama3'):
    raise UsageError(f'its rotary positions are stretched by {kind!r}, which dro_jax does not have.')
  fields: dict[str, Any] = {'rope_theta': float(rope.get('rope_theta') or raw.get('rope_theta') or 10_000.0)}
  if local is not None:
    fields['rope_local_theta'] = float(local)
  if kind == 'linear':
    fields['rope_scaling'] = RopeScaling('linear', float(rope['factor']))
  if kind == 'llama3':
    fields['rope_scaling'] = RopeScaling(
      'llama3', float(rope['factor']), float(rope['low_freq_factor']), float(rope['high_freq_factor']),
      int(rope['original_max_position_embeddings']),
    )  # fmt: skip
  return fields


def _read_windows(raw: Raw) -> dict[str, Any]:
  """The window, and the layers that have it."""
  window = raw.get('sliding_window')
  if window is None or raw.get('use_sliding_window') is False:
    return {'window': None}
  types = raw.get('layer_types')
  every = raw.get('_sliding_window_pattern') or raw.get('sliding_window_pattern')
  if types:
    pattern = tuple(kind == _SLIDING for kind in types)
  elif every:
    pattern = (*(True,) * (every - 1), False)
  else:
    pattern = (True,)
  return {'window': window, 'window_pattern': shortest_pattern(pattern)} if any(pattern) else {'window': None}


def shortest_pattern(layers: tuple[bool, ...]) -> tuple[bool, ...]:
  """The shortest pattern whose repetition gives these layers."""
  for length in range(1, len(layers) + 1):
    if all(layers[i] == layers[i % length] for i in range(len(layers))):
      return layers[:length]
  return layers


def _write_llama(config: CausalConfig, **fields: Any) -> dict[str, Any]:
  names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
  return {
    'hidden_size': config.emb_dim, 'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads, 'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim, 'intermediate_size': config.mlp_dim,
    'hidden_act': names[config.mlp_activations[0]], 'rms_norm_eps': config.norm_epsilon,
    'attention_bias': config.out_bias, 'mlp_bias': config.mlp_bias,
    'max_position_embeddings': config.max_positions or 8192, 'sliding_window': config.window,
    'rope_parameters': _write_rope(config), **fields,
  }  # fmt: skip


def _write_rope(config: CausalConfig) -> dict[str, Any]:
  scaling = config.rope_scaling
  rope = {'rope_theta': config.rope_theta, 'rope_type': scaling.kind if scaling else 'default'}
  if scaling:
    rope['factor'] = scaling.factor
  if scaling and scaling.kind == 'llama3':
    rope |= {
      'low_freq_factor': scaling.low, 'high_freq_factor': scaling.high,
      'original_max_position_embeddings': scaling.original_length,
    }  # fmt: skip
  return rope


def _layer_types(config: CausalConfig) -> list[str]:
  return [_SLIDING if windowed else _FULL for windowed in config.windowed]


def _write_qwen(config: CausalConfig, **fields: Any) -> dict[str, Any]:
  return _write_llama(
    config, use_sliding_window=any(config.windowed), layer_types=_layer_types(config), **fields
  )


def _read_smollm3(raw: Raw) -> dict[str, Any]:
  every = raw.get('no_rope_layer_interval') or 4
  rotates = raw.get('no_rope_layers') or [(i + 1) % every for i in range(raw['num_hidden_layers'])]
  return _read_llama(raw, rope_pattern=shortest_pattern(tuple(bool(flag) for flag in rotates)))


def _write_smollm3(config: CausalConfig) -> dict[str, Any]:
  return _write_qwen(config, no_rope_layers=[int(flag) for flag in config.rotated])


# --- Gemma --------------------------------------------------------------------------------------------------


def _read_gemma(raw: Raw, **fields: Any) -> dict[str, Any]:
  gemma = {
    'norm': 'rms_plus_one', 'norm_place': 'sandwich', 'scale_embedding': True,
    'query_scale': raw['query_pre_attn_scalar'] ** -0.5,
    'logits_via_embedding': bool(raw.get('tie_word_embeddings', True)),
    'attention_softcap': raw.get('attn_logit_softcapping'),
    'logits_softcap': raw.get('final_logit_softcapping'),
  }  # fmt: skip
  return _read_llama(raw, **gemma | fields)


def _read_gemma2(raw: Raw) -> dict[str, Any]:
  """Gemma 2, whose older files do not say that every other layer has a window."""
  return _read_gemma({'_sliding_window_pattern': 2, **raw})


def _read_gemma3(raw: Raw) -> dict[str, Any]:
  if raw.get('use_bidirectional_attention'):
    raise UsageError('it attends in both directions, so that it is an encoder and no language model.')
  older = {'_sliding_window_pattern': 6, 'rope_local_base_freq': 10_000.0, 'rope_theta': 1_000_000.0}
  return _read_gemma({**older, **raw}, qk_norm='head')


def _write_gemma(config: CausalConfig, **fields: Any) -> dict[str, Any]:
  scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
  scalar = round(scale**-2)
  return _write_llama(
    config, hidden_activation='gelu_pytorch_tanh', layer_types=_layer_types(config),
    query_pre_attn_scalar=scalar, attn_logit_softcapping=config.attention_softcap,
    final_logit_softcapping=config.logits_softcap, **fields,
  )  # fmt: skip


def _write_gemma3(config: CausalConfig) -> dict[str, Any]:
  local = {'rope_theta': config.rope_local_theta or config.rope_theta, 'rope_type': 'default'}
  return _write_gemma(config, rope_parameters={_FULL: _write_rope(config), _SLIDING: local})


# --- GPT-NeoX and GPT-2 -------------------------------------------------------------------------------------


def _read_neox(raw: Raw) -> dict[str, Any]:
  if not raw.get('use_parallel_residual', True):
    raise UsageError('its blocks follow each other (use_parallel_residual is false), which dro_jax lacks.')
  rope = raw.get('rope_parameters') or {}
  bias = bool(raw.get('attention_bias', True))
  return {
    'emb_dim': raw['hidden_size'], 'num_layers': raw['num_hidden_layers'],
    'num_heads': raw['num_attention_heads'], 'num_kv_heads': raw['num_attention_heads'],
    'head_dim': raw['hidden_size'] // raw['num_attention_heads'], 'mlp_dim': raw['intermediate_size'],
    'mlp_activations': (_activation(raw['hidden_act']),), 'norm': 'layer', 'norm_place': 'parallel',
    'norm_epsilon': raw['layer_norm_eps'], 'qkv_bias': bias, 'out_bias': bias, 'mlp_bias': True,
    'rope_theta': float(rope.get('rope_theta') or raw.get('rotary_emb_base') or 10_000.0),
    'rope_share': rope.get('partial_rotary_factor') or raw.get('rotary_pct', 0.25),
    'max_positions': raw.get('max_position_embeddings'),
    'logits_via_embedding': bool(raw.get('tie_word_embeddings', False)),
  }  # fmt: skip


def _write_neox(config: CausalConfig) -> dict[str, Any]:
  return {
    'hidden_size': config.emb_dim, 'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads, 'intermediate_size': config.mlp_dim,
    'hidden_act': _named(config.mlp_activations[0]), 'layer_norm_eps': config.norm_epsilon,
    'attention_bias': config.qkv_bias, 'max_position_embeddings': config.max_positions or 2048,
    'use_parallel_residual': True, 'rotary_pct': config.rope_share,
    'rope_parameters': {
      'rope_theta': config.rope_theta, 'rope_type': 'default', 'partial_rotary_factor': config.rope_share,
    },
  }  # fmt: skip


def _read_gpt2(raw: Raw) -> dict[str, Any]:
  if raw.get('scale_attn_by_inverse_layer_idx') or not raw.get('scale_attn_weights', True):
    raise UsageError('it scales attention by layer, or not at all, which dro_jax lacks.')
  return {
    'emb_dim': raw['n_embd'], 'num_layers': raw['n_layer'], 'num_heads': raw['n_head'],
    'num_kv_heads': raw['n_head'], 'head_dim': raw['n_embd'] // raw['n_head'],
    'mlp_dim': raw.get('n_inner') or 4 * raw['n_embd'],
    'mlp_activations': (_activation(raw['activation_function']),), 'norm': 'layer',
    'norm_epsilon': raw['layer_norm_epsilon'], 'qkv_bias': True, 'out_bias': True, 'mlp_bias': True,
    'positions': 'learned', 'max_positions': raw['n_positions'],
    'logits_via_embedding': bool(raw.get('tie_word_embeddings', True)),
  }  # fmt: skip


def _write_gpt2(config: CausalConfig) -> dict[str, Any]:
  return {
    'n_embd': config.emb_dim, 'n_layer': config.num_layers, 'n_head': config.num_heads,
    'n_inner': config.mlp_dim, 'activation_function': _named(config.mlp_activations[0]),
    'layer_norm_epsilon': config.norm_epsilon, 'n_positions': config.max_positions or 1024,
  }  # fmt: skip


def _named(activation: str) -> str:
  """The name of an activation in Hugging Face's files."""
  return next(name for name, ours in _ACTIVATIONS.items() if ours == activation)


KINDS: dict[str, Kind] = {
  'llama': Kind('LlamaForCausalLM', lambda raw: _read_llama(raw, window=None), _write_llama),
  'mistral': Kind('MistralForCausalLM', _read_llama, _write_llama),
  'qwen2': Kind('Qwen2ForCausalLM', lambda raw: _read_llama(raw, qkv_bias=True, out_bias=False), _write_qwen),
  'qwen3': Kind('Qwen3ForCausalLM', lambda raw: _read_llama(raw, qk_norm='head'), _write_qwen),
  'smollm3': Kind('SmolLM3ForCausalLM', _read_smollm3, _write_smollm3),
  'olmo2': Kind(
    'Olmo2ForCausalLM',
    lambda raw: _read_llama(raw, norm_place='after', qk_norm='whole', window=None),
    _write_llama,
  ),
  'gemma2': Kind('Gemma2ForCausalLM', _read_gemma2, _write_gemma),
  'gemma3_text': Kind('Gemma3ForCausalLM', _read_gemma3, _write_gemma3),
  'gpt_neox': Kind('GPTNeoXForCausalLM', _read_neox, _write_neox),
  'gpt2': Kind('GPT2LMHeadModel', _read_gpt2, _write_gpt2),
}

# The fields that a config.json leaves out where a model reads images too, because they are transformers' own.
OMITTED: dict[str, Raw] = {
  'gemma3_text': {
    'vocab_size': 262_208, 'hidden_size': 2304, 'intermediate_size': 9216, 'num_hidden_layers': 26,
    'num_attention_heads': 8, 'num_key_value_heads': 4, 'head_dim': 256,
    'hidden_activation': 'gelu_pytorch_tanh', 'max_position_embeddings': 131_072, 'rms_norm_eps': 1e-6,
    'pad_token_id': 0, 'eos_token_id': 1, 'bos_token_id': 2, 'query_pre_attn_scalar': 256,
    'sliding_window': 4096,
  },
}  # fmt: skip
