"""A run's networks, their parameters' shapes, shardings and first values."""

import dataclasses
import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dro_jax import algorithms
from dro_jax.checkpoints import folders, policy
from dro_jax.data.text import vocabularies
from dro_jax.models.family import Config
from dro_jax.models.policy import config_metadata, encode, family_of, make_network, smallest_rows
from dro_jax.models.value import ValueNetwork, start_from_policy
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.types import Params, Rows

_log = logging.getLogger(__name__)


class Networks(NamedTuple):
  """The policy, and the value network where the algorithm has one."""

  policy: nn.Module
  value: ValueNetwork | None


def build(
  config: Config,
  *,
  uses_value: bool,
  readout: str = 'prompt',
  shared: bool = False,
  frozen_trunk: bool = False,
) -> Networks:
  """The networks of a configuration; the value trunk has the policy's architecture."""
  value = ValueNetwork(config, readout=readout, shared=shared, frozen_trunk=frozen_trunk)
  return Networks(make_network(config), value if uses_value else None)


def build_policy(directory: str, **changes: Any) -> Networks:
  """The policy of a checkpoint alone; `changes` are settings of its model, where `None` keeps its own."""
  changed = {name: value for name, value in changes.items() if value is not None}
  return build(dataclasses.replace(policy.config_of(directory), **changed), uses_value=False)


@functools.lru_cache(maxsize=8)
def abstract_params(networks: Networks) -> dict[str, Params]:
  """Shapes of all parameters, boxed with their logical axes."""
  return jax.eval_shape(lambda key: _init(networks, key), jax.random.key(0))


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
  """First parameters, each born on its shard.

  The policy comes from the checkpoint `init_from` (or at random without one); the value's trunk starts from
  the policy, its head at zero.

  Raises:
    UsageError: the checkpoint is missing or does not fit.
  """
  where = shardings(networks, mesh)
  # A policy from a checkpoint is not initialised too: two might not fit into memory.
  made = {name: where[name] for name in where if name != 'policy' or init_from is None}

  def init(key: jax.Array) -> dict[str, Params]:
    every = nn.unbox(_init(networks, key))
    return {name: every[name] for name in made}

  params = jax.jit(init, out_shardings=made)(jax.random.key(seed))
  if init_from is not None:
    params['policy'] = load_policy(networks, init_from, mesh)
  if networks.value is not None:
    start = jax.jit(start_from_policy, out_shardings=where['value'])
    params['value'] = start(params['value'], params['policy'])
    if init_from is not None:
      _log.info('%s', _describe_start(params['value'], init_from))
  return params


def load_policy(networks: Networks, directory: str, mesh: Mesh) -> Params:
  """The parameters of a checkpoint's policy, each on its shard, in layers as the networks have them.

  Raises:
    UsageError: the checkpoint is missing or does not fit.
  """
  return policy.load_policy(directory, networks.policy.config, abstract_on(networks, mesh)['policy'])


def _describe_start(value: Params, init_from: str) -> str:
  """A line that says which parts of a value network are new."""
  trunk = "its trunk is a copy of the policy's" if 'trunk' in value else 'it has no trunk of its own'
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
