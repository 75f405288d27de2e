"""Bytes that a program moves to and from memory, and bytes that it keeps for its backward pass."""

from collections.abc import Iterator

from dro_jax.costs.hlo.loops import runs
from dro_jax.costs.hlo.program import Computation, Instruction, Module, Shape

# Opcodes that move nothing themselves: they name, group or wait.
_FREE = frozenset((
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call',
  'partition-id', 'replica-id', 'after-all', 'opt-barrier', 'add-dependency', 'async-start', 'async-update',
))  # fmt: skip


def kept_bytes(module: Module) -> float | int:
  """Bytes of main memory that loops write and later loops read: layers' states for the backward pass."""
  entry, kept = module.computations[module.entry], {}
  loops = {
    name: instruction for name, instruction in entry.instructions.items() if instruction.opcode == 'while'
  }
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
  """Whether a loop leaves an element of its tuple unchanged."""
  body = module.computations[loop.attribute('body')]
  last = body.instructions[body.instructions[body.root].operands[index]]
  return last.opcode == 'get-tuple-element' and int(last.attribute('index')) == index


def memory_bytes(module: Module) -> float | int:
  """Bytes that one device reads from and writes to its main memory.

  Each instruction reads its operands and writes its result. A slice of a large array counts as the slice, and
  arrays that the compiler keeps on the chip (another memory space) count nothing.
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
    _read(module, instruction, i, sum(shape.bytes for shape in operand if not shape.space), computation)
    for i, operand in enumerate(shapes)
  )
  return reads + _written(module, computation, instruction)


def _read(module: Module, user: Instruction, i: int, size: float | int, where: Computation) -> float | int:
  """Bytes that an instruction reads of its operand i, of which `size` bytes are in main memory."""
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
  """Bytes that each use of parameter i inside a fusion reads."""
  parameter = next(
    instruction for instruction in inner.instructions.values()
    if instruction.opcode == 'parameter' and int(instruction.argument) == i
  )  # fmt: skip
  names = {parameter.name}
  for user in inner.instructions.values():
    if user.opcode == 'bitcast' and names & set(user.operands):
      names.add(user.name)
      continue
    for position, operand in enumerate(user.operands):
      if operand in names and user.opcode != 'tuple':
        yield _read(module, user, position, size, inner)


def _written(module: Module, computation: Computation, instruction: Instruction) -> float | int:
  """Bytes that an instruction writes to main memory."""
  whole = sum(shape.bytes for shape in _results(instruction) if not shape.space)
  if not whole:
    return 0.0
  if instruction.opcode in ('dynamic-update-slice', 'scatter'):
    update = computation.instructions[instruction.operands[1 if 'slice' in instruction.opcode else -1]]
    return min(whole, sum(shape.bytes for shape in update.shapes))
  if instruction.opcode == 'fusion':
    inner = module.computations[instruction.attribute('calls')]
    return min(whole, sum(_written_results(module, inner, inner.instructions[inner.root])))
  return whole


def _results(instruction: Instruction) -> tuple[Shape, ...]:
  """The shapes of an instruction's results, without the operands that those of a `-start` also list."""
  count = len(instruction.operands)
  if instruction.opcode == 'copy-start':
    return instruction.shapes[:1]
  if instruction.opcode in ('slice-start', 'dynamic-slice-start'):
    return instruction.shapes[1:2]
  if instruction.opcode in ('all-gather-start', 'collective-permute-start'):
    return instruction.shapes[count : 2 * count]
  return instruction.shapes


def _written_results(module: Module, inner: Computation, root: Instruction) -> Iterator[float | int]:
  """Bytes that each result of a fusion writes; a result that is only passed on writes nothing."""
  if root.opcode == 'tuple':
    for name in root.operands:
      yield from _written_results(module, inner, inner.instructions[name])
  elif root.opcode == 'bitcast':
    # The fusion's own result names the memory; a slice under another name is still a slice.
    yield from _written_results(module, inner, inner.instructions[root.operands[0]])
  elif root.opcode != 'parameter':
    yield _written(module, inner, root)
