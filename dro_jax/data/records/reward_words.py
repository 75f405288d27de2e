"""Numbers for rewards that are words: `--map_reward up=1,down=0`, emoji, booleans, stars.

Words must match exactly, except for a boolean's case, a number's spelling (1 and 1.0) and an emoji's colours
(variation selectors and skin tones). An unlisted word is an error. Two rules can replace a
list, or add to it:

    numbers    text that is a number: "0.25"
    stars      the number of lit or named stars: "★★★☆☆", "⭐⭐", "3/5", "3 of 5", "3 stars"; all texts that
               name the largest number of stars must name the same
"""

import collections
import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from dro_jax.errors import UsageError, did_you_mean, shown

_COLOURS = re.compile('[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]')
_BOOLEANS = ('true', 'false')
_LISTED = 12  # Words that a message lists.

_LIT = re.compile('([★⭐🌟]*)([☆✩]*)')
_OUT_OF = re.compile(r'(\d+(?:\.\d+)?) ?(?:/|of|out of) ?(\d+)(?: stars?)?', re.ASCII)
_NAMED_STARS = re.compile(r'(\d+(?:\.\d+)?) stars?', re.ASCII)


class ParsedReward(NamedTuple):
  """A number, and the largest possible number where the text names it."""

  number: float
  most: int | None = None


def _numbers(text: str) -> ParsedReward | None:
  number = as_number(text)
  return None if number is None else ParsedReward(number)


def _stars(text: str) -> ParsedReward | None:
  text = _COLOURS.sub('', text).strip().lower()
  if text and (lit := _LIT.fullmatch(text)):
    return ParsedReward(float(len(lit[1])), len(lit[1] + lit[2]) if lit[2] else None)
  if match := _OUT_OF.fullmatch(text):
    return ParsedReward(float(match[1]), int(match[2]))
  if match := _NAMED_STARS.fullmatch(text):
    return ParsedReward(float(match[1]))
  return None


_RULES: Mapping[str, Callable[[str], ParsedReward | None]] = {'numbers': _numbers, 'stars': _stars}


class RewardWords(NamedTuple):
  """The parsed `--map_reward`.

  Attributes:
    numbers: by the word's canonical spelling.
    written: the words as the user wrote them, by the canonical spelling.
    rules: names of rules.
  """

  numbers: Mapping[str, float]
  written: Mapping[str, str]
  rules: tuple[str, ...] = ()


def parse(map_reward: str | Mapping[str, float | int] | None) -> RewardWords:
  """Reads 'up=1,down=0' (the last = of a part counts), a mapping, names of rules, or nothing.

  A word with a comma, or with blanks around it, needs a mapping.

  Raises:
    UsageError: a word has no number, or two.
  """
  numbers: dict[str, float] = {}
  written: dict[str, str] = {}
  pairs, rules = _pairs(map_reward)
  for word, value in pairs:
    spelling, number = _canonical(word), _finite(value, word)
    if numbers.setdefault(spelling, number) != number:
      raise UsageError(
        f"map_reward '{map_reward}': {shown(written[spelling])} and {shown(word)} are the same word "
        'with two different numbers; give it one number'
      )
    written.setdefault(spelling, word)
  return RewardWords(numbers, written, rules)


def _pairs(
  map_reward: str | Mapping[str, float | int] | None,
) -> tuple[list[tuple[str, Any]], tuple[str, ...]]:
  if not map_reward:
    return [], ()
  if isinstance(map_reward, Mapping):
    return [(str(word), value) for word, value in map_reward.items()], ()
  parts = [part.strip() for part in map_reward.split(',')]
  pairs = [part.rpartition('=') for part in parts if part not in _RULES]
  for part, (word, _, value) in zip([part for part in parts if part not in _RULES], pairs):
    if not word.strip() or not value.strip():
      raise UsageError(
        f"map_reward '{map_reward}': {shown(part)}{did_you_mean(part, _RULES)} is not a WORD=NUMBER pair; "
        f'pass pairs separated by commas, or a rule: {", ".join(_RULES)}. For words with commas, or blanks '
        'around them: '
        '--set MAP_REWARD="{\'a, b\': 1}"'
      )
  return [(word.strip(), value) for word, _, value in pairs], tuple(part for part in parts if part in _RULES)


def _finite(value: Any, word: str) -> float:
  try:
    number = float(value)
  except (TypeError, ValueError, OverflowError):
    number = math.nan
  if not math.isfinite(number):
    raise UsageError(
      f'map_reward: {shown(word)} has the value {shown(value)}, which is not a finite number; pass '
      'WORD=NUMBER pairs'
    )
  return number


def as_number(text: str) -> float | None:
  """The number that a text spells, or None."""
  try:
    # Only Python reads 1_0 as 10.
    return None if '_' in text else float(text)
  except ValueError:
    return None


def _canonical(value: Any) -> str:
  """One spelling for values that look the same."""
  if isinstance(value, bool):
    return str(value).lower()
  if not isinstance(value, str):
    return repr(float(value))
  if value.strip().lower() in _BOOLEANS:
    return value.strip().lower()
  number = as_number(value)
  if number is not None and math.isfinite(number):
    return repr(number)
  return _COLOURS.sub('', unicodedata.normalize('NFC', value)) or value


class Rewards:
  """Reads the rewards of one pass over files, and counts the words."""

  def __init__(self, words: RewardWords):
    self._words = words
    self._seen: collections.Counter[str] = collections.Counter()
    self._most: int | None = None  # The largest number of stars, where any text names it.
    self._largest = 0.0
    self._lists_booleans = any(spelling in _BOOLEANS for spelling in words.numbers)
    self._lists_numbers = any(as_number(spelling) is not None for spelling in words.numbers)

  def __bool__(self) -> bool:
    return bool(self._words.numbers or self._words.rules)

  def __call__(self, value: Any, plain: float | None) -> float | None:
    """A reward's number.

    Args:
      value: as read.
      plain: its number without words, which counts unless words of its kind are listed.
    """
    if not self or not isinstance(value, str | bool | int | float):
      return plain
    spelling = _spelling(value)
    if spelling is None:
      return plain
    if spelling in self._words.numbers:
      self._saw(spelling)
      return self._words.numbers[spelling]
    number = self._by_rule(value) if isinstance(value, str) else None
    if number is None and not (self._lists_booleans if spelling in _BOOLEANS else self._lists_numbers):
      number = plain
    if number is not None:
      self._saw(spelling)
    return number

  def _saw(self, spelling: str) -> None:
    if spelling in self._seen or len(self._seen) < 10 * _LISTED:
      self._seen[spelling] += 1

  def _by_rule(self, text: str) -> float | None:
    for name in self._words.rules:
      read = _RULES[name](text)
      if read is not None and math.isfinite(read.number) and (name != 'stars' or self._fits(read)):
        return read.number
    return None

  def _fits(self, stars: ParsedReward) -> bool:
    """Whether these stars can be on the same scale as the stars so far."""
    most = self._most if stars.most is None else stars.most
    if self._most not in (None, most) or (most is not None and max(stars.number, self._largest) > most):
      return False
    self._most, self._largest = most, max(stars.number, self._largest)
    return True

  def why_not(self, value: Any) -> str:
    """Why a reward is not a number, and the remedy: the end of an error's sentence."""
    if not self:
      return (
        'not a number; write a number, or give each word a value with --map_reward WORD=NUMBER,... (for '
        'text that is a number: --map_reward numbers; for ★★★☆☆ or 3/5: --map_reward stars)'
      )
    listed = [*self._words.written.values(), *self._words.rules]
    near = did_you_mean(str(value).strip(), self._words.written.values()) if isinstance(value, str) else ''
    scale = f'; the stars so far are out of {self._most}' if self._most else ''
    return (
      f'which --map_reward ({_listed(listed)}) does not name{near}{scale}; the words so far: '
      f'{_listed(self._seen) or "none"}. Give it a number there, or remove the record'
    )

  def warn(self, name: str) -> None:
    """Logs the listed words that never occurred, after the last record."""
    unused = [word for spelling, word in self._words.written.items() if spelling not in self._seen]
    if unused:
      logging.getLogger(__name__).warning(
        '%s: --map_reward lists words that never occur: %s; the rewards are %s',
        name,
        _listed(unused),
        _counts(self._seen),
      )


def _spelling(value: str | bool | int | float) -> str | None:
  try:
    return _canonical(value)
  except OverflowError:
    return None


def _listed(words: Any) -> str:
  quoted = [shown(word) for word in words]
  return ', '.join(quoted[:_LISTED]) + (', ...' if len(quoted) > _LISTED else '')


def _counts(seen: collections.Counter[str]) -> str:
  return ', '.join(f'{shown(word)} ({count})' for word, count in seen.most_common(_LISTED)) or 'none of them'


# --- the meaning of words -----------------------------------------------------------------------------------

# Labels of buttons, without case, blanks, dashes or colours: a guess that the user checks.
_GOOD = (
  '+1 accept accepted agree approve approved better chosen correct good great happy helpful like liked love '
  'ok pass passed pos positive right satisfied success thumbsup thumbup true up upvote upvoted useful win '
  'won y yes 👍 ❤ 😀 😊 🙂 ✅ ✔'
)
_BAD = (
  '-1 bad decline declined disagree dislike disliked down downvote downvoted fail failed failure false hate '
  'incorrect lose lost n neg negative no nothelpful poor reject rejected sad thumbdown thumbsdown unhappy '
  'unhelpful unsatisfied useless worse wrong 👎 💔 😞 😠 🙁 ❌ ✖'
)
_BETWEEN = 'average meh mixed neutral soso tie unsure 😐'


class Proposal(NamedTuple):
  """A proposed `--map_reward`, a mapping where words hold commas; `complete` if every word has a number."""

  map_reward: str | dict[str, float | int | str]
  complete: bool


def propose(words: Iterable[str], map_reward: str | Mapping[str, float | int] | None = None) -> Proposal:
  """Numbers for words by their usual meaning; NUMBER where the meaning is unknown.

  Args:
    words: as they are written in the file; `map_reward` reads none of them.
    map_reward: the `--map_reward` that the user passed.
  """
  words = list(words)
  for name in () if map_reward else _RULES:
    if words and all(Rewards(parse(name))(word, None) is not None for word in words):
      return Proposal(name, True)
  guessed = {word: _guess(word) for word in words}
  complete = None not in guessed.values()
  numbers = {word: 'NUMBER' if number is None else number for word, number in guessed.items()}
  if isinstance(map_reward, Mapping) or any(',' in word or word != word.strip() for word in words):
    pairs, rules = _pairs(map_reward)
    return Proposal({**dict(pairs), **numbers}, complete and not rules)
  pairs = [
    f'{word}={number if isinstance(number, str) else f"{number:g}"}' for word, number in numbers.items()
  ]
  return Proposal(','.join([*([map_reward] if map_reward else []), *pairs]), complete)


def _guess(word: str) -> float | None:
  bare = re.sub(r'[\s_.!]|(?<=\w)-', '', _COLOURS.sub('', word)).lower()
  known = ((1.0, _GOOD), (0.0, _BAD), (0.5, _BETWEEN))
  return next((value for value, words in known if bare in words.split()), None)
