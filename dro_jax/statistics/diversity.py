"""How much texts repeat each other, and themselves: distinct-n, self-BLEU, repetition. Words and n-grams.

Each measure depends on the number of texts and on their lengths: compare it only between policies that
answered the same prompts equally often.

P prompts, K responses to each, each a list of words.
"""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Words = Sequence[str]

_WORD = re.compile(r'\w+|[^\w\s]+')
_ORDER = 4  # Of the longest n-grams that BLEU counts.
_EPSILON = 0.1  # What BLEU counts in place of no match at all.


def words_of(text: str) -> list[str]:
  """The words of a text: runs of letters and digits, and runs of other marks. Case is kept.

  The expression is `\\w+|[^\\w\\s]+`, as of nltk's `wordpunct_tokenize`. A text of a language that writes no
  blanks between words is one long word.
  """
  return _WORD.findall(text)


def repetition(words: Words, order: int = 4) -> float:
  """The share of a text's n-grams that it has had before; 0 of a text with fewer than n words.

  seq-rep-n = 1 − |distinct n-grams| / |n-grams|

  Welleck et al., "Neural Text Generation with Unlikelihood Training", arXiv 1908.04319, Sect. 6.1.
  """
  grams = [*_ngrams(words, order)]
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


class Distinct(NamedTuple):
  """distinct-n of all responses, and its values without each prompt, `[P]`, for `bootstrap.jackknife`.

  Draws with replacement would misjudge it: what is drawn twice is not distinct.
  """

  value: float
  without_P: np.ndarray


def distinct(responses_PK: Sequence[Sequence[Words]], order: int) -> Distinct:
  """The n-grams that occur in any response, each counted once, by word.

  distinct-n = |distinct n-grams of all responses| / |words of all responses|

  Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", arXiv 1510.03055,
  Sect. 5.3. It falls as there are more responses, for they share more of their n-grams. `nan` where there are
  no words.

  Args:
    responses_PK: the responses to each prompt, as words.
    order: n.
  """
  owners: dict[tuple[str, ...], int] = {}  # The one prompt whose responses have the n-gram; −1: several.
  words_P = np.zeros(len(responses_PK))
  for p, responses in enumerate(responses_PK):
    for words in responses:
      words_P[p] += len(words)
      for gram in _ngrams(words, order):
        if owners.setdefault(gram, p) != p:
          owners[gram] = -1
  single = [p for p in owners.values() if p >= 0]
  own_P = np.bincount(np.asarray(single, np.int64), minlength=len(words_P))
  rest_P = words_P.sum() - words_P
  without_P = np.full(len(words_P), math.nan)
  np.divide(len(owners) - own_P, rest_P, out=without_P, where=rest_P > 0)
  return Distinct(len(owners) / words_P.sum() if words_P.sum() else math.nan, without_P)


def self_bleu(responses: Sequence[Words]) -> float:
  """How alike the responses to one prompt are: the mean BLEU of each against all others as references.

  Zhu et al., "Texygen", arXiv 1802.01886, Sect. 3.2: 1 of equal responses of four words or more, and
  0.1^((4 − n)/4) of equal ones of n < 4 words, which have no longer n-grams to match. BLEU (Papineni et al.
  2002) is that of one sentence, over n-grams of 1 to 4 words with equal weights; where no n-gram of an order
  matches, 0.1 matches count (Chen & Cherry 2014, method 1), as in nltk's `sentence_bleu`, which Texygen
  calls. `nan` of fewer than two responses.
  """
  if len(responses) < 2:
    return math.nan
  counts = [[collections.Counter(_ngrams(words, n)) for n in range(1, _ORDER + 1)] for words in responses]
  most = [_two_largest([of[i] for of in counts]) for i in range(_ORDER)]
  lengths = [len(words) for words in responses]
  return math.fsum(_bleu(k, counts[k], most, lengths) for k in range(len(responses))) / len(responses)


def _ngrams(words: Words, order: int) -> Iterator[tuple[str, ...]]:
  return zip(*(words[i:] for i in range(order)))


# Of an n-gram: its count in the response that has most of it, which response that is, and the next count.
_Largest = tuple[int, int, int]
_Counts = collections.Counter[tuple[str, ...]]


def _two_largest(counts: Sequence[_Counts]) -> dict[tuple[str, ...], _Largest]:
  largest: dict[tuple[str, ...], _Largest] = {}
  for k, of in enumerate(counts):
    for gram, count in of.items():
      first, owner, second = largest.get(gram, (0, -1, 0))
      largest[gram] = (count, k, first) if count > first else (first, owner, max(second, count))
  return largest


def _bleu(
  k: int,
  counts: Sequence[_Counts],
  most: Sequence[dict[tuple[str, ...], _Largest]],
  lengths: Sequence[int],
) -> float:
  """BLEU of response k, whose n-grams are counted, against all others."""
  logs: list[float] = []
  for of, largest in zip(counts, most):
    entries = ((count, largest[gram]) for gram, count in of.items())
    # No n-gram counts more often than in the reference that has it most often.
    matches = sum(min(count, second if owner == k else first) for count, (first, owner, second) in entries)
    if matches == 0 and not logs:
      return 0.0
    logs.append(math.log((matches or _EPSILON) / max(of.total(), 1)))
  others = [length for i, length in enumerate(lengths) if i != k]
  closest = min(others, key=lambda length: (abs(length - lengths[k]), length))
  brevity = min(1 - closest / lengths[k], 0.0)
  return math.exp(brevity + math.fsum(logs) / _ORDER)
