"""Files as this project reads and writes them: JSON lines, and where a result may be written."""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dro_jax.errors import UsageError
from dro_jax.plain import plain

# What other programs (`str.splitlines` among them) take for the end of a line, and half a surrogate pair,
# which UTF-8 cannot hold. JSON escapes the other control characters itself.
_ESCAPED = re.compile('[\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def json_text(value: Any, **options: Any) -> str:
  """A value as JSON that every reader takes: what is not finite is null, for JSON has no NaN.

  All that the package writes as JSON goes through here. `options` are those of `json.dumps`.
  """
  return json.dumps(plain(value), allow_nan=False, **options)


def json_line(record: Mapping[str, Any]) -> str:
  """A record as one line of JSON, for people and for any reader: only its last character ends a line."""
  text = json_text(record, ensure_ascii=False)
  return _ESCAPED.sub(lambda match: f'\\u{ord(match[0]):04x}', text) + '\n'


def json_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The records of a file of JSON lines. Only a line feed ends a line: texts may hold other separators.

  The last line of a file that is still written, or whose writer was killed, may be torn: it is passed over.

  Raises:
    UsageError: another line is no JSON object.
  """
  lines = path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    record = parsed(line)
    if record is not None:
      yield record
    elif number < len(lines):
      raise UsageError(f'{path}:{number}: the line is no JSON object. Remove the line, or bring back a copy')


def parsed(line: bytes) -> dict[str, Any] | None:
  """The JSON object that a line holds; None where it holds none."""
  try:
    record = json.loads(line)
  except ValueError:  # Bytes that are cut within a character are no UTF-8, which is a ValueError too.
    return None
  return record if isinstance(record, dict) else None
