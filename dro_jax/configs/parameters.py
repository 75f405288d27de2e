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
  """Of a configurable: its default as gin writes it, None where there is none or gin cannot; its meaning.

  `effect` is what changing it does to a run that is resumed.
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
  """What a docstring says of each argument."""
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
  """The plain types of an annotation that has no others, else None."""
  found = parts(annotation)
  # A text that is named beside text is no other kind.
  plain = tuple(part for part in found if str not in found or typing.get_origin(part) is not typing.Literal)
  return plain if all(part in KINDS for part in plain) else None


def parts(annotation: Any) -> tuple[Any, ...]:
  """The members of a union, or the annotation alone."""
  annotation = plain(annotation)
  unions = (types.UnionType, typing.Union)
  return typing.get_args(annotation) if typing.get_origin(annotation) in unions else (annotation,)


def admits(parts: Sequence[type], value: Any) -> bool:
  """Whether plain types take a value; what gin is to make of a reference is not known yet."""
  whole = type(value) is int and float in parts
  return whole or type(value) in parts or type(value) not in (*KINDS, list, tuple, dict)


def defaults_text(config: Config, roots: Sequence[str], known: Mapping[str, Mapping[str, Parameter]]) -> str:
  """The defaults, as gin, of all that roots refer to: what holds where nothing is bound."""
  unset = defaults_of(known)
  names = sorted({split(f'{key}.')[1] for key in settings(config, roots, unset)})
  lines = (f'{name}.{p} = {value}\n' for name in names for p, value in unset.get(name, {}).items() if value)
  return '# What holds where config.gin binds nothing.\n' + ''.join(lines)


def defaults_of(known: Mapping[str, Mapping[str, Parameter]]) -> dict[str, dict[str, str | None]]:
  """Defaults alone, by configurable and parameter."""
  return {name: {p: parameter.default for p, parameter in of.items()} for name, of in known.items()}


def effects_of(known: Mapping[str, Mapping[str, Parameter]]) -> dict[str, dict[str, Effect]]:
  """What changing each parameter does to a run that is resumed, by configurable."""
  return {name: {p: parameter.effect for p, parameter in of.items()} for name, of in known.items()}


def defaults_in(text: str) -> dict[str, dict[str, str | None]]:
  """What `defaults_text` wrote."""
  found: dict[str, dict[str, str | None]] = {}
  for binding in read_saved(text, 'defaults.gin'):
    _, selector, parameter = split(binding.name)
    found.setdefault(selector, {})[parameter] = binding.value
  return found
