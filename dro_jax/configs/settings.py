"""Every setting of a configuration, with its value."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dro_jax.configs.text import Binding, Config, follow, is_same, macro_of, references, split

# The configurables that train: a run reads everything to which they refer.
ROOTS = ('train', 'fit_value', 'a_lol_stages')


class Setting(NamedTuple):
  """A parameter as a run reads it.

  Attributes:
    value: with macros followed; None where no binding is known.
    macro: the macro to which it is bound, if to a macro alone.
    binding: its binding; None for a default.
  """

  value: str | None
  macro: str | None = None
  binding: Binding | None = None


def settings(
  config: Config, roots: Sequence[str], defaults: Mapping[str, Mapping[str, str | None]], every: bool = False
) -> dict[str, dict[str, Setting]]:
  """The settings of roots and of all to which they refer, by SCOPE/CONFIGURABLE and parameter.

  Args:
    config: the bindings.
    roots: the configurables that a run calls.
    defaults: of parameters, by configurable.
    every: also those of configurables to which no root refers.
  """
  bound, read = _by_configurable(config), {}
  todo = [('', root) for root in roots if root in defaults or any(is_same(root, name) for name in bound)]
  if every:
    todo += [(scope, name) for name, scopes in bound.items() for scope in scopes]
  while todo:
    scope, name = todo.pop(0)
    selector = next((other for other in bound if is_same(name, other)), name)
    key = f'{scope}/{selector}'.lstrip('/')
    if key in read:
      continue
    unset = {parameter: Setting(default) for parameter, default in defaults.get(selector, {}).items()}
    read[key] = unset | _in_scope(config, bound.get(selector, {}), scope)
    values = (setting.value for setting in read[key].values() if setting.binding)
    todo += [(inner or scope, reference) for value in values for inner, reference in references(value or '')]
  return read


def _by_configurable(config: Config) -> dict[str, dict[str, dict[str, Binding]]]:
  bound: dict[str, dict[str, dict[str, Binding]]] = {}
  for name, binding in config.last.items():
    scope, selector, parameter = split(name)
    if selector:
      bound.setdefault(selector, {}).setdefault(scope, {})[parameter] = binding
  return bound


def _in_scope(config: Config, scopes: Mapping[str, Mapping[str, Binding]], scope: str) -> dict[str, Setting]:
  """A configurable's settings where it is called in a scope: an outer scope's hold where none is nearer."""
  outer = ['', *itertools.accumulate(filter(None, scope.split('/')), '{}/{}'.format)]
  nearest = {name: binding for at in outer for name, binding in scopes.get(at, {}).items()}
  return {
    name: Setting(follow(config, binding.value), macro_of(binding.value), binding)
    for name, binding in nearest.items()
  }
