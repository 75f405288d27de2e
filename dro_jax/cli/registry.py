"""Reads gin's registry and bindings, which gin does not list publicly."""

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gin


def bound_value(name: str) -> Any | None:
  """The current value of a macro or of CONFIGURABLE.PARAMETER; follows macros."""
  try:
    value = gin.query_parameter(name if '.' in name else f'{name}/gin.macro.value')
  except (ValueError, KeyError):
    return None
  macro = macro_of(value)
  return bound_value(macro) if macro else value


def macro_of(value: Any) -> str | None:
  """The name of the macro that a value refers to, if it does."""
  if not isinstance(value, gin.config.ConfigurableReference) or value.selector != 'gin.macro':
    return None
  return value.scoped_selector.rpartition('/')[0]


def parse_literal(text: str) -> Any | None:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return None


def is_configurable(name: str) -> bool:
  if not re.fullmatch(r'[A-Za-z_][\w.]*', name):
    return False
  try:
    return gin.get_configurable(name) is not None
  except (ValueError, KeyError):
    return False


def unwrapped(selector: str) -> Callable[..., Any]:
  """The function or class that gin wraps; a wrapped class has lost its signature."""
  return gin.config._REGISTRY.get_match(selector).wrapped


def module_of(selector: str) -> str:
  """The module by which gin knows a configurable."""
  return gin.config._REGISTRY.get_match(selector).module


def wrapper(selector: str) -> Callable[..., Any] | None:
  """The function that gin made of a registered one; None where gin knows none of that name."""
  registered = gin.config._REGISTRY.get(selector)
  return registered and registered.wrapper


def modules_of(name: str) -> set[str]:
  """The modules in which gin knows a configurable of this name."""
  selectors = (selector.rpartition('.') for selector, _ in gin.config._REGISTRY.items())
  return {module for module, _, last in selectors if last == name}


def configurable_names() -> list[str]:
  names = [selector.rsplit('.', 1)[-1] for selector, _ in gin.config._REGISTRY.items()]
  return sorted(set(names))


def defined_macros() -> set[str]:
  return {scope for scope, selector in gin.config._CONFIG if selector == 'gin.macro'}


class _Use(NamedTuple):
  """A binding that refers to a macro: of a configurable's parameter, or of another macro, its scope."""

  macro: str
  scope: str
  selector: str
  parameter: str


def macro_uses() -> Iterator[_Use]:
  """Every place where a binding refers to a macro."""
  for (scope, selector), parameters in gin.config._CONFIG.items():
    for parameter, value in parameters.items():
      for reference in gin.config.iterate_references([value]):
        if macro := macro_of(reference):
          yield _Use(macro, scope, selector, parameter)


def used_macros() -> dict[str, str]:
  """Every macro that some binding refers to, and one such binding."""
  return {
    use.macro: use.scope
    if use.selector == 'gin.macro'
    else f'{use.selector.rsplit(".", 1)[-1]}.{use.parameter}'
    for use in macro_uses()
  }
