"""Demonstrations by a hand with habits: it can do an exercise and does not always do it.

A share of its answers is right, a share follows a wrong rule of the exercise's kind, and the rest are right
answers with a slip of the pen. A policy fitted to them has both the right answer and the habits, which is
what preference data is about: there is something better to prefer among what the policy already writes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.data.worlds.exercises import Exercises, answer, kind_of, subject


class Hand(NamedTuple):
  """The habits of whoever writes demonstrations.

  Attributes:
    right: the share of right answers.
    wrong: the share of answers by a wrong rule; what is left of 1 has a slip.
    rule: the number of the preferred wrong rule in `RULES`.
  """

  right: float = 0.35
  wrong: float = 0.4
  rule: int = 0


PERFECT = Hand(1.0, 0.0)
# What such a hand is asked: a policy can do part of it.
ASKED = Exercises(kinds=('sort', 'sort_down', 'without', 'backwards'), length=(4, 6))

# The wrong rules of each kind, by which two hands can differ.
RULES: dict[str, tuple[Callable[[str], str], ...]] = {
  'sort': (lambda text: ''.join(sorted(text, reverse=True)), lambda text: text),
  'sort down': (lambda text: ''.join(sorted(text)), lambda text: text),
  'rewrite without': (lambda text: text, lambda text: text[1:]),
  'rewrite backwards': (lambda text: text, lambda text: ''.join(sorted(text))),
}


def demonstrations(prompts: Sequence[str], hand: Hand = PERFECT, seed: int = 0) -> list[dict[str, Any]]:
  """One answer of a hand to each prompt, as triplets of reward 1.

  Args:
    prompts: prompts of exercises (see `exercises.prompts`); their kinds need rules where the hand uses them.
    hand: the habits.
    seed: of the draws.
  """
  rng = np.random.default_rng((seed, hand.rule, 11))
  return [
    {'id': f'sft-{i}', 'prompt': prompt, 'response': _answer(prompt, hand, rng), 'reward': 1.0}
    for i, prompt in enumerate(prompts)
  ]


def _answer(prompt: str, hand: Hand, rng: np.random.Generator) -> str:
  drawn, right = rng.random(), answer(prompt)
  if drawn < hand.right:
    return right
  # A text that every wrong rule happens to answer rightly gets a slip: the right share stays as it was asked.
  wrong = wrong_answers(prompt, hand.rule) if drawn < hand.right + hand.wrong else []
  return wrong[0] if wrong else slip(right, rng)


def wrong_answers(prompt: str, rule: int = 0) -> list[str]:
  """What the wrong rules make of a prompt, the preferred one first, without right and empty answers."""
  rules = RULES.get(kind_of(prompt), ())
  made = [rules[(rule + i) % len(rules)](subject(prompt)) for i in range(len(rules))]
  return [text for text in made if text not in ('', answer(prompt))]


def slip(text: str, rng: np.random.Generator) -> str:
  """The text with one letter dropped, doubled or swapped with the next: another text, not an empty one."""
  at = int(rng.integers(len(text)))
  slips = (
    text[:at] + text[at + 1 :],
    text[: at + 1] + text[at:],
    text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :],
  )
  made = [slips[way] for way in rng.permutation(len(slips))]
  return next(found for found in made if found not in ('', text))
