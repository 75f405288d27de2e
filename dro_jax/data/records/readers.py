"""Files to fields: a mapping for each line or row with where it stands, or an error that says what is wrong.

Formats by name: .jsonl, .json, .csv, .tsv, each also .gz, and .parquet. Memory is bounded by one line or
record (`LINE_LIMIT`), or one batch of rows. A .tsv has a record a line and no quoting, unless it was written
by csv's rules (see `_is_quoted`).
"""

import codecs
import collections
import csv
import gzip
import json
import logging
import os
import zlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from etils import epath

from dro_jax import files
from dro_jax.data.records import json_files
from dro_jax.errors import UsageError, shown

FORMATS = (
  '.jsonl', '.json', '.csv', '.tsv', '.jsonl.gz', '.json.gz', '.csv.gz', '.tsv.gz', '.parquet',
)  # fmt: skip
LINE_LIMIT = 2**26  # Bytes of a line, and characters of a csv field or a record of .json.
_BLOCK = 2**18  # Bytes of .json that are read at a time.
_HEAD = 512  # Bytes that tell what a file is.
_COUNTED = 2**22  # Bytes of lines that are counted at a time.
_BATCH = 1024  # Rows of parquet at a time.
# How other files begin, what they are, and what to do.
_KINDS = (
  (b'\x1f\x8b', 'gzip data', 'give its name the ending .gz'),
  (b'PK\x03\x04', 'a zip archive', 'unpack it'),
  (b'PAR1', 'a parquet file', 'give its name the ending .parquet'),
  (b'\x28\xb5\x2f\xfd', 'zstandard data', 'unpack it'),
  (b'BZh', 'bzip2 data', 'unpack it'),
  (b'\xfd7zXZ\0', 'xz data', 'unpack it'),
  (b'version https://git-lfs', 'a Git LFS pointer without the data', 'run `git lfs pull`'),
  (b'\xff\xfe', 'UTF-16 text', 'convert it: iconv -f UTF-16 -t UTF-8'),
  (b'\xfe\xff', 'UTF-16 text', 'convert it: iconv -f UTF-16 -t UTF-8'),
)
_MARKUP = (b'<!doctype', b'<html', b'<?xml')


def format_of(path: str) -> str:
  """'jsonl', 'csv', 'tsv' or 'parquet'."""
  return path.removesuffix('.gz').rpartition('.')[2]


def located(path: str, wanted: Collection[str] | None = None) -> Iterator[tuple[str, dict]]:
  """(file:line, fields) of one file, unchecked; it must hold something.

  Of parquet's columns only numbers and those that are `wanted` are read, the others are None; by default all
  are.

  A `.json` holds one array of objects, or objects one after the other; the line is the record's number.

  Raises:
    UsageError: the file is not what its name says, damaged, or not readable.
  """
  where = None
  read = _READERS[format_of(path)]
  for line, fields in read(path, wanted) if read is _read_parquet else read(path):
    where = f'{path}:{line}'
    yield where, fields
  if where is None:
    raise UsageError(f'{path}: the file holds no records; pass one that does')


def _kind(head: bytes) -> str:
  """What a file that begins like this is, and what to do; '' for text."""
  for magic, what, remedy in _KINDS:
    if head.startswith(magic):
      return f'it is {what}: {remedy}'
  if head.lstrip().lower().startswith(_MARKUP):
    return 'it is a web page or XML, perhaps an error that was saved instead of a download: get it again'
  if head.count(0) > len(head) // 4:
    return 'every other byte is 0, as in UTF-16 text: convert it: iconv -f UTF-16 -t UTF-8'
  return ''


def _kind_of(path: str) -> str:
  try:
    with open(path, 'rb') as file:
      return _kind(file.read(_HEAD))
  except OSError:
    return ''


class Span(NamedTuple):
  """The lines of a file that begin in bytes [start, stop), and the number of the first."""

  start: int
  stop: int
  first: int


def _lines(path: str, limit: int | None = None, span: Span | None = None) -> Iterator[tuple[int, str]]:
  """Numbered lines of text, unzipped, of `limit` bytes at most; -1 sets none."""
  limit = LINE_LIMIT if limit is None else limit
  number = offset = 0
  line = b''
  try:
    with _opened(path) as file:
      _check_head(_head(file), path)
      if span is not None and span.start:
        file.seek(span.start - 1)
        file.readline()  # The rest of a line that begins before.
        number, offset = span.first - 1, file.tell()
      while (span is None or offset < span.stop) and (line := file.readline(limit + 1 if limit > 0 else -1)):
        number += 1
        if 0 < limit < len(line):
          raise _too_long(f'{path}:{number}', limit)
        yield number, line.decode('utf-8-sig' if number == 1 else 'utf-8')
        offset += len(line)
  except UnicodeDecodeError as error:
    raise _not_utf8(f'{path}:{number}', line, offset, error) from error
  except (OSError, EOFError, zlib.error) as error:
    raise _unreadable(path, error, f'{number} whole lines', number) from error


def _blocks(path: str) -> Iterator[str]:
  """A file's text, unzipped, in parts of `_BLOCK` bytes or so."""
  decoder = codecs.getincrementaldecoder('utf-8-sig')()
  count = 0
  try:
    with _opened(path) as file:
      _check_head(_head(file), path)
      while block := file.read(_BLOCK):
        count += len(block)
        yield decoder.decode(block)
      yield decoder.decode(b'', final=True)
  except UnicodeDecodeError as error:
    raise _not_utf8(path, error.object, count - len(error.object), error) from error
  except (OSError, EOFError, zlib.error) as error:
    raise _unreadable(path, error, f'{count} bytes', count) from error


def _unreadable(path: str, error: Exception, after: str, count: int) -> UsageError:
  if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
    return UsageError(f'{path}: cannot read it ({error})')
  remedy = _kind_of(path)
  if count or remedy.startswith('it is gzip'):
    remedy = 'make or download the file again'
  return UsageError(
    f'{path}:{count + 1 if after.endswith("lines") else 1}: the gzip data is damaged or cut short ({error}) '
    f'after {after}; {remedy or "if it is plain text, take .gz off its name"}'
  )


def _opened(path: str) -> Any:
  if files.is_remote(path):
    return epath.Path(path).open('rb')
  return gzip.open(path) if path.endswith('.gz') else open(path, 'rb')


def _head(file: Any) -> bytes:
  if hasattr(file, 'peek'):
    return file.peek(_HEAD)[:_HEAD]
  head = file.read(_HEAD)
  file.seek(0)
  return head


def count_lines(path: str, start: int, stop: int) -> int:
  """How many lines begin in bytes [start, stop) of a file, on a disk or in a bucket."""
  count, at = int(start == 0 < stop), max(start - 1, 0)
  with epath.Path(path).open('rb') as file:
    file.seek(at)
    while at < stop - 1 and (block := file.read(min(_COUNTED, stop - 1 - at))):
      count, at = count + block.count(b'\n'), at + len(block)
  return count


def spanned(path: str, span: Span) -> Iterator[tuple[str, dict]]:
  """(file:line, fields) of the part of a .jsonl that a span is; it may be empty."""
  for line, fields in _read_jsonl(path, span):
    yield f'{path}:{line}', fields


def _check_head(head: bytes, path: str) -> None:
  if kind := _kind(head):
    raise UsageError(f'{path}:1: not .{format_of(path)}; {kind}')


def _too_long(where: str, limit: int) -> UsageError:
  return UsageError(
    f'{where}: the line is longer than {limit // 2**20} MiB, the most that one may have; write one record a '
    'line (a JSON array becomes lines by: jq -c ".[]")'
  )


def _not_utf8(where: str, line: bytes, offset: int, error: UnicodeDecodeError) -> UsageError:
  # A byte order mark is not in what the decoder complains of.
  at = offset + len(line) - len(error.object) + error.start
  if error.reason == 'unexpected end of data' and not line.endswith(b'\n'):
    likely = 'the file seems to be cut short'
  else:
    name = _likely_encoding(line)
    likely = f'it is likely {name}: convert it by iconv -f {name} -t UTF-8'
  return UsageError(f'{where}: not UTF-8 text: byte {at} of the file is 0x{line[at - offset]:02x}; {likely}')


def _likely_encoding(line: bytes) -> str:
  """A guess for an error's words: nothing is read by it."""
  high = sum(byte > 127 for byte in line)
  for name in ('SHIFT_JIS', 'GB18030'):
    try:
      text = line.decode(name)
    except UnicodeDecodeError:
      continue
    # In both a character takes two bytes, in Latin letters' encodings one.
    if high > 3 and sum('\u3040' <= letter <= '\u9fff' for letter in text) * 2 >= 0.9 * high:
      return name
  return 'WINDOWS-1252'


def _parsed(text: str, where: str, remedy: str) -> Any:
  try:
    return json_files.decode(text)
  except (ValueError, RecursionError) as error:
    if isinstance(error, json.JSONDecodeError) and '\r' in text.rstrip('\r\n'):
      remedy = r"lines end in a lone carriage return: convert it by tr '\r' '\n'"
    raise json_files.refusal(error, where, remedy) from error


def _read_jsonl(path: str, span: Span | None = None) -> Iterator[tuple[int, dict]]:
  for number, line in _lines(path, span=span):
    if not line.strip():
      continue
    fields = _parsed(line, f'{path}:{number}', 'write one JSON object a line')
    if not isinstance(fields, dict):
      raise UsageError(
        f'{path}:{number}: a JSON {type(fields).__name__}, not an object; write one object a line'
      )
    yield number, fields


def _read_json(path: str) -> Iterator[tuple[int, dict]]:
  yield from enumerate(json_files.objects(_blocks(path), path, LINE_LIMIT), 1)


def _read_csv(path: str, delimiter: str = ',') -> Iterator[tuple[int, dict]]:
  csv.field_size_limit(LINE_LIMIT)
  reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
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
    # A quote that is never closed is told at the file's end.
    row = f' in the row that begins at line {begins}' if begins < reader.line_num else ''
    raise UsageError(
      f'{path}:{reader.line_num}: {error}{row}; quote fields that hold quotes (doubled), delimiters or line '
      'breaks, end lines in a line feed, or write .jsonl'
    ) from error


def _read_tsv(path: str) -> Iterator[tuple[int, dict]]:
  return _read_csv(path, '\t') if _is_quoted(path) else _read_unquoted(path)


class _Quotes(NamedTuple):
  """The lines of a .tsv on which, after the header, each of these is first seen; 0 where none is.

  uneven   a line has another number of fields than the header.
  open     a field begins with a quote and does not end as a quoted field would, on the same line.
  doubled  a field is quoted, and the quotes in it are doubled.
  bare     a field begins and ends with a quote and holds none.
  """

  uneven: int = 0
  open: int = 0
  doubled: int = 0
  bare: int = 0


def _is_quoted(path: str) -> bool:
  """Whether quotes in a .tsv are csv's, or belong to the text, as tab-separated files know none.

  Csv's quotes may hide tabs and line breaks, and text's may look like them: a file that both ways explain is
  refused, but for doubled quotes, which only csv's writers make.

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
    'enclose it as in csv files; both ways the file reads, as different records. Write .jsonl: python -c '
    "\"import pandas; pandas.read_csv('IN.tsv', sep='\\t', quoting=3).to_json('OUT.jsonl', "
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
  """Which of `_Quotes` a cell is that begins with one."""
  inner = cell[1:-1]
  if len(cell) < 2 or not cell.endswith('"') or '"' in inner.replace('""', ''):
    return 'open'
  return 'doubled' if '"' in inner else 'bare'


def _cells(path: str) -> Iterator[tuple[int, list[str]]]:
  """The cells of a .tsv's lines that are not empty, quotes being text."""
  for number, line in _lines(path):
    if text := line.removesuffix('\n').removesuffix('\r'):
      yield number, text.split('\t')


def _parses(path: str) -> bool:
  """Whether the whole of a .tsv can be read by csv's rules."""
  try:
    collections.deque(_read_csv(path, '\t'), maxlen=0)
    return True
  except UsageError:
    return False


def _read_unquoted(path: str) -> Iterator[tuple[int, dict]]:
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
      f'{path}:1: the header is one field, {shown(header[0])}; a .{format_of(path)} file is delimited by '
      f'{delimiter!r}, and this one seems to be by {other!r}'
    )


def _read_parquet(path: str, wanted: Collection[str] | None = None) -> Iterator[tuple[int, dict]]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  number = 0
  try:
    if not os.path.getsize(path):
      return
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
      _check_names(file.schema_arrow.names, path)
      kept = _kept(file.schema_arrow, wanted, path)
      empty = dict.fromkeys(file.schema_arrow.names)
      for batch in file.iter_batches(batch_size=_BATCH, columns=kept):
        for fields in _rows(batch, f'{path}:{number + 1}'):
          number += 1
          yield number, empty | fields
  # Text that is not UTF-8, dates that Python has not: ValueErrors that Arrow does not raise as its own.
  except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError) as error:
    if isinstance(error, UsageError):
      raise
    remedy = _kind_of(path)
    remedy = remedy if remedy and not remedy.startswith('it is a parquet') else 'write the file again'
    raise UsageError(f'{path}:{number + 1}: not readable as parquet ({error}); {remedy}') from error


def _check_names(names: list[str], path: str) -> None:
  if len(set(names)) < len(names):
    raise UsageError(f'{path}: a column name occurs twice in {shown(names)}; give each its own')


def _kept(schema: Any, wanted: Collection[str] | None, path: str) -> list[str]:
  """The columns of a parquet file to read: what is wanted, and numbers; the log says which are not."""
  import pyarrow as pa

  types = {field.name: _content(field.type) for field in schema}
  if wanted is None:
    return list(types)
  left = {
    name: kind for name, kind in types.items()
    if name not in wanted
    and not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))
    and not pa.types.is_decimal(kind)
  }  # fmt: skip
  odd = {
    name: kind for name, kind in left.items()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
  }  # fmt: skip
  if odd:
    logging.getLogger(__name__).info(
      '%s: columns that are neither numbers nor asked for are not read: %s', path,
      ', '.join(f'{name} ({str(kind)[:40]})' for name, kind in odd.items()),
    )  # fmt: skip
  return [name for name in types if name not in left]


def _content(kind: Any) -> Any:
  """The type of a column's values, where they are written by number."""
  return kind.value_type if hasattr(kind, 'index_type') else kind


def _rows(batch: Any, where: str) -> Iterator[dict]:
  if not batch.num_columns:
    yield from ({} for _ in range(batch.num_rows))
    return
  columns = [_values(field, column, where) for field, column in zip(batch.schema, batch.columns)]
  for values in zip(*columns):
    yield dict(zip(batch.schema.names, values))


def _undated(column: Any) -> Any:
  """A column whose nested dates and times, which Python may not have, are whole numbers."""
  kind = _numbered(column.type)
  return column if kind == column.type else column.cast(kind)


def _numbered(kind: Any) -> Any:
  """A type with integers for dates and times, where lists and objects hold any."""
  import pyarrow as pa

  if pa.types.is_struct(kind):
    return pa.struct([field.with_type(_numbered(field.type)) for field in kind])
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    make = pa.list_ if pa.types.is_list(kind) else pa.large_list
    return make(kind.value_field.with_type(_numbered(kind.value_type)))
  if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
    return pa.int32() if kind.bit_width == 32 else pa.int64()
  return kind


def _values(field: Any, column: Any, where: str) -> list:
  import pyarrow as pa

  try:
    return (column if pa.types.is_primitive(field.type) else _undated(column)).to_pylist()
  # Text that is not UTF-8, dates that Python has not: ValueErrors that Arrow does not raise as its own.
  except (pa.ArrowException, ValueError, OverflowError, TypeError, KeyError) as error:
    raise UsageError(
      f'{where}: not readable as parquet: column {shown(field.name)} ({str(field.type)[:40]}) cannot be read '
      f'({error}); write it again, as text or numbers, or leave it alone by --columns NAME='
    ) from error


_READERS = {
  'jsonl': _read_jsonl,
  'json': _read_json,
  'csv': _read_csv,
  'tsv': _read_tsv,
  'parquet': _read_parquet,
}
