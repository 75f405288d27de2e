"""A compiled program's text, parsed: computations and their instructions."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_BYTES = {
  'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4,
  'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16, 'token': 0,
}  # fmt: skip


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
  """One line of a computation: `shapes` of its results (a tuple's leaves), `opcode` and `operands`.

  `argument` is the text in the opcode's parentheses, `attributes` the text after them.
  """

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  argument: str
  attributes: str

  def attribute(self, name: str) -> str | None:
    """The value of `name=value`, up to the next comma, space or closing brace."""
    match = re.search(rf'\b{name}=%?([^,\s}}]+)', self.attributes)
    return match[1] if match else None


class Computation(NamedTuple):
  """Instructions by name, in order, and the name of the one that is the result."""

  name: str
  instructions: Mapping[str, Instruction]
  root: str

  def source(self, name: str) -> Instruction:
    """The instruction that makes a name's value, past instructions that only rename or convert it."""
    instruction = self.instructions[name]
    while instruction.opcode in ('bitcast', 'copy', 'convert', 'reshape') and instruction.operands:
      instruction = self.instructions[instruction.operands[0]]
    return instruction


class Module(NamedTuple):
  """A program: its computations, callees before callers, and the name of the one that it runs."""

  computations: Mapping[str, Computation]
  entry: str


# `ENTRY %main (a: f32[2]) -> f32[2] {`, `f32[2,3]{1,0:S(1)}` and `  ROOT %sum = `.
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*->.*\{$')
_LEAF = re.compile(r'(\w+)\[([\d,<=]*)\](\{[^}]*\})?')
_LINE = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = ')
# Lines that go on with an instruction: a kernel's metadata holds JSON of several.
_CONTINUED = re.compile(r'\n(?="|}})')


def parse(text: str) -> Module:
  """Reads the text of an HLO module.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations, entry, name, body, root = {}, None, None, {}, ''
  for line in _CONTINUED.sub(' ', text).splitlines():
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
  """Reads the part of a line after `%name = `: shapes, opcode, argument in parentheses, attributes."""
  end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
  shapes = tuple(map(_shape, _LEAF.finditer(rest[:end])))
  start = rest.index('(', end)
  stop = _closing(rest, start)
  argument = rest[start + 1 : stop]
  operands = tuple(re.findall(r'%([\w.\-]+)', argument))
  return Instruction(name, shapes, rest[end:start].strip(), operands, argument, rest[stop + 1 :])


def _closing(text: str, start: int) -> int:
  """The place of the parenthesis that closes the one at `start`."""
  depth = 0
  for match in re.compile(r'[()]').finditer(text, start):
    depth += 1 if match[0] == '(' else -1
    if depth == 0:
      return match.start()
  raise ValueError(f'unbalanced parentheses in {text[:80]!r}')


def _shape(match: re.Match[str]) -> Shape:
  dims = tuple(int(size.removeprefix('<=')) for size in match[2].split(',') if size)
  space = re.search(r'S\((\d+)\)', match[3] or '')
  return Shape(match[1], dims, int(space[1]) if space else 0)
