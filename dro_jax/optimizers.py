"""optax's optimisers, told what a T5 with a value head needs of them."""

import itertools

import jax
import optax
from jax.tree_util import DictKey

from dro_jax.errors import UsageError
from dro_jax.types import Params

Schedule = float | optax.Schedule
SCAN_AXIS = 1
STACKS = ('encoder', 'decoder')


def path_names(path: tuple) -> tuple[str, ...]:
  """A parameter's path as names."""
  return tuple(str(key.key) if isinstance(key, DictKey) else str(key) for key in path)


def kind_of_parameter(path: tuple) -> str:
  """Which rule a parameter follows: `head` (read-out of a value), `plain`, or a scanned stack's name.

  nn.scan's module is named like its parent, `encoder/encoder` and `decoder/decoder`: two stacks, for their
  numbers of layers may differ.
  """
  names = path_names(path)
  if names[0] == 'head':
    return 'head'
  stacks = [above for above, below in itertools.pairwise(names) if above == below and above in STACKS]
  return stacks[0] if stacks else 'plain'


def over_layers(tx: optax.GradientTransformation, axis: int = SCAN_AXIS) -> optax.GradientTransformation:
  """Applies `tx` to each layer of a scanned stack by itself, so that scanned equals unrolled.

  optax would take a stack for one parameter: one update clip and one parameter scale for all of its layers.
  """

  def init(params: Params) -> optax.OptState:
    return jax.vmap(tx.init, in_axes=axis)(params) if jax.tree.leaves(params) else tx.init(params)

  def update(updates: Params, state: optax.OptState, params: Params | None = None):
    if not jax.tree.leaves(updates):
      return tx.update(updates, state, params)
    return jax.vmap(tx.update, in_axes=(axis, 0, axis), out_axes=(axis, 0))(updates, state, params)

  return optax.GradientTransformation(init, update)


def adafactor(
  learning_rate: Schedule = 1e-4,
  decay_rate: float = 0.8,
  multiply_by_parameter_scale: bool = True,
  clipping_threshold: float | None = 1.0,
  min_dim_size_to_factor: int = 128,
  momentum: float | None = None,
  max_gradient_norm: float | None = None,
) -> optax.GradientTransformation:
  """Adafactor (arXiv 1804.04235) as T5X runs it, for one network.

  Args:
    learning_rate: a number, or a schedule of optimiser steps.
    decay_rate: the exponent c in β₂(t) = 1 − t^−c.
    multiply_by_parameter_scale: updates relative to each parameter's root mean square. Never for value heads,
      which start at zero and would stay there.
    clipping_threshold: largest root mean square of a parameter's update before the learning rate.
    min_dim_size_to_factor: smaller matrices keep a full second moment.
    momentum: decay of a first moment; none by default.
    max_gradient_norm: clips this network's own global gradient norm; none by default.
  """

  def rule(multiply: bool) -> optax.GradientTransformation:
    return optax.adafactor(
      learning_rate,
      decay_rate=decay_rate,
      multiply_by_parameter_scale=multiply,
      clipping_threshold=clipping_threshold,
      min_dim_size_to_factor=min_dim_size_to_factor,
      momentum=momentum,
    )

  rules = {
    'plain': rule(multiply_by_parameter_scale),
    **{stack: over_layers(rule(multiply_by_parameter_scale)) for stack in STACKS},
    'head': rule(False),
  }

  def labels(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: kind_of_parameter(path), params)

  return _clipped(optax.partition(rules, labels), max_gradient_norm)


def adamw(
  learning_rate: Schedule = 1e-4,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  max_gradient_norm: float | None = None,
) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101) for one network; see `optax.adamw`."""
  tx = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
  return _clipped(tx, max_gradient_norm)


def _clipped(tx: optax.GradientTransformation, max_norm: float | None) -> optax.GradientTransformation:
  return tx if max_norm is None else optax.chain(optax.clip_by_global_norm(max_norm), tx)


def constant(value: float) -> optax.Schedule:
  """The same learning rate at every step."""
  return optax.schedules.constant_schedule(value)


def warmup_constant(peak_value: float, warmup_steps: int = 150) -> optax.Schedule:
  """Linear from 0 over `warmup_steps` optimiser steps, then constant (DRO's schedule)."""
  return optax.schedules.warmup_constant_schedule(0.0, peak_value, warmup_steps)


def warmup_linear(
  peak_value: float, decay_steps: int, warmup_steps: int = 150, end_value: float = 0.0
) -> optax.Schedule:
  """Linear from 0 over `warmup_steps`, then linear to `end_value` at `decay_steps`, warm-up included.

  What transformers calls `get_linear_schedule_with_warmup`, at `end_value` 0.

  Raises:
    UsageError: `decay_steps` leaves no step to decay in after the warm-up.
  """
  if not 0 <= warmup_steps < decay_steps:
    raise UsageError(
      f'warmup_steps={warmup_steps}, decay_steps={decay_steps}: the decay begins where the warm-up ends, so '
      'pass 0 ≤ warmup_steps < decay_steps (--set WARMUP_STEPS=..., --set STEPS=...).'
    )
  rise = optax.schedules.linear_schedule(0.0, peak_value, warmup_steps)
  fall = optax.schedules.linear_schedule(peak_value, end_value, decay_steps - warmup_steps)
  return optax.schedules.join_schedules([rise, fall], [warmup_steps])


def warmup_cosine(
  peak_value: float, decay_steps: int, warmup_steps: int = 150, end_value: float = 0.0
) -> optax.Schedule:
  """Linear from 0 over `warmup_steps`, then a cosine to `end_value` at `decay_steps`, warm-up included."""
  return optax.schedules.warmup_cosine_decay_schedule(0.0, peak_value, warmup_steps, decay_steps, end_value)


__all__ = ['adafactor', 'adamw', 'constant', 'warmup_constant', 'warmup_cosine', 'warmup_linear']
