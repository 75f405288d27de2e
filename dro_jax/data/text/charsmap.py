"""The character rules of a SentencePiece model as equivalent steps of the `tokenizers` library.

SentencePiece replaces the longest sequence of characters that has a rule. The library's own reader of these
rules takes the shortest rule within a grapheme, and loses the accents of decomposed letters. So these steps
separate all characters first and replace each by its own rule. NFC then applies the rules for several
characters, which compose letters and marks, and is blocked where SentencePiece does not compose.
"""

import itertools
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, normalizers

APART, BLOCK = '\0', '\uffff'  # Texts hold no NUL, and U+FFFF is not a character.
# Combining marks, marks of halfwidth kana, and the jamo after a syllable's first.
_MARKS = r'\p{M}\x{FF9E}\x{FF9F}\x{1160}-\x{11FF}'
# Characters that join a grapheme.
_JOINED = r'(?=[\p{M}\p{Cf}\p{Sk}\x{FF9E}\x{FF9F}\n])|(?<=\p{Cf})'
_CLASSES = (220, 230, 232)  # Marks below a letter, above it, and above right, which NFC sorts.


def composing(charsmap: bytes) -> Iterator[str]:
  """The characters that begin a rule for several characters: paths in a double-array trie of bytes."""
  (size,) = struct.unpack('<I', charsmap[:4])
  units = struct.unpack(f'<{size // 4}I', charsmap[4 : 4 + size])
  pending = [(b'', _offset(units[0]))]
  while pending:
    key, position = pending.pop()
    children = _children(units, position)
    if key and len(key) == _width(key[0]):
      yield from [key.decode()] if children else []
    else:
      below = [position ^ byte ^ _offset(units[position ^ byte]) for byte in children]
      pending += [(key + bytes([byte]), place) for byte, place in zip(children, below)]


def _children(units: Sequence[int], position: int) -> list[int]:
  """The bytes that continue a path from a position in the trie."""
  return [
    byte
    for byte in range(1, 256)
    if (position ^ byte) < len(units) and units[position ^ byte] & 0x800000FF == byte
  ]


def _width(byte: int) -> int:
  """The number of bytes of a character by its first byte."""
  return 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)


def _offset(unit: int) -> int:
  return unit >> 10 << ((unit & 1 << 9) >> 6)


def steps(charsmap: bytes) -> list[normalizers.Normalizer]:
  """Steps that replace characters by a model's rules."""
  first = list(composing(charsmap))
  blocked = f'(?<![{_class(first)}{_MARKS}])(?=[{_MARKS}])'
  return [
    # The library panics when the first character is deleted, so that one is put before it.
    normalizers.Prepend(APART),
    normalizers.Replace(Regex('|'.join([blocked, *_disordered()])), BLOCK),
    normalizers.Replace(Regex(_JOINED), APART),
    normalizers.Precompiled(charsmap),
    normalizers.Replace(APART, ''),
    *([normalizers.NFC()] if first else []),
    normalizers.Replace(BLOCK, ''),
  ]


def _disordered() -> Iterator[str]:
  """Regular expressions for places between marks that NFC would reorder."""
  marks = {chr(point): unicodedata.combining(chr(point)) for point in range(0x300, 0x1E94B)}
  for limit in _CLASSES:
    late = _class(mark for mark, kind in marks.items() if kind >= limit)
    early = _class(mark for mark, kind in marks.items() if 0 < kind < limit)
    yield f'(?<=[{late}])(?=[{early}])'


def _class(characters: Iterable[str]) -> str:
  """The inside of a regular expression's [...]."""
  points = sorted(map(ord, characters))
  runs = itertools.groupby(enumerate(points), lambda numbered: numbered[1] - numbered[0])
  spans = ([point for _, point in run] for _, run in runs)
  return ''.join(f'\\x{{{span[0]:X}}}-\\x{{{span[-1]:X}}}' for span in spans)
