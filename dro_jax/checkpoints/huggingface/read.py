"""Hugging Face folders to our parameter trees, one tensor after the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from dro_jax.checkpoints.huggingface.files import (
  Weights,
  find_folder,
  open_weights,
  read_json,
  stored_dtype,
)
from dro_jax.checkpoints.huggingface.format import Places
from dro_jax.checkpoints.huggingface.formats import format_of
from dro_jax.checkpoints.huggingface.vocabulary import Tokenizer
from dro_jax.errors import UsageError
from dro_jax.models import policy, stacks, stored
from dro_jax.models.family import Config
from dro_jax.models.stored import Stored
from dro_jax.types import Params

_REWARD_MODEL = 'ForSequenceClassification'


def load(source: str | Path) -> tuple[Config, Params]:
  """A policy's config and parameters (float32 numpy, layer by layer) from a folder or a name on the hub.

  Reads config.json and model.safetensors or pytorch_model.bin (weights-only), whole or in shards.

  Raises:
    UsageError: the folder, its config or a weight is missing or of another kind, or there are other weights.
  """
  folder = find_folder(source)
  raw = read_json(folder / 'config.json')
  described = format_of(raw, folder)
  config = described.read_config(raw, folder)
  weights = open_weights(folder)
  places = described.find(weights.keys(), config, raw)
  check_names(weights, places, folder, described.kind)
  shapes = policy.parameter_shapes(config)
  return config, build_tree(described.stored(config), places, weights, shapes, config.num_heads, folder)


def is_reward_model(folder: Path) -> bool:
  """Whether a folder's model gives a score instead of logits."""
  raw = read_json(folder / 'config.json')
  architectures = raw.get('architectures') or []
  return format_of(raw, folder).reward_stored is not None and any(
    name.endswith(_REWARD_MODEL) for name in architectures
  )


def find_tokenizer(folder: Path) -> Tokenizer | None:
  """The vocabulary that a folder names."""
  return format_of(read_json(folder / 'config.json'), folder).tokenizer(folder)


def load_reward_model(source: str | Path) -> tuple[Config, Params]:
  """A reward model's config and its tree, `{'trunk', 'head'}` of `models.value` (see `load`).

  Raises:
    UsageError: as `load`, or the model has more than one label.
  """
  folder = find_folder(source)
  raw = {**read_json(folder / 'config.json'), 'tie_word_embeddings': True}  # It has no logits of its own.
  described = format_of(raw, folder)
  config = described.read_config(raw, folder)
  weights = open_weights(folder)
  arrays = described.reward_stored(config)
  places = described.find(weights.keys(), config, raw)
  own = {each.name: each.name for each in arrays if each.name not in places.names}
  places = places._replace(names=places.names | own)
  check_names(weights, places, folder, 'a reward model')
  shapes = {('trunk', *path): shape for path, shape in policy.parameter_shapes(config).items()}
  shapes['head', 'kernel'] = (config.emb_dim,)
  tree = build_tree(arrays, places, weights, shapes, config.num_heads, folder)
  tree['head']['bias'] = np.zeros((), np.float32)
  return config, tree


def check_names(weights: Weights, places: Places, source: object, kind: str) -> None:
  """Refuses weights that are not exactly the model's, and copies that differ from their originals."""
  present = {*weights} - {*places.copies} - places.unread
  stored.check(source, {*places.names.values()}, present, 'its config.json', kind)
  for name, original in places.copies.items():
    if not np.array_equal(weights[name](), weights[original]()):
      raise UsageError(f'{source}: {name} differs from {original}, but config.json ties them: copy it again.')


def build_tree(
  arrays: Sequence[Stored],
  places: Places,
  weights: Weights,
  shapes: Mapping[stacks.Path, tuple[int, ...]],
  num_heads: int,
  source: object,
) -> Params:
  """The tree of a model, read array by array.

  Args:
    arrays: all arrays of the model.
    places: their names in the source.
    weights: see `files.open_weights`.
    shapes: of each of our parameters.
    num_heads: of attention.
    source: the place of the weights, for errors.

  Raises:
    UsageError: an array has another shape.
  """
  flat: dict[stacks.Path, Any] = {}
  for each in arrays:
    name = places.names[each.name]
    array, expected = weights[name](), _stored_shape(each, shapes, num_heads)
    if array.shape != expected:
      raise UsageError(f'{source}: {name} has shape {array.shape}, but by its config.json it has {expected}.')
    parts = each.layout.split(array, num_heads)
    flat |= {path: np.ascontiguousarray(part, np.float32) for path, part in zip(each.paths, parts)}
  return traverse_util.unflatten_dict(flat)


def _stored_shape(
  array: Stored, shapes: Mapping[stacks.Path, tuple[int, ...]], num_heads: int
) -> tuple[int, ...]:
  ours = [np.broadcast_to(np.int8(0), shapes[path]) for path in array.paths]
  return array.layout.join(ours, num_heads).shape


__all__ = [
  'build_tree', 'check_names', 'find_folder', 'find_tokenizer', 'is_reward_model', 'load',
  'load_reward_model', 'read_json', 'stored_dtype',
]  # fmt: skip
