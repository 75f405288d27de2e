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
from dro_jax.models.t5.config import T5Config
from dro_jax.types import Params

Weights = Mapping[str, Callable[[], np.ndarray]]

# By model_type; an mT5 is a T5 in all but its name.
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
# What our scoring and sampling take for granted.
_SPECIAL_TOKENS = {'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0}
_SHARED, _LM_HEAD = 'shared.weight', 'lm_head.weight'
_EMBEDDING_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
# T5 1.0's files carry a bias of the cross-attention that no T5 has ever read.
_UNREAD = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'


def load(source: str | Path) -> tuple[T5Config, Params]:
  """A T5's config and parameters (float32 numpy, layer by layer) from a folder or a name on the hub.

  Reads config.json and model.safetensors or pytorch_model.bin (weights-only), whole or in shards.

  Raises:
    UsageError: the folder, its config or a weight is missing, of another kind, or left over.
  """
  folder = find_folder(source)
  raw = read_json(folder / 'config.json')
  config = read_config(raw, folder)
  weights = _open_weights(folder)
  unscaled = raw['model_type'] != 't5' or raw.get('scale_decoder_outputs') is False
  return config, _build_tree(config, weights, folder, tied_without_scale=unscaled)


def find_folder(source: str | Path) -> Path:
  """`source` itself when it is a folder; else the hub's files of that name, downloaded."""
  folder = Path(source).expanduser()
  if folder.is_dir():
    return folder
  name = str(source)
  if folder.exists() or name.count('/') != 1 or name.startswith(('/', '.', '~')):
    raise UsageError(
      f'{name} is no folder: pass a Hugging Face T5 folder, or a hub name like google/flan-t5-small.'
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
      f'could not download {name} from the Hugging Face hub, and it is no folder here: {error}'
    ) from error
  return folder


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    UsageError: the file is missing or is not one.
  """
  if not path.is_file():
    raise UsageError(f'{path.parent} has no {path.name}: pass a folder that transformers saved.')
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UsageError(f'{path}: not JSON: {error}') from error
  if not isinstance(value, dict):
    raise UsageError(f'{path}: holds {type(value).__name__}, not an object.')
  return value


def read_config(raw: Mapping[str, Any], folder: Path) -> T5Config:
  """T5Config of a config.json; dropout is left at 0."""
  where = folder / 'config.json'
  _check_kind(raw, where)
  sizes = {
    'vocab_size': 'vocab_size', 'emb_dim': 'd_model', 'num_heads': 'num_heads', 'head_dim': 'd_kv',
    'mlp_dim': 'd_ff', 'num_encoder_layers': 'num_layers',
  }  # fmt: skip
  missing = [key for key in sizes.values() if not isinstance(raw.get(key), int)]
  if missing:
    raise UsageError(f'{where}: {missing[0]} is {raw.get(missing[0])!r}: a T5 needs a number there.')
  return T5Config(
    **{ours: raw[theirs] for ours, theirs in sizes.items()},
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
    raise UsageError(f'{where}: model_type is {kind!r}: only {", ".join(ARCHITECTURES)} can be imported.')
  architectures = raw.get('architectures') or []
  if architectures and not set(architectures) & set(ARCHITECTURES[kind]):
    raise UsageError(
      f'{where}: architectures is {architectures}, which has no decoder with logits: '
      f'pass {ARCHITECTURES[kind][0]}.'
    )
  if raw.get('layer_norm_epsilon', 1e-6) != 1e-6:
    raise UsageError(f'{where}: layer_norm_epsilon is {raw["layer_norm_epsilon"]}: every T5 here has 1e-06.')
  for key, expected in _SPECIAL_TOKENS.items():
    if raw.get(key, expected) not in (expected, None):
      raise UsageError(f'{where}: {key} is {raw[key]}: a T5 here has {expected}.')


def _activations(name: str, where: Path) -> tuple[str, ...]:
  gated, activation = name.startswith('gated-'), name.removeprefix('gated-')
  # transformers means the tanh approximation by a gated gelu, and the exact function by a plain one.
  known = _ACTIVATIONS | ({'gelu': 'gelu'} if gated else {})
  if activation not in known:
    raise UsageError(
      f'{where}: feed_forward_proj is {name!r}, an activation that is not here: '
      f'known are {sorted(_ACTIVATIONS)}, each also as gated-..., and gated-gelu.'
    )
  return (known[activation], 'linear') if gated else (known[activation],)


def _is_tied(raw: Mapping[str, Any]) -> bool:
  # transformers 5 writes tie_word_embeddings: true for all of them. The truth is under another name for T5,
  # and no mT5 or umT5 is tied.
  return raw['model_type'] == 't5' and bool(
    raw.get('scale_decoder_outputs', raw.get('tie_word_embeddings', True))
  )


def _build_tree(config: T5Config, weights: Weights, folder: Path, *, tied_without_scale: bool) -> Params:
  wanted = names.unrolled(config)
  embedding = next((name for name in (_SHARED, *_EMBEDDING_ALIASES) if name in weights), _SHARED)
  wanted[names.EMBEDDING] = embedding
  copies = [name for name in _EMBEDDING_ALIASES if name in weights and name != embedding]
  if config.logits_via_embedding:
    copies += [name for name in (_LM_HEAD,) if name in weights]
  elif tied_without_scale and _LM_HEAD not in weights:
    # transformers 5 leaves out logits that equal the embedding, also where it does not scale them.
    wanted[names.LOGITS] = embedding
  found = {*weights} - {*copies} - ({_UNREAD} - {*wanted.values()})
  names.check(folder, {*wanted.values()}, found, 'its config.json')
  for name in copies:
    _check_copy(weights, name, embedding, folder)
  flat = {path: _read(weights, name, folder, config, path) for path, name in wanted.items()}
  return traverse_util.unflatten_dict(flat)


def _check_copy(weights: Weights, name: str, embedding: str, folder: Path) -> None:
  if not np.array_equal(weights[name](), weights[embedding]()):
    raise UsageError(f'{folder}: {name} differs from {embedding}, but config.json says that they are one.')


def _read(weights: Weights, name: str, folder: Path, config: T5Config, path: names.Path) -> np.ndarray:
  array, shape = weights[name](), names.shape(config, path)
  transposed = is_transposed(path)
  expected = shape[::-1] if transposed else shape
  if array.shape != expected:
    raise UsageError(f'{folder}: {name} has shape {array.shape}; its config.json makes it {expected}.')
  return np.ascontiguousarray(array.T if transposed else array, np.float32)


def is_transposed(path: names.Path) -> bool:
  """Whether torch keeps a parameter the other way round: kernels are [out, in] there, here [in, out]."""
  return path != names.EMBEDDING


def require(module: str, purpose: str) -> ModuleType:
  """A module that only the extra `hf` installs, or torch.

  Raises:
    UsageError: it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    extra = 'torch' if module == 'torch' else "'dro_jax[hf]'"
    raise UsageError(
      f'{module} is not installed, and is needed to {purpose}: pip install {extra}.'
    ) from error


def stored_dtype(source: str | Path) -> str:
  """`bfloat16` or `float16` where every weight of a folder's safetensors is, else `float32`."""
  files = [file for file in _weight_files(find_folder(source)) if file.suffix == '.safetensors']
  found = set()
  for file in files:
    with _opened(file) as opened:
      found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
  short = {'BF16': 'bfloat16', 'F16': 'float16'}
  return short.get(found.pop(), 'float32') if len(found) == 1 else 'float32'


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
    raise UsageError(f"{index}: weight_map is no object of weights' names and file names.")
  for shard in sorted(set(shards.values())):
    # An index from elsewhere must not name files elsewhere.
    if Path(shard).name != shard or shard in ('', '.', '..'):
      raise UsageError(f'{index}: weight_map names {shard!r}, which is no file of this folder.')
    if not (index.parent / shard).is_file():
      raise UsageError(f'{index}: weight_map names {shard}, which is not there: copy every shard.')
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
    raise UsageError(f'{file}: not a safetensors file: {error}') from error


def _open_safetensors(file: Path) -> Weights:
  with _opened(file) as opened:
    return {name: functools.partial(_read_tensor, file, name) for name in opened.keys()}  # noqa: SIM118


def _read_tensor(file: Path, name: str) -> np.ndarray:
  # Opened for each: what an open file has mapped so far counts as our memory.
  with _opened(file) as opened:
    return opened.get_tensor(name)


def _open_torch(file: Path) -> Weights:
  torch = require('torch', f'read {file}')
  try:
    state = torch.load(file, map_location='cpu', weights_only=True)
  except (OSError, RuntimeError, pickle.UnpicklingError) as error:
    raise UsageError(f'{file}: torch cannot load it as weights only: {error}') from error
  read = lambda tensor: tensor.detach().float().numpy()  # noqa: E731
  return {name: functools.partial(read, tensor) for name, tensor in state.items()}
