"""What a user hangs on a run without changing its numbers: metrics, trackers, and a profile of some steps."""

import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dro_jax import files
from dro_jax.data.table.table import TokenTable
from dro_jax.errors import UsageError
from dro_jax.run.folder import trackers as tracking
from dro_jax.run.folder.validation import Validation
from dro_jax.run.sampling import policy_samples

Metric = Callable[[Sequence[str], Sequence[str], Sequence[float] | None], float | Mapping[str, float]]


class Hooks(NamedTuple):
  """What a run calls besides.

  Attributes:
    metrics: functions of held-out prompts, the policy's own samples to them, and the samples' rewards (`None`
      without a reward function), each called at every validation. One number is recorded as `eval/` and the
      function's name; a mapping gives `eval/` and its names.
    trackers: functions of the run's folder and the steps that are done, which return a `Tracker`.
    profile_steps: the first and last of the steps that JAX's profiler records.
  """

  metrics: Sequence[Metric] = ()
  trackers: Sequence[tracking.MakeTracker] = ()
  profile_steps: tuple[int, int] | None = None


NO_HOOKS = Hooks()


def make_hooks(
  metrics: str | Sequence[str | Metric] | None = None,
  trackers: str | Sequence[str | tracking.MakeTracker] | None = None,
  profile_steps: str | Sequence[int] | None = None,
) -> Hooks:
  """What `train` calls besides, which changes no number of the run.

  Args:
    metrics: functions, or FILE.py:NAME with commas between them; see `Hooks`.
    trackers: functions, `wandb`, `mlflow`, or FILE.py:NAME with commas between them; see `Tracker`.
    profile_steps: the first and last of the steps that JAX's profiler records, or a text such as `10,20`.

  Raises:
    UsageError: there is none of a name, a package is not installed, or the steps are not two numbers.

  Example:
    >>> def words(prompts, responses, rewards):
    ...   return sum(len(response.split()) for response in responses) / len(responses)
    >>> hooks = dro.make_hooks(metrics=[words], profile_steps=(10, 20))
    >>> hooks.profile_steps
    (10, 20)
  """
  parts = metrics.split(',') if isinstance(metrics, str) else metrics or ()
  functions = [
    files.import_function(part.strip(), 'METRICS') if isinstance(part, str) else part for part in parts
  ]
  return Hooks(functions, tracking.find(trackers), _steps(profile_steps))


def _steps(value: str | Sequence[int] | None) -> tuple[int, int] | None:
  if value is None:
    return None
  try:
    first, last = map(int, value.split(',') if isinstance(value, str) else value)
  except (ValueError, TypeError):
    first, last = 0, 0
  if not 1 <= first <= last:
    raise UsageError(
      f'profile_steps={value} names no steps: pass the first and the last to record, as '
      'make_hooks(profile_steps=(10, 20)) or --set PROFILE_STEPS=10,20.'
    )
  return first, last


def refuse_unsampled(hooks: Hooks, draws: bool) -> None:
  """Refuses metrics of samples that no validation would draw.

  Raises:
    UsageError: says which setting draws them.
  """
  if hooks.metrics and not draws:
    raise UsageError(
      "metrics are of the policy's own samples to held-out prompts, and this run draws none: pass "
      'Schedule(kl_prompts=64), or --set KL_PROMPTS=64, and do not set eval_every to 0.'
    )


def refuse_unreached(hooks: Hooks, num_steps: int) -> None:
  """Refuses to profile steps that a run does not have.

  Raises:
    UsageError: says how many it has.
  """
  if hooks.profile_steps and hooks.profile_steps[0] > num_steps:
    first, last = hooks.profile_steps
    raise UsageError(
      f'profile_steps={first},{last}: the run has {num_steps} steps, so none of these is ever made: pass '
      'earlier ones, as make_hooks(profile_steps=(1, 2)) or --set PROFILE_STEPS=1,2.'
    )


def measure(
  hooks: Hooks, table: TokenTable, responses: Validation, recorded: Collection[str] = ()
) -> dict[str, float]:
  """The user's metrics of a validation, by name.

  Args:
    hooks: the run's.
    table: the held-out responses.
    responses: the validation.
    recorded: names that the run itself records.

  Raises:
    UsageError: a metric fails, returns something else than numbers, or has the name of another.
  """
  if not hooks.metrics or responses.samples is None:
    return {}
  records = dict(zip(table.prompt_digests.tolist(), range(len(table))))
  prompts = [table.prompts[records[digest]] for digest in responses.sample_prompts.tolist()]
  rewards = None if responses.sample_rewards is None else responses.sample_rewards.tolist()
  return _measured(hooks.metrics, prompts, responses.samples.tolist(), rewards, recorded)


def measured_names(hooks: Hooks, table: TokenTable, count: int, *, rewarded: bool) -> set[str]:
  """Names of what the user's metrics measure, known before anything is sampled.

  A metric that returns a mapping has its names there alone, so each is called once: with the prompts of a
  validation, and with logged responses and rewards in place of the samples and theirs.

  Args:
    hooks: the run's.
    table: the held-out responses.
    count: prompts that a validation answers.
    rewarded: a reward function scores the samples.

  Raises:
    UsageError: a metric fails, or returns something else than numbers.
  """
  records = policy_samples.chosen(table, count).tolist()
  prompts, responses = ([texts[i] for i in records] for texts in (table.prompts, table.responses))
  rewards = np.nan_to_num(table.rewards[records]).tolist() if rewarded else None
  return {*_measured(hooks.metrics, prompts, responses, rewards)}


def _measured(
  metrics: Sequence[Metric],
  prompts: Sequence[str],
  responses: Sequence[str],
  rewards: Sequence[float] | None,
  recorded: Collection[str] = (),
) -> dict[str, float]:
  measured: dict[str, float] = {}
  for metric in metrics:
    name = getattr(metric, '__name__', type(metric).__name__)
    try:
      value = metric(prompts, responses, rewards)
    except (Exception, SystemExit) as error:
      raise UsageError(
        f'METRICS: {name} raised {files.raised(error)}. It gets lists of prompts and responses, and their '
        'rewards (None without a REWARD), and must return a number, or a mapping of names to numbers.'
      ) from error
    numbers = value if isinstance(value, Mapping) else {name: value}
    for key, number in numbers.items():
      if (own := f'eval/{key}') in recorded or own in measured:
        by = 'another metric' if own in measured else 'the run itself'
        raise UsageError(f'METRICS: {name} gives {own}, which {by} records: choose another name.')
      measured[own] = _as_number(name, number)
  return measured


def _as_number(name: str, value: Any) -> float:
  try:
    return float(np.asarray(value).item())
  except (TypeError, ValueError) as error:
    raise UsageError(
      f'METRICS: {name} returned {value!r}, which is not a number: return a number, or a mapping of names to '
      'numbers.'
    ) from error


class Profiler:
  """Records steps into MODEL_DIR/profile, which TensorBoard's profiler opens.

  Args:
    folder: the run's.
    steps: the first and the last, counted from 1; `None` records none.
  """

  def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None):
    self._folder, self._steps, self._records = folder / 'profile', steps, False

  def before(self, step: int) -> None:
    """Begins where the step is one to record; a run that is resumed among them begins there."""
    if self._steps and self._steps[0] <= step <= self._steps[1] and not self._records:
      jax.profiler.start_trace(str(self._folder))
      self._records = True

  def after(self, step: int, output: Any) -> None:
    """Ends after the last step, for whose output it waits."""
    if self._records and self._steps and step >= self._steps[1]:
      jax.block_until_ready(output)
      self.close()

  def close(self) -> None:
    if self._records:
      jax.profiler.stop_trace()
      self._records = False


__all__ = ['NO_HOOKS', 'Hooks', 'Metric', 'make_hooks']
