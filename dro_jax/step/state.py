"""The state of a run between two steps."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dro_jax.models import lora
from dro_jax.types import Array, Params


class TrainState(NamedTuple):
  """Parameters and optimiser states by network (`policy`, `value`), and the reference policy's parameters.

  The reference is outside `params`: it has no gradient, no optimiser, and its own buffers. `statistics` are
  the algorithm's running scalars. `initial` holds the initial policy's parameters where the reference moves;
  such a run is measured against them.

  With adapters `base` is the frozen part of all networks, held once. Then `params`, `reference` and `initial`
  hold what is the networks' own: adapters, heads. A reference of `None` is the base with its adapter off.
  """

  step: Array
  params: Mapping[str, Params]
  opt_state: Mapping[str, optax.OptState]
  reference: Params | None
  statistics: Mapping[str, Array] = {}
  initial: Params | None = None
  base: lora.Base | None = None

  @property
  def networks(self) -> dict[str, Params]:
    """Each network's parameters as its module takes them: with adapters, joined with the base."""
    return join(self.base, self.params)

  def policy_of(self, own: Params | None) -> Params:
    """The parameters of another policy on the same base, such as the reference's; `None` is no adapter."""
    return lora.join_policy(self.base, own)


def join(base: lora.Base | None, params: Mapping[str, Params]) -> dict[str, Params]:
  """Networks' own parameters, joined with the base that they adapt, if they do."""
  joins = {'policy': lora.join_policy, 'value': lora.join_value}
  return {name: joins[name](base, tree) for name, tree in params.items()}


def create(
  params: Mapping[str, Params],
  optimizers: Mapping[str, optax.GradientTransformation],
  uses_reference: bool,
  statistics: Mapping[str, float] = {},
  keeps_initial: bool = False,
) -> TrainState:
  """A run's first state: fresh optimisers, and the initial policy as the reference."""
  # Copies, because a reference that shared the policy's buffers would be lost with their donation.
  copied = functools.partial(jax.tree.map, jnp.copy, params['policy'])
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state={name: optimizers[name].init(params[name]) for name in params},
    reference=copied() if uses_reference else None,
    statistics={name: jnp.asarray(value, jnp.float32) for name, value in statistics.items()},
    initial=copied() if keeps_initial else None,
  )
