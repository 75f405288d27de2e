from typing import Annotated

from dro_jax.configs import effects


def configurable(rate: float, steps: Annotated[int, effects.LENGTH] = 1, folder: Annotated[str, 'x'] = ''):
  return rate, steps, folder


def test_a_parameter_decides_the_numbers_unless_its_annotation_says_otherwise():
  assert effects.effects(configurable) == {
    'rate': effects.NUMBERS, 'steps': effects.LENGTH, 'folder': effects.NUMBERS,
  }  # fmt: skip
  assert effects.LENGTH.is_accepted and not effects.NUMBERS.is_accepted


def test_an_annotation_is_plain_without_its_effect():
  assert effects.plain(Annotated[int | None, effects.SPEED]) == int | None
  assert effects.plain(str) is str
