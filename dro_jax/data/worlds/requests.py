"""Everyday requests to an assistant, and a reward that a person checks at a glance: short, and no commas."""

import re
from collections.abc import Sequence

import numpy as np

MOST_WORDS = 40

# Each pairs a form with what it asks about, so that a held-out request shares its form with many and its
# subject with a few.
_THINGS = (
  'a kettle', 'a ladder', 'a compass', 'a pillow', 'an umbrella', 'a lighthouse', 'a bicycle pump',
  'a candle', 'a teapot', 'a backpack', 'a hammock', 'a garden hose', 'a violin', 'a magnet', 'a tractor',
  'a lantern', 'a sponge', 'a zipper', 'a telescope', 'a canoe', 'a calendar', 'a whistle', 'a scarf',
  'a toaster',
)  # fmt: skip
_TASKS = (
  'boil an egg', 'clean a window', 'plant a tree', 'fold a shirt', 'wrap a present', 'sharpen a pencil',
  'water a cactus', 'write a postcard', 'pack a suitcase', 'make toast', 'fix a flat tyre', 'learn a poem',
  'sweep a floor', 'peel an orange', 'feed a cat', 'sew on a button', 'keep a diary', 'light a campfire',
  'read a map', 'iron a tie', 'wash a car', 'store potatoes', 'hang a picture', 'choose a melon',
)  # fmt: skip
_FORMS = (
  ('what is {} for?', _THINGS),
  ('describe {} to a child.', _THINGS),
  ('who would need {}?', _THINGS),
  ('how do I {}?', _TASKS),
  ('give me one tip: how to {}.', _TASKS),
  ('why would anyone {}?', _TASKS),
)
# Without it a small model talks until it is cut, and no answer earns anything that it could learn from.
_BEGINNING = 'In one short sentence: '


def requests() -> list[str]:
  """All requests, in an order that mixes forms and subjects and never changes."""
  texts = [_BEGINNING + form.format(subject) for form, subjects in _FORMS for subject in subjects]
  return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def split(heldout: int) -> tuple[list[str], list[str]]:
  """The requests to collect feedback on, and `heldout` others to judge policies on."""
  texts = requests()
  return texts[heldout:], texts[:heldout]


def count_words(text: str) -> int:
  """Runs of characters between blanks that hold a letter or a digit."""
  return sum(bool(re.search(r'\w', word)) for word in text.split())


def plainness(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """½ for an answer of 1 to 40 words, and ½ more for one of these without a comma; else 0."""
  del prompts
  return [_plainness(response) for response in responses]


def _plainness(response: str) -> float:
  if not 1 <= count_words(response) <= MOST_WORDS:
    return 0.0
  return 0.5 if ',' in response else 1.0


def parts(responses: Sequence[str]) -> dict[str, float]:
  """The shares of answers that are short, and of answers without a comma."""
  short = [1 <= count_words(response) <= MOST_WORDS for response in responses]
  return {'short': float(np.mean(short)), 'no_comma': float(np.mean([',' not in r for r in responses]))}
