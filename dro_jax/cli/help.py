"""The texts of `--help`, from the tables of commands and flags and the packaged gin files."""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any


def overview(commands: Mapping[str, Any]) -> str:
  """The text of `dro_jax --help`."""
  width = max(map(len, commands))
  rows = '\n'.join(f'  {name:{width}}  {command.summary}' for name, command in commands.items())
  return f"""dro_jax COMMAND [--gin_file=F ...] [--gin.NAME=VALUE ...] [--set NAME=VALUE ...] [flags]

Commands (`dro_jax COMMAND --help` lists the flags and settings of one):
{rows}

`dro_jax --version` prints the version.

Exit codes: 0 done, 1 failed, 2 bad usage or bad data, 75 stopped by a signal after saving.
Ctrl-C saves a run and stops it (75). A command with nothing to save ends (130). A second Ctrl-C ends any
command at once (130)."""


def command_help(name: str, command: Any, flags: Mapping[str, Any], packaged: pathlib.Path) -> str:
  """The text of `dro_jax COMMAND --help`."""
  text = default_text(name, packaged)
  takes_all_flags = not (text or command.own)
  shown = {flag: about for flag, about in flags.items() if takes_all_flags or reads(text, about.macro)}
  flag_rows = ''.join(f'  --{flag:22} {about.help}\n' for flag, about in shown.items())
  rows = ''.join(f'  {line}\n' for line in command.usage) + flag_rows
  return f"""dro_jax {name}: {command.summary}

{rows}  --set NAME=VALUE         a setting: a number, true, the name of a configurable, or text.
                           A text setting takes any text as typed (quotes are removed); None unsets it where
                           it may be unset
  --gin_file=F             a gin file, your own or one in {packaged}
  --gin.NAME=VALUE         any gin binding, in gin's own syntax
  --json                   the result as one JSON object on standard output
{_settings(text)}"""


def reads(text: str, macro: str) -> bool:
  """Whether a gin file's text reads a macro, and not only one whose name begins alike."""
  return bool(re.search(rf'%{macro}\b', text))


def default_text(name: str, packaged: pathlib.Path) -> str:
  """A command's own gin file, if it has one, with included files in place."""
  path = packaged / 'runs' / f'{name}.gin'
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  included = lambda match: (packaged / match[1]).read_text(encoding='utf-8')  # noqa: E731
  return re.sub(r"^include '(.*)'$", included, text, flags=re.MULTILINE)


def _settings(text: str) -> str:
  macros = re.findall(r'^([A-Z][A-Z0-9_]*) *= *(.*?) *(?:# *(.*))?$', text, re.MULTILINE)
  # A file may include the defaults of another and then set its own.
  last = {name: (value, meaning) for name, value, meaning in macros}
  rows = ''.join(f'  {name + "=" + value:32} {meaning}\n' for name, (value, meaning) in last.items())
  return f'\nSettings and their defaults:\n{rows}' if rows else ''


def list_commands(names: Iterable[str]) -> str:
  return ', '.join(names)
