"""T5X checkpoints: a msgpack file with all arrays, or with large arrays in zarr folders beside it.

    checkpoint_STEP                                   the first T5X's: everything in one msgpack file
    checkpoint_STEP/{checkpoint, target.encoder...}   later: a msgpack file with the places of arrays
    checkpoint_STEP/state/{checkpoint, ...}           by T5X's Orbax manager

Trees are those of T5X's examples/t5 or examples/scalable_t5. In the latter layers may be scanned, attention
kernels have an axis for heads, and each layer has a relative bias.
"""

import ast
import dataclasses
import functools
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgpack
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization, traverse_util

from dro_jax.errors import UsageError
from dro_jax.models import stored
from dro_jax.models.stacks import Path, in_stack, is_stack
from dro_jax.models.t5 import names
from dro_jax.models.t5.config import T5Config
from dro_jax.types import Params

FILE = 'checkpoint'
GIN_FILES = ('model_config.gin', 'operative_config.gin', 'config.gin')
# The vocabularies of released models by their embedding rows.
VOCABULARIES = {
  384: 'bytes',
  32128: 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model',
  250112: 'gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model',
  256384: 'gs://t5-data/vocabs/umt5.256000/sentencepiece.model#extra_ids=300',
}

_SPEC_KEYS = {'driver', 'kvstore', 'metadata'}
_CHUNKED = '__msgpack_chunked_array__'
_PLACEHOLDER = 'PLACEHOLDER://'
_TARGETS = (('optimizer', 'target'), ('target',), ('_optimizer', 'target'))
_DEEPEST = 64
_TF_CHECKPOINT = b'model_checkpoint_path'

_log = logging.getLogger(__name__)

# Functions that open a weight: an array, or a handle with a shape that is not read yet.
Weights = dict[Path, Callable[[], Any]]


class Source(NamedTuple):
  """A checkpoint that is open and not read yet.

  Attributes:
    file: its msgpack file.
    weights: a function that opens each weight of the model, by its path in the source's tree.
    ignored: the number of other arrays, such as the optimiser's.
    gin: the text of the gin configuration beside it, or ''.
  """

  file: epath.Path
  weights: Weights
  ignored: int
  gin: str


def find(path: epath.Path) -> epath.Path | None:
  """The msgpack file of a T5X checkpoint, or of the newest one in a folder; `None` where there is none."""
  if path.is_file():
    return path
  steps = [int(step.name.removeprefix('checkpoint_')) for step in path.glob('checkpoint_*') if _is_step(step)]
  for folder in [path / f'checkpoint_{max(steps)}'] if steps else [path, path / 'state']:
    if folder.is_file():
      return folder
    for file in (folder / FILE, folder / 'state' / FILE):
      if file.is_file():
        return file
  return None


def _is_step(path: epath.Path) -> bool:
  return path.name.removeprefix('checkpoint_').isdigit()


def load(
  file: epath.Path, mlp_activations: tuple[str, ...] | None = None
) -> tuple[T5Config, Params, str | None]:
  """A T5's config, parameters (float32 numpy, scanned or not as in the source) and vocabulary, if known.

  Arrays are read one by one. Arrays that are not weights of the model are counted in the log, not read.

  Args:
    file: the checkpoint's msgpack file (see `find`).
    mlp_activations: of its MLPs; by default those in a gin file beside it, or else relu or gated gelu.

  Raises:
    UsageError: the checkpoint is torn or of another kind, or its weights are not those of a T5.
  """
  source = open_checkpoint(file)
  config, bias = _with_bias(source, infer_config(source, mlp_activations))
  _log.info('%s: %d arrays of the optimiser are left out', file, source.ignored)
  shapes = names.shapes(config)
  stored.check(
    file,
    _joined_names(shapes),
    _joined_names({*source.weights} | {*bias}),
    'the T5 of these shapes',
    names.KIND,
  )
  flat = bias
  for path, shape in shapes.items():
    if path not in flat:
      flat[path] = _read(source, path, shape)
  return config, traverse_util.unflatten_dict(flat), vocabulary(source, config)


def _joined_names(paths: Iterable[Path]) -> set[str]:
  return {'/'.join(path) for path in paths}


def stored_dtype(file: epath.Path) -> str:
  """`bfloat16` where all weights have that dtype, else `float32`."""
  dtypes = {_dtype(opened) for opened in open_checkpoint(file).weights.values()}
  return 'bfloat16' if dtypes == {'bfloat16'} else 'float32'


def _dtype(open_weight: Callable[[], Any]) -> str:
  return open_weight().dtype.name


# The index of a checkpoint


def open_checkpoint(file: epath.Path) -> Source:
  """Finds every array of a checkpoint, without reading it.

  Raises:
    UsageError: the file is torn, or is not a T5X checkpoint.
  """
  entries = _index(file)
  prefix = next((p for p in _TARGETS if any(path[: len(p)] == p for path in entries)), None)
  if prefix is None:
    roots = sorted({str(path[0]) for path in entries if path})
    raise UsageError(
      f'{file} holds {", ".join(roots[:8]) or "nothing"}, and no target: pass a T5X checkpoint, which keeps '
      'its weights in optimizer/target or target.'
    )
  weights = {
    path[len(prefix) :]: functools.partial(_open, file, path, *span)
    for path, span in entries.items()
    if path[: len(prefix)] == prefix
  }
  return Source(file, weights, len(entries) - len(weights), _neighbouring_gin(file))


def _index(file: epath.Path) -> dict[Path, tuple[int, int]]:
  """The byte positions at which each leaf of a msgpack file begins and ends."""
  with file.open('rb') as opened:
    if opened.read(len(_TF_CHECKPOINT)) == _TF_CHECKPOINT:
      raise UsageError(
        f'{file} is a TensorFlow checkpoint of Mesh TensorFlow: convert it with T5X '
        '(t5x/scripts/convert_tf_checkpoint.py), or take the T5X one of the same model.'
      )
    opened.seek(0)
    # Without a limit on the buffer: flax cuts arrays into pieces of 1 GB.
    unpacker = msgpack.Unpacker(opened, max_buffer_size=0, strict_map_key=False, read_size=2**20)
    try:
      return dict(_walk(unpacker, ()))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
      size = file.stat().length
      raise UsageError(
        f'{file} is not a whole msgpack file ({type(error).__name__} after byte {unpacker.tell()} of '
        f'{size}): it is torn, or not a T5X checkpoint. Copy it again.'
      ) from error


def _walk(unpacker: msgpack.Unpacker, path: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
  start = unpacker.tell()
  try:
    size = unpacker.read_map_header()
  except msgpack.OutOfData:
    raise
  except ValueError:
    unpacker.skip()
    yield path, (start, unpacker.tell())
    return
  if len(path) > _DEEPEST:
    raise ValueError('nested too deeply')
  keys, inside = set(), []
  for _ in range(size):
    key = unpacker.unpack()
    keys.add(key)
    inside.extend(_walk(unpacker, (*path, str(key))))
  # A map that describes one array.
  if keys >= _SPEC_KEYS or _CHUNKED in keys:
    yield path, (start, unpacker.tell())
  else:
    yield from inside


def _neighbouring_gin(file: epath.Path) -> str:
  for folder in (file.parent, file.parent.parent):
    for name in GIN_FILES:
      if (folder / name).is_file():
        return (folder / name).read_text()
  return ''


# Arrays


def _open(file: epath.Path, path: Path, start: int, end: int) -> Any:
  """An array of the msgpack file, or a handle of a zarr folder beside it."""
  with file.open('rb') as opened:
    opened.seek(start)
    try:
      leaf = serialization.msgpack_restore(opened.read(end - start))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
      raise UsageError(f'{file}: flax cannot read the array {"/".join(path)}: {error}') from error
  if isinstance(leaf, np.ndarray | np.generic):
    return np.asarray(leaf)
  if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
    return _open_zarr(file, path, leaf.removeprefix(_PLACEHOLDER))
  if isinstance(leaf, dict) and leaf.keys() >= _SPEC_KEYS:
    # T5X before tensorstore 0.1.14 wrote the path outside kvstore.
    return _open_zarr(file, path, leaf['kvstore'].get('path', leaf.get('path')), leaf.get('driver'))
  raise UsageError(f'{file}: {"/".join(path)} is a {type(leaf).__name__}, not an array.')


def _open_zarr(file: epath.Path, path: Path, name: Any, driver: str = 'zarr') -> ts.TensorStore:
  folder = file.parent
  label = f'{file}: {"/".join(path)}'
  name = name.strip('/') if isinstance(name, str) else ''
  # The name must not lead to another folder.
  if driver != 'zarr' or name in ('', '.', '..') or '/' in name or '\\' in name:
    raise UsageError(f'{label} points at {driver} {name!r}, but T5X keeps zarr folders beside the file.')
  spec = {'driver': 'zarr', 'kvstore': kvstore(folder / name), 'fill_missing_data_reads': False}
  try:
    store = ts.open(spec, open=True, read=True).result()
  except ValueError as error:
    raise UsageError(f'{label}: cannot open the zarr folder {folder / name}: {error}') from error
  if store.dtype.name == 'uint16':
    raise UsageError(f'{label} is uint16, as T5X before version 3 wrote bfloat16: save it again with T5X.')
  return store


def kvstore(path: epath.Path) -> dict[str, Any]:
  """tensorstore's spec of a folder, on a disk or for gs:// paths in a bucket."""
  match = re.fullmatch(r'gs://([^/]+)/(.*)', str(path))
  if match:
    return {'driver': 'gcs', 'bucket': match[1], 'path': f'{match[2].rstrip("/")}/'}
  return {'driver': 'file', 'path': f'{path.expanduser().absolute()}/'}


def _array(source: Source, path: Path) -> np.ndarray:
  """A whole array; a missing chunk is an error, not zeros."""
  opened = source.weights[path]()
  if isinstance(opened, np.ndarray):
    return opened
  try:
    return opened.read().result()
  except ValueError as error:
    raise UsageError(f'{source.file}: {"/".join(path)} cannot be read: {error}') from error


def _read(source: Source, path: Path, shape: tuple[int, ...]) -> np.ndarray:
  stored = _array(source, path)
  array = _joined(_with_layers_second(stored, path, shape), path)
  if array.shape != shape:
    raise UsageError(
      f'{source.file}: {"/".join(path)} has shape {stored.shape}, but by the other shapes it has {shape}.'
    )
  return np.ascontiguousarray(array, np.float32)


def _with_layers_second(array: np.ndarray, path: Path, shape: tuple[int, ...]) -> np.ndarray:
  """The array with layers on axis 1, where T5X's `param_scan_axis` may have put them on axis 0."""
  first = is_stack(path) and array.ndim > 1 and array.shape[0] == shape[1] != array.shape[1]
  return np.moveaxis(array, 0, 1) if first else array


def _joined(array: np.ndarray, path: Path) -> np.ndarray:
  """Attention kernels of shape [D, H, C] or [H, C, D], with heads and their width in one axis."""
  stacked = is_stack(path)
  if path[-1] != 'kernel' or array.ndim - stacked != 3:
    return array
  if path[-2] == 'out':
    array = np.moveaxis(array, 1, 2) if stacked else array
    return array.reshape(-1, *array.shape[2:])
  return array.reshape(*array.shape[: 1 + stacked], -1)


# Facts from the shapes and a gin file


def infer_config(source: Source, mlp_activations: tuple[str, ...] | None = None) -> T5Config:
  """The configuration that a checkpoint's shapes imply, with dropout 0; assumptions are logged."""
  scan = any(is_stack(path) for path in source.weights)
  vocab_size, emb_dim = _shape(source, names.EMBEDDING)
  layers = {side: _num_layers(source, side, scan, emb_dim) for side in ('encoder', 'decoder')}
  layer_shape = functools.partial(_layer_shape, source, 'encoder' if scan else 'layers_0', layers['encoder'])
  bias = ('encoder', *names.RELATIVE_BIAS)
  shared = bias in source.weights
  heads, buckets = _shape(source, bias) if shared else layer_shape(names.RELATIVE_BIAS)
  hidden = {path[-2] for path in source.weights if path[0] == 'encoder' and path[-3:-2] == ('mlp',)} - {'wo'}
  return T5Config(
    vocab_size=vocab_size, emb_dim=emb_dim, num_heads=heads,
    head_dim=int(np.prod(layer_shape(('attention', 'query', 'kernel')))) // (emb_dim * heads),
    mlp_dim=int(np.prod(layer_shape(('mlp', 'wo', 'kernel')))) // emb_dim,
    num_encoder_layers=layers['encoder'], num_decoder_layers=layers['decoder'],
    mlp_activations=_activations(source, len(hidden), mlp_activations),
    logits_via_embedding=names.LOGITS not in source.weights,
    relative_attention_num_buckets=buckets, relative_bias_per_layer=not shared, scan_layers=scan,
  )  # fmt: skip


def _layer_shape(source: Source, layer: str, num_layers: int, path: Path) -> tuple[int, ...]:
  """The shape of a parameter of the encoder's first layer, also where it is part of a stack."""
  shape = list(_shape(source, ('encoder', layer, *path)))
  if layer == 'encoder':
    del shape[1 if shape[1] == num_layers else 0]
  return tuple(shape)


def _shape(source: Source, path: Path) -> tuple[int, ...]:
  if path not in source.weights:
    raise UsageError(
      f'{source.file} has no {"/".join(path)} among its {len(source.weights)} weights: only encoder-decoder '
      "T5s of T5X's examples/t5 and examples/scalable_t5 can be imported."
    )
  return tuple(source.weights[path]().shape)


def _num_layers(source: Source, side: str, scan: bool, emb_dim: int) -> int:
  if not scan:
    layers = {path[1] for path in source.weights if path[0] == side and in_stack(path)}
    return max(len(layers), 1)
  stack = _shape(source, (side, side, 'pre_mlp_layer_norm', 'scale'))
  return stack[1] if stack[0] == emb_dim else stack[0]


def _activations(source: Source, hidden: int, chosen: tuple[str, ...] | None) -> tuple[str, ...]:
  known = chosen or _from_gin(source.gin, 'mlp_activations')
  if known is None:
    known = ('relu',) if hidden == 1 else ('gelu', 'linear')
    _log.info(
      '%s: the activations of its MLPs are taken for %s, which shapes do not show. If they are others, pass '
      '--set MLP_ACTIVATIONS="(...)"',
      source.file, known,
    )  # fmt: skip
  if len(known) != hidden:
    raise UsageError(
      f'{source.file}: its MLPs have {hidden} inputs, but {len(known)} activations {tuple(known)}: pass '
      f'{hidden} with --set MLP_ACTIVATIONS="(...)".'
    )
  return tuple(known)


def _from_gin(text: str, parameter: str) -> Any | None:
  """The literal that a gin file binds to a parameter of that name, of any configurable."""
  match = re.search(rf'(?m)^[^#\n]*\b{parameter}\s*=\s*(\([^)]*\)|\[[^\]]*\]|\S+)', text)
  try:
    return ast.literal_eval(match[1]) if match else None
  except (ValueError, SyntaxError):
    return None


def vocabulary(source: Source, config: T5Config) -> str | None:
  """The vocabulary that a gin file names, or else that of released models with as many rows."""
  if path := _from_gin(source.gin, 'sentencepiece_model_file'):
    extra_ids = _from_gin(source.gin, 'extra_ids')
    return f'{path}#extra_ids={extra_ids}' if isinstance(extra_ids, int) else str(path)
  return 'bytes' if 'ByteVocabulary' in source.gin else VOCABULARIES.get(config.vocab_size)


def _with_bias(source: Source, config: T5Config) -> tuple[T5Config, dict[Path, np.ndarray]]:
  """The configuration and the relative biases; layers with equal biases share one, as in T5."""
  if not config.relative_bias_per_layer:
    return config, {}
  paths = [path for path in source.weights if path[-2:] == names.RELATIVE_BIAS]
  shapes = names.shapes(config)
  if {*paths} != {path for path in shapes if path[-2:] == names.RELATIVE_BIAS}:
    return config, {}  # `stored.check` reports missing or extra biases with the other weights.
  arrays = {path: _read(source, path, shapes[path]) for path in paths}
  shared = {}
  for side in ('encoder', 'decoder'):
    biases = [array for path, array in arrays.items() if path[0] == side]
    layers = np.moveaxis(biases[0], 1, 0) if config.scan_layers else np.stack(biases)
    if any(not np.array_equal(layers[0], layer) for layer in itertools.islice(layers, 1, None)):
      return config, arrays
    shared[side, *names.RELATIVE_BIAS] = np.ascontiguousarray(layers[0])
  for path in paths:
    del source.weights[path]
  return dataclasses.replace(config, relative_bias_per_layer=False), shared
