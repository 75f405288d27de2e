"""Hashes of arrays, computed on the devices that hold them."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dro_jax import files

# Begins the hash of a checkpoint's state whose bits are mixed fully; earlier versions wrote `hash_tree`'s.
FULLY = '2:'


def hash_tree(tree: Any) -> str:
  """A hash of a tree's arrays and their paths, the same for any mesh and number of processes.

  Two sums modulo 2³² for each array, over bits mixed with their places: no order of adding changes them, and
  one changed bit does. Of two changed signs they see nothing in one case of four, for the highest bit passes
  the mixing alone: enough to tell policies apart, and `hash_state` looks for damage. Floats are hashed as
  float32, integers and booleans as 32 bits.
  """
  return hash_sums(sums_of(_named(tree)))


def hash_state(state: Any, saved: str = FULLY) -> str:
  """A hash of a checkpoint's state, the same for any mesh and number of processes.

  Args:
    state: as for `hash_tree`.
    saved: the hash to compare it with, whose kind it has: `hash_tree`'s if it does not begin with FULLY.
  """
  if not saved.startswith(FULLY):
    return hash_tree(state)
  return FULLY + hash_sums(sums_of(_named(state), _mix_fully))


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path), x


def _mix(bits: jax.Array, place: jax.Array, factor: int) -> jax.Array:
  y = (bits ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(factor)
  return (y ^ (y >> 15)) * jnp.uint32(0xC2B2AE35)


def _mix_fully(bits: jax.Array, place: jax.Array, factor: int) -> jax.Array:
  """The same, then the end of MurmurHash3: each bit of the result depends on every bit of the number."""
  y = _mix(bits, place, factor)
  for shift, odd in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
    y = (y ^ (y >> shift)) * jnp.uint32(odd)
  return y


def sums_of(
  named: Iterable[tuple[Any, Any]], mix: Callable[..., jax.Array] = _mix
) -> list[tuple[str, list[int]]]:
  """Each array's name and sums, of (name, array) pairs."""
  # One array after the other, because mixing takes twice an array's memory.
  return [
    (name if isinstance(name, str) else '/'.join(name), jax.device_get(_sums(x, mix)).tolist())
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


@functools.partial(jax.jit, static_argnums=1)
def _sums(x: jax.Array, mix: Callable[..., jax.Array]) -> jax.Array:
  bits = _bits(x)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  factors = (0x85EBCA6B, 0x27D4EB2F)
  return jnp.stack([jnp.sum(mix(bits, place, factor), dtype=jnp.uint32) for factor in factors])


def _bits(x: jax.Array) -> jax.Array:
  if jnp.issubdtype(x.dtype, jnp.floating):
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  return x.astype(jnp.uint32)
