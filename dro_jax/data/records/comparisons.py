"""Comparisons, (prompt, chosen, rejected), as two triplets each, with the rewards 1 and 0.

Both triplets have the comparison's number in the column `comparison`, so that algorithms for pairs get the
pairs that were judged, while other algorithms read triplets. The fields have TRL's shapes: text or
conversations, with the prompt in a field of its own, or else as the common beginning of `chosen` and
`rejected`.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dro_jax.data.records import field_paths
from dro_jax.data.storage.hashes import text_digest
from dro_jax.data.text import chat
from dro_jax.errors import UsageError

COLUMN = 'comparison'
SIDES = ('chosen', 'rejected')
REWARDS = {'chosen': 1.0, 'rejected': 0.0}
_INSTEAD = ('response', 'reward', 'messages')  # A user who names one of these has triplets.
_ANSWERS, _ASKS = chat.ANSWERS, chat.ASKS  # How turns begin in Anthropic's HH.


def number(name: str) -> float:
  """A comparison's number, a hash of its id: a whole number that a float64 holds exactly."""
  return float(int.from_bytes(text_digest(name, 8), 'big') >> 11)


def without(columns: Mapping[str, Any]) -> dict[str, Any]:
  """Columns without the comparisons' numbers, which no loss reads."""
  return {name: column for name, column in columns.items() if name != COLUMN}


def own(columns: Mapping[str, Any], record_id: str) -> dict[str, Any]:
  """Columns that a record's file has: without the number that was given to a comparison's two sides."""
  added = number(record_id.rpartition('/')[0])
  value = columns.get(COLUMN)
  return without(columns) if value is None or value == added or math.isnan(value) else dict(columns)


def contents(numbers: np.ndarray, digests: np.ndarray, rewards: np.ndarray) -> np.ndarray:
  """A hash of the contents of each record's comparison, uint64 `[N]`; its number is a hash of its name.

  Args:
    numbers: of the records' comparisons.
    digests: of the records' responses, uint64.
    rewards: of the records, float64.
  """
  mixed = (digests ^ rewards.astype(np.float64).view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
  unique, which = np.unique(numbers, return_inverse=True)
  sums = np.zeros(len(unique), np.uint64)
  np.add.at(sums, which, mixed)  # Modulo 2⁶⁴: no order of adding changes it.
  return sums[which]


def is_one(fields: Mapping[str, Any], names: Mapping[str, str]) -> bool:
  """Whether a record is a comparison: the user named its sides, or it has both sides and no response."""
  if any(names.get(name) for name in _INSTEAD):
    return False
  if any(names.get(side) for side in SIDES):
    return True
  values = [field_paths.value(fields, names, side) for side in SIDES]
  has_sides = all(isinstance(value, str | list | dict) for value in values)
  return has_sides and field_paths.value(fields, names, 'response') is None


def split_texts(chosen: str, rejected: str, place: str) -> dict[str, tuple[str, str]]:
  """(prompt, response) of each side, where the sides' texts begin with the prompt.

  A dialogue in HH's form is split at the assistant's last turn. For other texts the prompt is the words with
  which both begin.

  Raises:
    UsageError: the sides have no common beginning, or nothing follows it.
  """
  sides = {'chosen': chosen, 'rejected': rejected}
  if all(_ANSWERS in text for text in sides.values()):
    return {side: _split_dialogue(text, f'{place} and its side {side}') for side, text in sides.items()}
  alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected))
  end = max((i for i, (letter, _) in enumerate(alike) if letter.isspace()), default=0)
  prompt = chosen[:end].rstrip()
  answers = {side: text[end:].strip() for side, text in sides.items()}
  if not prompt or not all(answers.values()):
    raise UsageError(
      f"{place} has no prompt, and 'chosen' and 'rejected' do not begin with one: "
      f'{"one of them is empty after their common beginning" if prompt else "they share no first word"}. '
      'Name its field: --columns prompt=FIELD'
    )
  return {side: (prompt, answer) for side, answer in answers.items()}


def _split_dialogue(text: str, place: str) -> tuple[str, str]:
  prompt, turn, response = text.rpartition(_ANSWERS)
  if _ASKS in response or not response.strip():
    raise UsageError(f"{place}: the text does not end in an answer of the assistant's; remove the record")
  return prompt + turn, response.strip()


def split_turns(turns: list[Any], prompt: Any, template: str | None, place: str) -> tuple[str, str]:
  """(prompt, response) of a side that is a whole conversation.

  Args:
    turns: of the side, as read.
    prompt: the record's own, None where it has none.
    template: of one turn.
    place: file:line and field, for errors.

  Returns:
    The prompt is the record's own text where the turns before the response hold nothing else; otherwise those
    turns.
  """
  before, response = chat.split(turns, template, place)
  questions = chat.turns(turns, place)[:-1]
  is_one_question = isinstance(prompt, str) and [turn.role for turn in questions] == ['user']
  is_prompt = is_one_question and prompt.strip() == questions[0].content.strip()
  return (prompt if is_prompt else before), response
