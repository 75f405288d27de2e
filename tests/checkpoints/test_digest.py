import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dro_jax.checkpoints import digest

RNG = np.random.default_rng(0)
TREE = {
  'kernel': RNG.normal(size=(8, 4)).astype(np.float32),
  'half': jnp.asarray(RNG.normal(size=8), jnp.bfloat16),
  'step': np.int32(7),
  'mask': np.array([True, False, True]),
  'empty': np.zeros((0, 3), np.float32),
}
HASHES = [digest.hash_tree, digest.hash_state, digest.hash_bytes]


def with_leaf(name, change):
  """The tree with one leaf changed in a copy."""
  leaf = np.array(TREE[name])
  return {**TREE, name: change(leaf)}


def flipped(array, place, bit=0):
  """A copy with one bit of one element changed."""
  array = array.copy()
  array.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
  return array


def swapped(array):
  array = array.copy()
  array[[0, 1]] = array[[1, 0]]
  return array


@pytest.mark.parametrize('hashed', HASHES)
def test_equal_trees_hash_alike(hashed):
  assert hashed(TREE) == hashed(jax.tree.map(np.array, TREE)) == hashed(dict(reversed(TREE.items())))


@pytest.mark.parametrize('hashed', HASHES)
@pytest.mark.parametrize('bit', [0, 13, 24, 31])
def test_one_changed_bit_changes_the_hash(hashed, bit):
  whole = hashed(TREE)
  assert all(hashed(with_leaf('kernel', lambda x, i=i: flipped(x, i, bit))) != whole for i in range(32))


@pytest.mark.parametrize('hashed', [digest.hash_state, digest.hash_bytes])
def test_two_changed_signs_change_the_hash(hashed):
  whole = hashed(TREE)
  pairs = [(0, i) for i in range(1, 32)]
  assert all(
    hashed(with_leaf('kernel', lambda x, i=i, j=j: flipped(flipped(x, i, 31), j, 31))) != whole
    for i, j in pairs
  )


@pytest.mark.parametrize('hashed', HASHES)
@pytest.mark.parametrize(
  'tree',
  [
    with_leaf('kernel', swapped),  # The same numbers in another order.
    with_leaf('kernel', np.transpose),
    with_leaf('step', lambda x: x + 1),
    with_leaf('mask', np.logical_not),
    {**TREE, 'kernel': TREE['half'], 'half': TREE['kernel']},
    {name: leaf for name, leaf in TREE.items() if name != 'empty'},
    {**TREE, 'more': np.float32(0)},
  ],
)
def test_another_tree_has_another_hash(hashed, tree):
  assert hashed(tree) != hashed(TREE)


@pytest.mark.parametrize('hashed', [digest.hash_tree, digest.hash_state])
def test_the_hash_is_that_of_any_mesh_and_type_on_the_devices(hashed):
  mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)
  for spec in (PartitionSpec(), PartitionSpec('data'), PartitionSpec('data', 'model')):
    kernel = jax.device_put(TREE['kernel'], NamedSharding(mesh, spec))
    assert hashed({**TREE, 'kernel': kernel}) == hashed(TREE)
  wide = {**TREE, 'half': TREE['half'].astype(jnp.float32)}
  assert hashed(wide) == hashed(TREE)


@pytest.mark.parametrize(
  'hashed, expected',
  [
    (digest.hash_tree, '5952da5366e0e91e854beec3c04dd655'),
    (functools.partial(digest.hash_state, saved='5952'), '5952da5366e0e91e854beec3c04dd655'),
    (digest.hash_state, '2:f4072d8d9bf43cc4d390a073186bdb93'),
    (digest.hash_bytes, 'f7d6105e32f23140961724715dfa07e4'),
  ],
)
def test_the_hashes_of_saved_checkpoints_stay_valid(hashed, expected):
  """These very hashes are written in checkpoints: another version must find the same ones."""
  tree = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': {'c': np.array([1, -1], np.int32)}}
  assert hashed(tree) == expected
