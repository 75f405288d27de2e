"""What a judge said about two answers, read by an exact grammar: what it does not fit is never guessed.

A verdict is one line `Verdict: A`, `Verdict: B` or `Verdict: tie`, anywhere in the reply, in any case, with
or without bold or a full stop; or the whole reply is `A`, `B` or `tie`. Two lines that differ are no verdict.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SCORES = {'a': 1.0, 'b': 0.0, 'tie': 0.5}
_LINE = re.compile(r'^[ \t*_]*verdict[ \t*_]*:[ \t*_]*(a|b|tie)[ \t*_.]*$', re.IGNORECASE | re.MULTILINE)
_ALONE = re.compile(r'\s*[*_]*(a|b|tie)[*_.]*\s*', re.IGNORECASE)


class Verdict(NamedTuple):
  """The score of the answer shown first: 1 it wins, 0 it loses, ½ a tie; NaN where the reply has no verdict.

  soft  whether the score is a probability, from the log-probs of the verdict's token.
  """

  score: float
  soft: bool = False


class Token(NamedTuple):
  """A token of a reply: its text, its bytes, and the log-probs of the likeliest tokens there by text."""

  text: str
  size: int
  top: Mapping[str, float]


MALFORMED = Verdict(math.nan)


def parse(reply: str, labels: Sequence[Mapping[str, Any]] = ()) -> Verdict:
  """The verdict in a reply.

  Args:
    reply: the judge's text.
    labels: the reply's tokens that are labels (see `label_tokens`); with them the score is
      P(A) + ½ P(tie) over P(A) + P(B) + P(tie).
  """
  matches = list(_LINE.finditer(reply)) or [match for match in [_ALONE.fullmatch(reply)] if match]
  verdicts = {match[1].lower() for match in matches}
  if len(verdicts) != 1:
    return MALFORMED
  soft = _soft_score(len(reply[: matches[-1].start(1)].encode()), labels)
  return Verdict(SCORES[verdicts.pop()]) if soft is None else Verdict(soft, soft=True)


def label_tokens(tokens: Iterable[Token]) -> list[dict[str, Any]]:
  """The tokens of a reply that are labels, as plain JSON: the bytes where each begins and ends, and `top`."""
  found, end = [], 0
  for token in tokens:
    start, end = end, end + token.size
    if token.text.strip().lower() in SCORES:
      found.append({'start': start, 'end': end, 'top': dict(token.top)})
  return found


def _soft_score(place: int, labels: Sequence[Mapping[str, Any]]) -> float | None:
  """The score by the probabilities at the label that holds a byte of the reply; `None` where none does."""
  for label in labels:
    if label['start'] <= place < label['end']:
      return _score_of(label['top'])
  return None


def _score_of(top: Mapping[str, float]) -> float | None:
  mass = dict.fromkeys(SCORES, 0.0)
  for token, logprob in top.items():
    label = token.strip().lower()
    if label in mass:
      mass[label] += math.exp(logprob)
  total = sum(mass.values())
  return sum(SCORES[label] * p for label, p in mass.items()) / total if total > 0 else None
