"""Values of `--set NAME=VALUE` and of plain flags, as gin's lines."""

import contextlib
import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import gin

from dro_jax.cli.own_algorithm import own_reference
from dro_jax.cli.registry import (
  bound_value,
  configurable_names,
  defined_macros,
  is_configurable,
  macro_of,
  parse_literal,
  unwrapped,
)
from dro_jax.cli.tables import Flag
from dro_jax.configs import parameters as configs_parameters
from dro_jax.configs.text import split
from dro_jax.errors import UsageError, did_you_mean

# Kinds of configurables, by the module under which gin knows them.
_KINDS = {
  'dro_jax.algorithms': 'an algorithm',
  'dro_jax.optimizers': 'an optimizer or a schedule',
  'dro_jax.reference': 'a reference',
}


def flag_value(flag: str, about: Flag, text: str) -> str:
  if not about.bare:
    return repr(text)
  value = _gin_value(text)
  if value == repr(text):
    raise UsageError(f'--{flag}={text}: unknown name{did_you_mean(text, configurable_names())}')
  return value


def gin_line(setting: str) -> str:
  """The gin line for the text of `--set`."""
  name, equals, text = (part.strip() for part in setting.partition('='))
  if not (name and equals):
    raise UsageError(f'--set {setting} has no NAME or no VALUE: pass --set NAME=VALUE.')
  if reference := own_reference(setting):
    return f'{name} = {reference}'
  bound = bound_value(name)
  # A setting with a configurable as its value takes no other text, though its type admits text.
  takes = () if isinstance(bound, gin.config.ConfigurableReference) else _text_parts(name)
  value = _gin_value(text, takes)
  if takes:
    return f'{name} = {value}'
  if value == repr(text):
    _refuse_misplaced_word(setting, bound, text)
  elif value.startswith('@'):
    _refuse_other_kind(setting, bound, value)
  return f'{name} = {value}'


def _refuse_misplaced_word(setting: str, bound: Any, word: str) -> None:
  """Refuses text for a number or a configurable, which would fail later."""
  if isinstance(bound, gin.config.ConfigurableReference):
    suggestion = did_you_mean(word, configurable_names())
    own = f'. For a function of your own pass {word}:NAME' if word.endswith('.py') else ''
    raise UsageError(f'--set {setting}: gin has no configurable {word!r}{suggestion}{own}')
  if isinstance(bound, (bool, int, float)):
    raise UsageError(
      f'--set {setting}: {word!r} is not a {"boolean" if isinstance(bound, bool) else "number"}, as the '
      f'current value {bound!r} is: pass a value of its kind.'
    )


def _refuse_other_kind(setting: str, bound: Any, reference: str) -> None:
  """Refuses a configurable of dro_jax in the place of one of another kind: an optimizer as an algorithm."""
  selector = reference.strip('@()').rpartition('/')[2]
  if not (isinstance(bound, gin.config.ConfigurableReference) and is_configurable(selector)):
    return
  name = setting.partition('=')[0].strip()
  # Gin's names for modules stay when code moves.
  here, there = (gin.config._REGISTRY.get_match(name).module for name in (bound.selector, selector))
  if here != there and here.startswith('dro_jax.') and there.startswith('dro_jax.'):
    raise UsageError(
      f'--set {setting}: {name} expects {_KINDS.get(here, f"a configurable of {here}")} such as '
      f'{bound.selector.rpartition(".")[2]}; {selector} is {_KINDS.get(there, f"a configurable of {there}")}.'
    )


def _text_parts(name: str) -> frozenset[Any]:
  """The types that a macro, or CONFIGURABLE.PARAMETER, admits, where all its parameters admit text."""
  parts = [configs_parameters.parts(annotation) for annotation in _annotations(name)]
  return frozenset().union(*parts) if parts and all(str in of for of in parts) else frozenset()


def _annotations(name: str) -> Iterator[Any]:
  """Annotations of the parameters that a macro feeds, directly or by other macros, or of a parameter."""
  _, selector, parameter = split(name)
  if selector:
    with contextlib.suppress(ValueError, KeyError, AttributeError):
      if about := inspect.signature(unwrapped(selector)).parameters.get(parameter):
        yield about.annotation
    return
  for (scope, selector), parameters in list(gin.config._CONFIG.items()):
    for parameter, value in parameters.items():
      if macro_of(value) == name:
        yield from _annotations(scope if selector == 'gin.macro' else f'{selector}.{parameter}')


def _stays_text(text: str, parts: Collection[Any]) -> bool:
  """Whether a setting that takes text keeps this text as typed.

  It does not where it also admits the value that the text spells: None, true, a number, a list, a function.
  Quotes around a text are removed, and %NAME refers to the setting of that name.
  """
  calls = any(typing.get_origin(part) is Callable for part in parts)
  if text.startswith('%'):
    return text[1:] not in defined_macros()
  if text.startswith('@'):
    return not calls and not (text.endswith('()') and is_configurable(text[1:-2]))
  if text.lower() == 'none':
    return type(None) not in parts or typing.Literal[text] in parts
  if text.lower() in ('true', 'false'):
    return bool not in parts
  literal = parse_literal(text)
  if isinstance(literal, list | tuple | dict) and text.startswith(('(', '[', '{')):
    return all(typing.get_origin(part) not in (Sequence, Mapping, list, tuple, dict) for part in parts)
  if literal is not None and not isinstance(literal, list | tuple | dict | str):
    return type(literal) not in parts
  return not isinstance(literal, str) and not (calls and is_configurable(text))


def _gin_value(text: str, takes: Collection[Any] = ()) -> str:
  """A literal as typed, the name of a configurable as a reference to it, any other text as a string.

  Args:
    text: as typed.
    takes: the types that the setting admits, if text is among them; then see `_stays_text`.
  """
  if takes and _stays_text(text, takes):
    return repr(text)
  if text.startswith(('@', '%')):
    return text
  constants = {'true': 'True', 'false': 'False', 'none': 'None'}
  if text.lower() in constants:
    return constants[text.lower()]
  if (literal := parse_literal(text)) is not None:
    # Gin needs the parentheses of a tuple.
    return f'({text})' if isinstance(literal, tuple) and not text.startswith('(') else text
  return f'@{text}' if is_configurable(text) else repr(text)
