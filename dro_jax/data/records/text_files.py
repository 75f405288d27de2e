"""Text files, plain or gzipped, as numbered lines or blocks of UTF-8 text."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from dro_jax import files
from dro_jax.errors import UsageError

LINE_LIMIT = 2**26  # Bytes of a line, and characters of a csv field or a record of .json.
_BLOCK = 2**18  # Bytes of .json that are read at a time.
_HEAD = 512  # Bytes that show what kind of file it is.
_COUNTED = 2**22  # Bytes in which lines are counted at a time.
# How other files begin, what they are, and the remedy.
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


class Span(NamedTuple):
  """The lines of a file that begin in bytes [start, stop), and the number of the first."""

  start: int
  stop: int
  first: int


def lines(path: str, limit: int | None = None, span: Span | None = None) -> Iterator[tuple[int, str]]:
  """Numbered lines of text, unzipped.

  Args:
    path: of the file.
    limit: bytes of a line at most; None is `LINE_LIMIT`, -1 sets no limit.
    span: the part of the file to read; None reads all of it.

  Raises:
    UsageError: the file is not text, damaged, or not readable.
  """
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


def blocks(path: str) -> Iterator[str]:
  """A file's text, unzipped, in parts of about `_BLOCK` bytes."""
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


def count_lines(path: str, start: int, stop: int) -> int:
  """The number of lines that begin in bytes [start, stop) of a file, on a disk or in a bucket."""
  count, position = int(start == 0 < stop), max(start - 1, 0)
  with epath.Path(path).open('rb') as file:
    file.seek(position)
    while position < stop - 1 and (block := file.read(min(_COUNTED, stop - 1 - position))):
      count, position = count + block.count(b'\n'), position + len(block)
  return count


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


def _check_head(head: bytes, path: str) -> None:
  if kind := _kind(head):
    raise UsageError(f'{path}:1: not .{format_of(path)}; {kind}')


def _kind(head: bytes) -> str:
  """The kind of file that begins like this, and the remedy; '' for text."""
  for magic, kind, remedy in _KINDS:
    if head.startswith(magic):
      return f'it is {kind}: {remedy}'
  if head.lstrip().lower().startswith(_MARKUP):
    return 'it is a web page or XML, perhaps an error page saved instead of the data: download it again'
  if head.count(0) > len(head) // 4:
    return 'every other byte is 0, as in UTF-16 text: convert it: iconv -f UTF-16 -t UTF-8'
  return ''


def kind_of(path: str) -> str:
  try:
    with open(path, 'rb') as file:
      return _kind(file.read(_HEAD))
  except OSError:
    return ''


def _unreadable(path: str, error: Exception, after: str, count: int) -> UsageError:
  if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
    return UsageError(f'{path}: cannot read it ({error})')
  remedy = kind_of(path)
  if count or remedy.startswith('it is gzip'):
    remedy = 'make or download the file again'
  return UsageError(
    f'{path}:{count + 1 if after.endswith("lines") else 1}: the gzip data is damaged or cut short ({error}) '
    f'after {after}; {remedy or "if it is plain text, take .gz off its name"}'
  )


def _too_long(where: str, limit: int) -> UsageError:
  return UsageError(
    f'{where}: the line is longer than {limit // 2**20} MiB, the limit for one line; write one record a '
    'line (a JSON array becomes lines by: jq -c ".[]")'
  )


def _not_utf8(where: str, line: bytes, offset: int, error: UnicodeDecodeError) -> UsageError:
  # The decoder's text lacks the byte order mark.
  at = offset + len(line) - len(error.object) + error.start
  if error.reason == 'unexpected end of data' and not line.endswith(b'\n'):
    likely = 'the file seems to be cut short'
  else:
    name = _likely_encoding(line)
    likely = f'it is likely {name}: convert it by iconv -f {name} -t UTF-8'
  return UsageError(f'{where}: not UTF-8 text: byte {at} of the file is 0x{line[at - offset]:02x}; {likely}')


def _likely_encoding(line: bytes) -> str:
  """A guess at the encoding, for an error message only."""
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
