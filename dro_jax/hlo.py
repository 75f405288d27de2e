"""What a compiled program does, read from its optimised HLO with the trip counts of its loops.

A compiler's own cost analysis takes a loop once. Here every instruction counts as often as it runs, on one of
the program's devices: floating point operations, bytes moved to and from memory, and what collectives send.
"""

import collections
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_BYTES = {
  'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4,
  'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16, 'token': 0,
}  # fmt: skip

COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast',
  'ragged-all-to-all',
)  # fmt: skip

# Each moves nothing by itself: it names, groups or waits.
_FREE = frozenset((
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call',
  'partition-id', 'replica-id', 'after-all', 'opt-barrier', 'add-dependency', 'async-start', 'async-update',
))  # fmt: skip


class Shape(NamedTuple):
  """An array. Memory space 0 is the device's main memory."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def elements(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float | int:
    return self.elements * _BYTES.get(self.dtype, 1)

  def __str__(self) -> str:
    return f'{self.dtype}[{",".join(map(str, self.dims))}]'


class Instruction(NamedTuple):
  """One line: what it puts out (the leaves of a tuple, flat), what it does, and to what."""

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  argument: str
  attributes: str

  def attribute(self, name: str) -> str | None:
    """The value of `name=value`, up to the next comma, space or closing brace."""
    match = re.search(rf'\b{name}=%?([^,\s}}]+)', self.attributes)
    return match and match[1]


class Computation(NamedTuple):
  """Instructions by name, in order, and which of them is the result."""

  name: str
  instructions: Mapping[str, Instruction]
  root: str

  def source(self, name: str) -> Instruction:
    """The instruction of a name, looked at through what only renames."""
    found = self.instructions[name]
    while found.opcode in ('bitcast', 'copy', 'convert', 'reshape') and found.operands:
      found = self.instructions[found.operands[0]]
    return found


class Module(NamedTuple):
  """A program: its computations, callees before callers, and the one that is run."""

  computations: Mapping[str, Computation]
  entry: str


# --- reading ------------------------------------------------------------------------------------------------

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*->.*\{$')
_LEAF = re.compile(r'(\w+)\[([\d,<=]*)\](\{[^}]*\})?')
_LINE = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = ')


def parse(text: str) -> Module:
  """Reads the text of an HLO module.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations, entry, name, body, root = {}, None, None, {}, ''
  for line in text.splitlines():
    if header := _HEADER.match(line):
      name, body = header[2], {}
      entry = name if header[1] else entry
    elif line.startswith('}') and name:
      computations[name] = Computation(name, body, root)
      name = None
    elif name and (match := _LINE.match(line)):
      body[match[2]] = _instruction(match[2], line[match.end() :])
      root = match[2] if match[1] else root
  if entry is None:
    raise ValueError('no ENTRY computation: pass the text of a compiled module, compiled.as_text().')
  return Module(computations, entry)


def _instruction(name: str, rest: str) -> Instruction:
  end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
  shapes = tuple(map(_shape, _LEAF.finditer(rest[:end])))
  start = rest.index('(', end)
  stop = _closing(rest, start)
  argument = rest[start + 1 : stop]
  operands = tuple(re.findall(r'%([\w.\-]+)', argument))
  return Instruction(name, shapes, rest[end:start].strip(), operands, argument, rest[stop + 1 :])


def _closing(text: str, start: int) -> int:
  depth = 0
  for match in re.compile(r'[()]').finditer(text, start):
    depth += 1 if match[0] == '(' else -1
    if depth == 0:
      return match.start()
  raise ValueError(f'unbalanced parentheses in {text[:80]!r}')


def _shape(match: re.Match) -> Shape:
  dims = tuple(int(size.removeprefix('<=')) for size in match[2].split(',') if size)
  space = re.search(r'S\((\d+)\)', match[3] or '')
  return Shape(match[1], dims, int(space[1]) if space else 0)


# --- how often what runs ------------------------------------------------------------------------------------


class Runs(NamedTuple):
  """How often a computation runs, and for one inside a fusion, the computation that the fusion is in."""

  count: Mapping[str, float | int]
  inside: Mapping[str, str]


def runs(module: Module) -> Runs:
  """Counts from the entry down; every branch of a conditional counts as taken."""
  count, inside = collections.Counter({module.entry: 1.0}), {}
  for name in reversed(module.computations):
    for instruction in module.computations[name].instructions.values():
      trips = _trips(module, name, instruction) if instruction.opcode == 'while' else 1
      for callee in _callees(instruction):
        count[callee] += count[name] * trips
        if instruction.opcode == 'fusion':
          inside[callee] = inside.get(name, name)
  return Runs(count, inside)


def _trips(module: Module, caller: str, loop: Instruction) -> int:
  trips = trip_count(module, caller, loop)
  if trips is None:
    warnings.warn(
      f'{loop.name}: how often this loop of the compiled program runs cannot be read. It counts once, so the '
      'step takes longer than is said here.',
      stacklevel=2,
    )
  return 1 if trips is None else trips


def _callees(instruction: Instruction) -> Iterator[str]:
  """The computations that an instruction runs; those that it applies by element are part of itself."""
  if instruction.opcode == 'while':
    names = ('body', 'condition')
  elif instruction.opcode in ('fusion', 'call', 'async-start'):
    names = ('calls', 'to_apply')
  elif instruction.opcode == 'conditional':
    names = ('true_computation', 'false_computation')
    branches = re.search(r'branch_computations=\{([^}]*)\}', instruction.attributes)
    yield from re.findall(r'%([\w.\-]+)', branches[1]) if branches else ()
  else:
    names = ()
  yield from filter(None, map(instruction.attribute, names))


def trip_count(module: Module, caller: str, loop: Instruction) -> int | None:
  """How often a while loop runs: as the compiler notes, or from its counter's start, step and limit."""
  if noted := re.search(r'known_trip_count[^\d]+(\d+)', loop.attributes):
    return int(noted[1])
  condition = module.computations[loop.attribute('condition')]
  limit = _limit(module, condition)
  if limit is None:
    return None
  index, last = limit
  first = _constant(module.computations[caller], _element(module.computations[caller], loop, index))
  body = module.computations[loop.attribute('body')]
  start = first or 0
  after = _evaluate(module, body, body.instructions[body.root].operands[index], {index: start})
  step = 1 if after is None else after - start
  return max(math.ceil((last - start) / step), 0) if step > 0 else 1


def _limit(module: Module, condition: Computation) -> tuple[int, int] | None:
  """(which element of the loop's tuple counts, below what); None where the loop ends otherwise."""
  compare = condition.instructions[condition.root]
  if compare.opcode == 'fusion':
    inner = module.computations[compare.attribute('calls')]
    given = dict(enumerate(compare.operands))
    compare = inner.instructions[inner.root]
    names = [_outer(inner, name, given) for name in compare.operands]
  else:
    names = list(compare.operands)
  sources = [condition.source(name) for name in names if name in condition.instructions]
  if compare.opcode != 'compare' or len(sources) != 2 or sources[1].opcode != 'constant':
    return None
  counter = sources[0].attribute('index')
  past = 1 if compare.attribute('direction') == 'LE' else 0
  return None if counter is None else (int(counter), int(sources[1].argument) + past)


def _outer(inner: Computation, name: str, given: Mapping[int, str]) -> str:
  """The caller's name of what is a parameter inside."""
  source = inner.source(name)
  return given[int(source.argument)] if source.opcode == 'parameter' else name


def _element(computation: Computation, loop: Instruction, index: int) -> str | None:
  first = computation.instructions[loop.operands[0]]
  return first.operands[index] if first.opcode == 'tuple' else None


def _constant(computation: Computation, name: str | None) -> int | None:
  source = None if name is None else computation.source(name)
  return int(source.argument) if source and source.opcode == 'constant' else None


def _evaluate(
  module: Module, computation: Computation, name: str, elements: Mapping[int, int], given: Sequence = ()
) -> int | None:
  """A scalar integer, where it follows from constants and a loop's counter."""
  found = computation.source(name)
  again = functools.partial(_evaluate, module, elements=elements)
  if found.opcode == 'constant':
    return int(found.argument) if found.argument.lstrip('-').isdigit() else None
  if found.opcode == 'get-tuple-element':
    return elements.get(int(found.attribute('index')))
  if found.opcode == 'parameter':
    return given[int(found.argument)] if given else None
  if found.opcode == 'fusion':
    inner = module.computations[found.attribute('calls')]
    return again(inner, inner.root, given=[again(computation, operand) for operand in found.operands])
  if found.opcode in ('add', 'subtract'):
    left, right = (again(computation, operand, given=given) for operand in found.operands)
    sign = 1 if found.opcode == 'add' else -1
    return None if left is None or right is None else left + sign * right
  return None


# --- floating point operations ------------------------------------------------------------------------------


def flops(module: Module) -> float | int:
  """Operations of matrix products and convolutions on one device, two a multiply-add."""
  count = runs(module).count
  return sum(
    count[computation.name] * _FLOPS[instruction.opcode](computation, instruction)
    for computation in module.computations.values()
    for instruction in computation.instructions.values()
    if instruction.opcode in _FLOPS
  )


def _of_dot(computation: Computation, dot: Instruction) -> float | int:
  left = computation.instructions[dot.operands[0]].shapes[0]
  axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', dot.attributes)
  contracted = math.prod(left.dims[int(axis)] for axis in axes[1].split(',') if axis) if axes else 1
  return 2.0 * dot.shapes[0].elements * contracted


def _of_convolution(computation: Computation, conv: Instruction) -> float | int:
  """Two for each pair of an output and a kernel position that meet inside the input."""
  left, right, out = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', conv.attributes).groups()
  base, kernel = (computation.instructions[name].shapes[0].dims for name in conv.operands[:2])
  meetings = 1
  for i, (size, stride, pad, grown, kernel_grown) in enumerate(_window(conv, len(out) - 2)):
    meetings *= _meetings(
      base[left.index(str(i))], conv.shapes[0].dims[out.index(str(i))],
      size=size, stride=stride, pad=pad, grown=grown, kernel_grown=kernel_grown,
    )  # fmt: skip
  batch, features = (conv.shapes[0].dims[out.index(name)] for name in 'bf')
  # Groups in the batch show as an output batch that is that much smaller.
  return 2.0 * batch * features * kernel[right.index('i')] * meetings


def _window(conv: Instruction, rank: int) -> Iterator[tuple[int, int, int, int, int]]:
  """By spatial axis: window size, stride, padding below, input dilation, kernel dilation."""
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
def _meetings(base: int, out: int, *, size: int, stride: int, pad: int, grown: int, kernel_grown: int) -> int:
  """How many (output, kernel) positions of one spatial axis fall on an element of the input."""
  at = np.arange(out)[:, None] * stride + np.arange(size)[None, :] * kernel_grown - pad
  return int(((at >= 0) & (at < (base - 1) * grown + 1) & (at % grown == 0)).sum())


_FLOPS: Mapping[str, Callable[[Computation, Instruction], float | int]] = {
  'dot': _of_dot,
  'convolution': _of_convolution,
}


# --- collectives --------------------------------------------------------------------------------------------


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
  count: float | int
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
  devices = np.arange(math.prod(sizes.values()))
  if numbered := re.search(r'device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?', order):
    shape, axes = numbered.groups()
    devices = devices.reshape(_ints(shape)).transpose(_ints(axes)) if axes else np.array(_ints(shape))
  devices = np.moveaxis(devices.reshape(tuple(sizes.values())), along, range(-len(along), 0))
  return tuple(map(tuple, devices.reshape(-1, math.prod(devices.shape[-len(along) :])).tolist()))


def _ints(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(',')))


# --- what the compiler thinks -------------------------------------------------------------------------------


def estimated_cycles(module: Module) -> float | int:
  """Cycles of one device's core, as the compiler itself noted them; 0 where it did not."""
  counts, inside = runs(module)
  return sum(
    counts[computation.name] * int(found[1])
    for computation in module.computations.values()
    if computation.name not in inside
    for instruction in computation.instructions.values()
    if (found := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes))
  )


def kept_bytes(module: Module) -> float | int:
  """Main memory that loops fill for later loops to read: the layers' states, kept for the backward pass."""
  entry, kept = module.computations[module.entry], {}
  loops = {name: one for name, one in entry.instructions.items() if one.opcode == 'while'}
  for later in loops.values():
    start = entry.instructions[later.operands[0]]
    for name in start.operands:
      element = entry.source(name)
      if element.opcode != 'get-tuple-element' or element.operands[0] not in loops:
        continue
      loop, index = loops[element.operands[0]], int(element.attribute('index'))
      if not element.shapes[0].space and not _passes_on(module, loop, index):
        kept[loop.name, index] = element.shapes[0].bytes
  return sum(kept.values())


def _passes_on(module: Module, loop: Instruction, index: int) -> bool:
  """Whether a loop leaves an element of its tuple as it is."""
  body = module.computations[loop.attribute('body')]
  last = body.instructions[body.instructions[body.root].operands[index]]
  return last.opcode == 'get-tuple-element' and int(last.attribute('index')) == index


# --- memory traffic -----------------------------------------------------------------------------------------


def memory_bytes(module: Module) -> float | int:
  """Bytes that one device reads from and writes to its main memory.

  Each instruction reads its operands and writes its result; a slice of a large array counts as the slice, and
  what the compiler keeps on the chip (another memory space) as nothing.
  """
  counts, inside = runs(module)
  return sum(
    counts[computation.name] * _moved(module, computation, instruction)
    for computation in module.computations.values()
    if counts[computation.name] and computation.name not in inside
    for instruction in computation.instructions.values()
  )


def _moved(module: Module, computation: Computation, instruction: Instruction) -> float | int:
  if instruction.opcode in _FREE or instruction.opcode.endswith('-done'):
    return 0.0
  if instruction.attribute('custom_call_target') == '"AllocateBuffer"':
    return 0.0
  shapes = [computation.instructions[name].shapes for name in instruction.operands]
  reads = sum(
    _read(module, instruction, i, sum(shape.bytes for shape in given if not shape.space), computation)
    for i, given in enumerate(shapes)
  )
  return reads + _written(module, computation, instruction)


def _read(module: Module, user: Instruction, i: int, size: float | int, where: Computation) -> float | int:
  """Bytes that an instruction reads of its operand i, which has `size` in main memory."""
  if not size:
    return 0.0
  if user.opcode in ('dynamic-slice', 'slice', 'gather', 'slice-start', 'dynamic-slice-start'):
    part = user.shapes[1] if user.opcode.endswith('-start') else user.shapes[0]
    return min(size, part.bytes) if i == 0 else size
  if user.opcode in ('dynamic-update-slice', 'scatter') and i == 0:
    return 0.0
  if user.opcode != 'fusion':
    return size
  inner = module.computations[user.attribute('calls')]
  return min(size, sum(_uses(module, inner, i, size)))


def _uses(module: Module, inner: Computation, i: int, size: float | int) -> Iterator[float | int]:
  """What each use of parameter i reads inside a fusion."""
  parameter = next(
    found for found in inner.instructions.values()
    if found.opcode == 'parameter' and int(found.argument) == i
  )  # fmt: skip
  names = {parameter.name}
  for found in inner.instructions.values():
    if found.opcode == 'bitcast' and names & set(found.operands):
      names.add(found.name)
      continue
    for position, operand in enumerate(found.operands):
      if operand in names and found.opcode != 'tuple':
        yield _read(module, found, position, size, inner)


def _written(module: Module, computation: Computation, instruction: Instruction) -> float | int:
  """Bytes that an instruction writes to main memory."""
  whole = sum(shape.bytes for shape in _made(instruction) if not shape.space)
  if not whole:
    return 0.0
  if instruction.opcode in ('dynamic-update-slice', 'scatter'):
    update = computation.instructions[instruction.operands[1 if 'slice' in instruction.opcode else -1]]
    return min(whole, sum(shape.bytes for shape in update.shapes))
  if instruction.opcode == 'fusion':
    inner = module.computations[instruction.attribute('calls')]
    return min(whole, sum(_results(module, inner, inner.instructions[inner.root])))
  return whole


def _made(instruction: Instruction) -> tuple[Shape, ...]:
  """What an instruction puts out; one that only starts something also names what that reads."""
  given = len(instruction.operands)
  if instruction.opcode == 'copy-start':
    return instruction.shapes[:1]
  if instruction.opcode in ('slice-start', 'dynamic-slice-start'):
    return instruction.shapes[1:2]
  if instruction.opcode in ('all-gather-start', 'collective-permute-start'):
    return instruction.shapes[given : 2 * given]
  return instruction.shapes


def _results(module: Module, inner: Computation, root: Instruction) -> Iterator[float | int]:
  """What each result of a fusion writes; one that is only passed on, nothing."""
  if root.opcode == 'tuple':
    for name in root.operands:
      yield from _results(module, inner, inner.instructions[name])
  elif root.opcode == 'bitcast':
    # The fusion's own result says in which memory it lies; a slice under another name is still a slice.
    yield from _results(module, inner, inner.instructions[root.operands[0]])
  elif root.opcode != 'parameter':
    yield _written(module, inner, root)
