"""The worlds of the `text` suite: what is asked, who taught the reference and who wrote the log."""

from collections.abc import Callable
from typing import NamedTuple

from dro_jax.data.worlds import exercises as verifiable
from dro_jax.data.worlds import habits as hands
from dro_jax.data.worlds.exercises import Exercises as Exercises
from dro_jax.data.worlds.habits import Hand

SOME_HABITS, OTHER_HABITS = Hand(), Hand(rule=1)


class TextWorld(NamedTuple):
  """The exercises, the policy that wrote the log, and all sizes.

  Attributes:
    exercises: see `data.worlds.exercises`.
    hand: who wrote the demonstrations that the reference is fitted to.
    logger: who wrote those of the policy that wrote the log; `None` where that policy is the reference.
    logger_temperature: the temperature at which that policy answered.
    demonstrations: how many of them; few, so that the policy is mediocre.
    sft_steps: the optimiser steps of each SFT policy.
    sft_learning_rate: their peak rate.
    prompts: of the log.
    samples: logged answers to each.
    validation_prompts: prompts that choose hyperparameters.
    test_prompts: prompts that are reported on.
    own_samples: answers of each policy to each of both, and of the log to compare with.
    ceiling_samples: answers of the reference to each test prompt, of which the ceilings are made.
    response_length: tokens of an answer at most.
  """

  exercises: verifiable.Exercises = verifiable.Exercises()
  hand: Hand = hands.PERFECT
  logger: Hand | None = None
  logger_temperature: float = 1.0
  demonstrations: int = 2000
  sft_steps: int = 400
  sft_learning_rate: float = 2e-3
  prompts: int = 4000
  samples: int = 4
  validation_prompts: int = 96
  test_prompts: int = 192
  own_samples: int = 8
  ceiling_samples: int = 64
  response_length: int = 12


def habits(
  hand: Hand = SOME_HABITS,
  demonstrations: int = 4000,
  sft_steps: int = 800,
  prompts: int = 4000,
  test_prompts: int = 384,
) -> TextWorld:
  """A world whose reference can do the task and does not always do it.

  Args:
    hand: who wrote the demonstrations.
    demonstrations: how many of them.
    sft_steps: the optimiser steps of each SFT policy.
    prompts: of the log.
    test_prompts: prompts that are reported on.
  """
  return TextWorld(
    hands.ASKED, hand, demonstrations=demonstrations, sft_steps=sft_steps, prompts=prompts,
    test_prompts=test_prompts,
  )  # fmt: skip


def another_hand(
  world: Callable[[], TextWorld] = habits, logger: Hand = OTHER_HABITS, temperature: float = 1.3
) -> TextWorld:
  """The world of habits, its log by a policy unlike the reference: who imitates the log goes astray.

  Args:
    world: all but the log.
    logger: who wrote the demonstrations of the policy that wrote the log: it prefers another wrong rule.
    temperature: the temperature at which that policy answered.
  """
  return world()._replace(logger=logger, logger_temperature=temperature)


WORLDS: dict[str, Callable[[], TextWorld]] = {
  'exercises': TextWorld,
  'habits': habits,
  'another_hand': another_hand,
}

__all__ = ['Exercises', 'Hand', 'TextWorld', 'another_hand', 'habits']
