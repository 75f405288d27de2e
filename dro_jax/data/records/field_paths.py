"""A record's values by our names: a field of the file, a path into a field, or nothing.

A path leads through objects and lists: `chat.messages`, `scores.0` or `scores[0]`. A field whose own name is
the path comes first. Text on the path that is a list or object, in JSON or as Python writes it, is parsed.
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
_LISTED = 10  # Fields that an error lists.


def value(fields: Mapping[str, Any], names: Mapping[str, str], name: str) -> Any:
  """The value of our `name` in a record; None where it is missing, or the user ignores the column."""
  path = names.get(name, name)
  return reach(fields, path) if path else None


def reach(fields: Mapping[str, Any], path: str) -> Any:
  """The value at a path, or None."""
  field = fields.get(path)
  if field is not None or not is_path(path):
    return field
  *_, (reached, left) = _walk(fields, _steps(path))
  return None if left else reached


def holders(fields: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
  """The objects that a path leads through, the record first."""
  if path in fields or not is_path(path):
    return [fields]
  passed = [_parsed(item) for item, _ in _walk(fields, _steps(path))][:-1]
  return [item for item in passed if isinstance(item, Mapping)]


def is_path(path: str) -> bool:
  return '.' in path or '[' in path


def first_steps(path: str) -> list[str]:
  """The fields that a path may begin with: for `a.b.c` those named `a`, `a.b` and `a.b.c`."""
  steps = _steps(path)
  return [path, *('.'.join(steps[:count]) for count in range(1, len(steps)))]


def how_far(fields: Mapping[str, Any], path: str) -> str:
  """How far a path leads that leads to no value, for errors; '' where its first step fails."""
  steps = _steps(path)
  *_, (reached, left) = _walk(fields, steps)
  prefix = '.'.join(steps[: len(steps) - len(left)])
  if not prefix:
    return ''
  if isinstance(reached, dict):
    return f"; '{prefix}' has {', '.join(str(name)[:40] for name in list(reached)[:_LISTED]) or 'no fields'}"
  description = f'a list of {len(reached)}' if isinstance(reached, list) else errors.shown(reached)
  return f"; '{prefix}' is {description}"


def _steps(path: str) -> list[str]:
  return _INDEX.sub(r'.\1', path).split('.')


def _walk(item: Any, steps: list[str]) -> Iterator[tuple[Any, list[str]]]:
  """(item, steps left) from the record on, as far as the steps lead."""
  yield item, steps
  while steps:
    taken, after = _step(_parsed(item), steps)
    if not taken:
      return
    item, steps = after, steps[taken:]
    yield item, steps


def _parsed(item: Any) -> Any:
  return structured(item) if isinstance(item, str) else item


def _step(item: Any, steps: list[str]) -> tuple[int, Any]:
  """(number of steps that make one name or index, the item there); 0 steps where there is no item."""
  if isinstance(item, Mapping):
    for count in range(len(steps), 0, -1):
      if (name := '.'.join(steps[:count])) in item:
        return count, item[name]
  if isinstance(item, list) and _PLACE.fullmatch(steps[0]):
    place = int(steps[0])
    return (1, item[place]) if -len(item) <= place < len(item) else (0, None)
  return 0, None


def structured(text: str) -> list[Any] | dict[Any, Any] | None:
  """The list or object that a text spells, in JSON or as Python writes it; None for other texts."""
  stripped = text.strip()
  if stripped[:1] + stripped[-1:] not in ('[]', '{}'):
    return None
  try:
    return json_files.decode(stripped)
  except json.JSONDecodeError:
    pass
  except (ValueError, RecursionError):  # A repeated key, too many digits, or nested too deeply.
    return None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Backslashes that escape nothing.
      value = ast.literal_eval(stripped)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None
  return value if isinstance(value, list | dict) else None
