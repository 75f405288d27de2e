import collections
import itertools
import math
from typing import NamedTuple

import pytest

from dro_jax.costs import slices as chips
from dro_jax.costs.hlo.collectives import Collective
from dro_jax.costs.hlo.program import Shape
from dro_jax.errors import UsageError


class Device(NamedTuple):
  id: int
  coords: tuple[int, ...]
  slice_index: int = 0


def grid(*shape, slices=1, kind='v5e'):
  devices = [
    Device(x * shape[1] + y + s * 1000, (x, y, 0), s)
    for s in range(slices) for x in range(shape[0]) for y in range(shape[1])
  ]  # fmt: skip
  return chips.Slice('test', kind, shape, slices, devices)


def collective(kind, groups, size=4096, count=1.0):
  return Collective(kind, (Shape('f32', (size // 4,)),), groups, count, 'test', 'main')


@pytest.mark.parametrize(
  'name, message',
  [
    ('v5e', 'is not a slice: pass KIND:SHAPE'),
    ('v5f:4x4', r"no chip 'v5f' \(did you mean"),
    ('v5p:4x4', 'a slice of v5p has 3 dimensions'),
    ('v5e:32x32', '256 chips at most'),
    ('4xv5e:16x16', '256 chips at most'),
  ],
)
def test_an_unknown_slice_is_refused_with_the_known_ones(name, message):
  with pytest.raises(UsageError, match=message) as refused:
    chips.find(name)
  assert 'v5e:4x8' in str(refused.value)


def test_without_libtpu_the_error_names_its_installation(monkeypatch):
  monkeypatch.setattr(chips.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UsageError, match=r"pip install '\.\[tpu\]'"):
    chips.find('v5e:4x8')


def test_a_line_of_chips_sends_by_one_link_and_a_ring_by_two():
  link = chips.CHIPS['v5e'].link
  row = tuple(range(4))
  line = chips.traffic([collective('all-gather', (row,))], grid(4, 4).devices, grid(4, 4))
  assert line.ici_bytes == 3 * 4096 and line.ici_seconds == pytest.approx(3 * 4096 / link)
  both = chips.traffic([collective('all-gather', (tuple(range(16)),))], grid(4, 4).devices, grid(4, 4))
  assert both.ici_seconds == pytest.approx(15 * 4096 / (2 * link))
  whole = grid(2, 16)
  ring = chips.traffic([collective('all-gather', (tuple(range(16)),))], whole.devices, whole)
  assert ring.ici_seconds == pytest.approx(15 * 4096 / (2 * link))


def test_permutations_of_one_loop_share_the_links_that_both_take():
  where, link = grid(1, 4), chips.CHIPS['v5e'].link
  one = collective('collective-permute', ((0, 1), (1, 2), (2, 3)))
  assert chips.traffic([one], where.devices, where).ici_seconds == pytest.approx(4096 / link)
  back = collective('collective-permute', ((1, 0), (2, 1), (3, 2)))
  assert chips.traffic([one, back], where.devices, where).ici_seconds == pytest.approx(4096 / link)
  assert chips.traffic([one, one], where.devices, where).ici_seconds == pytest.approx(2 * 4096 / link)
  # Round a line of four, the last goes back over all the links.
  around = collective('collective-permute', ((0, 1), (1, 2), (2, 3), (3, 0)))
  assert chips.traffic([around, back], where.devices, where).ici_seconds == pytest.approx(2 * 4096 / link)


def test_groups_over_several_slices_use_the_network():
  where = grid(2, 2, slices=2)
  found = chips.traffic([collective('all-reduce', (tuple(range(8)),))], where.devices, where)
  assert found.ici_bytes == 2 * 3 / 4 * 4096
  # Reduced within a slice first, a quarter of it is left to each chip.
  assert found.dcn_bytes == 2 * 1 / 2 * 4096 / 4
  assert found.dcn_seconds == pytest.approx(found.dcn_bytes / chips.CHIPS['v5e'].dcn)


def test_groups_that_interleave_share_the_links_between_them():
  where, link = grid(1, 16), chips.CHIPS['v5e'].link
  halves = chips.traffic([collective('all-gather', ((0, 8), (1, 9)))], where.devices, where)
  # Round the ring both ways, and eight groups on each link.
  assert halves.ici_seconds == pytest.approx(4096 / (2 / 8 * link))
  near = chips.traffic([collective('all-gather', ((0, 1), (2, 3)))], where.devices, where)
  assert near.ici_seconds == pytest.approx(4096 / link)


def busiest(length, ring):
  """Messages on the busiest link where each place sends each other one; half each way where equally far."""
  loads = collections.Counter()
  for source, target in itertools.permutations(range(length), 2):
    ways = [target - source] + ([target - source - math.copysign(length, target - source)] if ring else [])
    ways = [way for way in ways if abs(way) == min(map(abs, ways))]
    for way in ways:
      step = 1 if way > 0 else -1
      for i in range(int(abs(way))):
        loads[(source + i * step) % length, step] += 1 / len(ways)
  return max(loads.values())


@pytest.mark.parametrize('length, ring', [(16, True), (8, False)])
def test_an_all_to_all_passes_through_the_chips_between(length, ring):
  where, link = grid(1, length), chips.CHIPS['v5e'].link
  found = chips.traffic([collective('all-to-all', (tuple(range(length)),))], where.devices, where)
  assert found.ici_seconds == pytest.approx(busiest(length, ring) * 4096 / length / link)


def test_a_route_takes_the_shorter_way_round_a_ring():
  where = grid(1, 16)
  assert [link[2] for link in chips.route(where.devices[1], where.devices[15], where)] == [1, 0]
  assert {link[-1] for link in chips.route(where.devices[1], where.devices[15], where)} == {-1}


def test_a_cube_closes_rings_where_all_its_sides_do():
  cube = chips.Slice('test', 'v5p', (4, 4, 4), 1, ())
  assert chips._wraps(4, cube) and not chips._wraps(4, cube._replace(shape=(4, 4, 2)))


def test_a_slice_is_laid_out_by_libtpu():
  pytest.importorskip('libtpu')
  found = chips.find('v5e:2x2')
  assert len(found.devices) == 4 and {chips.place_of(device)[:2] for device in found.devices} == {
    (0, 0), (0, 1), (1, 0), (1, 1),
  }  # fmt: skip
