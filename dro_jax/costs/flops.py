"""FLOPs of a function, counted from its jaxpr with trip counts; a compiler counts each loop once.

Counts matrix products and convolutions, at two operations a multiply-add, as model FLOPs are usually quoted:
[m, k] · [k, n] is 2mnk.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count(function: Callable[..., Any], *args: Any) -> float:
  """FLOPs of `function(*args)`; the function is traced, not run.

  Args:
    function: any function that can be jitted.
    *args: arrays, or their shapes (`jax.ShapeDtypeStruct`).

  Raises:
    ValueError: a loop without static bounds (`lax.while_loop`, or a `fori_loop` whose bounds are traced) has
      operations in it.
  """
  # A jitted function keeps this trace for its next call, and may have options that an inner jit refuses.
  jitted = function if hasattr(function, 'trace') else jax.jit(function)
  return _count_jaxpr(jitted.trace(*args).jaxpr.jaxpr)


def _count_jaxpr(jaxpr: core.Jaxpr) -> float:
  return float(sum(_count_equation(equation) for equation in jaxpr.eqns))


def _count_equation(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name in _PRODUCTS:
    return _PRODUCTS[name](equation)
  inner = [_count_jaxpr(jaxpr) for jaxpr in _inner_jaxprs(params)]
  return _COMBINED.get(name, _once)(inner, params)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """The jaxprs that an equation calls, in the order of its parameters."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item


def _once(inner: list[float], params: dict[str, Any]) -> float:
  """Jitted, rematerialised and custom-derivative calls run their body once."""
  return sum(inner)


def _scan(inner: list[float], params: dict[str, Any]) -> float:
  return sum(inner) * params['length']


def _cond(inner: list[float], params: dict[str, Any]) -> float:
  return max(inner)


def _while(inner: list[float], params: dict[str, Any]) -> float:
  if sum(inner) > 0:
    raise ValueError(
      'the number of trips of a while loop is unknown: give the loop static bounds (lax.scan, or '
      'lax.fori_loop with Python numbers).'
    )
  return 0.0


def _shard_map(inner: list[float], params: dict[str, Any]) -> float:
  """The body is one device's work; the count is for all devices."""
  # jax has used both names.
  manual = params['newly_manual_axes'] if 'newly_manual_axes' in params else params['manual_axes']
  return sum(inner) * math.prod(size for axis, size in params['mesh'].shape.items() if axis in manual)


def _pallas(inner: list[float], params: dict[str, Any]) -> float:
  return sum(inner) * math.prod(params['grid_mapping'].grid)


_COMBINED = {
  'scan': _scan, 'cond': _cond, 'while': _while, 'shard_map': _shard_map, 'pallas_call': _pallas
}  # fmt: skip


def _dot_general(equation: Any) -> float:
  (contracting, _), _ = equation.params['dimension_numbers']
  lhs = equation.invars[0].aval.shape
  return 2.0 * _elements(equation) * math.prod(lhs[axis] for axis in contracting)


def _ragged_dot_general(equation: Any) -> float:
  """Each row of the left side is multiplied with one group's matrix."""
  (contracting, _), _ = equation.params['ragged_dot_dimension_numbers'].dot_dimension_numbers
  lhs = equation.invars[0].aval.shape
  return 2.0 * _elements(equation) * math.prod(lhs[axis] for axis in contracting)


def _convolution(equation: Any) -> float:
  """Every output element is a sum over the kernel's window and the input channels of its group."""
  kernel = equation.invars[1].aval.shape
  spec = equation.params['dimension_numbers'].rhs_spec
  return 2.0 * _elements(equation) * math.prod(kernel[axis] for axis in spec[1:])


_PRODUCTS = {
  'dot_general': _dot_general,
  'ragged_dot_general': _ragged_dot_general,
  'conv_general_dilated': _convolution,
}


def _elements(equation: Any) -> int:
  return sum(
    math.prod(variable.aval.shape) for variable in equation.outvars if hasattr(variable.aval, 'shape')
  )
