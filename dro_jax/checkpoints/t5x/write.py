"""Writes a policy as a folder `checkpoint_STEP` for T5X: zarr arrays beside a msgpack file."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization, traverse_util

from dro_jax.checkpoints.t5x.read import FILE, kvstore
from dro_jax.data.text.vocabularies import is_json, parse
from dro_jax.models.stacks import Path, is_stack
from dro_jax.models.t5 import names
from dro_jax.models.t5.config import T5Config

Stream = Callable[..., Iterator[tuple[Path, np.ndarray]]]

# T5X's version number since bfloat16 is tensorstore's own, and its size of a chunk.
_VERSION = 3
_CHUNK_BYTES = 64 * 2**20
_FIELDS = (
  'vocab_size', 'emb_dim', 'num_heads', 'num_encoder_layers', 'num_decoder_layers', 'head_dim', 'mlp_dim',
  'mlp_activations', 'dropout_rate', 'logits_via_embedding',
)  # fmt: skip
_KEPT = ('chunks', 'compressor', 'shape')


def write(
  folder: epath.Path,
  stream: Stream,
  config: T5Config,
  *,
  dtype: str,
  vocabulary: str | None,
  step: int = 0,
  scan_layers: bool = False,
) -> list[str]:
  """Writes `checkpoint_STEP` and a gin file with the model's configuration into an empty folder.

  Args:
    folder: exists, and is empty.
    stream: makes an iterator over the parameters and their paths, scanned or not.
    config: the model's.
    dtype: of the weights.
    vocabulary: the spec of its vocabulary, if known.
    step: T5X's own counter.
    scan_layers: write examples/scalable_t5's tree: scanned layers, an axis for heads, a bias in each layer.
  """
  checkpoint = folder / f'checkpoint_{step}'
  checkpoint.mkdir()
  written = dataclasses.replace(config, scan_layers=scan_layers)
  target, precision = {}, np.dtype(getattr(ml_dtypes, dtype, dtype))
  for path, array in stream(scan=scan_layers):
    for t5x_path, leaf in _renamed(path, array, written) if scan_layers else [(path, array)]:
      target[t5x_path] = _write_zarr(checkpoint, t5x_path, np.asarray(leaf, precision))
  state = {'param_states': {}, 'step': np.int32(step)}
  content = {'target': traverse_util.unflatten_dict(target), 'state': state}
  serialized = serialization.msgpack_serialize({'version': _VERSION, 'optimizer': content})
  (checkpoint / FILE).write_bytes(serialized)
  is_known = vocabulary is None or not is_json(vocabulary)
  (folder / 'config.gin').write_text(_gin(written, vocabulary if is_known else None))
  return [] if is_known else ['without its vocabulary: T5X does not read a tokenizer.json']


def _renamed(path: Path, array: np.ndarray, config: T5Config) -> list[tuple[Path, np.ndarray]]:
  """A parameter in scalable_t5's layout."""
  if path[1:] == names.RELATIVE_BIAS:
    layers = config.num_encoder_layers if path[0] == 'encoder' else config.num_decoder_layers
    return [((path[0], *path), np.repeat(array[:, None], layers, axis=1))]
  if is_stack(path) and path[-1] == 'kernel' and 'attention' in path[2]:
    heads = config.num_heads, config.head_dim
    if path[-2] == 'out':
      array = np.moveaxis(array.reshape(*heads, *array.shape[1:]), 1, 2)
    else:
      array = array.reshape(*array.shape[:-1], *heads)
  return [(path, array)]


def _write_zarr(checkpoint: epath.Path, path: Path, array: np.ndarray) -> dict[str, Any]:
  """Writes an array; returns the entry for T5X's msgpack file."""
  name = '.'.join(('target', *path))
  spec = {
    'driver': 'zarr',
    'dtype': array.dtype.name,
    'kvstore': kvstore(checkpoint / name),
    'metadata': {'compressor': {'id': 'gzip', 'level': 1}, 'shape': list(array.shape)},
    'schema': {'chunk_layout': {'chunk': {'elements': _CHUNK_BYTES // array.dtype.itemsize}}},
  }
  store = ts.open(spec, create=True).result()
  store.write(array).result()
  metadata = store.spec().to_json()['metadata']
  return {
    'driver': 'zarr',
    'dtype': array.dtype.name,
    'kvstore': {'driver': 'file', 'path': name},
    'metadata': {key: metadata[key] for key in _KEPT},
  }


def _gin(config: T5Config, vocabulary: str | None) -> str:
  """A gin file with the facts that the arrays' shapes do not show, for T5X and for `import_checkpoint`."""
  example = 'scalable_t5' if config.scan_layers else 't5'
  fields = [*_FIELDS, *(['scan_layers'] if config.scan_layers else [])]
  lines = ''.join(f'  {field} = {getattr(config, field)!r}\n' for field in fields)
  return f"""from __gin__ import dynamic_registration

import seqio
from t5x.examples.{example} import network

{_gin_vocabulary(vocabulary)}
network.T5Config:
{lines}"""


def _gin_vocabulary(spec: str | None) -> str:
  if spec is None:
    return ''
  if spec == 'bytes':
    return 'VOCABULARY = @seqio.ByteVocabulary()\n'
  path, extra_ids = parse(spec)
  return f"""VOCABULARY = @seqio.SentencePieceVocabulary()
seqio.SentencePieceVocabulary.sentencepiece_model_file = {path!r}
seqio.SentencePieceVocabulary.extra_ids = {extra_ids}
"""
