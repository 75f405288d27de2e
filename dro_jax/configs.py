"""Gin's texts, read without gin: what binds what and where, what a run reads of it, and what differs.

A name is a macro's (`STEPS`) or a parameter's (`policy/adafactor.learning_rate`); a value is gin's own
text, in one spelling: literals as `repr` has them.
"""

import ast
import inspect
import io
import itertools
import re
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.errors import UsageError

# Who trains: what they refer to is read by a run.
ROOTS = ('train', 'fit_value', 'a_lol_stages')

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


class Parameter(NamedTuple):
  """Of a configurable: its default as gin writes it, None where there is none or gin cannot; its meaning."""

  default: str | None
  meaning: str


class Setting(NamedTuple):
  """A parameter as a run reads it.

  Attributes:
    value: macros followed; None where nothing is known to be bound.
    macro: the macro that it is, if it is one and nothing else.
    binding: whence, None for a default.
  """

  value: str | None
  macro: str | None = None
  binding: Binding | None = None


class Difference(NamedTuple):
  """A setting that is not the same in two configurations.

  Attributes:
    name: SCOPE/CONFIGURABLE.PARAMETER.
    then, now: values, None where nothing is known to be bound.
    macro: the macro that it is in both, if it is.
  """

  name: str
  then: str | None
  now: str | None
  macro: str | None


# Reading


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
  tokens, comment, depth = [], '', 0
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
  last, overrode, spellings, own_modules = {}, {}, [], False
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
  """The name with its configurable spelt as before: `train.seed` for `dro_jax.train.train.seed`."""
  scope, selector, parameter = split(name)
  if not selector:
    return name
  known = next((spelling for spelling in spellings if _same(spelling, selector)), None)
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


def _same(a: str, b: str) -> bool:
  """Whether two selectors may be one: gin lets modules be left out."""
  return a == b or a.endswith('.' + b) or b.endswith('.' + a)


# What a run reads


def settings(
  config: Config, roots: Sequence[str], defaults: Mapping[str, Mapping[str, str | None]], every: bool = False
) -> dict[str, dict[str, Setting]]:
  """What roots and all that they refer to read: parameters' settings by SCOPE/CONFIGURABLE.

  Args:
    config: the bindings.
    roots: configurables that are called.
    defaults: of parameters, by configurable.
    every: also what no root refers to.
  """
  bound, found = _by_configurable(config), {}
  todo = [('', root) for root in roots if root in defaults or any(_same(root, name) for name in bound)]
  if every:
    todo += [(scope, name) for name, scopes in bound.items() for scope in scopes]
  while todo:
    scope, name = todo.pop(0)
    selector = next((other for other in bound if _same(name, other)), name)
    key = f'{scope}/{selector}'.lstrip('/')
    if key in found:
      continue
    unset = {parameter: Setting(default) for parameter, default in defaults.get(selector, {}).items()}
    found[key] = unset | _in_scope(config, bound.get(selector, {}), scope)
    values = (setting.value for setting in found[key].values() if setting.binding)
    todo += [(inner or scope, reference) for value in values for inner, reference in references(value)]
  return found


def _by_configurable(config: Config) -> dict[str, dict[str, dict[str, Binding]]]:
  bound = {}
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


def macro_of(value: str) -> str | None:
  """The macro that a value is, if it is nothing else."""
  return match[1] if (match := re.fullmatch(r'%([\w./]+)', value)) else None


def macros_in(value: str) -> list[str]:
  """The macros that a value refers to."""
  return [match[1] for match in _MACRO.finditer(value) if match[1]]


def follow(config: Config, value: str, depth: int = 8) -> str:
  """A value with macros' values in place of the macros that are bound."""

  def replaced(match: re.Match) -> str:
    bound = config.last.get(match[1] or '')
    return match[0] if bound is None or not depth else follow(config, bound.value, depth - 1)

  return _MACRO.sub(replaced, value)


def references(value: str) -> list[tuple[str, str]]:
  """(scope, configurable) of each that a value refers to."""
  found = (match[1].rpartition('/') for match in _REFERENCE.finditer(value) if match[1])
  return [(scope, selector) for scope, _, selector in found]


# What differs


def differences(
  then: Config,
  now: Config,
  roots: Sequence[str],
  defaults: tuple[Mapping[str, Mapping[str, str | None]], ...] = ({}, {}),
) -> list[Difference]:
  """Settings that differ in what both runs read.

  What only one of them reads follows from a difference above it, so it is left out; but where no root is
  bound, or modules of one's own may read it, everything counts.

  Args:
    then: a configuration.
    now: another.
    roots: configurables that are called.
    defaults: of parameters that are not bound, for each of the two.
  """
  bound = {split(name)[1] for config in (then, now) for name in config.last}
  every = (
    then.own_modules or now.own_modules or not any(_same(root, name) for root in roots for name in bound)
  )
  a, b = (settings(config, roots, known, every) for config, known in zip((then, now), defaults))
  keys = [key for key in {**a, **b} if every or (key in a and key in b)]
  found = (_difference(key, name, a, b) for key in keys for name in {**a.get(key, {}), **b.get(key, {})})
  return [difference for difference in found if difference.then != difference.now]


def _difference(key: str, name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
  then, now = (of.get(key, {}).get(name, Setting(None)) for of in (a, b))
  macro = then.macro if then.macro == now.macro else None
  return Difference(f'{key}.{name}', then.value, now.value, macro)


# Configurables


def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
  """A configurable's parameters, by name."""
  meanings = _arguments(inspect.getdoc(function) or '')
  try:
    signature = inspect.signature(function)
  except ValueError:
    return {}
  return {
    name: Parameter(_default(parameter.default), meanings.get(name, ''))
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


def defaults_in(text: str) -> dict[str, dict[str, str | None]]:
  """What `defaults_text` wrote."""
  found = {}
  for binding in read(text, 'defaults.gin'):
    _, selector, parameter = split(binding.name)
    found.setdefault(selector, {})[parameter] = binding.value
  return found


# What there is to set


def table(
  config: Config,
  roots: Sequence[str],
  known: Mapping[str, Mapping[str, Parameter]],
  remedy: Callable[[str], str],
) -> dict[str, list[dict[str, Any]]]:
  """Every setting with its value, origin, what it overrode and its meaning.

  Args:
    config: what is bound.
    roots: configurables that are called; where none of them is bound or known, everything is read.
    known: configurables' parameters.
    remedy: from a macro without a value to what to pass.

  Returns:
    `settings`, the macros that are read; `parameters`, what else is read; `bound_but_not_read`.
  """
  named = {*known, *(split(name)[1] for name in config.last)}
  every = not any(_same(root, name) for root in roots for name in named)
  found = settings(config, roots, defaults_of(known), every)
  bindings = [setting.binding for of in found.values() for setting in of.values() if setting.binding]
  macros = _macros_read(config, bindings)
  meanings = _meanings(found, known)
  shown = [_row(name, config, meanings) for name in config.last if name in macros]
  shown += [_row(name, config, meanings, remedy(name)) for name in macros if name not in config.last]
  read_names = {*macros, *(binding.name for binding in bindings)}
  unread = [
    name for name, binding in config.last.items() if not (name in read_names or macro_of(binding.value))
  ]
  return {
    'settings': shown,
    'parameters': list(_parameter_rows(config, found, meanings)),
    'bound_but_not_read': [_row(name, config, {}) for name in unread],
  }


def _macros_read(config: Config, bindings: Iterable[Binding]) -> list[str]:
  """The macros that bindings refer to, and those that these refer to."""
  todo = [macro for binding in bindings for macro in macros_in(binding.value)]
  read_macros = {}
  while todo:
    macro = todo.pop(0)
    if macro not in read_macros:
      read_macros[macro] = None
      todo += macros_in(config.last[macro].value) if macro in config.last else []
  return list(read_macros)


def _meanings(
  found: Mapping[str, Mapping[str, Setting]], known: Mapping[str, Mapping[str, Parameter]]
) -> dict[str, str]:
  """What docstrings say of parameters, by their names; and of macros, where those are parameters."""
  meanings = {}
  for key, of in found.items():
    _, selector, _ = split(f'{key}.')
    for name, setting in of.items():
      parameter = known.get(selector, {}).get(name)
      if parameter and parameter.meaning:
        names = (f'{selector}.{name}', setting.macro, setting.binding and setting.binding.name)
        meanings = dict.fromkeys(filter(None, names), parameter.meaning) | meanings
  return meanings


def _parameter_rows(
  config: Config, found: Mapping[str, Mapping[str, Setting]], meanings: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
  said = set()
  for key, of in found.items():
    for parameter, setting in of.items():
      name = setting.binding.name if setting.binding else f'{split(f"{key}.")[1]}.{parameter}'
      if setting.macro or setting.value is None or name in said:
        continue
      said.add(name)
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
