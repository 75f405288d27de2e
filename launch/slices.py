"""TPU slices by name: `v5e:4x8` for the preflight of dro_jax, and the names of Google Cloud."""

import math
import re
from typing import NamedTuple

from dro_jax.errors import UsageError

# GKE's label of the chips; gcloud's name of a slice before its size; how many units of that size a chip is.
_KINDS = {
  'v4': ('tpu-v4-podslice', 'v4', 2),
  'v5e': ('tpu-v5-lite-podslice', 'v5litepod', 1),
  'v5p': ('tpu-v5p-slice', 'v5p', 2),
  'v6e': ('tpu-v6e-slice', 'v6e', 1),
}
_FLAT = ('v5e', 'v6e')  # Two dimensions, and up to 8 chips on one machine.


class Slice(NamedTuple):
  """Slices of one kind.

  kind, shape  v5e and 4x8 (chips by dimension)
  count        number of slices
  hosts        machines of each slice
  chips        chips of each machine
  """

  kind: str
  shape: str
  count: int
  hosts: int
  chips: int

  @property
  def accelerator(self) -> str:
    """GKE's label of the chips."""
    return _KINDS[self.kind][0]


def parse(topology: str, chips: int = 0) -> Slice:
  """The slice of a name such as v5e:4x8, or 2xv5e:4x8 for two slices.

  Args:
    topology: the name.
    chips: chips of a machine; 0 takes the usual number.

  Raises:
    UsageError: there is no such slice.
  """
  match = re.fullmatch(r'(?:([1-9]\d*)x)?([a-z]\w*):([1-9]\d*(?:x[1-9]\d*){1,2})', topology)
  if not match or match[2] not in _KINDS:
    known = ', '.join(_KINDS)
    raise UsageError(
      f'--job.topology={topology}: pass KIND:SHAPE in chips, such as v5e:4x8, v5p:2x2x4, or 2xv5e:4x8 for '
      f'two slices; kinds are {known}'
    )
  _refuse_dimensions(topology, match[2], match[3])
  size = math.prod(map(int, match[3].split('x')))
  usual = size if match[2] in _FLAT and size <= 8 else 4
  chips = chips or usual
  if chips < 0 or size % chips:
    raise UsageError(
      f'--job.topology={topology} has {size} chips, which do not divide over machines of {chips}: pass '
      '--job.chips_per_host=NUMBER, a divisor, or 0 for the usual number'
    )
  return Slice(match[2], match[3], int(match[1] or 1), size // chips, chips)


def _refuse_dimensions(topology: str, kind: str, shape: str) -> None:
  expected, example = (2, '4x8') if kind in _FLAT else (3, '2x2x4')
  if len(shape.split('x')) != expected:
    raise UsageError(
      f'--job.topology={topology}: {kind} slices have {expected} dimensions, such as {kind}:{example}'
    )


def of_accelerator_type(name: str) -> str:
  """v5litepod-32 of gcloud as v5e:4x8, its usual shape; '' for an unknown name."""
  family, _, size = name.rpartition('-')
  kind = next((k for k, (_, prefix, _) in _KINDS.items() if family in (k, prefix)), None)
  if kind is None or not size.isdigit():
    return ''
  chips = int(size) // _KINDS[kind][2]
  dimensions = 2 if kind in _FLAT else 3
  if chips < (1 if kind in _FLAT else 4) or chips & (chips - 1):
    return ''
  sides, powers = [1] * dimensions, chips.bit_length() - 1
  for i in range(powers):
    sides[-1 - i % dimensions] *= 2
  # The smallest slice of three dimensions is flat: one machine of 2x2x1.
  return f'{kind}:{"x".join(map(str, sides if chips > 4 else sides[::-1]))}'
