"""TPU slices by name, and the published rates at which their chips compute, read memory and send."""

import collections
import importlib.util
import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.costs.hlo.collectives import Collective
from dro_jax.errors import UsageError, did_you_mean

GIB = 2**30
MOST_CHIPS = 256


class Chip(NamedTuple):
  """A chip, as one device.

  Attributes:
    flops: peak bfloat16 operations a second.
    hbm: bytes that a program may have.
    hbm_bandwidth: bytes a second.
    link: bytes a second that one link to a neighbour sends one way.
    dimensions: of the torus.
    wraps: a dimension is a ring where its length is a multiple of this, and a line otherwise.
    dcn: bytes a second that one chip's share of its host's network sends.
    clock: cycles a second.
    config: libtpu's name for the configuration in which a chip is one device.
  """

  flops: float | int
  hbm: float | int
  hbm_bandwidth: float | int
  link: float | int
  dimensions: int
  wraps: int
  dcn: float | int
  clock: float | int
  config: str = 'default'


# Compute, bandwidths: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "key specifications"; links are the chip's
# interconnect there by its number of links, one way. The network is a pod's by its chips, or a host's.
# HBM: the limit in libtpu 0.0.52's error for a program that needs more. Clock: flops over those of a cycle.
CHIPS: Mapping[str, Chip] = {
  'v4': Chip(275e12, 30.75 * GIB, 1228e9, 50e9, 3, 4, 6.25e9, 1.05e9, 'megacore'),
  'v5e': Chip(197e12, 15.75 * GIB, 819e9, 50e9, 2, 16, 3.125e9, 1.5e9),
  'v5p': Chip(459e12, 95.73 * GIB, 2765e9, 100e9, 3, 4, 6.25e9, 1.75e9),
  'v6e': Chip(918e12, 31.24 * GIB, 1640e9, 100e9, 2, 16, 12.5e9, 1.75e9),
}


class Slice(NamedTuple):
  """Slices of one kind, joined by the data centre's network.

  Attributes:
    name: as passed to `find`.
    kind: of the chips.
    shape: chips by dimension, of each slice.
    num_slices: how many.
    devices: one for each chip, for a compiler.
  """

  name: str
  kind: str
  shape: tuple[int, ...]
  num_slices: int
  devices: Sequence[Any]

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]


def find(name: str) -> Slice:
  """The slice of a name such as v5e:4x8, or 2xv5e:4x8 for two slices; this machine needs no TPU.

  Raises:
    UsageError: there is no such slice, or libtpu is not installed.
  """
  kind, shape, num_slices = _parsed(name)
  if importlib.util.find_spec('libtpu') is None:
    raise UsageError(
      "preflight compiles with libtpu, which is not installed: pip install '.[tpu]' in a checkout. It needs "
      'no TPU.'
    )
  # Without these libtpu queries the cloud for this machine's kind, and locks out other programs.
  for variable, value in (
    ('TPU_SKIP_MDS_QUERY', '1'), ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'), ('TPU_MIN_LOG_LEVEL', '3'),
    ('TPU_STDERR_LOG_LEVEL', '3'), ('TPU_ACCELERATOR_TYPE', 'v5litepod-4'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
  ):  # fmt: skip
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies

  options: dict[str, Any] = {'chip_config_name': CHIPS[kind].config}
  if num_slices > 1:
    options['num_slices'] = num_slices
  try:
    topology = topologies.get_topology_desc(
      platform='tpu', topology_name=f'{kind}:{"x".join(map(str, shape))}', **options
    )
  except Exception as error:  # libtpu raises a class of jaxlib's that jax does not export.
    raise UsageError(
      f'--topology={name}: libtpu does not lay out this slice: {str(error).splitlines()[0]}. Pass a shape '
      'that the cloud offers, and stop other programs on this machine that use libtpu.'
    ) from error
  return Slice(name, kind, shape, num_slices, topology.devices)


def _parsed(name: str) -> tuple[str, tuple[int, ...], int]:
  match = re.fullmatch(r'(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)', name)
  known = f'{", ".join(CHIPS)}, each with its shape in chips: v5e:4x8, v5p:2x2x4, or 2xv5e:4x8 for two slices'
  if match is None:
    raise UsageError(f'--topology={name} is not a slice: pass KIND:SHAPE. KIND is one of {known}.')
  if match[2] not in CHIPS:
    raise UsageError(
      f'--topology={name}: no chip {match[2]!r}{did_you_mean(match[2], CHIPS)}. Pass one of {known}.'
    )
  shape, num_slices = tuple(map(int, match[3].split('x'))), int(match[1] or 1)
  dimensions = CHIPS[match[2]].dimensions
  if len(shape) != dimensions or not 1 <= math.prod(shape) * num_slices <= MOST_CHIPS:
    raise UsageError(
      f'--topology={name}: a slice of {match[2]} has {dimensions} dimensions, and preflight compiles for '
      f'{MOST_CHIPS} chips at most. Pass one of {known}.'
    )
  return match[2], shape, num_slices


# --- the time that collectives take -------------------------------------------------------------------------


class Traffic(NamedTuple):
  """Bytes that one chip sends and the seconds this takes, over the slice's links and over its network."""

  ici_bytes: float | int
  ici_seconds: float | int
  dcn_bytes: float | int
  dcn_seconds: float | int


def traffic(collectives: Iterable[Collective], devices: Sequence[Any], where: Slice) -> Traffic:
  """Adds up collectives one after the other; permutations of one loop or program share its links at once.

  Args:
    collectives: a program's (see `costs.hlo.collectives.collectives`).
    devices: the program's devices, in its order.
    where: the slice of the devices.
  """
  totals, loads = [0.0] * 4, collections.defaultdict(collections.Counter)
  for collective in collectives:
    if collective.network:
      totals[2] += collective.count * collective.sent
      totals[3] += collective.count * collective.sent / where.chip.dcn
    elif collective.kind == 'collective-permute':
      crosses = any(
        slice_of(devices[source]) != slice_of(devices[target]) for source, target in collective.groups
      )
      totals[2 if crosses else 0] += collective.count * collective.sent
      # Adds bytes to each link on the way; the way to another slice is the network.
      for source, target in collective.groups:
        for link in route(devices[source], devices[target], where):
          loads[collective.where][link] += collective.count * collective.sent
    else:
      for i, part in enumerate(_group_traffic(collective, [devices[i] for i in collective.groups[0]], where)):
        totals[i] += collective.count * part
  for links in loads.values():
    totals[1] += max((load for link, load in links.items() if link[0] != 'dcn'), default=0) / where.chip.link
    totals[3] += max((load for link, load in links.items() if link[0] == 'dcn'), default=0) / where.chip.dcn
  return Traffic(*totals)


def _group_traffic(collective: Collective, group: Sequence[Any], where: Slice) -> Traffic:
  """The traffic of a collective in one group: within each slice first, then, with a part, between slices."""
  slices = len({slice_of(device) for device in group})
  within = [device for device in group if slice_of(device) == slice_of(group[0])]
  size, along = len(within), _along(within, where)
  gathers = collective.kind == 'all-gather'
  local = collective.among(size) * (slices if gathers else 1)
  between = collective.among(slices) / (size if collective.kind in ('all-reduce', 'reduce-scatter') else 1)
  carried = collective.bytes * _crossed(along) if 'all-to-all' in collective.kind else local / _links(along)
  return Traffic(local, carried / where.chip.link, between, between / where.chip.dcn)


def slice_of(device: Any) -> int:
  """The number of a device's slice."""
  return getattr(device, 'slice_index', None) or 0


def place_of(device: Any) -> tuple[int, ...]:
  """A device's coordinates in its slice; devices without coordinates stand in a line."""
  return tuple(getattr(device, 'coords', (device.id, 0, 0)))


class _Along(NamedTuple):
  """The places of a group along one axis: their number, their distance, and whether they close a ring."""

  places: int
  hop: int
  closed: bool


def _along(group: Sequence[Any], where: Slice) -> list[_Along]:
  """The places of a group along each axis on which its members differ."""
  axes = []
  for axis, length in enumerate(where.shape):
    at = sorted({place_of(device)[axis] for device in group})
    if len(at) > 1:
      hop = max(later - earlier for earlier, later in itertools.pairwise(at))
      axes.append(_Along(len(at), hop, _wraps(length, where) and length - at[-1] + at[0] == hop))
  return axes


def _links(along: Sequence[_Along]) -> float | int:
  """Links over which every chip of a group can send at once: two along a ring, one along a line.

  Between members that are not neighbours lie members of other groups, which share the links.
  """
  return sum((2 if axis.closed else 1) / axis.hop for axis in along) or 1


def _crossed(along: Sequence[_Along]) -> float | int:
  """The load of the busiest link in an all-to-all, as a multiple of one chip's data."""
  return max((axis.places * axis.hop / (8 if axis.closed else 4) for axis in along), default=0)


def _wraps(length: int, where: Slice) -> bool:
  whole = where.chip.dimensions == 2 or all(side % where.chip.wraps == 0 for side in where.shape)
  return whole and length % where.chip.wraps == 0 and length > 2


def route(source: Any, target: Any, where: Slice) -> list[tuple[str | int, ...]]:
  """The links (chip, axis, direction) from one chip to another, one axis after the other, the shorter way."""
  if slice_of(source) != slice_of(target):
    return [('dcn', source.id)]
  links: list[tuple[str | int, ...]] = []
  at, end = list(place_of(source)), place_of(target)
  for axis, length in enumerate(where.shape):
    ahead: float | int = end[axis] - at[axis]
    if _wraps(length, where) and abs(ahead) > length / 2:
      ahead -= math.copysign(length, ahead)
    step = 1 if ahead > 0 else -1
    for _ in itertools.repeat(None, abs(int(ahead))):
      links.append((slice_of(source), *at, axis, step))
      at[axis] = (at[axis] + step) % length
  return links
