"""Parameters of configurables: kinds, defaults, meanings."""

import ast
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.configs.effects import NUMBERS, Effect, of_annotation, plain
from dro_jax.configs.renamed import read_saved
from dro_jax.configs.settings import settings
from dro_jax.configs.text import Config, split


class Parameter(NamedTuple):
  """A parameter of a configurable: its default as gin writes it (None if it has none that gin can write).

  `meaning` is its line in the docstring, and `effect` the effect of a change on a resumed run.
  """

  default: str | None
  meaning: str
  effect: Effect = NUMBERS


def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
  """A configurable's parameters, by name."""
  meanings = _arguments(inspect.getdoc(function) or '')
  try:
    signature = inspect.signature(function)
  except ValueError:
    return {}
  return {
    name: Parameter(_default(parameter.default), meanings.get(name, ''), of_annotation(parameter.annotation))
    for name, parameter in signature.parameters.items()
    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
  }


def _default(value: Any) -> str | None:
  if value is inspect.Parameter.empty:
    return None
  if callable(value) and (name := getattr(value, '__name__', '')).isidentifier():
    return f'@{name}'
  try:
    return repr(value) if ast.literal_eval(repr(value)) == value else None
  except (ValueError, SyntaxError):
    return None


def _arguments(documentation: str) -> dict[str, str]:
  """The description of each argument in a docstring."""
  section = re.search(r'^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)+)', documentation, re.MULTILINE)
  meanings, name = {}, None
  for line in section[1].splitlines() if section else ():
    if match := re.match(r'  (\w[\w, ]*): (.*)', line):
      name, meanings[match[1]] = match[1], match[2]
    elif name and line.strip():
      meanings[name] += ' ' + line.strip()
  return {name: meaning for names, meaning in meanings.items() for name in names.split(', ')}


KINDS = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a text', type(None): 'none'}


def kinds(annotation: Any) -> tuple[type, ...] | None:
  """The plain types of an annotation without other types; None for any other annotation."""
  members = parts(annotation)
  # A literal text beside `str` is not a kind of its own.
  plain = tuple(
    part for part in members if str not in members or typing.get_origin(part) is not typing.Literal
  )
  return plain if all(part in KINDS for part in plain) else None


def parts(annotation: Any) -> tuple[Any, ...]:
  """The members of a union, or the annotation alone."""
  annotation = plain(annotation)
  unions = (types.UnionType, typing.Union)
  return typing.get_args(annotation) if typing.get_origin(annotation) in unions else (annotation,)


def admits(parts: Sequence[type], value: Any) -> bool:
  """Whether plain types admit a value; admits references, whose values are not known yet."""
  whole = type(value) is int and float in parts
  return whole or type(value) in parts or type(value) not in (*KINDS, list, tuple, dict)


def defaults_text(config: Config, roots: Sequence[str], known: Mapping[str, Mapping[str, Parameter]]) -> str:
  """The defaults, as gin, of all configurables to which roots refer."""
  unset = defaults_of(known)
  names = sorted({split(f'{key}.')[1] for key in settings(config, roots, unset)})
  lines = (f'{name}.{p} = {value}\n' for name in names for p, value in unset.get(name, {}).items() if value)
  return '# What holds where config.gin binds nothing.\n' + ''.join(lines)


def defaults_of(known: Mapping[str, Mapping[str, Parameter]]) -> dict[str, dict[str, str | None]]:
  """Defaults alone, by configurable and parameter."""
  return {
    name: {p: parameter.default for p, parameter in parameters.items()} for name, parameters in known.items()
  }


def effects_of(known: Mapping[str, Mapping[str, Parameter]]) -> dict[str, dict[str, Effect]]:
  """The effect of a change of each parameter on a resumed run, by configurable."""
  return {
    name: {p: parameter.effect for p, parameter in parameters.items()} for name, parameters in known.items()
  }


def defaults_in(text: str) -> dict[str, dict[str, str | None]]:
  """Reads the text of `defaults_text`."""
  defaults: dict[str, dict[str, str | None]] = {}
  for binding in read_saved(text, 'defaults.gin'):
    _, selector, parameter = split(binding.name)
    defaults.setdefault(selector, {})[parameter] = binding.value
  return defaults
