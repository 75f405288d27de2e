"""Values of dro_jax's arguments, whichever way the command line sets them."""

import itertools
import pathlib
import posixpath
import re
from collections.abc import Iterator, Sequence


def joined(arguments: Sequence[str]) -> list[str]:
  """Writes every `--flag VALUE` as `--flag=VALUE`."""
  pairs = itertools.pairwise([*arguments, '--'])
  found, taken = [], False
  for argument, following in pairs:
    alone = not argument.startswith('--') or '=' in argument or following.startswith('-')
    if not taken:
      found.append(argument if alone else f'{argument}={following}')
    taken = not (taken or alone)
  return found


def values(arguments: Sequence[str], flag: str) -> Iterator[str]:
  """Values of a flag in dro_jax's order: `--gin.FLAG=` or `--gin_binding=FLAG=`, `--set FLAG=`, `--flag=`."""
  for way in _ways(flag):
    for argument in joined(arguments):
      if match := re.fullmatch(rf'--?(?:{way})\s*(.*)', argument, re.DOTALL):
        yield match[1].strip('\'"')


def value(arguments: Sequence[str], flag: str) -> str | None:
  """The last value of a flag, which is the one that counts."""
  return next(reversed([*values(arguments, flag)]), None)


def without(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
  """The arguments without those that set these flags."""
  given = '|'.join(way for flag in flags for way in _ways(flag))
  return [text for text in joined(arguments) if not (given and re.match(rf'--?(?:{given})', text))]


def _ways(flag: str) -> tuple[str, ...]:
  """The ways to set a flag; a later one here wins, wherever it stands on the command line."""
  macro = flag.upper()
  return rf'gin\.{macro}\s*=|gin_binding=\s*{macro}\s*=', rf'set=\s*{macro}\s*=', f'{flag}='


def is_in(path: str, folder: str) -> bool:
  """Whether a path of another machine lies in a folder there; no path lies in the folder ''."""
  return bool(folder) and pathlib.PurePosixPath(posixpath.normpath(path)).is_relative_to(folder)
