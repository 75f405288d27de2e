"""Delimited files: .csv by csv's rules, and .tsv.

A .tsv has a record a line and no quoting, unless it was written by csv's rules (see `_is_quoted`).
"""

import collections
import csv
from collections.abc import Iterator
from typing import Any, NamedTuple

from dro_jax.data.records import text_files
from dro_jax.errors import UsageError, shown


def read_csv(path: str, delimiter: str = ',') -> Iterator[tuple[int, dict[str, Any]]]:
  csv.field_size_limit(text_files.LINE_LIMIT)
  reader = csv.reader((line for _, line in text_files.lines(path)), delimiter=delimiter, strict=True)
  begins = 1
  try:
    header = next(filter(None, reader), [])
    _check_header(header, path, delimiter)
    begins = reader.line_num + 1
    for row in reader:
      if row and len(row) != len(header):
        raise UsageError(
          f'{path}:{reader.line_num}: {len(row)} fields, but the header has {len(header)}; quote fields that '
          'hold the delimiter or a line break'
        )
      if row:
        yield reader.line_num, {name: value for name, value in zip(header, row) if value != ''}
      begins = reader.line_num + 1
  except csv.Error as error:
    # The csv module reports a quote that is never closed only at the file's end.
    place = f' in the row that begins at line {begins}' if begins < reader.line_num else ''
    raise UsageError(
      f'{path}:{reader.line_num}: {error}{place}; quote fields that hold quotes (doubled), delimiters or '
      'line breaks, end lines in a line feed, or write .jsonl'
    ) from error


def read_tsv(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  return read_csv(path, '\t') if _is_quoted(path) else _read_unquoted(path)


class _Quotes(NamedTuple):
  """The first line of a .tsv, after the header, with each of these; 0 where there is none.

  Attributes:
    uneven: a line has another number of fields than the header.
    open: a field begins with a quote and does not end as a quoted field would, on the same line.
    doubled: a field is quoted, and the quotes in it are doubled.
    bare: a field begins and ends with a quote and holds none.
  """

  uneven: int = 0
  open: int = 0
  doubled: int = 0
  bare: int = 0


def _is_quoted(path: str) -> bool:
  """Whether quotes in a .tsv are csv's, or belong to the text: tab-separated files have no quoting.

  Csv's quotes may enclose tabs and line breaks, and quotes in texts may look like csv's. A file that can be
  read both ways is refused, except where it has doubled quotes, which only csv's writers make.

  Raises:
    UsageError: the file can be read both ways, and the records would differ.
  """
  header, quotes = _scan(path)
  if any(cell.startswith('"') for cell in header):
    return True
  if not any(quotes[1:]):
    return False
  if quotes.uneven or quotes.open:
    parses = _parses(path)
    if quotes.uneven or not parses:
      return parses
  elif quotes.doubled:
    return True
  raise UsageError(
    f'{path}:{quotes.open or quotes.bare}: a field begins with quotes, and they may belong to the text, or '
    'enclose it as in csv files: the file can be read both ways, and the records differ. Write .jsonl: '
    "python -c \"import pandas; pandas.read_csv('IN.tsv', sep='\\t', quoting=3).to_json('OUT.jsonl', "
    "orient='records', lines=True)\" (quoting=3: they belong to the text; quoting=0: they enclose it)"
  )


def _scan(path: str) -> tuple[list[str], _Quotes]:
  """The header's cells, and where quotes are."""
  header: list[str] = []
  first: dict[str, int] = {}
  for number, cells in _cells(path):
    if not header:
      header = cells
      continue
    if len(cells) != len(header):
      first.setdefault('uneven', number)
    for cell in cells:
      if cell.startswith('"'):
        first.setdefault(_quoting(cell), number)
  return header, _Quotes(**first)


def _quoting(cell: str) -> str:
  """The kind of `_Quotes` of a cell that begins with a quote."""
  inner = cell[1:-1]
  if len(cell) < 2 or not cell.endswith('"') or '"' in inner.replace('""', ''):
    return 'open'
  return 'doubled' if '"' in inner else 'bare'


def _cells(path: str) -> Iterator[tuple[int, list[str]]]:
  """The cells of a .tsv's lines that are not empty; quotes are text."""
  for number, line in text_files.lines(path):
    if text := line.removesuffix('\n').removesuffix('\r'):
      yield number, text.split('\t')


def _parses(path: str) -> bool:
  """Whether csv's rules can read a whole .tsv."""
  try:
    collections.deque(read_csv(path, '\t'), maxlen=0)
    return True
  except UsageError:
    return False


def _read_unquoted(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  header: list[str] = []
  for number, cells in _cells(path):
    if any('\r' in cell for cell in cells):
      raise UsageError(f'{path}:{number}: a lone carriage return; end lines in a line feed, or write .jsonl')
    if not header:
      header = cells
      _check_header(header, path, '\t')
      continue
    if len(cells) != len(header):
      raise UsageError(
        f'{path}:{number}: {len(cells)} fields, but the header has {len(header)}; a text with tabs or line '
        'breaks needs another format: write .jsonl'
      )
    yield number, {name: value for name, value in zip(header, cells) if value != ''}


def _check_header(header: list[str], path: str, delimiter: str) -> None:
  if len(set(header)) < len(header):
    raise UsageError(f'{path}:1: a column name occurs twice in the header {shown(header)}; give each its own')
  other = next((mark for mark in ',;\t|' if mark != delimiter and mark in ''.join(header)), None)
  if len(header) == 1 and other:
    raise UsageError(
      f'{path}:1: the header is one field, {shown(header[0])}; a .{text_files.format_of(path)} file is '
      f'delimited by {delimiter!r}, and this one seems to be delimited by {other!r}'
    )
