"""The character rules of a SentencePiece model, as steps of the `tokenizers` library that do the same.

SentencePiece replaces the longest sequence of characters that has a rule. The library's own reader of these
rules looks at whole graphemes and takes the shortest rule: it loses the accents of decomposed letters. So
every character is set apart first, each is replaced by its own rule, and rules for several characters, which
compose letters and marks, are left to NFC, which is kept from composing where SentencePiece does not.
"""

import itertools
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, normalizers

APART, BLOCK = '\0', '\uffff'  # No text holds the first, and no letter is the second.
# Combining marks, also of halfwidth kana, and the jamo that follow a syllable's first.
_MARKS = r'\p{M}\x{FF9E}\x{FF9F}\x{1160}-\x{11FF}'
# What joins a grapheme, but what the rules are about.
_JOINED = r'(?=[\p{M}\p{Cf}\p{Sk}\x{FF9E}\x{FF9F}\n])|(?<=\p{Cf})'
_CLASSES = (220, 230, 232)  # Marks below a letter, above it, and above right: NFC puts them in order.


def composing(charsmap: bytes) -> Iterator[str]:
  """The characters that begin a rule for several: paths in a double-array trie of their bytes."""
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
  """The bytes that go on from a place in the trie."""
  return [
    byte
    for byte in range(1, 256)
    if (position ^ byte) < len(units) and units[position ^ byte] & 0x800000FF == byte
  ]


def _width(byte: int) -> int:
  """Bytes of the character that begins with one."""
  return 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)


def _offset(unit: int) -> int:
  return unit >> 10 << ((unit & 1 << 9) >> 6)


def steps(charsmap: bytes) -> list[normalizers.Normalizer]:
  """What replaces characters as a model's rules do."""
  first = list(composing(charsmap))
  blocked = f'(?<![{_class(first)}{_MARKS}])(?=[{_MARKS}])'
  return [
    # A deleted first character would make the library panic: there is always one before it.
    normalizers.Prepend(APART),
    normalizers.Replace(Regex('|'.join([blocked, *_disordered()])), BLOCK),
    normalizers.Replace(Regex(_JOINED), APART),
    normalizers.Precompiled(charsmap),
    normalizers.Replace(APART, ''),
    *([normalizers.NFC()] if first else []),
    normalizers.Replace(BLOCK, ''),
  ]


def _disordered() -> Iterator[str]:
  """Places between marks that NFC would put in another order."""
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
