"""Text that tokenising loses: characters that a vocabulary does not know, line breaks and blanks.

The losses are counted in the files of a complete table, block by block.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import shown

_TEXTS = 2**13  # Texts of a block.
_AROUND = 20  # Bytes of an example before a lost blank.
_AFTER = 40  # Bytes of an example from the lost blank on.
_KEPT = 1000  # Bytes of an example with unknown characters, which `sentences` searches for.
BLANKS = ('\n', '\t', '  ')


def lost_blanks(vocabulary: Vocabulary) -> list[str]:
  """The BLANKS that encoding and decoding lose."""
  return [blank for blank in BLANKS if blank not in vocabulary.decode(vocabulary.encode(f'a{blank}b'))]


def count(directory: str, token_dtype: str, blanks: Sequence[str], unknown: int) -> dict[str, dict[str, Any]]:
  """Counts the losses in a table's prompts and responses; each prompt counts once.

  Args:
    directory: of a table with complete arrays.
    token_dtype: of its tokens.
    blanks: that the table's vocabulary loses.
    unknown: its id of text without a piece.

  Returns:
    By side: the number of `texts`; of texts with an `unknown` token; of `mostly_unknown` texts, with half of
    the tokens unknown; of texts with lost `blanks`; and an example of each, part of a text.
  """
  return {side: _count(directory, side, token_dtype, blanks, unknown) for side in ('prompt', 'response')}


def _count(
  directory: str, side: str, token_dtype: str, blanks: Sequence[str], unknown_id: int
) -> dict[str, Any]:
  path = lambda name: os.path.join(directory, name)  # noqa: E731
  token_offsets = np.load(path(f'{side}_offsets.npy'), mmap_mode='r')
  text_offsets = np.load(path(f'{side}_text_offsets.npy'), mmap_mode='r')
  tokens = np.memmap(path(f'{side}_tokens.bin'), token_dtype, 'r')
  texts = np.memmap(path(f'{side}_texts.bin'), np.uint8, 'r')
  counts = {'texts': len(text_offsets) - 1, 'unknown': 0, 'mostly_unknown': 0, 'blanks': 0}
  examples: dict[str, str] = {}
  for start in range(0, counts['texts'], _TEXTS):
    ends = token_offsets[start : start + _TEXTS + 1]
    unknown = _sums(tokens[ends[0] : ends[-1]] == unknown_id, ends)
    # A text's own tokens, without its EOS.
    mostly = 2 * unknown >= np.maximum(np.diff(ends) - 1, 1)
    bounds = text_offsets[start : start + _TEXTS + 1]
    lost = _lost(texts[bounds[0] : bounds[-1]], bounds - bounds[0], blanks)
    flags_by_kind = {'unknown': unknown > 0, 'mostly_unknown': mostly, 'blanks': _sums(lost, bounds) > 0}
    for kind, flags in flags_by_kind.items():
      counts[kind] += int(flags.sum())
      if kind not in examples and flags.any():
        first = int(flags.argmax())
        text = texts[bounds[first] : bounds[first + 1]].tobytes()
        place = int(lost[bounds[first] - bounds[0] :].argmax())
        part = _part(text, place) if kind == 'blanks' else text[:_KEPT]
        examples[kind] = part.decode(errors='ignore')
  return counts | {'examples': examples}


def _sums(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  """The number of flags between one offset and the next; no two offsets are equal."""
  return np.add.reduceat(flags, offsets[:-1] - offsets[0], dtype=np.int64)


def _lost(letters: np.ndarray, bounds: np.ndarray, blanks: Sequence[str]) -> np.ndarray:
  """Flags at the characters where a lost blank begins, in concatenated texts."""
  lost = np.zeros(len(letters), bool)
  for blank in blanks:
    if len(blank) == 1:
      lost |= letters == ord(blank)
    else:
      twice = (letters[:-1] == ord(' ')) & (letters[1:] == ord(' '))
      twice[bounds[1:-1] - 1] = False  # The end of one text and the start of the next.
      lost[:-1] |= twice
  return lost


def _part(text: Any, place: int) -> Any:
  """The letters or bytes around a place in a text."""
  return text[max(place - _AROUND, 0) : place + _AFTER]


def sentences(lost: Mapping[str, Mapping[str, Any]], vocabulary: Vocabulary) -> Iterator[str]:
  """The losses with an example and a remedy, one sentence for each side and kind."""
  for side, counts in lost.items():
    if counts['unknown']:
      example = _example(counts, vocabulary, 'mostly_unknown', 'unknown')
      yield (
        f'{counts["unknown"]} of {counts["texts"]} {side}s hold characters that the vocabulary does not '
        f'know, and {counts["mostly_unknown"]} of them hold little else ({example}): remove these records, '
        'or use a vocabulary with these characters (bytes spell everything, and `dro_jax train_vocabulary` '
        'makes a vocabulary from your texts) and a checkpoint that was trained with it.'
      )
    if counts['blanks']:
      yield (
        f'{counts["blanks"]} of {counts["texts"]} {side}s lose line breaks, tabs or runs of blanks '
        f'({_example(counts, vocabulary, "blanks")}). Where they matter, as in code, use bytes or a '
        'vocabulary of `dro_jax train_vocabulary` with KEEP_WHITESPACE=true, or write them as words.'
      )


def _example(counts: Mapping[str, Any], vocabulary: Vocabulary, *kinds: str) -> str:
  text = next(counts['examples'][kind] for kind in kinds if kind in counts['examples'])
  letters = vocabulary.encode_batch(list(text))
  text = _part(text, next((i for i, ids in enumerate(letters) if vocabulary.special.unknown in ids), 0))
  return f'{shown(text)} is read as {shown(vocabulary.decode(vocabulary.encode(text)))}'
