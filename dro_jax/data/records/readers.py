"""Files to fields: a mapping for each line or row, and where it stands.

Formats by name: .jsonl, .json, .csv, .tsv, each also .gz, and .parquet. Memory is bounded by one line or
record (`text_files.LINE_LIMIT`), or one batch of rows.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

from dro_jax.data.records import delimited_files, json_files, parquet_files, text_files
from dro_jax.data.records.text_files import Span, count_lines, format_of
from dro_jax.errors import UsageError

FORMATS = (
  '.jsonl', '.json', '.csv', '.tsv', '.jsonl.gz', '.json.gz', '.csv.gz', '.tsv.gz', '.parquet',
)  # fmt: skip


def located(path: str, wanted: Collection[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
  """(file:line, fields) of one file, unchecked; the file must hold a record.

  Of a parquet file only numbers and the `wanted` columns are read, and the others are None; by default all
  are read. A `.json` holds one array of objects, or objects one after the other; the line is the record's
  number.

  Raises:
    UsageError: the file is not what its name says, damaged, or not readable.
  """
  where = None
  read = _READERS[format_of(path)]
  for line, fields in read(path, wanted) if read is parquet_files.read_parquet else read(path):
    where = f'{path}:{line}'
    yield where, fields
  if where is None:
    raise UsageError(f'{path}: the file holds no records; pass one that does')


def spanned(path: str, span: Span) -> Iterator[tuple[str, dict[str, Any]]]:
  """(file:line, fields) of one span of a .jsonl, which may be empty."""
  for line, fields in _read_jsonl(path, span):
    yield f'{path}:{line}', fields


def _read_jsonl(path: str, span: Span | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
  for number, line in text_files.lines(path, span=span):
    if not line.strip():
      continue
    fields = _parsed(line, f'{path}:{number}', 'write one JSON object a line')
    if not isinstance(fields, dict):
      raise UsageError(
        f'{path}:{number}: a JSON {type(fields).__name__}, not an object; write one object a line'
      )
    yield number, fields


def _parsed(text: str, where: str, remedy: str) -> Any:
  try:
    return json_files.decode(text)
  except (ValueError, RecursionError) as error:
    if isinstance(error, json.JSONDecodeError) and '\r' in text.rstrip('\r\n'):
      remedy = r"lines end in a lone carriage return: convert it by tr '\r' '\n'"
    raise json_files.refusal(error, where, remedy) from error


def _read_json(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  yield from enumerate(json_files.objects(text_files.blocks(path), path, text_files.LINE_LIMIT), 1)


_READERS = {
  'jsonl': _read_jsonl,
  'json': _read_json,
  'csv': delimited_files.read_csv,
  'tsv': delimited_files.read_tsv,
  'parquet': parquet_files.read_parquet,
}


__all__ = ['FORMATS', 'Span', 'count_lines', 'format_of', 'located', 'spanned']
