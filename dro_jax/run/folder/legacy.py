"""A run that an earlier version of dro_jax made keeps the rules of that version when it resumes."""

import functools
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dro_jax.checkpoints import folders, metadata
from dro_jax.data.triplets import Triplets
from dro_jax.run.folder import reading
from dro_jax.step.reference import Reference

# Since this format, validation is over the whole table at once, in an order of its own.
_WHOLE_TABLES = 2


class Legacy(NamedTuple):
  """The rules of an earlier version that differ from those of today; the defaults are those of today.

  Attributes:
    has_scalar_value: the read-out `batch` was one learned number, now called `scalar`.
    keep: how overlong prompts were cut, where `auto` has another meaning now.
    measures_moving: no initial policy was kept where the reference moves: the run is measured against that.
    validates_by_batch: held-out responses stay in their file's order, and losses that couple responses are
      taken over each batch of them.
  """

  has_scalar_value: bool = False
  keep: str | None = None
  measures_moving: bool = False
  validates_by_batch: bool = False

  def readout(self, readout: str) -> str:
    """The read-out of V in today's terms."""
    return 'scalar' if readout == 'batch' and self.has_scalar_value else readout

  def data(self, data: Triplets | Callable[..., Triplets]) -> Triplets | Callable[..., Triplets]:
    """The data, read as before."""
    return (
      data if self.keep is None or isinstance(data, Triplets) else functools.partial(data, keep=self.keep)
    )

  def reference(self, reference: Reference | None) -> Reference | None:
    """The reference, with the policy against which the run is measured."""
    moves = reference is not None and reference.initial is not None
    return reference._replace(initial=None) if moves and self.measures_moving else reference


def read(folder: pathlib.Path) -> Legacy:
  """The rules of the run in a folder; those of today if it holds no run."""
  return from_metadata(folders.run_metadata(folder)) if folders.has_any(folder) else Legacy()


def from_metadata(saved: Mapping[str, Any]) -> Legacy:
  """The rules of a run, from the metadata of its newest checkpoint."""
  is_old = metadata.saved_format(saved) < _WHOLE_TABLES
  moves = (saved.get('reference') or {}).get('scheme') == 'moving'
  return Legacy(
    has_scalar_value=is_old and (saved.get('value') or {}).get('readout') == 'scalar',
    keep=reading.keep_of(saved).get('keep'),
    measures_moving=moves and not saved.get('keeps_initial'),
    validates_by_batch=is_old,
  )


def warn(legacy: Legacy, readout: str, folder: pathlib.Path) -> None:
  """Logs the earlier rules that change the numbers of a run."""
  log = logging.getLogger(__name__)
  if legacy.readout(readout) != readout:
    log.warning(
      '%s was made when VALUE_READOUT=batch was one learned number, now called scalar: the run keeps it. '
      'In a new run, batch reads a network.', folder,
    )  # fmt: skip
  if legacy.measures_moving:
    log.warning(
      '%s was made by a version that kept no initial policy where the reference moves: its KL, log-ratios '
      'and best checkpoint are measured against the moving reference, as before. A new run is measured '
      'against the initial policy.', folder,
    )  # fmt: skip
