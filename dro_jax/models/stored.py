"""Arrays as other libraries store them: how each holds one or several of ours."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dro_jax.models.stacks import Path


class Layout(NamedTuple):
  """How a stored array holds one or several of ours: the way in, and the way back."""

  split: Callable[[np.ndarray, int], list[np.ndarray]]
  join: Callable[[Sequence[np.ndarray], int], np.ndarray]


class Stored(NamedTuple):
  """One stored array: its name, the paths of ours that it holds, and how."""

  name: str
  paths: tuple[Path, ...]
  layout: Layout


PLAIN = Layout(lambda array, heads: [array], lambda arrays, heads: arrays[0])
# torch's Linear has its outputs first.
TURNED = Layout(lambda array, heads: [array.T], lambda arrays, heads: arrays[0].T)
