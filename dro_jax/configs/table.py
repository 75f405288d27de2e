"""A configuration as a table for people."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dro_jax.configs.parameters import Parameter, defaults_of
from dro_jax.configs.settings import Setting, settings
from dro_jax.configs.text import Binding, Config, is_same, macro_of, macros_in, split


def table(
  config: Config,
  roots: Sequence[str],
  known: Mapping[str, Mapping[str, Parameter]],
  remedy: Callable[[str], str],
) -> dict[str, list[dict[str, Any]]]:
  """Every setting with its value, origin, what it overrode and its meaning.

  Args:
    config: the bindings.
    roots: the configurables that a run calls; where none is bound or known, all settings count as read.
    known: configurables' parameters.
    remedy: for a macro without a value, the flag to pass.

  Returns:
    `settings`, the macros that are read; `parameters`, other parameters that are read; `bound_but_not_read`.
  """
  named = {*known, *(split(name)[1] for name in config.last)}
  every = not any(is_same(root, name) for root in roots for name in named)
  read_settings = settings(config, roots, defaults_of(known), every)
  bindings = [setting.binding for of in read_settings.values() for setting in of.values() if setting.binding]
  macros = _macros_read(config, bindings)
  meanings = _meanings(read_settings, known)
  shown = [_row(name, config, meanings) for name in config.last if name in macros]
  shown += [_row(name, config, meanings, remedy(name)) for name in macros if name not in config.last]
  read_names = {*macros, *(binding.name for binding in bindings)}
  unread = [
    name for name, binding in config.last.items() if not (name in read_names or macro_of(binding.value))
  ]
  return {
    'settings': shown,
    'parameters': list(_parameter_rows(config, read_settings, meanings)),
    'bound_but_not_read': [_row(name, config, {}) for name in unread],
  }


def _macros_read(config: Config, bindings: Iterable[Binding]) -> list[str]:
  """The macros to which bindings refer, directly or by other macros."""
  todo = [macro for binding in bindings for macro in macros_in(binding.value)]
  read_macros: dict[str, None] = {}
  while todo:
    macro = todo.pop(0)
    if macro not in read_macros:
      read_macros[macro] = None
      todo += macros_in(config.last[macro].value) if macro in config.last else []
  return list(read_macros)


def _meanings(
  read_settings: Mapping[str, Mapping[str, Setting]], known: Mapping[str, Mapping[str, Parameter]]
) -> dict[str, str]:
  """Descriptions in docstrings, by the names of parameters and of the macros bound to them."""
  meanings: dict[str, str] = {}
  for key, of in read_settings.items():
    _, selector, _ = split(f'{key}.')
    for name, setting in of.items():
      parameter = known.get(selector, {}).get(name)
      if parameter and parameter.meaning:
        names = (f'{selector}.{name}', setting.macro, setting.binding and setting.binding.name)
        meanings = dict.fromkeys(filter(None, names), parameter.meaning) | meanings
  return meanings


def _parameter_rows(
  config: Config, read_settings: Mapping[str, Mapping[str, Setting]], meanings: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
  names = set()
  for key, of in read_settings.items():
    for parameter, setting in of.items():
      name = setting.binding.name if setting.binding else f'{split(f"{key}.")[1]}.{parameter}'
      if setting.macro or setting.value is None or name in names:
        continue
      names.add(name)
      default = {'setting': name, 'value': setting.value, 'origin': 'default', 'overrode': None}
      yield (
        _row(name, config, meanings) if setting.binding else default | {'meaning': meanings.get(name, '')}
      )


def _row(name: str, config: Config, meanings: Mapping[str, str], remedy: str = '') -> dict[str, Any]:
  binding = config.last.get(name, Binding(name, '', ''))
  over = config.overrode.get(name)
  return {
    'setting': name,
    'value': binding.value or None,
    'origin': binding.origin or remedy,
    'overrode': over and {'value': over.value, 'origin': over.origin},
    'meaning': binding.meaning or meanings.get(name, ''),
  }
