"""The effect of a changed setting on a resumed run, which the annotation of the setting names.

A field or parameter is annotated `Annotated[int, SPEED]`. One without an effect decides the run's numbers.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple


class Effect(NamedTuple):
  """The effect of a change on a resumed run.

  Attributes:
    kind: `numbers`: the change alters the results, and resuming is refused. `layout`, `speed`, `keeping` and
      `length` leave the numbers so far unchanged. For `place`, a path, and `compared`, which follows from
      contents, the contents are compared. `parts` holds other settings, which are compared.
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
LENGTH = Effect('length', 'the length and the clock of records: the steps so far stay the same')
RECORDS = Effect('length', 'what is recorded beside the run, and no number of it')
PLACE = Effect('place', 'a place: its contents are compared instead')
COMPARED = Effect('compared', 'its result is compared instead')
PARTS = Effect('parts', 'its settings are compared one by one')
ELSEWHERE = Effect('elsewhere', 'affects another stage of the pipeline')


def of_annotation(annotation: Any) -> Effect:
  """The effect that an annotation carries; `NUMBERS` where it carries none."""
  marks = annotation.__metadata__ if typing.get_origin(annotation) is typing.Annotated else ()
  return next((mark for mark in marks if isinstance(mark, Effect)), NUMBERS)


def plain(annotation: Any) -> Any:
  """The type inside an `Annotated`; any other annotation as it is."""
  return annotation.__origin__ if typing.get_origin(annotation) is typing.Annotated else annotation


def effects(configurable: Callable[..., Any]) -> dict[str, Effect]:
  """The effect of each parameter of a function or class."""
  parameters = inspect.signature(configurable).parameters.values()
  return {parameter.name: of_annotation(parameter.annotation) for parameter in parameters}
