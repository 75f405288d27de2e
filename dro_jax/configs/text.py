"""Reads gin files as bindings, collects them, and follows macros."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dro_jax.errors import UsageError

_STRING = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_MACRO = re.compile(rf'{_STRING}|%([\w./]+)')
_REFERENCE = re.compile(rf'{_STRING}|@([\w./]+)')
_LAYOUT = (tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


class Binding(NamedTuple):
  """A line of gin.

  Attributes:
    name: the bound name; '' for an import.
    value: the bound value.
    origin: FILE:LINE, or the argument as typed.
    meaning: the comment beside it.
  """

  name: str
  value: str
  origin: str
  meaning: str = ''


class Config(NamedTuple):
  """A configuration.

  Attributes:
    last: the last binding of each name, in the order of first mention.
    overrode: the binding before it, where that had another value.
    own_modules: whether modules are imported, which may read settings without a reference here.
  """

  last: Mapping[str, Binding]
  overrode: Mapping[str, Binding]
  own_modules: bool


def read(
  text: str, origin: str, include: Callable[[str], tuple[str, str]] | None = None
) -> Iterator[Binding]:
  """The bindings of a gin text, in order.

  Args:
    text: gin's.
    origin: the text's name.
    include: from an included file's name to its text and origin; without it includes are skipped.

  Raises:
    UsageError: the text is not gin.
  """
  block = ''
  for line, indented, tokens, comment in _statements(text, origin):
    strings = [token.string for token in tokens]
    block = block if indented else ''
    if strings[0] == 'include' and strings[-1][0] in '\'"':
      if include is not None:
        yield from read(*include(ast.literal_eval(strings[-1])), include)
    elif strings[0] in ('import', 'from') and '=' not in strings:
      yield Binding('', ' '.join(strings), f'{origin}:{line}')
    elif '=' in strings:
      at = strings.index('=')
      yield Binding(block + ''.join(strings[:at]), _value(strings[at + 1 :]), f'{origin}:{line}', comment)
    elif strings[-1] == ':':
      block = ''.join(strings[:-1]) + '.'
    else:
      raise UsageError(f'{origin}:{line}: {" ".join(strings)!r} is not a binding: write NAME = VALUE.')


def _statements(text: str, origin: str) -> Iterator[tuple[int, bool, list[tokenize.TokenInfo], str]]:
  """(line, whether it is indented, tokens, the comment beside it) of each statement."""
  tokens: list[tokenize.TokenInfo] = []
  comment, depth = '', 0
  try:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
      depth += {tokenize.INDENT: 1, tokenize.DEDENT: -1}.get(token.type, 0)
      if token.type == tokenize.ERRORTOKEN:
        raise SyntaxError(f'line {token.start[0]}: {token.line.strip()}')
      if token.type == tokenize.COMMENT:
        comment = token.string.lstrip('# ') if tokens else ''
      elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
        if tokens:
          yield tokens[0].start[0], depth > 0, tokens, comment
        tokens, comment = [], ''
      elif token.type not in _LAYOUT:
        tokens.append(token)
  except (tokenize.TokenError, SyntaxError) as error:
    raise UsageError(f'{origin} is not a gin file: {error}. Write bindings as NAME = VALUE.') from error


def _value(tokens: Sequence[str]) -> str:
  spaced = [word + ' ' if word in (',', ':') else word for word in tokens]
  try:
    return repr(ast.literal_eval(''.join(spaced)))
  except (ValueError, SyntaxError):
    return ''.join(repr(ast.literal_eval(word)) if word[0] in '\'"' else word for word in spaced)


def collect(bindings: Iterable[Binding]) -> Config:
  """Makes a configuration of bindings in order: the last one of a name holds."""
  last: dict[str, Binding] = {}
  overrode: dict[str, Binding] = {}
  spellings: list[str] = []
  own_modules = False
  for binding in bindings:
    if not binding.name:
      own_modules = True
      continue
    name = _spelt(binding.name, spellings)
    if name in last and last[name].value != binding.value:
      overrode[name] = last[name]
    meaning = binding.meaning or (last[name].meaning if name in last else '')
    last[name] = binding._replace(name=name, meaning=meaning)
  return Config(last, overrode, own_modules)


def _spelt(name: str, spellings: list[str]) -> str:
  """The name, its configurable spelt as first mentioned: `RunSpec.seed` for `dro_jax.train.RunSpec.seed`."""
  scope, selector, parameter = split(name)
  if not selector:
    return name
  known = next((spelling for spelling in spellings if is_same(spelling, selector)), None)
  if known is None:
    spellings.append(selector)
  return f'{scope}/{known or selector}.{parameter}'.lstrip('/')


def split(name: str) -> tuple[str, str, str]:
  """(scope, configurable, parameter); a macro has the last only."""
  scoped, _, parameter = name.rpartition('.')
  if not scoped:
    return '', '', name
  scope, _, selector = scoped.rpartition('/')
  return scope, selector, parameter


def is_same(a: str, b: str) -> bool:
  """Whether two selectors may name one configurable: gin lets modules be left out."""
  return a == b or a.endswith('.' + b) or b.endswith('.' + a)


def macro_of(value: str) -> str | None:
  """The macro to which a value refers, if to a macro alone."""
  return match[1] if (match := re.fullmatch(r'%([\w./]+)', value)) else None


def macros_in(value: str) -> list[str]:
  """The macros to which a value refers."""
  return [match[1] for match in _MACRO.finditer(value) if match[1]]


def follow(config: Config, value: str, depth: int = 8) -> str:
  """A value with bound macros replaced by their values."""

  def replaced(match: re.Match[str]) -> str:
    bound = config.last.get(match[1] or '')
    return match[0] if bound is None or not depth else follow(config, bound.value, depth - 1)

  return _MACRO.sub(replaced, value)


def references(value: str) -> list[tuple[str, str]]:
  """Returns (scope, configurable) of each reference in a value."""
  matches = (match[1].rpartition('/') for match in _REFERENCE.finditer(value) if match[1])
  return [(scope, selector) for scope, _, selector in matches]
