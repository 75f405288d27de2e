"""Hugging Face folders: found, downloaded, and their weights opened one by one."""

import functools
import importlib
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath

from dro_jax.errors import UsageError
from dro_jax.files import json_text

# Functions that read each weight, by its name in the files.
Weights = Mapping[str, Callable[[], np.ndarray]]

# Files of a checkpoint that are read: settings and tokenizers, and weights.
_SETTINGS = (
  'config.json', 'generation_config.json', 'tokenizer_config.json', 'tokenizer.json', 'tokenizer.model',
  'spiece.model', 'added_tokens.json', 'special_tokens_map.json', 'chat_template.jinja',
)  # fmt: skip
_SAFE = ('model*.safetensors', 'model.safetensors.index.json')
# What to install for a module, if not the extra `hf`.
_PACKAGES = {'torch': 'torch', 'gguf': "'dro_jax[gguf]'"}
_TORCH = ('pytorch_model*.bin', 'pytorch_model.bin.index.json')


def find_folder(source: str | Path) -> Path:
  """The folder `source`, or a folder with the downloaded files of that name on the hub."""
  folder = Path(source).expanduser()
  if folder.is_dir():
    return folder
  name = str(source)
  if folder.exists() or name.count('/') != 1 or name.startswith(('/', '.', '~')):
    raise UsageError(
      f'{name} is not a folder: pass a Hugging Face folder, or a hub name like google/flan-t5-small.'
    )
  hub = require('huggingface_hub', f'download {name}')
  try:
    folder = Path(hub.snapshot_download(name, allow_patterns=[*_SETTINGS, *_SAFE]))
    if not any(folder.glob('*.safetensors')):
      hub.snapshot_download(name, allow_patterns=[*_TORCH])
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


def write_json(file: epath.Path, value: Mapping[str, Any]) -> None:
  """Writes an object as transformers does."""
  file.write_text(json_text(value, indent=2) + '\n')


def stored_dtype(folder: Path) -> str:
  """`bfloat16` or `float16` where all weights of a folder's safetensors have that dtype, else `float32`."""
  files = [file for file in _weight_files(folder) if file.suffix == '.safetensors']
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


def open_weights(folder: Path) -> Weights:
  """A function that reads each weight of a folder.

  Raises:
    UsageError: a file is missing, or cannot be read.
  """
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
    # Files of the older kind cannot be mapped, and are read whole.
    state = torch.load(file, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(file))
  except (OSError, RuntimeError, pickle.UnpicklingError) as error:
    raise UsageError(f'torch cannot load {file} as weights only: {error}. Copy it again.') from error
  read = lambda tensor: tensor.detach().float().numpy()  # noqa: E731
  return {name: functools.partial(read, tensor) for name, tensor in state.items()}


def require(module: str, purpose: str) -> ModuleType:
  """A module that an extra installs, or torch.

  Raises:
    UsageError: it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    package = _PACKAGES.get(module, "'dro_jax[hf]'")
    raise UsageError(
      f'{module} is needed to {purpose}, and is not installed: pip install {package}.'
    ) from error
