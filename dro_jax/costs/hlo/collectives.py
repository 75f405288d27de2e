"""A program's collectives: their kinds, sizes and groups of devices."""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dro_jax.costs.hlo.loops import runs
from dro_jax.costs.hlo.program import Computation, Instruction, Module, Shape

COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast',
  'ragged-all-to-all',
)  # fmt: skip


class Collective(NamedTuple):
  """One collective of a program.

  Attributes:
    kind: 'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', ...
    shapes: of each device's operands.
    groups: numbers of the devices that take part together; for a permutation the pairs (source, target).
    count: how often it runs.
    name: the operation of the source program that it comes from.
    where: the computation that runs it; collectives of one computation may overlap.
    network: whether it goes from slice to slice, through the hosts; then its group holds slices.
  """

  kind: str
  shapes: tuple[Shape, ...]
  groups: tuple[tuple[int, ...], ...]
  count: float | int  # type: ignore[assignment]  # Hides the method of tuples.
  name: str
  where: str = ''
  network: bool = False

  def describe(self) -> str:
    """Its kind, shapes and size of groups, for a table."""
    shown = ', '.join(map(str, self.shapes[:3])) + (
      f', {len(self.shapes) - 3} more' if self.shapes[3:] else ''
    )
    members = 'slices' if self.network else ''
    return f'{self.kind} of {shown} among {len(self.groups[0])} {members}'.strip()

  @property
  def bytes(self) -> float | int:
    """Bytes of each device's operands."""
    return sum(shape.bytes for shape in self.shapes)

  @property
  def sent(self) -> float | int:
    """Bytes that each device sends in one run, around a ring of its group."""
    return self.among(len(self.groups[0]))

  def among(self, size: int) -> float | int:
    """Bytes that each device would send in a group of `size`."""
    return self.bytes * _SENT.get(self.kind, lambda n: 1)(size) if size > 1 else 0.0


# Bytes sent by bytes of operands, in a group of n, by the best ring.
_SENT: Mapping[str, Callable[[int], float | int]] = {
  'all-gather': lambda n: n - 1,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
  'collective-broadcast': lambda n: 1,
}


def collectives(module: Module, num_devices: int) -> list[Collective]:
  """Every collective of a program, listed once, synchronous or started and awaited.

  A collective that the compiler overlaps with other work is written in each piece of that work, with one
  channel number. It runs as often as the rarest piece; pieces inside a loop are not runs of their own.
  """
  counts, inside = runs(module)
  plain, overlapped = [], {}
  for computation in module.computations.values():
    for instruction in computation.instructions.values():
      if not (_is_collective(instruction) and counts[computation.name]):
        continue
      collective = _collective(computation, instruction, counts[computation.name], num_devices)
      if computation.name not in inside:
        plain.append(collective._replace(where=computation.name))
        continue
      if collective.kind == 'all-reduce' and _is_sliced(computation, instruction):
        collective = collective._replace(kind='reduce-scatter')
      key = instruction.opcode, instruction.attribute('channel_id')
      if key not in overlapped or collective.count < overlapped[key].count:
        overlapped[key] = collective._replace(where=inside[computation.name])
  # A group of one sends nothing.
  every = (*plain, *overlapped.values())
  return [collective for collective in every if collective.groups and len(collective.groups[0]) > 1]


def _is_sliced(fusion: Computation, reduce: Instruction) -> bool:
  """Whether a fusion only slices its reduction, which is how TPU programs write a reduce-scatter."""
  users = [user.opcode for user in fusion.instructions.values() if reduce.name in user.operands]
  return users == ['dynamic-slice']


def _is_collective(instruction: Instruction) -> bool:
  return instruction.opcode.removesuffix('-start') in COLLECTIVES or _kind_across(instruction) is not None


def _kind_across(instruction: Instruction) -> str | None:
  """The kind of the collective between slices that an instruction sends to its host; `None` for others."""
  kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
  return kind[1].lower().replace('_', '-') if kind and instruction.opcode == 'send' else None


def _collective(
  computation: Computation, instruction: Instruction, count: float | int, num_devices: int
) -> Collective:
  across = _kind_across(instruction)
  kind = across or instruction.opcode.removesuffix('-start')
  shapes = tuple(s for name in instruction.operands for s in computation.instructions[name].shapes)
  if across:
    return Collective(kind, shapes, (_slices(instruction),), count, instruction.name, network=True)
  groups = _pairs(instruction) if kind == 'collective-permute' else _groups(instruction, num_devices)
  origin = re.search(r'op_name="([^"]*)"', instruction.attributes)
  return Collective(kind, shapes, groups, count, origin[1] if origin else instruction.name)


# Where a text lists devices instead of slices, the first device of slice 1 is number 100000.
_DEVICES_A_SLICE = 100_000


def _slices(send: Instruction) -> tuple[int, ...]:
  """The slices of a collective between them, written {1,2}, {1:2}, or by device {{100000,200000}}."""
  targets = re.search(r'_xla_megascale_target="?\{+([\d,:]+)\}', send.attributes)
  if targets is None:
    raise ValueError(f'{send.name}: cannot read the slices that it is sent to: {send.attributes[:300]}')
  ends = [part.split(':') for part in targets[1].split(',')]
  numbers = [i for part in ends for i in range(int(part[0]), int(part[-1]) + 1)]
  return tuple(sorted({i // _DEVICES_A_SLICE or i for i in numbers}))


def _pairs(instruction: Instruction) -> tuple[tuple[int, ...], ...]:
  """The (source, target) pairs of a permutation."""
  pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', instruction.attributes)
  return tuple(tuple(map(int, pair)) for pair in re.findall(r'(\d+),(\d+)', pairs[1])) if pairs else ()


def _groups(instruction: Instruction, num_devices: int) -> tuple[tuple[int, ...], ...]:
  groups = re.search(r'replica_groups=(.*)', instruction.attributes)
  return replica_groups(groups[1] if groups else '{}', num_devices)


def replica_groups(text: str, num_devices: int) -> tuple[tuple[int, ...], ...]:
  """Reads `{{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)` or `mesh['a'=2] {'a'}`; `{}` is all devices."""
  if text.startswith('{}'):
    return (tuple(range(num_devices)),)
  if text.startswith('{'):
    listed = text[: text.index('}}') + 1]
    return tuple(tuple(map(int, group.split(','))) for group in re.findall(r'\{([\d,]+)\}', listed))
  if text.startswith('mesh['):
    return _mesh_groups(text)
  shape, source, order = re.match(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text).groups()
  devices = np.arange(math.prod(_ints(source))).reshape(_ints(source))
  devices = devices.transpose(_ints(order)) if order else devices
  return tuple(map(tuple, devices.reshape(_ints(shape)).tolist()))


def _mesh_groups(text: str) -> tuple[tuple[int, ...], ...]:
  """Groups along some axes of a mesh of devices, which may be numbered in another order."""
  mesh, order, chosen = re.match(r'mesh\[(.*?)\](.*?) ?\{(.*?)\}', text).groups()
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
  along = [list(sizes).index(name) for name in re.findall(r"'([^']+)'", chosen)]
  devices: np.ndarray = np.arange(math.prod(sizes.values()))
  if numbering := re.search(r'device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?', order):
    shape, axes = numbering.groups()
    devices = devices.reshape(_ints(shape)).transpose(_ints(axes)) if axes else np.array(_ints(shape))
  devices = np.moveaxis(devices.reshape(tuple(sizes.values())), along, range(-len(along), 0))
  return tuple(map(tuple, devices.reshape(-1, math.prod(devices.shape[-len(along) :])).tolist()))


def _ints(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(',')))
