"""Writes a policy as a folder for transformers' `from_pretrained`."""

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
from etils import epath

from dro_jax.checkpoints.huggingface import write_tokenizer
from dro_jax.checkpoints.huggingface.files import require, write_json
from dro_jax.checkpoints.huggingface.formats import FORMATS
from dro_jax.models.family import Config
from dro_jax.models.policy import family_of
from dro_jax.models.stacks import Path
from dro_jax.models.stored import Stored

Stream = Callable[..., Iterator[tuple[Path, np.ndarray]]]

SHARD_BYTES = 10**9


def write(
  folder: epath.Path,
  stream: Stream,
  config: Config,
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
  described = FORMATS[family_of(config).name]
  settings = described.config_json(config, dtype)
  write_json(folder / 'config.json', settings)
  special = {key: value for key, value in settings.items() if key.endswith('_token_id')}
  write_json(folder / 'generation_config.json', {'_from_model_config': True, **special})
  weights = _joined(
    stream, described.stored(config), config.num_heads, np.dtype(getattr(ml_dtypes, dtype, dtype))
  )
  _write_weights(folder, weights, shard_bytes)
  return write_tokenizer.write(folder, vocabulary, config.vocab_size) + described.notes(config)


def _write_weights(folder: epath.Path, weights: Iterator[tuple[str, np.ndarray]], shard_bytes: int) -> None:
  safetensors = require('safetensors.numpy', f'write {folder}')
  written, total = [], 0
  for shard in _shards(weights, shard_bytes):
    safetensors.save_file(shard, str(folder / f'{len(written)}.tmp'), metadata={'format': 'pt'})
    written.append([*shard])
    total += sum(tensor.nbytes for tensor in shard.values())
  index = {}
  # A file's name contains the number of files.
  for i, names in enumerate(written):
    file = f'model-{i + 1:05}-of-{len(written):05}.safetensors' if len(written) > 1 else 'model.safetensors'
    (folder / f'{i}.tmp').rename(folder / file)
    index |= dict.fromkeys(names, file)
  if len(written) > 1:
    content = {'metadata': {'total_size': total}, 'weight_map': index}
    write_json(folder / 'model.safetensors.index.json', content)


def _joined(
  stream: Stream, arrays: list[Stored], num_heads: int, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
  """Each stored array as soon as the last of its parts has come."""
  by_path = {path: each for each in arrays for path in each.paths}
  parts: dict[Path, np.ndarray] = {}
  for path, array in stream(scan=False):
    each, parts[path] = by_path[path], array
    if all(part in parts for part in each.paths):
      joined = each.layout.join([parts.pop(part) for part in each.paths], num_heads)
      yield each.name, np.ascontiguousarray(joined, dtype)


def _shards(weights: Iterator[tuple[str, np.ndarray]], shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
  shard, filled = {}, 0
  for name, array in weights:
    if shard and filled + array.nbytes > shard_bytes:
      yield shard
      shard, filled = {}, 0
    shard[name] = array
    filled += array.nbytes
  yield shard
