"""What dro_jax's arguments name, in any of the ways in which they may."""

import itertools
import pathlib
import posixpath
import re
from collections.abc import Iterator, Sequence


def joined(arguments: Sequence[str]) -> list[str]:
  """Every `--flag VALUE` as `--flag=VALUE`."""
  pairs = itertools.pairwise([*arguments, '--'])
  found, taken = [], False
  for argument, following in pairs:
    alone = not argument.startswith('--') or '=' in argument or following.startswith('-')
    if not taken:
      found.append(argument if alone else f'{argument}={following}')
    taken = not (taken or alone)
  return found


def values(arguments: Sequence[str], flag: str) -> Iterator[str]:
  """A flag's, in dro_jax's order: `--gin.FLAG=` or `--gin_binding=FLAG=`, `--set FLAG=`, `--flag=`."""
  for way in _ways(flag):
    for argument in joined(arguments):
      if match := re.fullmatch(rf'--?(?:{way})\s*(.*)', argument, re.DOTALL):
        yield match[1].strip('\'"')


def value(arguments: Sequence[str], flag: str) -> str | None:
  """The last one, which is the one that counts."""
  return next(reversed([*values(arguments, flag)]), None)


def without(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
  """The arguments but for those that give these flags."""
  given = '|'.join(way for flag in flags for way in _ways(flag))
  return [text for text in joined(arguments) if not (given and re.match(rf'--?(?:{given})', text))]


def _ways(flag: str) -> tuple[str, ...]:
  """How a flag may be given; what comes later here wins, wherever it was typed."""
  macro = flag.upper()
  return rf'gin\.{macro}\s*=|gin_binding=\s*{macro}\s*=', rf'set=\s*{macro}\s*=', f'{flag}='


def is_in(path: str, folder: str) -> bool:
  """Whether a path of another machine is in a folder of it; nothing is in ''."""
  return bool(folder) and pathlib.PurePosixPath(posixpath.normpath(path)).is_relative_to(folder)
