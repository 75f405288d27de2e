"""Trees of arrays on disk: read whole or in pieces, and compared with those that are expected."""

import functools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dro_jax.errors import UsageError

# Size of the parts in which a tree is read on a host, whose memory may hardly hold the whole tree.
PART_BYTES = 2**26
# How much a process reads at once for its devices, and the size of pieces that can be read alone.
_RESTORED_AT_ONCE_GB = 1
CHUNK_BYTES = 2**26
Path = tuple[str, ...]


def read_tree(folder: epath.Path, path: tuple[str, ...], abstract: Any | None) -> Any:
  """The subtree at `path` of the tree saved in `folder`; nothing else is read."""
  saved = subtree(ocp.PyTreeCheckpointHandler().metadata(folder).tree, path)
  abstract = shapes_only(saved) if abstract is None else abstract
  refuse_other_tree(folder.parent, saved, abstract)
  return read_part(folder, path, abstract, partial=bool(path))


def read_part(folder: epath.Path, path: tuple[str, ...], abstract: Any, *, partial: bool) -> Any:
  """The arrays of the subtree at `path` that `abstract` names."""
  item = abstract
  for name in reversed(path):
    item = {name: item}
  arguments = ocp.args.PyTreeRestore(
    item=item, restore_args=jax.tree.map(_restore_args, item), partial_restore=partial
  )
  handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_RESTORED_AT_ONCE_GB)
  return subtree(handler.restore(folder, args=arguments), path)


def subtree(tree: Any, path: tuple[str, ...]) -> Any:
  return functools.reduce(operator.getitem, path, tree)


def shapes_only(saved: Any) -> Any:
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
  return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def refuse_other_tree(folder: str | epath.PathLike, saved: Any, target: Any) -> None:
  """Refuses a checkpoint that does not fit the target, by the first array that differs."""
  saved_shapes, target_shapes = dict(_shapes(saved)), dict(_shapes(target))
  for name in sorted(saved_shapes.keys() | target_shapes.keys()):
    saved_shape, target_shape = saved_shapes.get(name), target_shapes.get(name)
    if saved_shape != target_shape:
      raise UsageError(
        f'the checkpoint {folder} does not fit: {name} is {_shape_text(saved_shape)} there and '
        f'{_shape_text(target_shape)} in this run. Use the model configuration, vocabulary and optimizers '
        'that it was made with'
      )


def _shapes(tree: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path, simple=True, separator='/'), tuple(leaf.shape)


def _shape_text(shape: tuple[int, ...] | None) -> str:
  return 'absent' if shape is None else f'of shape {list(shape)}'
