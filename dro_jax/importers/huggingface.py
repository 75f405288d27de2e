"""Hugging Face T5 folders (1.0, 1.1, FLAN, ByT5) to T5X's parameter tree."""

import functools
import importlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dro_jax.errors import UsageError
from dro_jax.models.t5 import T5Config
from dro_jax.types import Params

Weights = Mapping[str, Callable[[], np.ndarray]]

ARCHITECTURES = ('T5ForConditionalGeneration', 'T5WithLMHeadModel')
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
  return config, _build_tree(
    config, weights, folder, tied_without_scale=raw.get('scale_decoder_outputs') is False
  )


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
  hub = _require('huggingface_hub', f'download {name}')
  patterns = ['config.json', 'tokenizer_config.json', 'spiece.model']
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
  )


def _check_kind(raw: Mapping[str, Any], where: Path) -> None:
  if raw.get('model_type') != 't5':
    raise UsageError(f"{where}: model_type is {raw.get('model_type')!r}: only 't5' can be imported.")
  architectures = raw.get('architectures') or []
  if architectures and not set(architectures) & set(ARCHITECTURES):
    raise UsageError(
      f'{where}: architectures is {architectures}, which has no decoder with logits: pass {ARCHITECTURES[0]}.'
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
  # transformers 5 writes tie_word_embeddings: true for every T5, and the truth under another name.
  return bool(raw.get('scale_decoder_outputs', raw.get('tie_word_embeddings', True)))


def _names(config: T5Config) -> Iterator[tuple[str, tuple[str, ...]]]:
  """(Hugging Face name, path in the tree) of every weight but the embedding and the logits."""
  for side, num_layers in (('encoder', config.num_encoder_layers), ('decoder', config.num_decoder_layers)):
    first = f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    yield first, (side, 'relpos_bias', 'rel_embedding')
    yield f'{side}.final_layer_norm.weight', (side, f'{side}_norm', 'scale')
    for i in range(num_layers):
      for theirs, ours in _layer_names(side, len(config.mlp_activations)):
        yield f'{side}.block.{i}.layer.{theirs}.weight', (side, f'layers_{i}', *ours)


def _layer_names(side: str, num_activations: int) -> Iterator[tuple[str, tuple[str, ...]]]:
  attentions = [('SelfAttention', 'attention', 'pre_attention_layer_norm')]
  if side == 'decoder':
    attentions = [
      ('SelfAttention', 'self_attention', 'pre_self_attention_layer_norm'),
      ('EncDecAttention', 'encoder_decoder_attention', 'pre_cross_attention_layer_norm'),
    ]
  for i, (theirs, ours, norm) in enumerate(attentions):
    yield f'{i}.layer_norm', (norm, 'scale')
    for letter, name in (('q', 'query'), ('k', 'key'), ('v', 'value'), ('o', 'out')):
      yield f'{i}.{theirs}.{letter}', (ours, name, 'kernel')
  inputs = ['wi'] if num_activations == 1 else [f'wi_{i}' for i in range(num_activations)]
  yield f'{len(attentions)}.layer_norm', ('pre_mlp_layer_norm', 'scale')
  for name in (*inputs, 'wo'):
    yield f'{len(attentions)}.DenseReluDense.{name}', ('mlp', name, 'kernel')


def _build_tree(config: T5Config, weights: Weights, folder: Path, *, tied_without_scale: bool) -> Params:
  names = dict(_names(config))
  embedding = next((name for name in (_SHARED, *_EMBEDDING_ALIASES) if name in weights), _SHARED)
  copies = [name for name in _EMBEDDING_ALIASES if name in weights]
  logits = _LM_HEAD
  if config.logits_via_embedding:
    copies += [name for name in (_LM_HEAD,) if name in weights]
  elif tied_without_scale and _LM_HEAD not in weights:
    # transformers 5 leaves out logits that equal the embedding, also where it does not scale them.
    logits = embedding
  else:
    names[_LM_HEAD] = ('decoder', 'logits_dense', 'kernel')
  _check_names({*names, embedding}, {*weights} - {*copies, _UNREAD}, folder)

  table = _read(weights, embedding, folder, (config.vocab_size, config.emb_dim))
  for name in copies:
    if not np.array_equal(_read(weights, name, folder, table.shape), table):
      raise UsageError(f'{folder}: {name} differs from {embedding}, but config.json says that they are one.')
  tree: Params = {'token_embedder': {'embedding': table}}
  for name, path in names.items():
    # torch keeps [out, in]; here it is [in, out].
    _put(tree, path, np.ascontiguousarray(_read(weights, name, folder, _shape(config, path)[::-1]).T))
  if logits == embedding and not config.logits_via_embedding:
    _put(tree, ('decoder', 'logits_dense', 'kernel'), np.ascontiguousarray(table.T))
  return tree


def _check_names(wanted: set[str], found: set[str], folder: Path) -> None:
  missing, left_over = sorted(wanted - found), sorted(found - wanted)
  if missing:
    raise UsageError(
      f'{folder}: {len(missing)} weights of its config.json are missing, the first is {missing[0]}.'
    )
  if left_over:
    raise UsageError(
      f'{folder}: {len(left_over)} weights have no place in its config.json, the first is {left_over[0]}.'
    )


def _shape(config: T5Config, path: tuple[str, ...]) -> tuple[int, ...]:
  joined = config.num_heads * config.head_dim
  shapes = {
    'scale': (config.emb_dim,),
    'rel_embedding': (config.num_heads, config.relative_attention_num_buckets),
    'logits_dense': (config.emb_dim, config.vocab_size),
    'out': (joined, config.emb_dim),
    'wo': (config.mlp_dim, config.emb_dim),
  }
  inner = config.mlp_dim if path[-2].startswith('wi') else joined
  return shapes.get(path[-1]) or shapes.get(path[-2]) or (config.emb_dim, inner)


def _read(weights: Weights, name: str, folder: Path, shape: tuple[int, ...]) -> np.ndarray:
  array = np.asarray(weights[name](), np.float32)
  if array.shape != shape:
    raise UsageError(f'{folder}: {name} has shape {array.shape}; its config.json makes it {shape}.')
  return array


def _put(tree: Params, path: tuple[str, ...], value: np.ndarray) -> None:
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def _require(module: str, purpose: str) -> ModuleType:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    extra = 'torch' if module == 'torch' else "'dro_jax[hf]'"
    raise UsageError(
      f'{module} is not installed, and is needed to {purpose}: pip install {extra}.'
    ) from error


def _open_weights(folder: Path) -> Weights:
  for whole, open_files in (('model.safetensors', _open_safetensors), ('pytorch_model.bin', _open_torch)):
    if (folder / whole).is_file():
      return open_files([folder / whole])
    index = folder / f'{whole}.index.json'
    if index.is_file():
      return open_files([folder / shard for shard in sorted(set(read_json(index)['weight_map'].values()))])
  raise UsageError(f'{folder} has neither model.safetensors nor pytorch_model.bin, whole or in shards.')


def _open_safetensors(files: list[Path]) -> Weights:
  safetensors = _require('safetensors', f'read {files[0]}')
  weights = {}
  for file in files:
    try:
      opened = safetensors.safe_open(str(file), framework='numpy')
    except (OSError, safetensors.SafetensorError) as error:
      raise UsageError(f'{file}: not a safetensors file: {error}') from error
    weights |= {name: functools.partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118
  return weights


def _open_torch(files: list[Path]) -> Weights:
  torch = _require('torch', f'read {files[0]}')
  weights = {}
  for file in files:
    try:
      state = torch.load(file, map_location='cpu', weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
      raise UsageError(f'{file}: torch cannot load it as weights only: {error}') from error
    weights |= {name: tensor.detach().float().numpy for name, tensor in state.items()}
  return weights
