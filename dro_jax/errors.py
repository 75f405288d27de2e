"""Errors that end a run with a message and an exit code instead of a traceback."""

import dataclasses
import difflib
import functools
import inspect
import reprlib
from collections.abc import Iterable
from typing import Any, TypeVar

_T = TypeVar('_T')


class UsageError(ValueError):
  """Bad usage or bad data: the message names file, line and field, and the remedy. Exit code 2."""


class InUse(UsageError):
  """Another process writes to the folder or file. Exit code 2."""


class Failed(Exception):
  """A failure that is not bad usage, such as a full disk: the message names the remedy. Exit code 1."""


class NotFinite(Failed, FloatingPointError):
  """A loss that is not finite."""


class Stopped(Exception):
  """A signal stopped the run after its state was saved: the same command resumes it. Exit code 75."""


class Interrupted(KeyboardInterrupt):
  """Ctrl-C stopped the run after its state was saved: the same command resumes it. Exit code 75."""


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
  """The candidate nearest to a mistyped word, as a question in brackets; '' where none is near."""
  by_lower = {candidate.lower(): candidate for candidate in candidates}
  containing = sorted(name for name in by_lower if word.lower() in name) if len(word) > 3 else []
  if 1 < len(containing) <= 3 and word.lower() not in by_lower:
    return f' (did you mean {" or ".join(by_lower[name] for name in containing)}?)'
  close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
  return f' (did you mean {by_lower[close[0]]}?)' if close else ''


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 80


def shown(value: Any) -> str:
  """A value as errors show it, shortened however long or deep it is."""
  return _brief.repr(value)


def suggests_fields(kind: type[_T]) -> type[_T]:
  """The dataclass, which refuses a name that is none of its fields with the nearest one."""
  init, names = kind.__init__, [field.name for field in dataclasses.fields(kind)]  # type: ignore

  @functools.wraps(init)
  def checked(self: _T, *args: Any, **fields: Any) -> None:
    if unknown := [name for name in fields if name not in names]:
      raise UsageError(
        f'{kind.__name__} has no field {unknown[0]}{did_you_mean(unknown[0], names)}: it has '
        f'{", ".join(names)}.'
      )
    init(self, *args, **fields)

  checked.__signature__ = inspect.signature(init)  # type: ignore  # Gin does not look behind the wrapper.
  kind.__init__ = checked  # type: ignore
  return kind
