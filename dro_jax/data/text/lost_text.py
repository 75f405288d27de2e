"""What tokenising loses of texts: characters that a vocabulary does not know, line breaks and blanks.

Counted when a table is complete, from its own files, block by block, however it was built.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.data.text.vocabularies import UNKNOWN, Vocabulary
from dro_jax.errors import shown

_TEXTS = 2**13  # Of a block.
_AROUND = 20  # Bytes of an example before a lost blank,
_AFTER = 40  # and from it on.
_KEPT = 1000  # Bytes of an example with unknown characters, which are looked for when it is shown.
BLANKS = ('\n', '\t', '  ')


def lost_blanks(vocabulary: Vocabulary) -> list[str]:
  """Which of BLANKS do not come back."""
  return [blank for blank in BLANKS if blank not in vocabulary.decode(vocabulary.encode(f'a{blank}b'))]


def count(directory: str, token_dtype: str, blanks: Sequence[str]) -> dict[str, dict[str, Any]]:
  """What a table's prompts and responses lose, each prompt once.

  Args:
    directory: the table's, all its arrays complete.
    token_dtype: of its tokens.
    blanks: those that its vocabulary loses.

  Returns:
    By side: `texts`, how many there are; `unknown`, of which a token is unknown; `mostly_unknown`, of which
    half the tokens are; `blanks`, which hold a lost blank; and an example of each, a part of a text.
  """
  return {side: _count(directory, side, token_dtype, blanks) for side in ('prompt', 'response')}


def _count(directory: str, side: str, token_dtype: str, blanks: Sequence[str]) -> dict[str, Any]:
  path = lambda name: os.path.join(directory, name)  # noqa: E731
  token_offsets = np.load(path(f'{side}_offsets.npy'), mmap_mode='r')
  text_offsets = np.load(path(f'{side}_text_offsets.npy'), mmap_mode='r')
  tokens = np.memmap(path(f'{side}_tokens.bin'), token_dtype, 'r')
  texts = np.memmap(path(f'{side}_texts.bin'), np.uint8, 'r')
  counts = {'texts': len(text_offsets) - 1, 'unknown': 0, 'mostly_unknown': 0, 'blanks': 0}
  examples: dict[str, str] = {}
  for start in range(0, counts['texts'], _TEXTS):
    ends = token_offsets[start : start + _TEXTS + 1]
    unknown = _sums(tokens[ends[0] : ends[-1]] == UNKNOWN, ends)
    # A text's own tokens, without its EOS.
    mostly = 2 * unknown >= np.maximum(np.diff(ends) - 1, 1)
    bounds = text_offsets[start : start + _TEXTS + 1]
    lost = _lost(texts[bounds[0] : bounds[-1]], bounds - bounds[0], blanks)
    found = {'unknown': unknown > 0, 'mostly_unknown': mostly, 'blanks': _sums(lost, bounds) > 0}
    for kind, flags in found.items():
      counts[kind] += int(flags.sum())
      if kind not in examples and flags.any():
        first = int(flags.argmax())
        text = texts[bounds[first] : bounds[first + 1]].tobytes()
        place = int(lost[bounds[first] - bounds[0] :].argmax())
        part = _part(text, place) if kind == 'blanks' else text[:_KEPT]
        examples[kind] = part.decode(errors='ignore')
  return counts | {'examples': examples}


def _sums(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  """How many flags are set between one offset and the next, none of which are equal."""
  return np.add.reduceat(flags, offsets[:-1] - offsets[0], dtype=np.int64)


def _lost(letters: np.ndarray, bounds: np.ndarray, blanks: Sequence[str]) -> np.ndarray:
  """Where a lost blank begins, in texts one after the other."""
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
  """The letters, or bytes, around a place of a text."""
  return text[max(place - _AROUND, 0) : place + _AFTER]


def sentences(lost: Mapping[str, Mapping[str, Any]], vocabulary: Vocabulary) -> Iterator[str]:
  """What is lost, with an example and what to do, a sentence for each side and kind."""
  for side, counts in lost.items():
    if counts['unknown']:
      example = _example(counts, vocabulary, 'mostly_unknown', 'unknown')
      yield (
        f'{counts["unknown"]} of {counts["texts"]} {side}s hold characters that the vocabulary does not '
        f'know, and {counts["mostly_unknown"]} of them little else ({example}): leave these records '
        'out, or take a vocabulary that spells them (bytes spell everything, and `dro_jax train_vocabulary` '
        'makes one of your texts) and a checkpoint that was trained with it.'
      )
    if counts['blanks']:
      yield (
        f'{counts["blanks"]} of {counts["texts"]} {side}s lose line breaks, tabs or runs of blanks '
        f'({_example(counts, vocabulary, "blanks")}). Where they matter, as in code, take bytes or a '
        'vocabulary of `dro_jax train_vocabulary` with KEEP_WHITESPACE=true, or write them as words.'
      )


def _example(counts: Mapping[str, Any], vocabulary: Vocabulary, *kinds: str) -> str:
  text = next(counts['examples'][kind] for kind in kinds if kind in counts['examples'])
  letters = vocabulary.encode_batch(list(text))
  text = _part(text, next((i for i, ids in enumerate(letters) if UNKNOWN in ids), 0))
  return f'{shown(text)} is read as {shown(vocabulary.decode(vocabulary.encode(text)))}'
