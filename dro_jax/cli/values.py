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


def flag_value(flag: str, about: Flag, text: str) -> str:
  if not about.bare:
    return repr(text)
  value = _gin_value(text)
  if value == repr(text):
    raise UsageError(f'--{flag}={text}: nothing here is called so{did_you_mean(text, configurable_names())}')
  return value


def gin_line(setting: str) -> str:
  """`--set`'s text as the gin line that it becomes."""
  name, equals, text = (part.strip() for part in setting.partition('='))
  if not (name and equals):
    raise UsageError(f'--set {setting}: pass --set NAME=VALUE')
  if reference := own_reference(setting):
    return f'{name} = {reference}'
  bound = bound_value(name)
  # Where a configurable stands so far, text is a slip, though the setting admits text.
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
  """A word where a number or a configurable stands so far is a slip: it would fail later, far from here."""
  if isinstance(bound, gin.config.ConfigurableReference):
    suggestion = did_you_mean(word, configurable_names())
    raise UsageError(f'--set {setting}: nothing that gin can bind is called {word!r}{suggestion}')
  if isinstance(bound, (bool, int, float)):
    raise UsageError(f'--set {setting}: {word!r} is no number or boolean, and the value so far is {bound!r}')


def _refuse_other_kind(setting: str, bound: Any, reference: str) -> None:
  """An algorithm is no optimiser: of our own configurables, one takes another's place in its module only."""
  selector = reference.strip('@()').rpartition('/')[2]
  if not (isinstance(bound, gin.config.ConfigurableReference) and is_configurable(selector)):
    return
  # By the names that gin has for them, which stay when code moves.
  here, there = (gin.config._REGISTRY.get_match(name).module for name in (bound.selector, selector))
  if here != there and here.startswith('dro_jax.') and there.startswith('dro_jax.'):
    raise UsageError(
      f'--set {setting}: {selector} is of {there}, and what stands there so far, {bound.selector}, of {here}'
    )


def _text_parts(name: str) -> frozenset[Any]:
  """What the parameters of a macro, or CONFIGURABLE.PARAMETER, admit, where all of them admit text."""
  parts = [configs_parameters.parts(annotation) for annotation in _annotations(name)]
  return frozenset().union(*parts) if parts and all(str in of for of in parts) else frozenset()


def _annotations(name: str) -> Iterator[Any]:
  """Of the parameters that a macro feeds, straight or by other macros; or of CONFIGURABLE.PARAMETER."""
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
  """Whether a setting that takes text takes these letters as they stand.

  Not where it admits what they spell, too: no text, true, a number, several, or something to call. A text in
  quotes is what the quotes hold, and %NAME the setting of that name.
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
  """Literals as they are, a configurable's name as a reference to it, anything else as a string.

  Args:
    text: as typed.
    takes: what the setting admits, if that is text; then text stays what it is (see `_stays_text`).
  """
  if takes and _stays_text(text, takes):
    return repr(text)
  if text.startswith(('@', '%')):
    return text
  words = {'true': 'True', 'false': 'False', 'none': 'None'}
  if text.lower() in words:
    return words[text.lower()]
  if (literal := parse_literal(text)) is not None:
    # Several, bare: gin wants the tuple's parentheses.
    return f'({text})' if isinstance(literal, tuple) and not text.startswith('(') else text
  return f'@{text}' if is_configurable(text) else repr(text)
