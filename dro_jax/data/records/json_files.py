"""JSON that people wrote: one value, or the objects of an array or of a file, one after the other.

The memory that reading takes is bounded by the largest record, not by the file.
"""

import collections
import json
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

from dro_jax.errors import UsageError

_BLANKS = ' \t\n\r'
_NEAR = 16  # An error so many characters before the end may be that of a value that continues.


class Repeated(ValueError):
  """A key that one JSON object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    raise Repeated(f'the key {reprlib.repr(counts.most_common(1)[0][0])} occurs twice in one object')
  return fields


_decoder = json.JSONDecoder(object_pairs_hook=_object)


def decode(text: str) -> Any:
  """The value of a JSON text.

  Raises:
    ValueError, RecursionError: the text is not JSON, or a key occurs twice in an object.
  """
  return _decoder.decode(text)


def refusal(error: Exception, where: str, remedy: str, start: int = 0) -> UsageError:
  """The error for text that `decode` refused; its record starts at character `start`."""
  if isinstance(error, json.JSONDecodeError):
    return UsageError(f'{where}: not JSON ({error.msg}, character {error.pos - start + 1}); {remedy}')
  if isinstance(error, Repeated):
    return UsageError(f'{where}: {error}; give each its own name')
  # Nested too deeply, or a number with too many digits.
  return UsageError(f'{where}: not JSON that can be read ({error}); {remedy}')


class _Text:
  """The text of a file from `position` on, read as far as needed."""

  def __init__(self, blocks: Iterable[str]):
    self._blocks = iter(blocks)
    self.text, self.position = '', 0

  def more(self) -> bool:
    """Reads about as much again as there is left; False at the file's end."""
    parts = [self.text[self.position :]]
    count, needed = 0, len(parts[0]) + 1
    while count < needed and (block := next(self._blocks, None)) is not None:
      parts.append(block)
      count += len(block)
    self.text, self.position = ''.join(parts), 0
    return count > 0

  def character(self) -> str:
    """The next character that is not blank, or '' at the end."""
    while True:
      while self.position < len(self.text) and self.text[self.position] in _BLANKS:
        self.position += 1
      if self.position < len(self.text):
        return self.text[self.position]
      if not self.more():
        return ''


def objects(blocks: Iterable[str], path: str, limit: int) -> Iterator[dict[str, Any]]:
  """The objects of a file's text: the items of its one array, or one after the other.

  Args:
    blocks: the text, in parts of any size.
    path: for errors, which name the number of the record.
    limit: characters of a record.

  Raises:
    UsageError: a record is not an object, too long, cut short, or not JSON.
  """
  text = _Text(blocks)
  in_array = text.character() == '['
  text.position += in_array
  number = 0
  while (character := text.character()) and not (in_array and character == ']' and not number):
    where = f'{path}:{number + 1}'
    if in_array and number:
      text.position += 1
      if character == ']':
        break
      if character != ',':
        raise UsageError(f'{where}: no comma between this record and the one before; write the file again')
      text.character()
    number += 1
    yield _next(text, where, limit)
  _check_end(text, path, number, in_array, character)


def _check_end(text: _Text, path: str, number: int, in_array: bool, character: str) -> None:
  if not in_array:
    return
  if not character:
    raise UsageError(f'{path}:{max(number, 1)}: the array has no end: the file seems to be cut short')
  text.position += not number
  if text.character():
    raise UsageError(
      f'{path}:{number}: the file continues after the end of the array; write one array, or .jsonl'
    )


def _next(text: _Text, where: str, limit: int) -> dict[str, Any]:
  """The next object."""
  remedy = 'write the file again'
  while True:
    try:
      record, end = _decoder.raw_decode(text.text, text.position)
      break
    except json.JSONDecodeError as error:
      start = text.position
      if len(text.text) - text.position > limit:
        raise UsageError(
          f'{where}: the record is longer than {limit // 2**20} MiB, the limit for one record'
        ) from error
      continues = error.msg.startswith('Unterminated') or error.pos > len(text.text) - _NEAR
      if not continues:
        raise refusal(error, where, remedy, start) from error
      if not text.more():
        raise refusal(error, where, 'the file seems to be cut short, or is not JSON', start) from error
    except (ValueError, RecursionError) as error:
      raise refusal(error, where, remedy) from error
  text.position = end
  if not isinstance(record, dict):
    raise UsageError(f'{where}: a JSON {type(record).__name__}, not an object; a record is an object')
  return record
