"""Reward functions: built-in ones, a user's own, and how they are called."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from dro_jax import files
from dro_jax.data.worlds.exercises import answer
from dro_jax.errors import UsageError

Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


def _answers(prompts: Sequence[str]) -> list[str]:
  answers = [answer(prompt) for prompt in prompts]
  if None in answers:
    unknown = prompts[answers.index(None)]
    raise UsageError(
      f'no task in the prompt {unknown!r}: this reward knows sort, add and rewrite '
      '(dro_jax/data/worlds/exercises.py shows their form). Pass a function of your own, as '
      'RolloutOptions(reward=function) or --set REWARD=FILE.py:FUNCTION.'
    )
  return answers


def exact_match(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """1 where the response is the answer to the prompt's task, else 0; space around it does not count.

  Raises:
    UsageError: a prompt has no task.
  """
  return [float(r.strip() == a) for r, a in zip(responses, _answers(prompts), strict=True)]


def graded_match(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """1 − (edits from the response to the answer) / (the longer one's length): partly right is worth something.

  Raises:
    UsageError: a prompt has no task.
  """
  return [
    1.0 - edit_distance(r.strip(), a) / max(len(r.strip()), len(a), 1)
    for r, a in zip(responses, _answers(prompts), strict=True)
  ]


def edit_distance(one: str, other: str) -> int:
  """Insertions, deletions and substitutions of characters from one text to the other (Levenshtein)."""
  row = list(range(len(other) + 1))
  for i, a in enumerate(one, 1):
    above, row[0] = row[0], i
    for j, b in enumerate(other, 1):
      above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
  return row[-1]


def length_reward(prompts: Sequence[str], responses: Sequence[str], target: int = 40) -> list[float]:
  """−|characters − target| / target: 0 at the target, −1 for nothing."""
  return [-abs(len(response) - target) / target for response in responses]


def contains(prompts: Sequence[str], responses: Sequence[str], text: str = 'yes') -> list[float]:
  """1 where the response contains a text, else 0."""
  return [float(text in response) for response in responses]


def letter_share(prompts: Sequence[str], responses: Sequence[str], letters: str = 'a') -> list[float]:
  """Share of a response's characters that are among `letters`; 0 for an empty one."""
  return [sum(c in letters for c in response) / max(len(response), 1) for response in responses]


# What can be read one by one and is no list of numbers: without order, or letters.
_LOOSE = (str, bytes, Mapping, Set)
_LARGEST = float(np.finfo(np.float32).max)


def find(reward: Reward | str | None) -> Reward:
  """The reward function itself, or by its name as 'module:function' or 'file.py:function'.

  Raises:
    UsageError: there is none.
  """
  if callable(reward):
    return reward
  if reward is None:
    raise UsageError(
      'the algorithm scores its own samples, and there is no reward function: pass '
      "RolloutOptions(reward='exact_match'), or --set REWARD=exact_match, or another of "
      f'{", ".join(__all__)}, or your own as FILE.py:FUNCTION or MODULE:FUNCTION.'
    )
  if reward in __all__:
    return globals()[reward]
  if ':' not in reward:
    raise UsageError(
      f'REWARD={reward!r} is no reward function: pass one of {", ".join(__all__)}, or your own as '
      'FILE.py:FUNCTION or MODULE:FUNCTION.'
    )
  return files.import_function(reward, 'REWARD')


def name_of(reward: Reward) -> str:
  """The name of a reward function in the record of a run: the same in every process."""
  while isinstance(reward, functools.partial):
    reward = reward.func
  named = reward if hasattr(reward, '__qualname__') else type(reward)
  if named.__module__ == __name__:
    return named.__qualname__  # One of ours, wherever this file lies.
  return f'{named.__module__}:{named.__qualname__}'


def code_of(reward: Reward | str | None) -> str | None:
  """A hash of the code of a user's reward function, given or named; None of those of dro_jax.

  Of a function that is named as FILE.py:FUNCTION or MODULE:FUNCTION it is of that file, and of the files
  beside it that it imports.
  """
  if not isinstance(reward, str) or reward in __all__:
    return files.source_of(find(reward)) if reward else None
  module = reward.rpartition(':')[0]
  if module.partition('.')[0] == 'dro_jax':
    return None
  file = module
  if not module.endswith('.py'):
    file = getattr(files.import_module(module, f'REWARD={reward}'), '__file__', None)
  return files.code_digest(file) if file and file.endswith('.py') else None


def reward_responses(reward: Reward, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """Rewards of some responses, one finite number each.

  Raises:
    UsageError: the function returned something else, or raised an error.
  """
  given = _called(reward, prompts, responses)
  if len(given) != len(responses):
    raise UsageError(
      f'the reward function {name_of(reward)} returned {len(given)} numbers for {len(responses)} '
      'responses: it must return one for each, in order.'
    )
  rewards = [_number(value) for value in given]
  for value, number, prompt, response in zip(given, rewards, prompts, responses):
    if not math.isfinite(number):
      raise UsageError(
        f'the reward function {name_of(reward)} returned {value!r} for the response {response!r} to the '
        f'prompt {prompt!r}: it must return a finite number, also for text that it cannot read.'
      )
  return rewards


def _called(reward: Reward, prompts: Sequence[str], responses: Sequence[str]) -> list[Any]:
  try:
    returned = reward(list(prompts), list(responses))
    # What computes its numbers as they are read may fail here.
    given = list(returned) if isinstance(returned, Iterable) and not isinstance(returned, _LOOSE) else None
  except UsageError:
    raise
  except (Exception, SystemExit) as error:
    raise UsageError(
      f'the reward function {name_of(reward)} raised {files.raised(error)}. It gets two lists of texts, '
      f'{len(prompts)} prompts and their responses, and must return one finite number for each response.'
    ) from error
  if given is None:
    raise UsageError(
      f'the reward function {name_of(reward)} returned {returned!r} for {len(responses)} responses: it must '
      'return a list with one number for each response, in order.'
    )
  return given


def _number(value: Any) -> float:
  """A value as a number; NaN where it is none, or outside of float32, in which rewards are kept."""
  try:
    number = float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan
  return number if abs(number) <= _LARGEST else math.nan


__all__ = ['contains', 'exact_match', 'graded_match', 'length_reward', 'letter_share']
