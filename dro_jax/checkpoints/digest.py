"""Hashes of arrays, computed on the devices that hold them."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dro_jax import files


def hash_tree(tree: Any) -> str:
  """A hash of a tree's arrays and their paths, the same for any mesh and number of processes.

  Two sums modulo 2³² for each array, over bits mixed with their places: no order of adding changes them, and
  one changed bit does. Floats are hashed as float32, integers and booleans as 32 bits.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return hash_sums(sums_of((jax.tree_util.keystr(path), x) for path, x in leaves))


def sums_of(named: Iterable[tuple[Any, Any]]) -> list[tuple[str, list[int]]]:
  """Each array's name and sums, of (name, array) pairs."""
  # One array after the other, because mixing takes twice an array's memory.
  return [
    (name if isinstance(name, str) else '/'.join(name), jax.device_get(_sums(x)).tolist())
    for name, x in named
  ]


def hash_sums(sums: Iterable[tuple[str, list[int]]]) -> str:
  """A hash of arrays' names and sums, in any order."""
  return files.hash_parts([repr(sorted(sums)).encode()])


def hash_bytes(tree: Any) -> str:
  """A hash of a tree's arrays and their paths, by the bytes of arrays in this host's memory."""
  return files.hash_parts(_named_bytes(tree))


def _named_bytes(tree: Any) -> Iterator[bytes | memoryview]:
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    x = np.ascontiguousarray(x)
    yield f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}:'.encode()
    yield x.reshape(-1).view(np.uint8).data


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
  bits = _bits(x)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)

  def mixed(factor: int) -> jax.Array:
    y = (bits ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(factor)
    return jnp.sum((y ^ (y >> 15)) * jnp.uint32(0xC2B2AE35), dtype=jnp.uint32)

  return jnp.stack([mixed(0x85EBCA6B), mixed(0x27D4EB2F)])


def _bits(x: jax.Array) -> jax.Array:
  if jnp.issubdtype(x.dtype, jnp.floating):
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  return x.astype(jnp.uint32)
