"""Prompts with one right answer, in the form that `rewards` reads: sorting, sums with carries, rewriting.

A prompt's hash decides its split, so that no prompt is in two splits of any sizes and seeds.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dro_jax.data.storage import hashes
from dro_jax.errors import UsageError

# The share of all prompts in each split.
SPLITS = {'sft': 0.25, 'train': 0.45, 'validation': 0.1, 'test': 0.2}
_ATTEMPTS = 20_000  # Draws without a new prompt, after which the split counts as exhausted.


class Exercises(NamedTuple):
  """The exercises and their difficulty.

  Attributes:
    kinds: names of `KINDS`, evenly mixed.
    letters: the alphabet of texts.
    length: least and largest number of letters of a text.
    digits: largest number of digits of a number to add.
  """

  kinds: tuple[str, ...] | list[str] = ('sort', 'add', 'without', 'backwards')
  letters: str = 'abcdefgh'
  length: tuple[int, int] | list[int] = (3, 5)
  digits: int = 2


def prompts(exercises: Exercises, split: str, num: int, seed: int = 0) -> list[str]:
  """`num` different prompts of a split; a larger `num` adds to the same first prompts.

  Raises:
    UsageError: an unknown split or kind, or the split has fewer prompts.
  """
  if split not in SPLITS or not set(exercises.kinds) <= set(KINDS) or not exercises.kinds:
    raise UsageError(
      f'split {split!r}, kinds {exercises.kinds!r}: choose a split from {", ".join(SPLITS)}, and kinds from '
      f'{", ".join(KINDS)}.'
    )
  chosen: dict[str, None] = {}
  newest = 0
  for count, prompt in enumerate(_drawn(exercises, seed)):
    if len(chosen) == num:
      break
    if count > newest + _ATTEMPTS:
      raise UsageError(
        f'{split} has hardly more than {len(chosen)} different prompts of these exercises, and {num} are '
        'required: pass fewer prompts, longer texts, more letters or more digits.'
      )
    if prompt not in chosen and split_of(prompt) == split:
      chosen[prompt] = None
      newest = count
  return list(chosen)


def split_of(prompt: str) -> str:
  """The split that a prompt belongs to."""
  place = int(hashes.digests([prompt])[0]) / 2**64
  edges = np.cumsum(list(SPLITS.values()))[:-1]
  return list(SPLITS)[int(np.searchsorted(edges, place, 'right'))]


def subject(prompt: str) -> str:
  """The exercise's text without its task: 'kjhba' of 'sort: kjhba'."""
  return prompt.partition(': ')[2]


def kind_of(prompt: str) -> str:
  """The exercise's task without its text: 'sort', 'rewrite without'."""
  return ' '.join(word for word in prompt.partition(': ')[0].split() if len(word) > 2)


def _drawn(exercises: Exercises, seed: int) -> Iterator[str]:
  """An endless stream of prompts; those with an empty answer are left out."""
  rng = np.random.default_rng(seed)
  while True:
    for kind in exercises.kinds:
      prompt = KINDS[kind](exercises, rng)
      if answer(prompt):
        yield prompt


def _text(exercises: Exercises, rng: np.random.Generator) -> str:
  length = rng.integers(exercises.length[0], exercises.length[1] + 1)
  return ''.join(rng.choice(list(exercises.letters), length))


def _number(exercises: Exercises, rng: np.random.Generator) -> int:
  return int(rng.integers(10 ** int(rng.integers(1, exercises.digits + 1))))


def _sort(exercises: Exercises, rng: np.random.Generator) -> str:
  return f'sort: {_text(exercises, rng)}'


def _sort_down(exercises: Exercises, rng: np.random.Generator) -> str:
  return f'sort down: {_text(exercises, rng)}'


def _add(exercises: Exercises, rng: np.random.Generator) -> str:
  """A sum in which a digit carries; other sums are too easy to separate policies."""
  while True:
    a, b = _number(exercises, rng), _number(exercises, rng)
    if any((a % place) + (b % place) >= place for place in (10**i for i in range(1, exercises.digits + 1))):
      return f'add: {a} + {b}'


def _without(exercises: Exercises, rng: np.random.Generator) -> str:
  text = _text(exercises, rng)
  return f'rewrite without {rng.choice(list(text))}: {text}'


def _with(exercises: Exercises, rng: np.random.Generator) -> str:
  text = _text(exercises, rng)
  old = rng.choice(list(text))
  new = rng.choice([letter for letter in exercises.letters if letter != old])
  return f'rewrite with {old} as {new}: {text}'


def _backwards(exercises: Exercises, rng: np.random.Generator) -> str:
  return f'rewrite backwards: {_text(exercises, rng)}'


KINDS: dict[str, Callable[[Exercises, np.random.Generator], str]] = {
  'sort': _sort, 'sort_down': _sort_down, 'add': _add, 'without': _without, 'with': _with,
  'backwards': _backwards,
}  # fmt: skip


def _translate(text: str, old: str, new: str = '') -> str:
  return ''.join(new if character in old else character for character in text)


_TASKS: tuple[tuple[str, Callable[..., str]], ...] = (
  (r'sort: (.+)', lambda text: ''.join(sorted(text))),
  (r'sort down: (.+)', lambda text: ''.join(sorted(text, reverse=True))),
  (r'add: (\d+(?: \+ \d+)+)', lambda terms: str(sum(map(int, terms.split(' + '))))),
  (r'rewrite without (\S+): (.+)', lambda letters, text: _translate(text, letters)),
  (r'rewrite with (\S) as (\S): (.+)', lambda old, new, text: _translate(text, old, new)),
  (r'rewrite backwards: (.+)', lambda text: text[::-1]),
  (r'rewrite sorted: (.+)', lambda text: ' '.join(sorted(text.split()))),
)


@functools.lru_cache(maxsize=65536)
def answer(prompt: str) -> str | None:
  """The one right answer to a prompt's task; `None` where the task is unknown."""
  for line in reversed(prompt.splitlines()):
    for pattern, solve in _TASKS:
      if match := re.fullmatch(pattern, line.strip()):
        return solve(*match.groups())
  return None
