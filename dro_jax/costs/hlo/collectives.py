"""A program's collectives: who sends what to whom."""

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
    shapes: what each device brings.
    groups: the devices, by number, that take part together; for a permutation the pairs (source, target).
    count: how often it runs.
    name: where in the program it comes from.
    where: the computation that runs it, and may run others meanwhile.
    network: whether it goes from slice to slice, by way of the hosts; then the group is of slices.
  """

  kind: str
  shapes: tuple[Shape, ...]
  groups: tuple[tuple[int, ...], ...]
  count: float | int  # type: ignore[assignment]  # Hides the method of tuples.
  name: str
  where: str = ''
  network: bool = False

  def describe(self) -> str:
    """Kind, shapes and size of its groups, as one reads them."""
    shown = ', '.join(map(str, self.shapes[:3])) + (
      f', {len(self.shapes) - 3} more' if self.shapes[3:] else ''
    )
    what = 'slices' if self.network else ''
    return f'{self.kind} of {shown} among {len(self.groups[0])} {what}'.strip()

  @property
  def bytes(self) -> float | int:
    """What each device brings, once."""
    return sum(shape.bytes for shape in self.shapes)

  @property
  def sent(self) -> float | int:
    """Bytes that each device sends, once, round a ring of its group."""
    return self.among(len(self.groups[0]))

  def among(self, size: int) -> float | int:
    """The same in a group of another size."""
    return self.bytes * _SENT.get(self.kind, lambda n: 1)(size) if size > 1 else 0.0


# How much of what it brings a device sends, in a group of n, by the best ring.
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
  """Every collective that runs, once each, whether at once, or started and awaited.

  One that is hidden in other work is in the text for each piece of that work, under one channel: it runs as
  often as its rarest piece, and the pieces inside a loop are no runs of their own.
  """
  counts, inside = runs(module)
  found, hidden = [], {}
  for computation in module.computations.values():
    for instruction in computation.instructions.values():
      if not (_is_collective(instruction) and counts[computation.name]):
        continue
      one = _collective(computation, instruction, counts[computation.name], num_devices)
      if computation.name not in inside:
        found.append(one._replace(where=computation.name))
        continue
      if one.kind == 'all-reduce' and _is_cut(computation, instruction):
        one = one._replace(kind='reduce-scatter')
      key = instruction.opcode, instruction.attribute('channel_id')
      if key not in hidden or one.count < hidden[key].count:
        hidden[key] = one._replace(where=inside[computation.name])
  # In a group of one nothing is sent.
  return [one for one in (*found, *hidden.values()) if one.groups and len(one.groups[0]) > 1]


def _is_cut(fusion: Computation, reduce: Instruction) -> bool:
  """Whether a fusion's reduction is read only to be cut: so TPUs write a reduce-scatter."""
  users = [one.opcode for one in fusion.instructions.values() if reduce.name in one.operands]
  return users == ['dynamic-slice']


def _is_collective(instruction: Instruction) -> bool:
  return instruction.opcode.removesuffix('-start') in COLLECTIVES or _across(instruction) is not None


def _across(instruction: Instruction) -> str | None:
  """What kind of collective between slices a host is handed, if that is what is sent."""
  found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
  return found[1].lower().replace('_', '-') if found and instruction.opcode == 'send' else None


def _collective(
  computation: Computation, instruction: Instruction, count: float | int, num_devices: int
) -> Collective:
  across = _across(instruction)
  kind = across or instruction.opcode.removesuffix('-start')
  shapes = tuple(s for name in instruction.operands for s in computation.instructions[name].shapes)
  if across:
    return Collective(kind, shapes, (_slices(instruction),), count, instruction.name, network=True)
  groups = _pairs(instruction) if kind == 'collective-permute' else _groups(instruction, num_devices)
  origin = re.search(r'op_name="([^"]*)"', instruction.attributes)
  return Collective(kind, shapes, groups, count, origin[1] if origin else instruction.name)


# Where devices are named, and not slices, the first device of slice 1 is 100000.
_DEVICES_A_SLICE = 100_000


def _slices(send: Instruction) -> tuple[int, ...]:
  """The slices of a collective between them, written {1,2}, {1:2}, or by device {{100000,200000}}."""
  found = re.search(r'_xla_megascale_target="?\{+([\d,:]+)\}', send.attributes)
  if found is None:
    raise ValueError(f'{send.name}: cannot read which slices it is sent to: {send.attributes[:300]}')
  ends = [part.split(':') for part in found[1].split(',')]
  named = [i for part in ends for i in range(int(part[0]), int(part[-1]) + 1)]
  return tuple(sorted({i // _DEVICES_A_SLICE or i for i in named}))


def _pairs(instruction: Instruction) -> tuple[tuple[int, ...], ...]:
  pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', instruction.attributes)
  return tuple(tuple(map(int, pair)) for pair in re.findall(r'(\d+),(\d+)', pairs[1])) if pairs else ()


def _groups(instruction: Instruction, num_devices: int) -> tuple[tuple[int, ...], ...]:
  found = re.search(r'replica_groups=(.*)', instruction.attributes)
  return replica_groups(found[1] if found else '{}', num_devices)


def replica_groups(text: str, num_devices: int) -> tuple[tuple[int, ...], ...]:
  """Reads `{{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)` or `mesh['a'=2,'b'=2] {'b'}`; `{}` is all."""
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
  if numbered := re.search(r'device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?', order):
    shape, axes = numbered.groups()
    devices = devices.reshape(_ints(shape)).transpose(_ints(axes)) if axes else np.array(_ints(shape))
  devices = np.moveaxis(devices.reshape(tuple(sizes.values())), along, range(-len(along), 0))
  return tuple(map(tuple, devices.reshape(-1, math.prod(devices.shape[-len(along) :])).tolist()))


def _ints(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(',')))
