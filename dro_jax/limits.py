"""Refusals of settings that are numbers out of their range.

A number that jax traces has no value yet, and passes: code that compiles once for a grid checks the grid.
"""

import math
import numbers
from typing import Any

from dro_jax.errors import UsageError

# The settings to which gin_configs/runs/ binds what is refused here; other numbers have none.
_SETTINGS = {
  **{
    f'{algorithm}.tau': 'TAU'
    for algorithm in (
      'dro_v', 'dro_v_binary', 'dro_v_residual', 'dro_p', 'dro_fixed_value', 'dro_group_value',
    )
  },
  'kto.beta': 'TAU', 'reproduce.jobs': 'JOBS', 'make_comparisons.noise': 'NOISE',
  'make_comparisons.pairs': 'PAIRS', 'make_world.demonstrations': 'DEMONSTRATIONS',
  'make_world.log_prompts': 'LOG_PROMPTS', 'make_world.judged_prompts': 'JUDGED_PROMPTS',
  'make_world.test_prompts': 'TEST_PROMPTS',
  'judge.choose': 'CHOOSE', 'judge.folds': 'FOLDS', 'judge.num_prompts': 'PROMPTS',
  'judge.resamples': 'RESAMPLES', 'Decoding.batch_size': 'BATCH', 'Decoding.beams': 'BEAMS',
  'Decoding.max_length': 'MAX_LENGTH',
  'Decoding.num_samples': 'SAMPLES', 'Endpoint.concurrency': 'CONCURRENCY',
  'Endpoint.input_price': 'INPUT_PRICE', 'Endpoint.max_length': 'VERDICT_LENGTH',
  'Endpoint.max_requests': 'REQUEST_BUDGET', 'Endpoint.max_tokens': 'TOKEN_BUDGET',
  'Endpoint.output_price': 'OUTPUT_PRICE', 'Endpoint.requests_per_minute': 'REQUESTS_PER_MINUTE',
  'Endpoint.retries': 'RETRIES', 'Endpoint.temperature': 'JUDGE_TEMPERATURE', 'Endpoint.timeout': 'TIMEOUT',
  'Endpoint.tokens_per_minute': 'TOKENS_PER_MINUTE',
}  # fmt: skip
LARGEST_SEED = 2**63 - 1  # The largest that jax makes a random key from.


def above_zero(owner: str, why: str, /, **values: Any) -> None:
  """Refuses numbers that are 0, negative or not finite.

  Args:
    owner: gin's name of the configurable that has the settings.
    why: why 0 cannot work, as the end of a sentence after "because".
    values: the settings by name.
  """
  for name, value in values.items():
    if _is_known(owner, name, value) and not 0 < value < math.inf:
      raise UsageError(f'{owner}: {name}={value} must be above 0, because {why}; {_remedy(owner, name)}.')


def at_least_zero(owner: str, **values: Any) -> None:
  """Refuses numbers that are negative or not finite."""
  for name, value in values.items():
    if _is_known(owner, name, value) and not 0 <= value < math.inf:
      raise UsageError(f'{owner}: {name}={value} must be 0 or more; {_remedy(owner, name)}.')


def within(owner: str, low: float | int, high: float | int, why: str, /, **values: Any) -> None:
  """Refuses numbers outside [low, high)."""
  for name, value in values.items():
    if _is_known(owner, name, value) and not low <= value < high:
      raise UsageError(
        f'{owner}: {name}={value} must be at least {low} and below {high}, because {why}; '
        f'{_remedy(owner, name)}.'
      )


def whole(owner: str, **values: Any) -> None:
  """Refuses what is no whole number, such as text.

  Args:
    owner: the class of Python that has the settings.
    values: the settings by name.
  """
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
      raise UsageError(f'{name}={value!r}: pass a whole number, as {owner}({name}=10).')


def seed(value: Any) -> None:
  """Refuses a seed that jax cannot make a random key from."""
  if (
    isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= int(value) <= LARGEST_SEED
  ):
    raise UsageError(f'seed={value} is out of range: pass a whole number from 0 to 2⁶³ − 1, as --set SEED=0.')


def _is_known(owner: str, name: str, value: Any) -> bool:
  """Whether a number has a value already; what can never be one is refused."""
  if isinstance(value, (bool, str)):
    raise UsageError(f'{owner}: {name}={value!r} is not a number; {_remedy(owner, name)}.')
  return isinstance(value, numbers.Real)


def _remedy(owner: str, name: str) -> str:
  setting = _SETTINGS.get(f'{owner}.{name}')
  return (
    f'pass another value as {owner}({name}=NUMBER) or --gin.{owner}.{name}=NUMBER'
    f'{f" or --set {setting}=NUMBER" if setting else ""}'
  )
