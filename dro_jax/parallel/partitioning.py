"""Where arrays live: a table of rules maps the models' logical axes to the mesh (data, fsdp, model)."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dro_jax.configs.effects import LAYOUT
from dro_jax.errors import UsageError
from dro_jax.types import Params, Rows

AXES = ('data', 'fsdp', 'model')
BATCH_AXES = ('data', 'fsdp')

# XLA may keep bfloat16 intermediates in float32 in one fusion and not in another: then the policy and its own
# copy as the reference disagree (.03 nats were seen). Every program that scores is compiled without.
COMPILER_OPTIONS = {'xla_allow_excess_precision': False}

# Parameters: matrices are cut by `model` along what is computed in parallel, by `fsdp` along the width.
# Activations: rows by `data` and `fsdp`, heads and mlp by `model`. In one array a mesh axis cuts one axis,
# that of the first rule: lengths come last, and may be cut by `model` where nothing else is (see make_mesh).
LOGICAL_AXIS_RULES = (
  ('vocab', 'model'),
  ('embed', 'fsdp'),
  ('heads', 'model'),
  ('joined_kv', 'model'),
  ('kv', None),
  ('mlp', 'model'),
  ('relpos_buckets', None),
  ('layers', None),
  ('activation_batch', BATCH_AXES),
  ('activation_batch', 'data'),  # Where a width is cut by `fsdp`: vectors on their way from the table.
  ('activation_embed', None),
  ('activation_heads', 'model'),
  ('activation_kv', None),
  ('activation_mlp', 'model'),
  ('activation_vocab', 'model'),
  ('activation_length', None),
)

# What a rule may cut by: nothing, a mesh axis, or several.
Cut = str | tuple[str, ...] | None


class Mesh(NamedTuple):
  """Devices in a mesh, and what each logical axis is cut by; of two rules for one axis the first that can."""

  mesh: jax.sharding.Mesh
  rules: tuple[tuple[str, Cut], ...] = LOGICAL_AXIS_RULES

  @property
  def shape(self) -> Mapping[str, int]:
    """The mesh's axes and their sizes."""
    shape: Mapping[str, int] = self.mesh.shape
    return shape

  @property
  def devices(self) -> np.ndarray:
    """The devices, as they are laid out."""
    return self.mesh.devices


@dataclasses.dataclass(frozen=True)
class MeshSpec:
  """A (data, fsdp, model) mesh and its rules: plain data until `over` lays it out on devices.

  Args:
    data: replicas of the parameters in a slice; −1 takes the devices that the other axes leave.
    fsdp: shards of every parameter's width, gathered as they are used; rows are split over it too.
    model: shards of heads, mlp and vocabulary.
    dcn_data: the factor by which several slices, joined by a slower network, lengthen `data`; −1 takes the
      slices that `dcn_fsdp` leaves.
    dcn_fsdp: the factor by which several slices lengthen `fsdp`.
    rules: cuts of logical axes in place of those of LOGICAL_AXIS_RULES: {'vocab': 'fsdp'}. Pairs are read
      in their order, before all others, so an axis may have several:
      [('mlp', 'fsdp'), ('embed', 'fsdp'), ('embed', None)]. {'activation_length': 'model'} cuts hidden states
      by length between layers (arXiv 2205.05198).

  Example:
    >>> dro.replace(spec, mesh=dro.MeshSpec(fsdp=-1, data=1)).mesh.fsdp
    -1
  """

  data: Annotated[int, LAYOUT] = -1
  fsdp: Annotated[int, LAYOUT] = 1
  model: Annotated[int, LAYOUT] = 1
  dcn_data: Annotated[int, LAYOUT] = -1
  dcn_fsdp: Annotated[int, LAYOUT] = 1
  rules: Annotated[Mapping[str, Cut] | Sequence[tuple[str, Cut]], LAYOUT] = ()

  def over(self, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over these devices, which need not be here (see `preflight`); `None` takes all that are.

    Raises:
      UsageError: the sizes do not multiply to the number of devices, or a rule names what there is not.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = len({getattr(device, 'slice_index', None) for device in devices})
    what = 'devices' if slices == 1 else 'devices of a slice'
    sizes = {'data': self.data, 'fsdp': self.fsdp, 'model': self.model}
    within = _filled(sizes, len(devices) // slices, what)
    across = _filled({'dcn_data': self.dcn_data, 'dcn_fsdp': self.dcn_fsdp}, slices, 'slices')
    arranged = _arranged(devices, within, (*across, 1))
    mesh = jax.sharding.Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Mesh(mesh, _merged(self.rules))


def make_mesh(*sizes: int, devices: Sequence[Any] | None = None, **settings: Any) -> Mesh:
  """The mesh of `MeshSpec(*sizes, **settings)` over devices, all that are here by default."""
  return MeshSpec(*sizes, **settings).over(devices)  # type: ignore[arg-type]


def _filled(sizes: Mapping[str, int], count: int, what: str) -> tuple[int, ...]:
  """Sizes whose product is `count`, with what is left for the one that is −1."""
  given = math.prod(size for size in sizes.values() if size != -1)
  wild = [axis for axis, size in sizes.items() if size == -1]
  wrong = len(wild) > 1 or any(size < 1 and size != -1 for size in sizes.values())
  if wrong or count % given or (not wild and given != count):
    said = ', '.join(f'{axis}={size}' for axis, size in sizes.items())
    raise UsageError(
      f'the mesh {said} does not divide the {count} {what} here: '
      f'choose sizes whose product is the number of {what}, one of them -1 for what is left '
      f'({", ".join("make_mesh." + axis for axis in sizes)}).'
    )
  return tuple(count // given if size == -1 else size for size in sizes.values())


def _arranged(devices: Sequence[Any], within: Sequence[int], across: Sequence[int]) -> np.ndarray:
  """Devices as their links run: an axis within a slice as far as it goes, and outermost across slices."""
  if math.prod(across) == 1:
    return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
  return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def _merged(given: Mapping[str, Cut] | Sequence[tuple[str, Cut]]) -> tuple[tuple[str, Cut], ...]:
  """The rules with those given: a mapping's in their default's place, pairs before all others."""
  pairs = given.items() if isinstance(given, Mapping) else given
  pairs = [(name, _checked(name, cut)) for name, cut in pairs]
  named = dict(pairs)
  if isinstance(given, Mapping):
    return tuple(dict.fromkeys((name, named.get(name, cut)) for name, cut in LOGICAL_AXIS_RULES))
  return (*pairs, *(rule for rule in LOGICAL_AXIS_RULES if rule[0] not in named))


def _checked(name: str, cut: Cut) -> Cut:
  """A rule's cut in the form of the table.

  Raises:
    UsageError: there is no such logical or mesh axis.
  """
  known = [name for name, _ in LOGICAL_AXIS_RULES]
  wrong = [axis for axis in _axes(cut) if axis not in AXES]
  if name not in known or wrong:
    what = f'no mesh axis {wrong[0]!r}' if wrong else f'no logical axis {name!r}'
    raise UsageError(
      f'make_mesh.rules: {name!r}: {cut!r}: there is {what}. Logical axes are {", ".join(known)}; each is '
      f'cut by {", ".join(AXES)}, several of them, or None.'
    )
  return cut if isinstance(cut, str | None) else tuple(cut)


def _axes(cut: Cut) -> tuple[str, ...]:
  """The mesh axes of a cut."""
  return () if cut is None else (cut,) if isinstance(cut, str) else tuple(cut)


def _first_cut(grid: Mesh, name: str) -> Cut:
  """What a logical axis is cut by that is alone in its array."""
  return next(cut for known, cut in grid.rules if known == name)


def _ways(grid: Mesh, cut: Cut) -> int:
  """Into how many parts."""
  return math.prod(grid.shape[axis] for axis in _axes(cut))


@contextlib.contextmanager
def use_mesh(grid: Mesh) -> Iterator[None]:
  """Within, the models' logical constraints mean this mesh."""
  with jax.set_mesh(grid.mesh), nn.logical_axis_rules(grid.rules):
    yield


def num_row_shards(grid: Mesh) -> int:
  """Into how many parts the mesh cuts a batch's rows."""
  return _ways(grid, _first_cut(grid, 'activation_batch'))


def divisible_rows(grid: Mesh, count: int) -> int:
  """The least number of rows that holds `count` of them and that the mesh divides."""
  shards = num_row_shards(grid)
  return -(-count // shards) * shards


def refuse_length(grid: Mesh, name: str, length: int) -> None:
  """Refuses rows of a length that the mesh is to cut and cannot.

  Raises:
    UsageError: it does not divide.
  """
  cut = _first_cut(grid, 'activation_length')
  if length % _ways(grid, cut):
    raise UsageError(
      f'make_mesh.rules cuts lengths by {" and ".join(_axes(cut))}, {_ways(grid, cut)} ways, which do not '
      f'divide rows of {length} {name} tokens: pass a multiple, as RowOptions({name}_length=...) or --set '
      f'ROW_{name.upper()}_LENGTH=....'
    )


def replicated(grid: Mesh) -> NamedSharding:
  """Every device holds all of it."""
  return NamedSharding(grid.mesh, PartitionSpec())


def rows_sharding(grid: Mesh) -> NamedSharding:
  """Rows (the first axis) cut as the rules say, by default over data and fsdp."""
  return NamedSharding(grid.mesh, PartitionSpec(_first_cut(grid, 'activation_batch')))


def parameter_shardings(boxed: Params, grid: Mesh) -> Params:
  """Shardings of a tree of (abstract) parameters boxed with logical axes.

  Raises:
    UsageError: a parameter's axis does not divide by its mesh axis, or a mesh axis cuts two of its axes.
  """

  def sharding(path: tuple[Any, ...], leaf: Any, names: PartitionSpec) -> NamedSharding:
    where = f'{jax.tree_util.keystr(path, simple=True, separator="/")} {leaf.shape}'
    spec = nn.logical_to_mesh_axes(tuple(names), grid.rules) or PartitionSpec()
    _refuse_conflict(grid, where, tuple(names), tuple(spec))
    for size, cut in zip(leaf.shape, spec):
      if size % _ways(grid, cut):
        said = ' × '.join(f'{axis}={grid.shape[axis]}' for axis in _axes(cut))
        raise UsageError(
          f'the mesh axis {said} does not divide an axis of size {size} of the parameter {where}: '
          f'choose a make_mesh.{_axes(cut)[0]} that divides it.'
        )
    return NamedSharding(grid.mesh, spec)

  return jax.tree_util.tree_map_with_path(
    sharding, nn.unbox(boxed), nn.get_partition_spec(boxed), is_leaf=lambda x: isinstance(x, PartitionSpec)
  )


def _refuse_conflict(grid: Mesh, where: str, names: Sequence[str], spec: Sequence[Cut]) -> None:
  """Refuses an axis that is whole only because what cuts it cuts another one already."""
  for name, cut in zip(names, spec):
    cuts = [cut for known, cut in grid.rules if known == name]
    if cut is None and cuts and None not in cuts:
      others = [other for other, taken in zip(names, spec) if set(_axes(taken)) & set(_axes(cuts[-1]))]
      raise UsageError(
        f'make_mesh.rules: the parameter {where} would be cut twice by {_axes(cuts[-1])[0]!r}, along '
        f'{others[0]!r} and {name!r}: a mesh axis cuts one axis of an array. Cut one of them by another mesh '
        f"axis or None, or say what gives way: rules = [('{others[0]}', {cuts[-1]!r}), ('{name}', "
        f"{cuts[-1]!r}), ('{name}', None)]."
      )


def state_shardings(abstract_state: Any, params_shardings: Params, grid: Mesh) -> Any:
  """Shardings of a TrainState: what has a parameter's path and its axes, or some of them, is cut as it is.

  All else is replicated: counts, and the placeholders of what an optimiser does not keep.
  """
  by_path = {
    (name, *path): (leaf.shape, sharding.spec)
    for name in params_shardings
    for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(abstract_state.params[name]),
      jax.tree.leaves(params_shardings[name]),
      strict=True,
    )
  }

  def follow(name: str, tree: Any) -> Any:
    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
      # An optimiser's moments sit somewhere inside its state under the parameter's own path.
      keys = ((name, *path[start:]) for start in range(len(path)))
      shape, cuts = next((by_path[key] for key in keys if key in by_path), ((), PartitionSpec()))
      spec = _spec_of_moment(shape, cuts, leaf.shape, is_column='v_col' in jax.tree_util.keystr(path))
      return NamedSharding(grid.mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)

  return abstract_state._replace(
    step=replicated(grid),
    params=params_shardings,
    opt_state={name: follow(name, tree) for name, tree in abstract_state.opt_state.items()},
    reference=None if abstract_state.reference is None else params_shardings['policy'],
    initial=None if abstract_state.initial is None else params_shardings['policy'],
    statistics=dict.fromkeys(abstract_state.statistics, replicated(grid)),
  )


def _spec_of_moment(
  shape: tuple[int, ...], spec: PartitionSpec, wanted: tuple[int, ...], *, is_column: bool
) -> PartitionSpec:
  """How an array is cut that has a parameter's axes, or all but one (a factor of Adafactor's).

  Optimisers that take a scanned stack layer by layer keep its layers, axis 1, first. Of a square matrix the
  rows' factor keeps the first axis, the columns' the last.
  """
  axes = tuple(range(len(shape)))
  fewer = [axes[:i] + axes[i + 1 :] for i in axes]
  for kept in (axes, *(fewer if is_column else fewer[::-1])):
    for order in (kept, sorted(kept, key=lambda axis: axis != 1)):
      if tuple(shape[axis] for axis in order) == wanted:
        return PartitionSpec(*((*spec, *[None] * len(shape))[axis] for axis in order))
  return PartitionSpec()


def host_rows(grid: Mesh, num_rows: int) -> tuple[int, int]:
  """The range [start, stop) of rows that this process's devices hold."""
  slices = [
    index[0].indices(num_rows)
    for index in rows_sharding(grid).addressable_devices_indices_map((num_rows,)).values()
    if index is not None
  ]
  return min(start for start, _, _ in slices), max(stop for _, stop, _ in slices)


def global_batch(grid: Mesh, local: Rows, num_rows: int) -> Rows:
  """This host's rows as its part of the global batch; its units, which every host knows, replicated."""
  rows: Rows = global_rows(grid, local._replace(units=None), num_rows)
  whole = replicated(grid)
  return rows._replace(
    units=jax.tree.map(
      lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), local.units
    )
  )


def global_rows(grid: Mesh, local: Any, num_rows: int) -> Any:
  """A tree of this host's rows as its part of the global batch."""
  sharding = rows_sharding(grid)
  start, _ = host_rows(grid, num_rows)

  def place(x: np.ndarray | jax.Array) -> jax.Array:
    def shard(index: Any) -> Any:
      first, last, _ = index[0].indices(num_rows)
      return x[first - start : last - start]

    return jax.make_array_from_callback((num_rows, *x.shape[1:]), sharding, shard)

  return jax.tree.map(place, local)


def place_rows(grid: Mesh, arrays: Any) -> Any:
  """A tree of arrays of rows, which every host holds whole, as a global batch."""
  num_rows = len(jax.tree.leaves(arrays)[0])
  start, stop = host_rows(grid, num_rows)
  return global_rows(grid, jax.tree.map(lambda array: array[start:stop], arrays), num_rows)


def jit_on(grid: Mesh, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """Compiles a function for a mesh, within which the models' logical constraints mean that mesh.

  Args:
    grid: the mesh on which the function runs.
    function: a pure function of arrays.
    options: of `jax.jit`. Every device holds the whole result unless `out_shardings` says otherwise;
      `compiler_options` are added to COMPILER_OPTIONS.
  """
  compiler_options = COMPILER_OPTIONS | dict(options.pop('compiler_options', {}))
  options = {'out_shardings': replicated(grid)} | options
  compiled = jax.jit(function, compiler_options=compiler_options, **options)

  @functools.wraps(function)
  def on_mesh(*arguments: Any) -> Any:
    with use_mesh(grid):
      return compiled(*arguments)

  return on_mesh
