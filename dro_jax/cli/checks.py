"""Refuses bindings that no code reads, macros without a value, and values of the wrong type."""

import inspect
from collections.abc import Mapping

import gin

from dro_jax.cli import tables
from dro_jax.cli.registry import (
  bound_value,
  defined_macros,
  macro_of,
  macro_uses,
  module_of,
  unwrapped,
  used_macros,
)
from dro_jax.configs import parameters as configs_parameters
from dro_jax.errors import UsageError, did_you_mean

_ALGORITHMS = 'dro_jax.algorithms'


def refuse_undefined_macros(name: str, bare: str | None) -> None:
  for macro, reader in used_macros().items():
    if macro not in defined_macros():
      raise UsageError(f'{reader} needs {macro}, which has no value: {how_to_set(macro, name, bare)}')


def how_to_set(macro: str, name: str = '', bare: str | None = None) -> str:
  """What to pass for a macro of the command `name`, whose arguments without a flag belong to `bare`."""
  if bare and macro == tables.FLAGS[bare].macro:
    return f'pass it without a flag, as `dro_jax {name} {macro} ...`, or as --{bare}={macro}'
  flag = next((f'--{flag}' for flag, about in tables.FLAGS.items() if about.macro == macro), None)
  return f'pass {flag}' if flag else f'pass --set {macro}=VALUE{did_you_mean(macro, defined_macros())}'


def refuse_unused_macros(name: str, origins: Mapping[str, str]) -> None:
  """Gin accepts a misspelled macro silently, and the run would use the old value."""
  used = used_macros()
  for macro in origins.keys() & defined_macros():
    if macro not in used:
      hint = did_you_mean(macro, used) or f'; `dro_jax {name} --help` lists the settings'
      raise UsageError(f'{origins[macro]}: this command does not use {macro}{hint}')


def refuse_wrong_types(origins: Mapping[str, str]) -> None:
  """Values that an annotation does not admit would fail later, far from their cause."""
  for (_, selector), parameters in gin.config._CONFIG.items():
    if selector == 'gin.macro':
      continue
    signature = inspect.signature(unwrapped(selector)).parameters
    for parameter, value in parameters.items():
      macro = macro_of(value)
      value = bound_value(macro) if macro else value
      kinds = configs_parameters.kinds(signature[parameter].annotation) if parameter in signature else None
      known = macro is None or macro in defined_macros()
      if kinds and known and not configs_parameters.admits(kinds, value):
        name = f'{selector.rsplit(".", 1)[-1]}.{parameter}'
        origin = origins.get(macro) or origins.get(name) or f'{macro or name}={value!r}'
        admitted = ' or '.join(configs_parameters.KINDS[kind] for kind in kinds)
        raise UsageError(f'{origin}: {name} takes {admitted}, not {value!r}')


def refuse_settings_of_other_algorithms(origins: Mapping[str, str]) -> None:
  """A setting that only other algorithms read would change nothing, silently."""
  chosen = bound_value('RunSpec.algorithm')
  if not isinstance(chosen, gin.config.ConfigurableReference):
    return
  selector = gin.config._REGISTRY.get_match(
    chosen.selector
  ).selector  # The full name: the user may have typed a short one.
  name = selector.rpartition('.')[2]
  settings = [f'{name}.{parameter}' for parameter in configs_parameters.parameters(unwrapped(selector))]
  for macro, origin in origins.items():
    readers = {use.selector for use in macro_uses() if use.macro == macro} - {'gin.macro'}
    are_algorithms = all(module_of(reader) == _ALGORITHMS for reader in readers)
    if origin.startswith('--set') and readers and are_algorithms and selector not in readers:
      others = ', '.join(sorted(reader.rpartition('.')[2] for reader in readers))
      remedy = (
        f'pass one of its own settings, {", ".join(settings)} (--set {settings[0]}=VALUE)'
        if settings
        else 'it has no settings of its own'
      )
      raise UsageError(f'{origin}: {macro} is a setting of {others}, and {name} does not read it; {remedy}')


def refuse_unread_settings(name: str, origins: Mapping[str, str]) -> None:
  """A setting that the run does not read would change nothing; only what --set asked for is refused."""
  asked = [(macro, origin) for macro, origin in origins.items() if origin.startswith('--set')]
  if name not in ('train', 'preflight') or not asked:  # Other commands have stages that read more.
    return
  from dro_jax.run import readers

  if any(readers.is_conditional(macro) for macro, _ in asked):
    readers.refuse_unread(gin.get_configurable('RunSpec')(), asked)
