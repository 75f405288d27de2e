"""The command line's flags, read by absl."""

import re
from collections.abc import Sequence

from absl import flags

from dro_jax.cli import help as usage
from dro_jax.cli import tables
from dro_jax.errors import UsageError


def parse_flags(name: str, arguments: list[str], bare: str | None = None) -> flags.FlagValues:
  values = flags.FlagValues()
  values.set_gnu_getopt(True)  # Flags may follow arguments without a flag.
  for flag, help_text in {'gin_file': 'a gin file', 'gin_binding': 'a binding', 'set': 'a macro'}.items():
    flags.DEFINE_multi_string(flag, [], help_text, flag_values=values)
  for flag, about in tables.FLAGS.items():
    flags.DEFINE_multi_string(flag, [], about.help, flag_values=values)
  flags.DEFINE_boolean('json', False, 'print the result as one JSON object', flag_values=values)
  try:
    _, *rest = values([name, *map(_as_gin_binding, arguments)])
  except flags.Error as error:
    problem = _misplaced_setting(name, str(error), arguments) or error
    raise UsageError(f'{problem}; `dro_jax {name} --help` lists the flags') from error
  if rest and bare:
    values[bare].value = [*values[bare].value, *rest]
  elif rest:
    raise UsageError(
      f'{rest[0]!r} is not a flag: pass a setting as --set NAME=VALUE, and several files joined by commas'
    )
  return values


def _misplaced_setting(name: str, message: str, arguments: Sequence[str]) -> str | None:
  """The remedy for an unknown flag that is a setting; None for any other flag."""
  unknown = re.search(r"Unknown command line flag '([^']+)'", message)
  macro = unknown[1].upper() if unknown else ''
  settings = re.findall(r'^([A-Z][A-Z0-9_]*) *=', usage.default_text(name, tables.GIN_CONFIGS), re.MULTILINE)
  if macro not in settings:
    return None
  typed = next((text for text in arguments if text.lstrip('-').startswith(unknown[1])), '')
  return (
    f'no flag --{unknown[1]}: it is a setting, so pass --set {macro}={typed.partition("=")[2] or "VALUE"}'
  )


def _as_gin_binding(argument: str) -> str:
  """`--gin.NAME=VALUE`, and a flag that stands alone, as flags that absl can read."""
  if (flag := tables.FLAGS.get(argument.lstrip('-'))) and argument.startswith('-') and flag.alone:
    return f'{argument}={flag.alone}'
  match = re.fullmatch(r'--?gin\.([^=]+)=(.*)', argument, re.DOTALL)
  if match:
    return f'--gin_binding={match[1]} = {match[2]}'
  if re.match(r'--?gin\.', argument):
    raise UsageError(f'{argument!r} has no value: pass {argument}=VALUE.')
  return argument
