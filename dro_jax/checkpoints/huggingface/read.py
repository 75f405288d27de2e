"""Hugging Face T5 folders (1.0, 1.1, FLAN, ByT5, mT5, umT5) to T5X's parameter tree."""

import functools
import importlib
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from flax import traverse_util

from dro_jax.errors import UsageError
from dro_jax.models.t5 import names
from dro_jax.models.t5.config import TOKENS, T5Config
from dro_jax.types import Params

Weights = Mapping[str, Callable[[], np.ndarray]]

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
# The special tokens of every T5 here.
_SPECIAL_TOKENS = {
  'pad_token_id': TOKENS.pad, 'eos_token_id': TOKENS.eos, 'decoder_start_token_id': TOKENS.start
}  # fmt: skip
_SHARED, _LM_HEAD = 'shared.weight', 'lm_head.weight'
_EMBEDDING_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
# T5 1.0's files hold a bias of the cross-attention that no T5 reads.
_UNREAD = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'


def load(source: str | Path) -> tuple[T5Config, Params]:
  """A T5's config and parameters (float32 numpy, layer by layer) from a folder or a name on the hub.

  Reads config.json and model.safetensors or pytorch_model.bin (weights-only), whole or in shards.

  Raises:
    UsageError: the folder, its config or a weight is missing or of another kind, or there are other weights.
  """
  folder = find_folder(source)
  raw = read_json(folder / 'config.json')
  config = read_config(raw, folder)
  weights = _open_weights(folder)
  unscaled = raw['model_type'] != 't5' or raw.get('scale_decoder_outputs') is False
  return config, _build_tree(config, weights, folder, tied_without_scale=unscaled)


def find_folder(source: str | Path) -> Path:
  """The folder `source`, or a folder with the downloaded files of that name on the hub."""
  folder = Path(source).expanduser()
  if folder.is_dir():
    return folder
  name = str(source)
  if folder.exists() or name.count('/') != 1 or name.startswith(('/', '.', '~')):
    raise UsageError(
      f'{name} is not a folder: pass a Hugging Face T5 folder, or a hub name like google/flan-t5-small.'
    )
  hub = require('huggingface_hub', f'download {name}')
  patterns = ['config.json', 'tokenizer_config.json', 'spiece.model', 'tokenizer.json', 'added_tokens.json']
  try:
    folder = Path(
      hub.snapshot_download(name, allow_patterns=[*patterns, '*.safetensors', '*.safetensors.index.json'])
    )
    if not any(folder.glob('*.safetensors')):
      hub.snapshot_download(name, allow_patterns=['pytorch_model*.bin', 'pytorch_model.bin.index.json'])
  except (OSError, hub.errors.HfHubHTTPError) as error:
    raise UsageError(
      f'{name} is not a folder here, and could not be downloaded from the Hugging Face hub: {error}. Pass a '
      'folder with its files.'
    ) from error
  return folder


def read_json(path: Path) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    UsageError: the file is missing or holds no JSON object.
  """
  if not path.is_file():
    raise UsageError(f'{path.parent} has no {path.name}: pass a folder that transformers saved.')
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UsageError(f'{path} is not JSON: {error}. Copy it again.') from error
  if not isinstance(value, dict):
    raise UsageError(f'{path} holds a JSON {type(value).__name__}, not an object: copy it again.')
  return value


def read_config(raw: Mapping[str, Any], folder: Path) -> T5Config:
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


def _check_kind(raw: Mapping[str, Any], where: Path) -> None:
  kind = raw.get('model_type')
  if kind not in ARCHITECTURES:
    raise UsageError(f'{where}: model_type is {kind!r}, but only {", ".join(ARCHITECTURES)} can be imported.')
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


def _is_tied(raw: Mapping[str, Any]) -> bool:
  # transformers 5 writes tie_word_embeddings: true for all of them. For T5 another field has the answer, and
  # no mT5 or umT5 is tied.
  return raw['model_type'] == 't5' and bool(
    raw.get('scale_decoder_outputs', raw.get('tie_word_embeddings', True))
  )


def _build_tree(config: T5Config, weights: Weights, folder: Path, *, tied_without_scale: bool) -> Params:
  sources = names.unrolled(config)
  embedding = next((name for name in (_SHARED, *_EMBEDDING_ALIASES) if name in weights), _SHARED)
  sources[names.EMBEDDING] = embedding
  copies = [name for name in _EMBEDDING_ALIASES if name in weights and name != embedding]
  if config.logits_via_embedding:
    copies += [name for name in (_LM_HEAD,) if name in weights]
  elif tied_without_scale and _LM_HEAD not in weights:
    # transformers 5 leaves out logits that equal the embedding, also where it does not scale them.
    sources[names.LOGITS] = embedding
  present = {*weights} - {*copies} - ({_UNREAD} - {*sources.values()})
  names.check(folder, {*sources.values()}, present, 'its config.json')
  for name in copies:
    _check_copy(weights, name, embedding, folder)
  flat = {path: _read(weights, name, folder, config, path) for path, name in sources.items()}
  return traverse_util.unflatten_dict(flat)


def _check_copy(weights: Weights, name: str, embedding: str, folder: Path) -> None:
  if not np.array_equal(weights[name](), weights[embedding]()):
    raise UsageError(f'{folder}: {name} differs from {embedding}, but config.json ties them: copy it again.')


def _read(weights: Weights, name: str, folder: Path, config: T5Config, path: names.Path) -> np.ndarray:
  array, shape = weights[name](), names.shape(config, path)
  transposed = is_transposed(path)
  expected = shape[::-1] if transposed else shape
  if array.shape != expected:
    raise UsageError(f'{folder}: {name} has shape {array.shape}, but by its config.json it has {expected}.')
  return np.ascontiguousarray(array.T if transposed else array, np.float32)


def is_transposed(path: names.Path) -> bool:
  """Whether torch transposes a parameter: kernels are [out, in] there and [in, out] here."""
  return path != names.EMBEDDING


def require(module: str, purpose: str) -> ModuleType:
  """A module that the extra `hf` installs, or torch.

  Raises:
    UsageError: it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    extra = 'torch' if module == 'torch' else "'dro_jax[hf]'"
    raise UsageError(
      f'{module} is needed to {purpose}, and is not installed: pip install {extra}.'
    ) from error


def stored_dtype(source: str | Path) -> str:
  """`bfloat16` or `float16` where all weights of a folder's safetensors have that dtype, else `float32`."""
  files = [file for file in _weight_files(find_folder(source)) if file.suffix == '.safetensors']
  dtypes = set()
  for file in files:
    with _opened(file) as opened:
      dtypes |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
  short = {'BF16': 'bfloat16', 'F16': 'float16'}
  return short.get(dtypes.pop(), 'float32') if len(dtypes) == 1 else 'float32'


def _weight_files(folder: Path) -> list[Path]:
  for whole in ('model.safetensors', 'pytorch_model.bin'):
    if (folder / whole).is_file():
      return [folder / whole]
    index = folder / f'{whole}.index.json'
    if index.is_file():
      return [folder / shard for shard in _shards(index)]
  raise UsageError(f'{folder} has neither model.safetensors nor pytorch_model.bin, whole or in shards.')


def _shards(index: Path) -> list[str]:
  shards = read_json(index).get('weight_map')
  if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
    raise UsageError(f"{index}: weight_map does not map weights' names to file names: copy it again.")
  for shard in sorted(set(shards.values())):
    # A downloaded index must not name files of other folders.
    if Path(shard).name != shard or shard in ('', '.', '..'):
      raise UsageError(f'{index}: weight_map names {shard!r}, which is not a file name in this folder.')
    if not (index.parent / shard).is_file():
      raise UsageError(f'{index}: weight_map names {shard}, which is missing: copy every shard.')
  return sorted(set(shards.values()))


def _open_weights(folder: Path) -> Weights:
  weights = {}
  for file in _weight_files(folder):
    weights |= _open_torch(file) if file.suffix == '.bin' else _open_safetensors(file)
  return weights


def _opened(file: Path) -> Any:
  safetensors = require('safetensors', f'read {file}')
  try:
    return safetensors.safe_open(str(file), framework='numpy')
  except (OSError, safetensors.SafetensorError) as error:
    raise UsageError(f'{file} is not a safetensors file: {error}. Copy it again.') from error


def _open_safetensors(file: Path) -> Weights:
  with _opened(file) as opened:
    return {name: functools.partial(_read_tensor, file, name) for name in opened.keys()}  # noqa: SIM118


def _read_tensor(file: Path, name: str) -> np.ndarray:
  # Opened for each tensor, because the pages that an open file has mapped count as this process's memory.
  with _opened(file) as opened:
    return opened.get_tensor(name)


def _open_torch(file: Path) -> Weights:
  torch = require('torch', f'read {file}')
  try:
    state = torch.load(file, map_location='cpu', weights_only=True)
  except (OSError, RuntimeError, pickle.UnpicklingError) as error:
    raise UsageError(f'torch cannot load {file} as weights only: {error}. Copy it again.') from error
  read = lambda tensor: tensor.detach().float().numpy()  # noqa: E731
  return {name: functools.partial(read, tensor) for name, tensor in state.items()}
