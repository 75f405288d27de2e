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
  """How often a computation runs, and for one inside a fusion, the computation that the fusion is in."""

  count: Mapping[str, float | int]  # type: ignore[assignment]  # Hides the method of tuples.
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
