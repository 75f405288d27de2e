"""What changing a setting does to a run that is resumed: said beside the setting, in its annotation.

A field or parameter is annotated `Annotated[int, SPEED]`. One without an effect decides the run's numbers.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple


class Effect(NamedTuple):
  """What a change does to a run that is resumed.

  Attributes:
    kind: `numbers`: the run would be another, and resuming is refused. `layout`, `speed`, `keeping` and
      `length` leave the numbers so far as they are. `place` names where contents lie, and `compared` what
      follows from contents: the contents are compared. `parts` holds other settings, which are compared.
    why: the reason, for people.
  """

  kind: str
  why: str

  @property
  def is_accepted(self) -> bool:
    """Whether a run may be resumed across the change."""
    return self.kind != 'numbers'


NUMBERS = Effect('numbers', "decides the run's numbers")
LAYOUT = Effect(
  'layout', 'layout: no number changes beyond rounding, though KTO may draw other mismatched pairs'
)
SPEED = Effect('speed', 'memory and speed: no number changes beyond rounding')
KEEPING = Effect('keeping', 'which checkpoints are kept')
LENGTH = Effect('length', 'the length and the clock of records: what was done stays as it was')
RECORDS = Effect('length', 'what is recorded beside the run, and no number of it')
PLACE = Effect('place', 'a place: what lies there is compared itself')
COMPARED = Effect('compared', 'what comes of it is compared itself')
PARTS = Effect('parts', 'its settings are compared one by one')
ELSEWHERE = Effect('elsewhere', 'affects another stage, and none of these numbers')


def of_annotation(annotation: Any) -> Effect:
  """The effect that an annotation carries; `NUMBERS` where it carries none."""
  marks = annotation.__metadata__ if typing.get_origin(annotation) is typing.Annotated else ()
  return next((mark for mark in marks if isinstance(mark, Effect)), NUMBERS)


def plain(annotation: Any) -> Any:
  """An annotation without what `Annotated` adds to it."""
  return annotation.__origin__ if typing.get_origin(annotation) is typing.Annotated else annotation


def effects(configurable: Callable[..., Any]) -> dict[str, Effect]:
  """The effect of each parameter of a function or class."""
  parameters = inspect.signature(configurable).parameters.values()
  return {parameter.name: of_annotation(parameter.annotation) for parameter in parameters}
