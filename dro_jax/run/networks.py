"""A run's networks, their parameters' shapes, shardings and first values."""

import dataclasses
import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from dro_jax import algorithms
from dro_jax.checkpoints import adapters, folders, policy
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models import lora as lora_of
from dro_jax.models.family import Config
from dro_jax.models.lora import Base, Lora
from dro_jax.models.policy import config_metadata, encode, family_of, make_network, smallest_rows
from dro_jax.models.value import ValueNetwork, start_from_policy
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.types import Params, Rows

_log = logging.getLogger(__name__)


class Networks(NamedTuple):
  """The policy, the value network where the algorithm has one, and the adapters of both, if they have such.

  With adapters both stand on one frozen base (`models.lora.Base`): the trees here are what is their own, and
  `step.state.TrainState.networks` joins them with the base.
  """

  policy: nn.Module
  value: ValueNetwork | None
  lora: Lora | None = None


def build(
  config: Config,
  *,
  uses_value: bool,
  readout: str = 'prompt',
  shared: bool = False,
  frozen_trunk: bool = False,
  lora: Lora | None = None,
) -> Networks:
  """The networks of a configuration; the value trunk has the policy's architecture."""
  value = ValueNetwork(config, readout=readout, shared=shared, frozen_trunk=frozen_trunk)
  return Networks(make_network(config), value if uses_value else None, lora)


def build_policy(directory: str, **changes: Any) -> Networks:
  """The policy of a checkpoint alone; `changes` are settings of its model, where `None` keeps its own."""
  changed = {name: value for name, value in changes.items() if value is not None}
  return build(dataclasses.replace(policy.config_of(directory), **changed), uses_value=False)


@functools.lru_cache(maxsize=8)
def abstract_params(networks: Networks) -> dict[str, Params]:
  """Shapes of the networks' own parameters, boxed with their logical axes: with adapters, these and heads."""
  whole = jax.eval_shape(lambda key: _init(networks, key), jax.random.key(0))
  return whole if networks.lora is None else _adapters(networks, whole)


def _adapters(networks: Networks, whole: dict[str, Params]) -> dict[str, Params]:
  """The own parameters of networks with adapters; a frozen trunk of a value network has none."""
  own = {'policy': lora_of.abstract_adapter(whole['policy'], networks.lora)}
  if 'value' in whole:
    own['value'] = {name: tree for name, tree in whole['value'].items() if name != 'trunk'}
    if 'trunk' in whole['value'] and not networks.value.frozen_trunk:
      trunk = _same_paths(own['policy'], whole['value']['trunk'])
      own['value']['trunk'] = trunk
  return own


def _same_paths(adapter: Params, trunk: Params) -> Params:
  """The adapters of the products that a value network's trunk has; it may lack a decoder."""
  flat = traverse_util.flatten_dict(trunk)
  own = traverse_util.flatten_dict(adapter).items()
  kept = {path: x for path, x in own if (*path[:-1], 'kernel') in flat}
  return traverse_util.unflatten_dict(kept)


@functools.lru_cache(maxsize=8)
def abstract_base(networks: Networks) -> Base:
  """Shapes of the base of networks with adapters, boxed with their logical axes."""
  return lora_of.abstract_base(adapters.abstract_policy(networks.policy.config), networks.lora)


def abstract_base_on(networks: Networks, mesh: Mesh) -> Base | None:
  """The same with shardings; `None` without adapters."""
  if networks.lora is None:
    return None
  boxed = abstract_base(networks)
  return with_shardings(nn.unbox(boxed), partitioning.parameter_shardings(boxed, mesh))


def shardings(networks: Networks, mesh: Mesh) -> dict[str, Params]:
  """The sharding of each parameter."""
  return {
    name: partitioning.parameter_shardings(tree, mesh) for name, tree in abstract_params(networks).items()
  }


def abstract_on(networks: Networks, mesh: Mesh) -> dict[str, Params]:
  """Shapes of all parameters with their shardings, as a restore needs them."""
  return with_shardings(nn.unbox(abstract_params(networks)), shardings(networks, mesh))


def with_shardings(abstract: Any, sharding: Any) -> Any:
  """Joins a tree of shapes and a tree of shardings."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, sharding)


def _init(networks: Networks, key: jax.Array) -> dict[str, Params]:
  rows, policy_key, value_key = smallest_rows(), *jax.random.split(key)
  params = {'policy': networks.policy.init(policy_key, rows)['params']}
  if networks.value is not None:
    states = jnp.zeros((1, 1, networks.policy.config.emb_dim))
    prompts = jax.eval_shape(functools.partial(_prompt_states, networks.policy, rows), params['policy'])
    params['value'] = networks.value.init(value_key, rows, jnp.zeros_like(prompts), states)['params']
  return params


def _prompt_states(network: nn.Module, rows: Rows, params: Params) -> jax.Array:
  """The policy's states of prompts, whose width need not be that of its states of responses."""
  return family_of(network.config).prompt_states(encode(network, params, rows))


def initial_params(networks: Networks, mesh: Mesh, seed: int, init_from: str | None) -> dict[str, Params]:
  """The networks' first own parameters, each born on its shard.

  The policy comes from the checkpoint `init_from` (or at random without one); the value's trunk starts from
  the policy, its head at zero. With adapters the policy's is fresh, or that of the checkpoint; the value
  network's starts as a copy of it.

  Raises:
    UsageError: the checkpoint is missing or does not fit.
  """
  where = shardings(networks, mesh)
  # A policy from a checkpoint is not initialised too: two might not fit into memory.
  loaded = init_from is not None and (networks.lora is None or continues(networks, init_from))
  made = {name: where[name] for name in where if name != 'policy' or not loaded}

  def init(key: jax.Array) -> dict[str, Params]:
    every = nn.unbox(_init_adapters(networks, key) if networks.lora else _init(networks, key))
    return {name: every[name] for name in made}

  params = jax.jit(init, out_shardings=made)(jax.random.key(seed))
  if loaded:
    params['policy'] = load_own(networks, init_from, mesh)
  if networks.value is not None:
    start = jax.jit(start_from_policy, out_shardings=where['value'])
    params['value'] = start(params['value'], params['policy'])
    if init_from is not None:
      _log.info('%s', _describe_start(params['value'], init_from, networks.lora is not None))
  return params


def _init_adapters(networks: Networks, key: jax.Array) -> dict[str, Params]:
  own, keys = abstract_params(networks), jax.random.split(key)
  params = {'policy': lora_of.init_adapter(own['policy'], keys[0], networks.lora.zero)}
  if 'value' in own:
    params['value'] = {
      name: _init(networks, keys[1])['value'][name] for name in own['value'] if name != 'trunk'
    }
    if 'trunk' in own['value']:
      params['value']['trunk'] = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), nn.unbox(own['value']['trunk'])
      )
  return params


def load_own(networks: Networks, directory: str, mesh: Mesh) -> Params:
  """The policy's own parameters of a checkpoint, each on its shard; of networks with adapters, the adapter.

  Networks without adapters get the policy of an adapter's checkpoint merged with its base.

  Raises:
    UsageError: the checkpoint is missing or does not fit.
  """
  abstract, config = abstract_on(networks, mesh)['policy'], networks.policy.config
  saved = adapters.saved_adapter(directory)
  if networks.lora is not None:
    adapters.refuse_other_settings(saved, networks.lora, directory)
    return adapters.load_adapter(directory, config, abstract)
  if saved is None:
    return policy.load_policy(directory, config, abstract)
  where = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(lora_of.merge, out_shardings=where)(load_policy(networks, directory, mesh))


def continues(networks: Networks, init_from: str | None) -> bool:
  """Whether networks with adapters start from an adapter that was trained before."""
  return networks.lora is not None and init_from is not None and adapters.saved_adapter(init_from) is not None


def load_run_base(
  networks: Networks, mesh: Mesh, init_from: str | None, saved: adapters.Saved | None = None
) -> tuple[Base, adapters.Saved]:
  """The base of a run's adapters, on its shards, and the entry of the run's metadata.

  Args:
    networks: with adapters.
    mesh: where to.
    init_from: the checkpoint that the run starts from: the base, or an adapter on it.
    saved: the entry so far, where the run is resumed.

  Raises:
    UsageError: the base is missing, or is another one than the adapter was trained on.
  """
  if init_from is None:
    raise UsageError(
      'adapters are trained on a base that lies on disk, since a checkpoint holds them alone: pass '
      'Policy(init_from=DIR), or --init_from=DIR, a checkpoint (of `dro_jax import_checkpoint`, or a run), '
      'or no adapter: leave Policy(lora=...), or LORA_RANK, unset.'
    )
  directory = adapters.base_of_run(init_from, networks.lora.base, saved)
  before = saved or adapters.saved_adapter(init_from)
  base, fingerprint = load_base(networks, mesh, directory, before and before.fingerprint)
  began = saved.continues if saved else continues(networks, init_from)
  return base, adapters.Saved(networks.lora, directory, fingerprint, began)


def load_base(
  networks: Networks, mesh: Mesh, directory: str, expected: str | None = None
) -> tuple[Base, str]:
  """The base in a checkpoint, on its shards, and its fingerprint.

  Raises:
    UsageError: the base is missing, or is not the one with the `expected` fingerprint.
  """
  boxed = adapters.abstract_policy(networks.policy.config)
  whole = with_shardings(nn.unbox(boxed), partitioning.parameter_shardings(boxed, mesh))
  return adapters.load_base(directory, networks.policy.config, networks.lora, whole, expected)


def first_policy(networks: Networks, init_from: str, mesh: Mesh) -> Params:
  """The policy from which a run starts; that of a fresh adapter is its base, with the adapter off.

  Raises:
    UsageError: the checkpoint or the base is missing or does not fit.
  """
  whole_or_trained = networks.lora is None or continues(networks, init_from)
  own = load_own(networks, init_from, mesh) if whole_or_trained else None
  base = None if networks.lora is None else load_run_base(networks, mesh, init_from)[0]
  return lora_of.join_policy(base, own)


def load_policy(
  networks: Networks, directory: str, mesh: Mesh, base: str | None = None, loaded: Base | None = None
) -> Params:
  """The parameters of a checkpoint's policy, each on its shard, in layers as the networks have them.

  Args:
    networks: without adapters of their own; what is returned may be an adapted policy all the same.
    directory: a checkpoint.
    mesh: where to.
    base: of an adapter's checkpoint, where its base lies now; `None` takes it from where it lay.
    loaded: that base itself, where it is loaded already (see `load_own_base`).

  Raises:
    UsageError: the checkpoint is missing or does not fit, or the base of its adapter is another one.
  """
  config = networks.policy.config
  if adapters.saved_adapter(directory) is None:
    return policy.load_policy(directory, config, abstract_on(networks._replace(lora=None), mesh)['policy'])
  on_mesh = functools.partial(partitioning.parameter_shardings, grid=mesh)
  return adapters.load_adapted(directory, config, on_mesh, base, loaded)


def load_own_base(networks: Networks, directory: str, mesh: Mesh, base: str | None = None) -> Base | None:
  """The base of an adapter's checkpoint; `None` of a whole model. Arguments and errors as `load_policy`."""
  if adapters.saved_adapter(directory) is None:
    return None
  on_mesh = functools.partial(partitioning.parameter_shardings, grid=mesh)
  return adapters.load_own_base(directory, networks.policy.config, on_mesh, base)


def _describe_start(value: Params, init_from: str, has_adapters: bool = False) -> str:
  """A line that says which parts of a value network are new."""
  trunk = "its trunk is a copy of the policy's" if 'trunk' in value else 'it has no trunk of its own'
  if has_adapters:
    trunk = "its adapter is a copy of the policy's" if 'trunk' in value else 'it has no adapter of its own'
  has = folders.load_metadata(init_from).get('value')
  reason = 'a run never takes the value of a checkpoint' if has else 'the checkpoint has none'
  return f'{init_from}: V starts fresh, because {reason}: {trunk}, and its head starts at zero'


def metadata(
  config: Config,
  *,
  vocabulary: vocabularies.Vocabulary,
  algorithm: algorithms.Algorithm,
  readout: str,
  shared: bool,
  frozen_trunk: bool = False,
  **settings: Any,
) -> dict[str, Any]:
  """The metadata of every checkpoint, from which networks and the reading of data are rebuilt."""
  value = {'readout': readout, 'shared': shared} | ({'frozen_trunk': True} if frozen_trunk else {})
  return {
    **config_metadata(config),
    'value': value if algorithm.uses_value else None,
    'vocabulary': vocabulary.spec,
    'vocabulary_fingerprint': vocabulary.fingerprint,
    'algorithm': algorithm.name,
    'temperature': algorithm.temperature,
    **settings,
  }
