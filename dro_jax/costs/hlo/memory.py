"""A program's traffic with memory, and what it keeps."""

from collections.abc import Iterator

from dro_jax.costs.hlo.loops import runs
from dro_jax.costs.hlo.program import Computation, Instruction, Module, Shape

# Each moves nothing by itself: it names, groups or waits.
_FREE = frozenset((
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call',
  'partition-id', 'replica-id', 'after-all', 'opt-barrier', 'add-dependency', 'async-start', 'async-update',
))  # fmt: skip


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
