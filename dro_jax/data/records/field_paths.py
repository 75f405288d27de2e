"""A record's values by our names: the file's own field, a path into one, or nothing at all.

A path leads through objects and lists, `chat.messages`, `scores.0` or `scores[0]`; a field that is itself
called so goes before. Text on the way that is a list or object in JSON, or as Python writes one, is read as
such.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from dro_jax import errors
from dro_jax.data.records import json_files

_INDEX = re.compile(r'\[(-?\d+)\]')
_PLACE = re.compile(r'-?\d{1,9}')
_NAMED = 10  # Fields that an error names.


def value(fields: Mapping[str, Any], names: Mapping[str, str], name: str) -> Any:
  """The value of our `name` in a record; None where there is none, or it is to be left alone."""
  path = names.get(name, name)
  return reach(fields, path) if path else None


def reach(fields: Mapping[str, Any], path: str) -> Any:
  """What lies at a path, or None."""
  found = fields.get(path)
  if found is not None or not is_path(path):
    return found
  *_, (found, left) = _way(fields, _steps(path))
  return None if left else found


def holders(fields: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
  """The objects that a path leads through, the record first."""
  if path in fields or not is_path(path):
    return [fields]
  passed = [_opened(found) for found, _ in _way(fields, _steps(path))][:-1]
  return [found for found in passed if isinstance(found, Mapping)]


def is_path(path: str) -> bool:
  return '.' in path or '[' in path


def first_steps(path: str) -> list[str]:
  """The fields that a path may begin with: of `a.b.c` those called `a`, `a.b` and `a.b.c`."""
  steps = _steps(path)
  return [path, *('.'.join(steps[:count]) for count in range(1, len(steps)))]


def how_far(fields: Mapping[str, Any], path: str) -> str:
  """Where a path ends that leads nowhere, for errors; '' where its first step is none."""
  steps = _steps(path)
  *_, (found, left) = _way(fields, steps)
  reached = '.'.join(steps[: len(steps) - len(left)])
  if not reached:
    return ''
  if isinstance(found, dict):
    return f"; '{reached}' has {', '.join(str(name)[:40] for name in list(found)[:_NAMED]) or 'no fields'}"
  held = f'a list of {len(found)}' if isinstance(found, list) else errors.shown(found)
  return f"; '{reached}' is {held}"


def _steps(path: str) -> list[str]:
  return _INDEX.sub(r'.\1', path).split('.')


def _way(found: Any, steps: list[str]) -> Iterator[tuple[Any, list[str]]]:
  """(what lies there, the steps that are left) from the record on, as far as the steps lead."""
  yield found, steps
  while steps:
    taken, after = _step(_opened(found), steps)
    if not taken:
      return
    found, steps = after, steps[taken:]
    yield found, steps


def _opened(found: Any) -> Any:
  return structured(found) if isinstance(found, str) else found


def _step(found: Any, steps: list[str]) -> tuple[int, Any]:
  """(how many steps are one field's name or index, what lies there); no steps where nothing does."""
  if isinstance(found, Mapping):
    for count in range(len(steps), 0, -1):
      if (name := '.'.join(steps[:count])) in found:
        return count, found[name]
  if isinstance(found, list) and _PLACE.fullmatch(steps[0]):
    place = int(steps[0])
    return (1, found[place]) if -len(found) <= place < len(found) else (0, None)
  return 0, None


def structured(text: str) -> list | dict | None:
  """The list or object that a text is, in JSON or as Python writes one; None where it is neither."""
  stripped = text.strip()
  if stripped[:1] + stripped[-1:] not in ('[]', '{}'):
    return None
  try:
    return json_files.decode(stripped)
  except json.JSONDecodeError:
    pass
  except (ValueError, RecursionError):  # A key that occurs twice, too many digits, too deep.
    return None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Backslashes that escape nothing.
      found = ast.literal_eval(stripped)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None
  return found if isinstance(found, list | dict) else None
