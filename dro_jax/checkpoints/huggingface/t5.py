"""T5 of Hugging Face (1.0, 1.1, FLAN, ByT5, mT5, umT5): its config.json, and the names in its files."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from dro_jax.checkpoints.huggingface import vocabulary
from dro_jax.checkpoints.huggingface.format import Format, Places, Raw
from dro_jax.errors import UsageError
from dro_jax.models.t5 import names
from dro_jax.models.t5.config import TOKENS, T5Config

# Architectures by model_type; an mT5 differs from a T5 in its name only.
ARCHITECTURES = {
  't5': ('T5ForConditionalGeneration', 'T5WithLMHeadModel'),
  'mt5': ('MT5ForConditionalGeneration',),
  'umt5': ('UMT5ForConditionalGeneration',),
}
_ACTIVATIONS = {
  'relu': 'relu',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'silu': 'silu',
  'swish': 'silu',
}
_GATED = {'gelu': 'gated-gelu', 'relu': 'gated-relu', 'silu': 'gated-silu'}
# In transformers a plain gelu is the exact function; here it is the tanh approximation.
_PLAIN = {'gelu': 'gelu_new', 'relu': 'relu', 'silu': 'silu'}
# The special tokens of every T5 here.
_SPECIAL_TOKENS = {
  'pad_token_id': TOKENS.pad, 'eos_token_id': TOKENS.eos, 'decoder_start_token_id': TOKENS.start
}  # fmt: skip
_SHARED, _LM_HEAD = 'shared.weight', 'lm_head.weight'
_EMBEDDING_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
# T5 1.0's files hold a bias of the cross-attention that no T5 reads.
_UNREAD = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'

_SCALED = (
  "an umT5's logits are divided by √d in transformers 5, whatever config.json says: "
  'set model.config.tie_word_embeddings = False once it is loaded'
)


def read_config(raw: Raw, folder: Path) -> T5Config:
  """The T5Config of a config.json, with dropout 0."""
  where = folder / 'config.json'
  _check_kind(raw, where)
  sizes = {
    'vocab_size': 'vocab_size', 'emb_dim': 'd_model', 'num_heads': 'num_heads', 'head_dim': 'd_kv',
    'mlp_dim': 'd_ff', 'num_encoder_layers': 'num_layers',
  }  # fmt: skip
  missing = [key for key in sizes.values() if not isinstance(raw.get(key), int)]
  if missing:
    raise UsageError(f'{where}: {missing[0]} is {raw.get(missing[0])!r}, but a T5 needs a number there.')
  return T5Config(
    **{field: raw[key] for field, key in sizes.items()},
    num_decoder_layers=raw.get('num_decoder_layers') or raw['num_layers'],
    mlp_activations=_activations(raw.get('feed_forward_proj', 'relu'), where),
    logits_via_embedding=_is_tied(raw),
    relative_attention_num_buckets=raw.get('relative_attention_num_buckets', 32),
    relative_attention_max_distance=raw.get('relative_attention_max_distance', 128),
    relative_bias_per_layer=raw['model_type'] == 'umt5',
  )


def _check_kind(raw: Raw, where: Path) -> None:
  kind = raw['model_type']
  architectures = raw.get('architectures') or []
  if architectures and not set(architectures) & set(ARCHITECTURES[kind]):
    raise UsageError(
      f'{where}: architectures is {architectures}, which has no decoder with logits: '
      f'pass {ARCHITECTURES[kind][0]}.'
    )
  if raw.get('layer_norm_epsilon', 1e-6) != 1e-6:
    raise UsageError(f'{where}: layer_norm_epsilon is {raw["layer_norm_epsilon"]}, but a T5 here has 1e-06.')
  for key, expected in _SPECIAL_TOKENS.items():
    if raw.get(key, expected) not in (expected, None):
      raise UsageError(f'{where}: {key} is {raw[key]}, but a T5 here has {expected}.')


def _activations(name: str, where: Path) -> tuple[str, ...]:
  gated, activation = name.startswith('gated-'), name.removeprefix('gated-')
  # In transformers a gated gelu is the tanh approximation, and a plain gelu the exact function.
  known = _ACTIVATIONS | ({'gelu': 'gelu'} if gated else {})
  if activation not in known:
    raise UsageError(
      f'{where}: feed_forward_proj is {name!r}, which dro_jax does not have: '
      f'it has {sorted(_ACTIVATIONS)}, each also as gated-..., and gated-gelu.'
    )
  return (known[activation], 'linear') if gated else (known[activation],)


def _is_tied(raw: Raw) -> bool:
  # transformers 5 writes tie_word_embeddings: true for all of them. For T5 another field has the answer, and
  # no mT5 or umT5 is tied.
  return raw['model_type'] == 't5' and bool(
    raw.get('scale_decoder_outputs', raw.get('tie_word_embeddings', True))
  )


def config_json(config: T5Config, dtype: str) -> dict[str, Any]:
  """The content of a model's config.json."""
  kind = 'umt5' if config.relative_bias_per_layer else 't5'
  if kind == 'umt5' and config.logits_via_embedding:
    raise UsageError('no umT5 of transformers ties its logits to the embedding: pass --set FORMAT=t5x.')
  return {
    'architectures': [ARCHITECTURES[kind][0]],
    'model_type': kind,
    'is_encoder_decoder': True,
    'vocab_size': config.vocab_size,
    'd_model': config.emb_dim,
    'd_kv': config.head_dim,
    'd_ff': config.mlp_dim,
    'num_layers': config.num_encoder_layers,
    'num_decoder_layers': config.num_decoder_layers,
    'num_heads': config.num_heads,
    'feed_forward_proj': _feed_forward(config.mlp_activations),
    'relative_attention_num_buckets': config.relative_attention_num_buckets,
    'relative_attention_max_distance': config.relative_attention_max_distance,
    'layer_norm_epsilon': 1e-6,
    'dropout_rate': config.dropout_rate,
    'tie_word_embeddings': config.logits_via_embedding,
    # transformers 5 ignores the field above, and scales logits by this one.
    'scale_decoder_outputs': config.logits_via_embedding,
    'pad_token_id': TOKENS.pad,
    'eos_token_id': TOKENS.eos,
    'decoder_start_token_id': TOKENS.start,
    'torch_dtype': dtype,
  }


def _feed_forward(activations: tuple[str, ...]) -> str:
  match activations:
    case (name,) if name in _PLAIN:
      return _PLAIN[name]
    case (name, 'linear') if name in _GATED:
      return _GATED[name]
  raise UsageError(
    f'mlp_activations={activations}: transformers takes one activation, alone or times a linear one. '
    'Export with --set FORMAT=t5x.'
  )


def find(present: Collection[str], config: T5Config, raw: Raw) -> Places:
  """The places of a T5's weights in a file, whose embedding may have up to four names."""
  embedding = next((name for name in (_SHARED, *_EMBEDDING_ALIASES) if name in present), _SHARED)
  places = {stored.name: stored.name for stored in names.stored(config)} | {_SHARED: embedding}
  copies = [name for name in _EMBEDDING_ALIASES if name in present and name != embedding]
  untied = raw['model_type'] != 't5' or raw.get('scale_decoder_outputs') is False
  if config.logits_via_embedding:
    copies += [name for name in (_LM_HEAD,) if name in present]
  elif untied and _LM_HEAD not in present:
    # transformers 5 leaves out logits that equal the embedding, also where it does not scale them.
    places[_LM_HEAD] = embedding
  return Places(places, dict.fromkeys(copies, embedding), frozenset({_UNREAD} - {*places}))


FORMAT = Format(
  kind=names.KIND,
  model_types=tuple(ARCHITECTURES),
  read_config=read_config,
  config_json=config_json,
  stored=names.stored,
  find=find,
  tokenizer=vocabulary.find,
  notes=lambda config: [_SCALED] if config.relative_bias_per_layer else [],
)
