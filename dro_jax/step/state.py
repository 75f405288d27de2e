"""The state of a run between two steps."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dro_jax.types import Array, Params


class TrainState(NamedTuple):
  """Parameters and optimiser states by network (`policy`, `value`), and the reference policy's parameters.

  The reference is outside `params`: it has no gradient, no optimiser, and its own buffers. `statistics` are
  the algorithm's running scalars. `initial` holds the initial policy's parameters where the reference moves;
  such a run is measured against them.
  """

  step: Array
  params: Mapping[str, Params]
  opt_state: Mapping[str, optax.OptState]
  reference: Params | None
  statistics: Mapping[str, Array] = {}
  initial: Params | None = None


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
