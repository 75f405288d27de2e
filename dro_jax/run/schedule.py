"""When a run logs, validates and saves; and its clock."""

import dataclasses
import time
from typing import Annotated

from dro_jax import limits
from dro_jax.configs.effects import LENGTH
from dro_jax.errors import UsageError, suggests_fields


@suggests_fields
@dataclasses.dataclass(frozen=True)
class Schedule:
  """The times at which a run logs, validates and saves, in optimiser steps; 0 is never.

  Args:
    steps: the length of the run.
    log_every: steps between records of metrics.
    eval_every: steps between validations on held-out prompts; the last step validates too.
    checkpoint_every: steps between checkpoints; the last step is saved too.
    eval_examples: the number of held-out responses to validate on at most; `None` takes all.
    sample_prompts: the number of held-out prompts answered greedily at each validation.
    kl_prompts: the number of held-out prompts at most whose answers, by the policy and by its reference,
      estimate KL(π‖π_ref) and the mass kept at each validation.

  Example:
    >>> dro.Schedule(steps=2000, eval_every=200).is_due(200, 400)
    True
  """

  steps: Annotated[int, LENGTH] = 1000
  log_every: Annotated[int, LENGTH] = 10
  eval_every: Annotated[int, LENGTH] = 200
  checkpoint_every: Annotated[int, LENGTH] = 500
  eval_examples: Annotated[int | None, LENGTH] = 1000
  sample_prompts: Annotated[int, LENGTH] = 3
  kl_prompts: Annotated[int, LENGTH] = 64

  def __post_init__(self) -> None:
    for name, value in dataclasses.asdict(self).items():
      if value is not None or name != 'eval_examples':
        limits.whole('Schedule', **{name: value})
      if value is not None and value < 0:
        raise UsageError(
          f'{name}={value}: pass 0 or more, as Schedule({name}=...) or --set {name.upper()}=...; 0 steps '
          'between is never.'
        )

  def is_due(self, every: int, step: int) -> bool:
    return every > 0 and (step % every == 0 or step == self.steps)


class Clock:
  """Seconds between two moments at which the devices were waited for."""

  def __init__(self) -> None:
    self._last = time.monotonic()

  def lap(self) -> float:
    """Seconds since the last lap."""
    before, self._last = self._last, time.monotonic()
    return self._last - before


__all__ = ['Schedule']
