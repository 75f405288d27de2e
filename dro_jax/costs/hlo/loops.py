"""How often each computation of a program runs."""

import collections
import functools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dro_jax.costs.hlo.program import Computation, Instruction, Module


class Runs(NamedTuple):
  """How often each computation runs; `inside` gives the computation that holds a fusion's instructions."""

  count: Mapping[str, float | int]  # type: ignore[assignment]  # Hides the method of tuples.
  inside: Mapping[str, str]


def runs(module: Module) -> Runs:
  """Counts runs from the entry down; every branch of a conditional counts as taken."""
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
      f'{loop.name}: the number of trips of this loop of the compiled program cannot be read. The loop '
      'counts once, so the step takes longer than reported.',
      stacklevel=2,
    )
  return 1 if trips is None else trips


def _callees(instruction: Instruction) -> Iterator[str]:
  """The computations that an instruction runs, without those that it applies to each element."""
  if instruction.opcode == 'while':
    names: tuple[str, ...] = ('body', 'condition')
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
  """How often a while loop runs: by the compiler's note, or by its counter's start, step and limit."""
  if note := re.search(r'known_trip_count[^\d]+(\d+)', loop.attributes):
    return int(note[1])
  condition = module.computations[loop.attribute('condition')]
  limit = _limit(module, condition)
  if limit is None:
    return None
  index, end = limit
  start = _constant(module.computations[caller], _element(module.computations[caller], loop, index)) or 0
  body = module.computations[loop.attribute('body')]
  # The counter after one trip gives its step.
  after = _evaluate(module, body, body.instructions[body.root].operands[index], {index: start})
  step = 1 if after is None else after - start
  return max(math.ceil((end - start) / step), 0) if step > 0 else 1


def _limit(module: Module, condition: Computation) -> tuple[int, int] | None:
  """(index of the counter in the loop's tuple, end of the counter); `None` for another kind of condition."""
  compare = condition.instructions[condition.root]
  if compare.opcode == 'fusion':
    inner = module.computations[compare.attribute('calls')]
    arguments = dict(enumerate(compare.operands))
    compare = inner.instructions[inner.root]
    names = [_outer(inner, name, arguments) for name in compare.operands]
  else:
    names = list(compare.operands)
  sources = [condition.source(name) for name in names if name in condition.instructions]
  if compare.opcode != 'compare' or len(sources) != 2 or sources[1].opcode != 'constant':
    return None
  counter = sources[0].attribute('index')
  inclusive = 1 if compare.attribute('direction') == 'LE' else 0
  return None if counter is None else (int(counter), int(sources[1].argument) + inclusive)


def _outer(inner: Computation, name: str, arguments: Mapping[int, str]) -> str:
  """The caller's name of a value that is a parameter inside; other names stay."""
  source = inner.source(name)
  return arguments[int(source.argument)] if source.opcode == 'parameter' else name


def _element(computation: Computation, loop: Instruction, index: int) -> str | None:
  """The name of an element of the tuple with which a loop starts."""
  start = computation.instructions[loop.operands[0]]
  return start.operands[index] if start.opcode == 'tuple' else None


def _constant(computation: Computation, name: str | None) -> int | None:
  """The value of a name that is a constant."""
  source = None if name is None else computation.source(name)
  return int(source.argument) if source and source.opcode == 'constant' else None


def _evaluate(
  module: Module,
  computation: Computation,
  name: str,
  elements: Mapping[int, int],
  arguments: Sequence[int | None] = (),
) -> int | None:
  """The value of a scalar integer that follows from constants and a loop's counter.

  Args:
    module: the program.
    computation: where the name is defined.
    name: the integer's.
    elements: known elements of the loop's tuple.
    arguments: the computation's, where it is a fusion's.
  """
  source = computation.source(name)
  evaluate = functools.partial(_evaluate, module, elements=elements)
  if source.opcode == 'constant':
    return int(source.argument) if source.argument.lstrip('-').isdigit() else None
  if source.opcode == 'get-tuple-element':
    return elements.get(int(source.attribute('index')))
  if source.opcode == 'parameter':
    return arguments[int(source.argument)] if arguments else None
  if source.opcode == 'fusion':
    inner = module.computations[source.attribute('calls')]
    return evaluate(
      inner, inner.root, arguments=[evaluate(computation, operand) for operand in source.operands]
    )
  if source.opcode in ('add', 'subtract'):
    left, right = (evaluate(computation, operand, arguments=arguments) for operand in source.operands)
    sign = 1 if source.opcode == 'add' else -1
    return None if left is None or right is None else left + sign * right
  return None
