"""Stacks of layers, and parameter trees that are scanned (`NAME/NAME`, layers on axis 1) or not."""

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from dro_jax.models.family import REMATS, Config
from dro_jax.models.layers import ADAPTER, FROZEN
from dro_jax.types import Array, Params

Path = tuple[str, ...]

# The names that families give to their stacks of layers; a decoder-only model has a decoder. Optimisers keep
# a state for each, so that another name here would change the states of runs that were saved before.
STACKS = ('encoder', 'decoder')
# The axis of a scanned stack's parameters that counts layers.
LAYER_AXIS = 1


def run_stack(
  layer: type[nn.Module],
  name: str,
  length: int,
  config: Config,
  x: Array,
  per_layer: Any,
  context: Any,
  **fields: Any,
) -> tuple[Array, Any]:
  """Runs `length` layers, one after the other or scanned, within a compact method.

  Args:
    layer: `layer(config, **fields)(x, own, context)` returns the next `x`, and what the layer keeps.
    name: of the stack, one of STACKS.
    length: the number of layers.
    config: decides whether the layers are scanned, and what of them is recomputed.
    x: the first layer's input.
    per_layer: a tree whose arrays have a leading axis of layers: each layer gets its own part.
    context: what all layers get.
    fields: further fields of the layers.

  Returns:
    The last layer's output, and what the layers keep, with a leading axis of layers.
  """
  if config.remat:
    layer = nn.remat(layer, prevent_cse=not config.scan_layers, policy=REMATS[config.remat])
  if config.scan_layers:
    scanned = nn.scan(
      layer,
      variable_axes=dict.fromkeys(('params', ADAPTER, FROZEN), LAYER_AXIS),
      split_rngs={'params': True, 'dropout': True},
      in_axes=(0, nn.broadcast),
      length=length,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    return scanned(config, name=name, **fields)(x, per_layer, context)
  kept = []
  for i in range(length):
    own = jax.tree.map(operator.itemgetter(i), per_layer)
    x, new = layer(config, name=f'layers_{i}', **fields)(x, own, context)
    kept.append(new)
  return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)


def in_stack(path: Path) -> tuple[Path, int] | None:
  """The place of an unrolled layer's parameter in a scanned tree: its stack's path, and its layer."""
  if len(path) < 2 or not path[1].startswith('layers_'):
    return None
  return (path[0], path[0], *path[2:]), int(path[1].removeprefix('layers_'))


def is_stack(path: Path) -> bool:
  """Whether a parameter holds all layers of a stack, on axis 1."""
  return len(path) > 2 and path[0] == path[1] and path[0] in STACKS


def convert_leaves(flat: dict[Path, Any], *, scan: bool) -> Iterator[tuple[Path, Any]]:
  """Converts layers one parameter after the other, removing each from `flat`; see `convert_layers`."""
  for path in list(flat):
    stacked = in_stack(path)
    if scan and stacked:
      if path in flat:
        yield stacked[0], _stack(flat, stacked[0])
    elif not scan and is_stack(path):
      stack = flat.pop(path)
      for i in range(stack.shape[1]):
        yield (path[0], f'layers_{i}', *path[2:]), stack[:, i]
    else:
      yield path, flat.pop(path)


def _stack(flat: dict[Path, Any], stack: Path) -> Any:
  layer_path = lambda i: (stack[0], f'layers_{i}', *stack[2:])  # noqa: E731
  count = next(i for i in itertools.count() if layer_path(i) not in flat)
  leaves = [flat.pop(layer_path(i)) for i in range(count)]
  # numpy stays numpy, because an importer's arrays are not for a device yet.
  return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves, axis=1)


def convert_layers(params: Params, *, scan: bool) -> Params:
  """The same parameters as one stack a side (`encoder/encoder`, axis 1) or by layer (`encoder/layers_0`)."""
  return traverse_util.unflatten_dict(dict(convert_leaves(traverse_util.flatten_dict(params), scan=scan)))
