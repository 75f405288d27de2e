"""Refusals of bindings that nothing reads, that lack a value, or that have the wrong type."""

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


def refuse_undefined_macros() -> None:
  for macro, reader in used_macros().items():
    if macro not in defined_macros():
      raise UsageError(f'{reader} needs {macro}, which has no value: {how_to_set(macro)}')


def how_to_set(macro: str) -> str:
  flag = next((f'--{flag}' for flag, about in tables.FLAGS.items() if about.macro == macro), None)
  return f'pass {flag}' if flag else f'pass --set {macro}=VALUE{did_you_mean(macro, defined_macros())}'


def refuse_unused_macros(name: str, given: Mapping[str, str]) -> None:
  """Gin takes a misspelled macro without a word, and the run would go on with the old value."""
  used = used_macros()
  for macro in given.keys() & defined_macros():
    if macro not in used:
      hint = did_you_mean(macro, used) or f'; `dro_jax {name} --help` lists the settings'
      raise UsageError(f'{given[macro]}: nothing here uses {macro}{hint}')


def refuse_wrong_types(given: Mapping[str, str]) -> None:
  """Numbers, booleans and texts that an annotation does not admit would fail later, far from here."""
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
        origin = given.get(macro) or given.get(name) or f'{macro or name}={value!r}'
        takes = ' or '.join(configs_parameters.KINDS[kind] for kind in kinds)
        raise UsageError(f'{origin}: {name} takes {takes}, and not {value!r}')


def refuse_settings_of_other_algorithms(given: Mapping[str, str]) -> None:
  """A setting that only algorithms read, and not the chosen one, would change nothing, without a word."""
  chosen = bound_value('RunSpec.algorithm')
  if not isinstance(chosen, gin.config.ConfigurableReference):
    return
  selector = gin.config._REGISTRY.get_match(chosen.selector).selector  # Whole: it may have been typed short.
  name = selector.rpartition('.')[2]
  own = [f'{name}.{parameter}' for parameter in configs_parameters.parameters(unwrapped(selector))]
  for macro, origin in given.items():
    readers = {use.selector for use in macro_uses() if use.macro == macro} - {'gin.macro'}
    are_algorithms = all(module_of(reader) == _ALGORITHMS for reader in readers)
    if origin.startswith('--set') and readers and are_algorithms and selector not in readers:
      others = ', '.join(sorted(reader.rpartition('.')[2] for reader in readers))
      instead = f'its own are {", ".join(own)} (--set {own[0]}=VALUE)' if own else 'it has none of its own'
      raise UsageError(f'{origin}: {macro} is a setting of {others}, and {name} does not read it; {instead}')
