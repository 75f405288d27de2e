"""Writes a policy as a folder for transformers' `from_pretrained`."""

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from dro_jax.checkpoints.huggingface.read import ARCHITECTURES, is_transposed, require
from dro_jax.data.text import tokenizer_json
from dro_jax.data.text.vocabularies import is_json, parse, read_model, vocabulary
from dro_jax.errors import UsageError
from dro_jax.files import json_text
from dro_jax.models.stacks import Path
from dro_jax.models.t5 import names
from dro_jax.models.t5.config import TOKENS, T5Config

Stream = Callable[..., Iterator[tuple[Path, np.ndarray]]]

SHARD_BYTES = 10**9
_SCALED = (
  "an umT5's logits are divided by √d in transformers 5, whatever config.json says: "
  'set model.config.tie_word_embeddings = False once it is loaded'
)
# The class that loads tokenizer.json unchanged, in transformers 4 and 5.
_FAST = 'PreTrainedTokenizerFast'
_LOADED = (
  "load its tokenizer with AutoTokenizer: transformers 5's T5Tokenizer builds another from the pieces, "
  'without line breaks, bytes and added tokens'
)
# ByT5's tokenizer numbers its sentinels from the last row.
_BYTE_IDS, _BYTE_EXTRA_IDS = 259, 125
_GATED = {'gelu': 'gated-gelu', 'relu': 'gated-relu', 'silu': 'gated-silu'}
# In transformers a plain gelu is the exact function; here it is the tanh approximation.
_PLAIN = {'gelu': 'gelu_new', 'relu': 'relu', 'silu': 'silu'}


def write(
  folder: epath.Path,
  stream: Stream,
  config: T5Config,
  *,
  dtype: str,
  vocabulary: str | None,
  shard_bytes: int = SHARD_BYTES,
) -> list[str]:
  """Writes config, weights and tokenizer into an empty folder; returns notes for its reader.

  Args:
    folder: exists, and is empty.
    stream: makes an iterator over the parameters and their paths, scanned or not.
    config: the model's.
    dtype: of the weights.
    vocabulary: the spec of its vocabulary, if known.
    shard_bytes: the largest size of a file of weights.
  """
  settings = config_json(config, dtype)
  _write_json(folder / 'config.json', settings)
  special = {key: settings[key] for key in ('decoder_start_token_id', 'eos_token_id', 'pad_token_id')}
  _write_json(folder / 'generation_config.json', {'_from_model_config': True, **special})
  _write_weights(folder, stream, config, np.dtype(getattr(ml_dtypes, dtype, dtype)), shard_bytes)
  return _write_tokenizer(folder, vocabulary, config.vocab_size) + (
    [_SCALED] if config.relative_bias_per_layer else []
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


def _write_json(file: epath.Path, value: dict[str, Any]) -> None:
  file.write_text(json_text(value, indent=2) + '\n')


# Weights


def _write_weights(
  folder: epath.Path, stream: Stream, config: T5Config, dtype: np.dtype, shard_bytes: int
) -> None:
  safetensors = require('safetensors.numpy', f'write {folder}')
  written, total = [], 0
  for shard in _shards(_renamed(stream, config, dtype), shard_bytes):
    safetensors.save_file(shard, str(folder / f'{len(written)}.tmp'), metadata={'format': 'pt'})
    written.append([*shard])
    total += sum(tensor.nbytes for tensor in shard.values())
  index = {}
  # A file's name contains the number of files.
  for i, weights in enumerate(written):
    file = f'model-{i + 1:05}-of-{len(written):05}.safetensors' if len(written) > 1 else 'model.safetensors'
    (folder / f'{i}.tmp').rename(folder / file)
    index |= dict.fromkeys(weights, file)
  if len(written) > 1:
    content = {'metadata': {'total_size': total}, 'weight_map': index}
    _write_json(folder / 'model.safetensors.index.json', content)


def _renamed(stream: Stream, config: T5Config, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
  torch_names = names.unrolled(config)
  for path, array in stream(scan=False):
    yield torch_names[path], np.ascontiguousarray(array.T if is_transposed(path) else array, dtype)


def _shards(weights: Iterator[tuple[str, np.ndarray]], shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
  shard, filled = {}, 0
  for name, array in weights:
    if shard and filled + array.nbytes > shard_bytes:
      yield shard
      shard, filled = {}, 0
    shard[name] = array
    filled += array.nbytes
  yield shard


# Tokenizer


def _write_tokenizer(folder: epath.Path, spec: str | None, rows: int) -> list[str]:
  if spec == 'bytes':
    extra_ids = min(_BYTE_EXTRA_IDS, max(rows - _BYTE_IDS, 0))
    _write_tokenizer_config(folder, 'ByT5Tokenizer', [f'<extra_id_{i}>' for i in range(extra_ids)])
    return []
  if spec is None:
    return ['without a tokenizer, because its vocabulary is unknown: pass --set VOCABULARY=FILE']
  try:
    content = read_model(parse(spec)[0])
  except UsageError as error:
    return [f'without a tokenizer: {error}']
  return (
    _write_json_tokenizer(folder, spec, content) if is_json(spec) else _write_pieces(folder, spec, content)
  )


def _write_pieces(folder: epath.Path, spec: str, model: bytes) -> list[str]:
  """Writes a SentencePiece model, and the tokenizer.json built from it."""
  extra_ids = parse(spec)[1]
  sentinels = [f'<extra_id_{i}>' for i in range(extra_ids)]
  (folder / 'spiece.model').write_bytes(model)
  try:
    made = tokenizer_json.from_sentencepiece(model, extra_ids)
  except UsageError as error:
    _write_tokenizer_config(folder, 'T5Tokenizer', sentinels)
    return [f'without a tokenizer.json: {error}. transformers builds its own tokenizer from spiece.model, '
            'which may give other ids']  # fmt: skip
  _write_json(folder / 'tokenizer.json', made)
  _write_tokenizer_config(folder, _FAST, sentinels)
  return [_LOADED, *_unlike(tokenizer_json.unlike(vocabulary(spec).encode, made))]


def _unlike(names: list[str]) -> list[str]:
  return [f'tokenizer.json gives other ids than dro_jax for {", ".join(names)}'] if names else []


def _write_json_tokenizer(folder: epath.Path, spec: str, content: bytes) -> list[str]:
  read = tokenizer_json.from_json(content, spec)
  names = [token['content'] for token in read['added_tokens']]
  _write_json(folder / 'tokenizer.json', read)
  _write_tokenizer_config(folder, _FAST, [name for name in names if tokenizer_json.SENTINEL.fullmatch(name)])
  return [_LOADED]


def _write_tokenizer_config(folder: epath.Path, tokenizer: str, sentinels: list[str]) -> None:
  special = {'eos_token': '</s>', 'pad_token': '<pad>', 'unk_token': '<unk>'}
  settings = {
    'tokenizer_class': tokenizer,
    'extra_ids': len(sentinels),
    'clean_up_tokenization_spaces': False,
  }
  # Sentinels are not listed as special for the fast tokenizer, so that text with a sentinel's name means it.
  listed = {} if tokenizer == _FAST else {'additional_special_tokens': sentinels}
  _write_json(folder / 'special_tokens_map.json', special | listed)
  # In text the names of special tokens are plain text, as in dro_jax.
  _write_json(folder / 'tokenizer_config.json', special | settings | listed | {'split_special_tokens': True})
