"""Parameters as other projects' files hold them: arrays with a name, each one or several of ours."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from dro_jax.errors import UsageError
from dro_jax.models.stacks import Path


class Layout(NamedTuple):
  """How a stored array holds one or several of ours: the way in, and the way back; both get the heads."""

  split: Callable[[np.ndarray, int], list[np.ndarray]]
  join: Callable[[Sequence[np.ndarray], int], np.ndarray]


class Stored(NamedTuple):
  """One stored array: its name, the paths of ours that it holds, and how."""

  name: str
  paths: tuple[Path, ...]
  layout: Layout


# As it is here; and torch's matrices, which are [out, in] there and [in, out] here.
PLAIN = Layout(lambda array, heads: [array], lambda arrays, heads: arrays[0])
TURNED = Layout(lambda array, heads: [array.T], lambda arrays, heads: arrays[0].T)


def check(source: object, expected: Collection[str], present: Collection[str], model: str, kind: str) -> None:
  """Refuses a source whose weights are not exactly the expected ones.

  Args:
    source: the place of the weights.
    expected: names of the weights of the model.
    present: names of the weights in the source.
    model: the model as errors name it, such as "its config.json".
    kind: the kind of model to pass instead of one with further weights.
  """
  missing, left_over = sorted(set(expected) - set(present)), sorted(set(present) - set(expected))
  if missing:
    raise UsageError(
      f'{source} lacks {len(missing)} weights of {model}, the first is {missing[0]}: pass a complete copy.'
    )
  if left_over:
    raise UsageError(
      f'{source} has {len(left_over)} weights that {model} does not describe, the first is {left_over[0]}: '
      f'pass the checkpoint of {kind}.'
    )


__all__ = ['PLAIN', 'TURNED', 'Layout', 'Stored', 'check']
