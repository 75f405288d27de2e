"""Gin's texts as bindings: read, collected, followed."""

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
    name: what is bound; '' for an import.
    value: to what.
    origin: FILE:LINE, or what was typed.
    meaning: the comment beside it.
  """

  name: str
  value: str
  origin: str
  meaning: str = ''


class Config(NamedTuple):
  """Bindings together.

  Attributes:
    last: the binding that holds, by name, in the order of first mention.
    overrode: the one before it, where that had another value.
    own_modules: whether modules are imported, which may read what nothing here refers to.
  """

  last: Mapping[str, Binding]
  overrode: Mapping[str, Binding]
  own_modules: bool


def read(
  text: str, origin: str, include: Callable[[str], tuple[str, str]] | None = None
) -> Iterator[Binding]:
  """What a gin text binds, in order.

  Args:
    text: gin's.
    origin: the text's name.
    include: from an included file's name to its text and origin; without it includes are passed over.

  Raises:
    UsageError: the text is no gin.
  """
  block = ''
  for line, indented, tokens, comment in _statements(text, origin):
    words = [token.string for token in tokens]
    block = block if indented else ''
    if words[0] == 'include' and words[-1][0] in '\'"':
      if include is not None:
        yield from read(*include(ast.literal_eval(words[-1])), include)
    elif words[0] in ('import', 'from') and '=' not in words:
      yield Binding('', ' '.join(words), f'{origin}:{line}')
    elif '=' in words:
      at = words.index('=')
      yield Binding(block + ''.join(words[:at]), _value(words[at + 1 :]), f'{origin}:{line}', comment)
    elif words[-1] == ':':
      block = ''.join(words[:-1]) + '.'
    else:
      raise UsageError(f'{origin}:{line}: {" ".join(words)!r} binds nothing: write NAME = VALUE.')


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
    raise UsageError(f'{origin}: this is no gin: {error}') from error


def _value(words: Sequence[str]) -> str:
  spaced = [word + ' ' if word in (',', ':') else word for word in words]
  try:
    return repr(ast.literal_eval(''.join(spaced)))
  except (ValueError, SyntaxError):
    return ''.join(repr(ast.literal_eval(word)) if word[0] in '\'"' else word for word in spaced)


def collect(bindings: Iterable[Binding]) -> Config:
  """Bindings in order; the last one of a name holds."""
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
  """The name with its configurable spelt as before: `RunSpec.seed` for `dro_jax.train.RunSpec.seed`."""
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
  """Whether two selectors may be one: gin lets modules be left out."""
  return a == b or a.endswith('.' + b) or b.endswith('.' + a)


def macro_of(value: str) -> str | None:
  """The macro that a value is, if it is nothing else."""
  return match[1] if (match := re.fullmatch(r'%([\w./]+)', value)) else None


def macros_in(value: str) -> list[str]:
  """The macros that a value refers to."""
  return [match[1] for match in _MACRO.finditer(value) if match[1]]


def follow(config: Config, value: str, depth: int = 8) -> str:
  """A value with macros' values in place of the macros that are bound."""

  def replaced(match: re.Match[str]) -> str:
    bound = config.last.get(match[1] or '')
    return match[0] if bound is None or not depth else follow(config, bound.value, depth - 1)

  return _MACRO.sub(replaced, value)


def references(value: str) -> list[tuple[str, str]]:
  """(scope, configurable) of each that a value refers to."""
  found = (match[1].rpartition('/') for match in _REFERENCE.finditer(value) if match[1])
  return [(scope, selector) for scope, _, selector in found]
