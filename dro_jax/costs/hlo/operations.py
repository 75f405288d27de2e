"""A program's floating point operations."""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from dro_jax.costs.hlo.loops import runs
from dro_jax.costs.hlo.program import Computation, Instruction, Module


def flops(module: Module) -> float | int:
  """Operations of matrix products and convolutions on one device, two a multiply-add.

  Of attention's kernel every block counts, though it skips those that no query reads: which, only a batch
  decides.
  """
  count = runs(module).count
  return sum(
    count[computation.name] * _FLOPS[instruction.opcode](computation, instruction)
    for computation in module.computations.values()
    for instruction in computation.instructions.values()
    if instruction.opcode in _FLOPS
  )


def _dot_flops(computation: Computation, dot: Instruction) -> float | int:
  left = computation.instructions[dot.operands[0]].shapes[0]
  axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', dot.attributes)
  contracted = math.prod(left.dims[int(axis)] for axis in axes[1].split(',') if axis) if axes else 1
  return 2.0 * dot.shapes[0].elements * contracted


def _convolution_flops(computation: Computation, conv: Instruction) -> float | int:
  """Two operations for each pair of an output and a kernel position that fall inside the input."""
  left, right, out = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', conv.attributes).groups()
  base, kernel = (computation.instructions[name].shapes[0].dims for name in conv.operands[:2])
  positions = 1
  for i, (size, stride, pad, dilation, kernel_dilation) in enumerate(_window(conv, len(out) - 2)):
    positions *= _positions(
      base[left.index(str(i))], conv.shapes[0].dims[out.index(str(i))],
      size=size, stride=stride, pad=pad, dilation=dilation, kernel_dilation=kernel_dilation,
    )  # fmt: skip
  batch, features = (conv.shapes[0].dims[out.index(name)] for name in 'bf')
  # A convolution with groups in its batch has an output batch that is smaller by their number.
  return 2.0 * batch * features * kernel[right.index('i')] * positions


def _window(conv: Instruction, rank: int) -> Iterator[tuple[int, int, int, int, int]]:
  """For each spatial axis: window size, stride, padding before, input dilation, kernel dilation."""
  window = re.search(r'window=\{([^}]*)\}', conv.attributes)
  fields = dict(field.split('=') for field in window[1].split()) if window else {}
  for i in range(rank):
    part = lambda name, i=i: fields[name].split('x')[i] if name in fields else None  # noqa: E731
    pad = int((part('pad') or '0_0').split('_')[0])
    yield (
      int(part('size') or 1), int(part('stride') or 1), pad, int(part('lhs_dilate') or 1),
      int(part('rhs_dilate') or 1),
    )  # fmt: skip


@functools.cache
def _positions(
  base: int, out: int, *, size: int, stride: int, pad: int, dilation: int, kernel_dilation: int
) -> int:
  """How many (output, kernel) positions of one spatial axis fall on an element of the input."""
  at = np.arange(out)[:, None] * stride + np.arange(size)[None, :] * kernel_dilation - pad
  return int(((at >= 0) & (at < (base - 1) * dilation + 1) & (at % dilation == 0)).sum())


def _kernel_flops(computation: Computation, call: Instruction) -> float | int:
  """Of splash attention, whose operands 2 and 3 are queries [H, T, C] and keys [K, S, C]; else 0."""
  name = re.match(r'splash_m[hq]a_(fwd|dq|dkv)_', call.name)
  if name is None:
    return 0
  queries, keys = (computation.instructions[operand].shapes[0] for operand in call.operands[2:4])
  return 2.0 * _KERNEL_PRODUCTS[name[1]] * queries.elements * keys.dims[-2]


# Products of queries' and keys' length and a head's width: of scores and outputs; and of their gradients.
_KERNEL_PRODUCTS = {'fwd': 2, 'dq': 3, 'dkv': 4}
_FLOPS: Mapping[str, Callable[[Computation, Instruction], float | int]] = {
  'dot': _dot_flops,
  'convolution': _convolution_flops,
  'custom-call': _kernel_flops,
}


def estimated_cycles(module: Module) -> float | int:
  """Cycles of one device's core by the compiler's own notes; 0 where it wrote none."""
  counts, inside = runs(module)
  return sum(
    counts[computation.name] * int(note[1])
    for computation in module.computations.values()
    if computation.name not in inside
    for instruction in computation.instructions.values()
    if (note := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes))
  )
