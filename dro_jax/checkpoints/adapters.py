"""Checkpoints of adapters: the adapter alone, and where the base lies that it was trained on.

A run with adapters saves what trains: adapters, heads, their optimisers. Its metadata has an entry `lora`:
the adapter's settings, the folder of the base, and the base's fingerprint, by which another base is refused.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from flax.core import meta

from dro_jax.checkpoints import digest, folders, orbax, policy, trees
from dro_jax.checkpoints.metadata import TRANSFORMERS_NAME
from dro_jax.errors import UsageError
from dro_jax.models import lora, quantised
from dro_jax.models.family import Config
from dro_jax.models.lora import Adapted, Base, Lora
from dro_jax.models.policy import make_network, saved_config, smallest_rows
from dro_jax.models.stacks import LAYER_AXIS, Path, convert_layers, is_stack
from dro_jax.types import Params

ENTRY = 'lora'


class Saved(NamedTuple):
  """The entry of a checkpoint's metadata.

  Attributes:
    lora: the adapter's settings.
    base: the folder of its base, when it was saved.
    fingerprint: a hash of the base's parameters, the same for any mesh, scanned or not.
    continues: whether the run that saved it began with an adapter that was trained before.
  """

  lora: Lora
  base: str
  fingerprint: str
  continues: bool = False

  def to_json(self) -> dict[str, Any]:
    """The entry."""
    return self._asdict() | {'lora': dataclasses.asdict(dataclasses.replace(self.lora, base=None))}


def saved_adapter(directory: str | epath.PathLike) -> Saved | None:
  """The entry in the metadata of a folder's checkpoint; `None` where that is a whole model."""
  return entry_of(folders.load_metadata(directory))


def entry_of(metadata: Mapping[str, Any]) -> Saved | None:
  """The entry in metadata, if there is one."""
  entry = metadata.get(ENTRY)
  return None if entry is None else Saved(**{**entry, 'lora': Lora(**entry['lora'])})


def find_base(directory: str | epath.PathLike, base: str | None = None) -> str:
  """The checkpoint of the base: a folder's own, or that of the base of its adapter.

  Args:
    directory: a checkpoint of a whole model or of an adapter.
    base: where the adapter's base lies now; `None` takes it from where it lay.

  Raises:
    UsageError: it is missing, or is an adapter's checkpoint itself.
  """
  saved = saved_adapter(directory)
  place = directory if saved is None else base or saved.base
  try:
    found = str(folders.find_checkpoint(place))
  except UsageError as error:
    if saved is None:
      raise
    raise UsageError(
      f'{directory} holds an adapter, whose base is missing ({error}): pass its folder, --set LORA_BASE=DIR.'
    ) from error
  if saved is not None and saved_adapter(found) is not None:
    raise UsageError(f'LORA_BASE={place} holds an adapter: pass the folder of the whole model below it.')
  return found


def transformers_name(directory: str) -> str | None:
  """What transformers loads a base by, a name on the hub or a folder; `None` where that is not known.

  Args:
    directory: where the base lies. It need not be there any more.
  """
  try:
    return folders.load_metadata(directory).get(TRANSFORMERS_NAME)
  except UsageError:
    return None


def base_of_run(init_from: str, base: str | None, saved: Saved | None = None) -> str:
  """The checkpoint of a run's base.

  Args:
    init_from: where the run starts: the base itself, or an adapter on it.
    base: where the base of such an adapter lies now, if it moved.
    saved: the entry of the run's own checkpoints, where it is resumed: a run's best step, which a folder
      stands for, may be another one by now.

  Raises:
    UsageError: it is missing.
  """
  if base is None and saved is not None and epath.Path(saved.base).exists():
    return saved.base
  if base is not None and saved_adapter(init_from) is None:
    raise UsageError(
      f'LORA_BASE={base}: {init_from} holds a whole model, which is the base of the run itself. Remove '
      'LORA_BASE, which is for an adapter that was trained before and whose base moved.'
    )
  return find_base(init_from, base)


def fingerprint_of(directory: str) -> str:
  """The fingerprint of a whole model's checkpoint, read one part after the other."""
  leaves = policy.stream_policy(directory, scan=False)
  return digest.hash_sums(digest.sums_of(leaves))


def _by_layer(leaves: Any) -> Iterator[tuple[Path, Any]]:
  """Parameters layer by layer, so that a fingerprint is the same, scanned or not."""
  for path, x in leaves:
    if not is_stack(path):
      yield path, x
    for i in range(x.shape[LAYER_AXIS] if is_stack(path) else 0):
      yield (path[0], f'layers_{i}', *path[2:]), x[:, i]


def load_base(
  directory: str, config: Config, settings: Lora, abstract: Params, expected: str | None = None
) -> tuple[Base, str]:
  """A base and its fingerprint; kernels in fewer bits are made one after the other, as they are read.

  Args:
    directory: a checkpoint of a whole model.
    config: the model's.
    settings: how the base is stored.
    abstract: shapes and shardings of the parameters in float32.
    expected: the fingerprint of the base that an adapter was trained on.

  Raises:
    UsageError: there is no checkpoint, it does not fit, or it is another base.
  """
  kind, sums = settings.base_kernels, []

  def hashed(leaves: Any) -> Iterator[tuple[Path, Any]]:
    for path, x in leaves:
      sums.extend(digest.sums_of(_by_layer([(path, x)])))
      yield path, x

  if kind == 'float32':
    leaves = traverse_util.flatten_dict(policy.load_policy(directory, config, abstract)).items()
  else:
    leaves = _placed(directory, config, abstract)
  store = jax.jit(quantised.quantise, static_argnums=1)
  base = Base(lora.split_leaves(hashed(leaves), kind, store), settings.scale)
  found = digest.hash_sums(sums)
  if expected not in (None, found):
    raise UsageError(
      f'{directory} holds other parameters than the base that the adapter was trained on, so that the '
      'adapter would be another policy on it: pass the folder of its own base, --set LORA_BASE=DIR.'
    )
  return base, found


def _placed(directory: str, config: Config, abstract: Params) -> Iterator[tuple[Path, Any]]:
  """A checkpoint's parameters on their shards, one after the other."""
  target, seen = traverse_util.flatten_dict(abstract), {}
  for path, x in policy.stream_policy(directory, scan=config.scan_layers):
    seen[path] = jax.ShapeDtypeStruct(x.shape, x.dtype)
    if path in target and target[path].shape == x.shape:
      yield path, jax.make_array_from_callback(x.shape, target[path].sharding, x.__getitem__)
  trees.refuse_other_tree(directory, traverse_util.unflatten_dict(seen), abstract)


def load_adapter(directory: str, config: Config, abstract: Params) -> Params:
  """The policy's adapter in a checkpoint, scanned or not, laid out as `abstract` says."""
  params, metadata = orbax.load_params(directory)
  if metadata['model'].get('scan_layers', False) != config.scan_layers:
    params = convert_layers(params, scan=config.scan_layers)
  trees.refuse_other_tree(directory, params, abstract)
  return jax.tree.map(
    lambda x, at: jax.make_array_from_callback(x.shape, at.sharding, x.__getitem__), params, abstract
  )


def read_unrolled(directory: str) -> tuple[Params, Config]:
  """The policy's adapter in a checkpoint, layer by layer, and the model's configuration."""
  params, metadata = orbax.load_params(directory)
  if metadata['model'].get('scan_layers', False):
    params = convert_layers(params, scan=False)
  return params, saved_config(metadata)


def refuse_other_settings(saved: Saved, settings: Lora, directory: str) -> None:
  """Refuses to train on an adapter with other settings than it has.

  Raises:
    UsageError: names the settings that differ.
  """
  names = ('rank', 'scale', 'names', 'base_kernels')
  pairs = {name: (getattr(saved.lora, name), getattr(settings, name)) for name in names}
  differing = [f'{name} {then} there and {now} here' for name, (then, now) in pairs.items() if then != now]
  if differing:
    alpha = '' if saved.lora.alpha is None else f' --set LORA_ALPHA={saved.lora.alpha:g}'
    raise UsageError(
      f'the adapter in {directory} has other settings: {"; ".join(differing)}. Pass its own (--set '
      f'LORA_RANK={saved.lora.rank}{alpha} --set LORA_TARGETS={",".join(saved.lora.targets)} --set '
      f'LORA_BASE_KERNELS={saved.lora.base_kernels}), or start a fresh adapter from its base.'
    )


def stream_merged(
  directory: str, *, scan: bool, base: str | None = None
) -> Iterator[tuple[Path, np.ndarray]]:
  """A policy's parameters one after the other, as `policy.stream_policy`; an adapter's with its base, merged.

  Args:
    directory: a checkpoint of a whole model or of an adapter.
    scan: see `policy.stream_policy`.
    base: where an adapter's base lies now; `None` takes it from where it lay.
  """
  saved = saved_adapter(directory)
  if saved is None:
    yield from policy.stream_policy(directory, scan=scan)
    return
  params, metadata = orbax.load_params(directory)
  if metadata['model'].get('scan_layers', False) != scan:
    params = convert_layers(params, scan=scan)
  adapter = traverse_util.flatten_dict(lora.scaled(params, saved.lora.scale))
  place, sums = find_base(directory, base), []
  for path, x in policy.stream_policy(place, scan=scan):
    sums.extend(digest.sums_of(_by_layer([(path, x)])))
    yield path, np.asarray(lora.merged_kernel(path, _as_stored(path, x, saved.lora), adapter))
  if digest.hash_sums(sums) != saved.fingerprint:
    raise UsageError(
      f'{place} holds other parameters than the base that the adapter in {directory} was trained on: pass '
      'the folder of its own base, --set LORA_BASE=DIR.'
    )


@functools.partial(jax.jit, static_argnums=1)
def _rounded(kernel: jax.Array, kind: str) -> jax.Array:
  return quantised.dequantise(quantised.quantise(kernel, kind))


def _as_stored(path: Path, x: np.ndarray, settings: Lora) -> Any:
  """A parameter as the adapter was trained on it: kernels rounded as the base stores them."""
  if settings.base_kernels == 'float32' or path[-1] != 'kernel':
    return x
  return _rounded(x, settings.base_kernels)


def abstract_policy(config: Config) -> Params:
  """Shapes of a policy's parameters, boxed with their logical axes."""
  return jax.eval_shape(make_network(config).init, jax.random.key(0), smallest_rows())['params']


def load_adapted(
  directory: str,
  config: Config,
  shardings: Callable[[Params], Params],
  base: str | None = None,
  loaded: Base | None = None,
) -> Adapted:
  """The policy of an adapter's checkpoint: its base, checked, with the adapter on.

  Args:
    directory: the checkpoint.
    config: the model's.
    shardings: of a tree of boxed shapes.
    base: where the base lies now; `None` takes it from where it lay.
    loaded: the base itself, where it is loaded already (see `load_own_base`).

  Raises:
    UsageError: the base is missing, or is another one.
  """
  loaded = loaded or load_own_base(directory, config, shardings, base)
  own = lora.abstract_adapter(abstract_policy(config), saved_adapter(directory).lora)
  return lora.join_policy(loaded, load_adapter(directory, config, _on_shards(own, shardings)))


def load_own_base(
  directory: str, config: Config, shardings: Callable[[Params], Params], base: str | None = None
) -> Base:
  """The base of an adapter's checkpoint, checked; arguments and errors as `load_adapted`."""
  saved, whole = saved_adapter(directory), _on_shards(abstract_policy(config), shardings)
  loaded, _ = load_base(find_base(directory, base), config, saved.lora, whole, saved.fingerprint)
  return loaded


def _on_shards(boxed: Params, shardings: Callable[[Params], Params]) -> Params:
  """Shapes with their shardings."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    meta.unbox(boxed),
    shardings(boxed),
  )
