"""Kernels of a frozen base in fewer bits: bfloat16, int8, and the four bits of QLoRA's NF4.

A stored kernel is a mapping with the kind as a key: `{'bfloat16': values}`, `{'int8': values, 'scale':
scales}` or `{'nf4': codes, 'scale': scales}`. Of a kernel `[I, *L, O]` (inputs, layers if scanned, outputs)
the scales are `[G, *L, O]`, one for each of G blocks of inputs. Only kernels that no gradient moves are
stored so: nothing here rounds in a way that training could use.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from dro_jax.errors import UsageError
from dro_jax.types import Array

KINDS = ('float32', 'bfloat16', 'int8', 'nf4')
# Inputs that share a scale in NF4 (QLoRA, arXiv 2305.14314, Sect. 3): bits of a weight are 4 + 32 / 64.
NF4_BLOCK = 64
# The quantiles of a normal distribution that NF4's codes stand for (the same, Appendix E).
NF4 = np.array([
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip

Stored = Mapping[str, Array]


def quantise(kernel: Array, kind: str) -> Stored:
  """A kernel `[I, *L, O]` as it is stored.

  Args:
    kernel: float32.
    kind: `bfloat16`; `int8`, each output's inputs scaled by their largest to ±127; or `nf4`, in blocks.

  Raises:
    UsageError: the kernel has an odd number of inputs, which NF4 cannot store in pairs.
  """
  if kind == 'bfloat16':
    return {kind: kernel.astype(jnp.bfloat16)}
  if kind == 'int8':
    largest = jnp.max(jnp.abs(kernel), axis=0, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / 127.0
    return {kind: jnp.round(kernel / scale).astype(jnp.int8), 'scale': scale}
  return _nf4(kernel)


def _nf4(kernel: Array) -> Stored:
  inputs, *rest = kernel.shape
  if inputs % 2:
    raise UsageError(
      f'nf4 stores two inputs in a byte, and a kernel of shape {kernel.shape} has {inputs}: pass '
      "Lora(base_kernels='int8'), or --set LORA_BASE_KERNELS=int8."
    )
  blocks = kernel.reshape(-1, nf4_block(inputs), *rest)
  largest = jnp.max(jnp.abs(blocks), axis=1, keepdims=True)
  scaled = (blocks / jnp.where(largest > 0, largest, 1.0)).reshape(kernel.shape)
  codes = jnp.zeros(kernel.shape, jnp.uint8)
  for border in (
    NF4[1:] + NF4[:-1]
  ) / 2:  # One after the other, because 15 comparisons at once are 15 copies.
    codes += (scaled > border).astype(jnp.uint8)
  return {'nf4': codes[0::2] | (codes[1::2] << 4), 'scale': largest[:, 0]}


def nf4_block(inputs: int) -> int:
  """How many of a kernel's inputs share a scale: the largest power of two that divides them, up to 64."""
  return math.gcd(inputs, NF4_BLOCK)


def dequantise(stored: Stored) -> Array:
  """The kernel that a stored one stands for, float32."""
  if 'bfloat16' in stored:
    return stored['bfloat16'].astype(jnp.float32)
  if 'int8' in stored:
    return stored['int8'].astype(jnp.float32) * stored['scale']
  pairs, scale = stored['nf4'], stored['scale']
  codes = jnp.stack([pairs & 15, pairs >> 4], axis=1)
  values = jnp.take(jnp.asarray(NF4), codes.reshape(-1, *pairs.shape[1:]), axis=0)
  blocks = values.reshape(len(scale), -1, *values.shape[1:])
  return (blocks * scale[:, None]).reshape(values.shape)
