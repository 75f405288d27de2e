"""Reward functions: built-in ones, a user's own, and how they are called."""

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from dro_jax import files
from dro_jax.data.worlds.exercises import answer
from dro_jax.errors import UsageError, did_you_mean
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run.sampling import reward_models
from dro_jax.run.sampling.reward_commands import PREFIX, RewardCommand

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


def find(
  reward: Reward | str | None, *, mesh: Mesh | None = None, batch_size: int = 32, timeout: float | int = 600.0
) -> Reward:
  """The reward function itself, or what its name stands for.

  Args:
    reward: a function; the name of a built-in one; 'FILE.py:FUNCTION' or 'MODULE:FUNCTION'; the folder of a
      reward model, a run of ours or an import; or 'command:PROGRAM ARGUMENTS'.
    mesh: where a reward model scores; `None` takes all devices.
    batch_size: texts that it scores at once.
    timeout: seconds that a program may take for one call.

  Raises:
    UsageError: there is none.
  """
  if callable(reward):
    return reward
  if reward is None:
    raise UsageError(
      'the algorithm scores its own samples, and there is no reward function: pass '
      "RolloutOptions(reward='exact_match'), or --set REWARD=exact_match, or another of "
      f'{", ".join(__all__)}, or your own as FILE.py:FUNCTION or MODULE:FUNCTION, the folder of a reward '
      f'model, or {PREFIX}PROGRAM.'
    )
  if reward in __all__:
    return globals()[reward]
  if reward.startswith(PREFIX):
    return RewardCommand(reward.removeprefix(PREFIX), timeout)
  if _NAMED.fullmatch(reward) and not os.path.isdir(reward):
    raise UsageError(
      f'REWARD={reward!r} names columns, which `dro_jax score` fills in a file, and a run takes one reward: '
      'pass one as reward=SPEC (--reward=SPEC), or score the file and weigh its columns (--rewards '
      'helpful=1,safe=0.5).'
    )
  if _is_folder(reward):
    return reward_models.load(reward, mesh, batch_size)
  if ':' not in reward:
    raise UsageError(
      f'REWARD={reward!r} is not a reward function{did_you_mean(reward, __all__)}: pass one of '
      f'{", ".join(__all__)}, or your own as FILE.py:FUNCTION or MODULE:FUNCTION, the folder of a reward '
      f'model, or {PREFIX}PROGRAM.'
    )
  return files.import_function(reward, 'REWARD')


def _is_folder(reward: str) -> bool:
  """Whether a name stands for a folder, there or not: no function has a slash and no colon."""
  path = os.path.expanduser(reward)
  return files.is_remote(reward) or os.path.isdir(path) or (os.sep in reward and ':' not in reward)


def find_named(text: str, **options: Any) -> dict[str | None, Reward]:
  """Several rewards by the columns that they fill; one without a name by None.

  Args:
    text: see `parse_named`.
    options: of `find`.

  Raises:
    UsageError: as `parse_named`, or there is no such reward.
  """
  return {name: find(spec, **options) for name, spec in parse_named(text).items()}


def parse_named(text: str) -> dict[str | None, str]:
  """'helpful=SPEC,safe=SPEC' by names, each SPEC one that `find` takes; one SPEC without a name by None.

  A comma divides where a name and = follow it, so that other commas belong to a SPEC.

  Raises:
    UsageError: names are missing or given twice, or have another meaning.
  """
  parts = re.split(r',\s*(?=[A-Za-z_]\w*=)', text)
  pairs = [match.groups() if (match := _NAMED.fullmatch(part)) else (None, part) for part in parts]
  names = [name for name, _ in pairs]
  if len(names) > 1 and None in names:
    raise UsageError(
      f'--reward={text}: of several rewards each needs a name, the column that it fills: pass '
      '--reward helpful=SPEC,safe=SPEC.'
    )
  if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
    raise UsageError(f'--reward={text}: {repeated[0]} is named twice: give each reward a name of its own.')
  if taken := [name for name in names if name in _TAKEN]:
    raise UsageError(
      f'--reward={text}: a column of the name {taken[0]!r} has a meaning of its own: give the reward another '
      'name.'
    )
  return {name: spec.strip() for name, spec in pairs}


_NAMED = re.compile(r'([A-Za-z_]\w*)=(.*)', re.DOTALL)
# Fields of records that are no rewards of the user's.
_TAKEN = (
  'prompt', 'response', 'id', 'messages', 'chosen', 'rejected', 'label', 'behaviour_logprob',
  'behaviour_logps', 'behaviour_sampler', 'reference_logprob', 'reference_logps', 'comparison', 'value',
)  # fmt: skip


def name_of(reward: Reward) -> str:
  """The name of a reward function in the record of a run: the same in every process."""
  if isinstance(name := getattr(reward, 'reward_name', None), str):
    return name
  while isinstance(reward, functools.partial):
    reward = reward.func
  named = reward if hasattr(reward, '__qualname__') else type(reward)
  if named.__module__ == __name__:
    return named.__qualname__  # One of ours, wherever this file lies.
  return f'{named.__module__}:{named.__qualname__}'


def code_of(reward: Reward | str | None) -> str | None:
  """A hash of the code of a user's reward function, given or named; None of those of dro_jax.

  Of a function that is named as FILE.py:FUNCTION or MODULE:FUNCTION it is of that file, and of the files
  beside it that it imports; of a reward model, of its parameters; of a program, of the files that its command
  names.
  """
  if isinstance(reward, str) and (reward.startswith(PREFIX) or _is_folder(reward)):
    reward = find(reward)
  if hasattr(reward, 'reward_code'):
    code: str | None = reward.reward_code
    return code
  if not isinstance(reward, str) or reward in __all__:
    return files.source_of(find(reward)) if reward else None
  module = reward.rpartition(':')[0]
  if module.partition('.')[0] == 'dro_jax':
    return None
  file = module
  if not module.endswith('.py'):
    file = getattr(files.import_module(module, f'REWARD={reward}'), '__file__', None)
  return files.code_digest(file) if file and file.endswith('.py') else None


def record_of(reward: Reward | str) -> dict[str, Any]:
  """What a run records of a reward: its name, the hash of its code or parameters, a reward model's role."""
  found = find(reward)
  role = getattr(found, 'reward_role', None)
  return {'name': name_of(found), 'code': code_of(reward)} | ({} if role is None else {'role': role})


def why_not_judge(record: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
  """A warning where a reward is to judge a run that was trained on it; '' where it was not.

  The built-in rewards are rules, which no policy deceives: a higher one is what it says.

  Args:
    record: of the reward (see `record_of`).
    metadata: of the run.
  """
  trained_on = (metadata.get('rewards') or {}).get('trained_on') or []
  if record['name'] in __all__ or not any(_is_same(record, other) for other in trained_on):
    return ''
  return (
    f'{record["name"]} judges a policy that was trained on its own scores, which it overrates (reward '
    'over-optimisation): judge with another model, one that was trained apart with ROLE=gold.'
  )


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  codes = one.get('code'), other.get('code')
  return codes[0] == codes[1] if None not in codes else one['name'] == other['name']


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
