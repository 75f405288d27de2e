"""optax's optimisers, with rules for scanned layers and for value heads."""

import itertools
import math
import numbers
from collections.abc import Hashable, Mapping
from typing import TypeAlias

import jax
import optax
from jax.tree_util import DictKey

from dro_jax.errors import UsageError
from dro_jax.models import lora
from dro_jax.models.stacks import LAYER_AXIS, STACKS
from dro_jax.types import Params

Schedule: TypeAlias = float | optax.Schedule


class Optimizer(optax.GradientTransformation):
  """An optax optimiser with its learning rate; see `rate_at`."""

  learning_rate: Schedule


def rate_at(tx: optax.GradientTransformation, step: int) -> float | None:
  """The learning rate of the update after `step` earlier ones; `None` where the optimiser lacks it."""
  rate = getattr(tx, 'learning_rate', None)
  return float(rate(step)) if callable(rate) else rate


def still_rises(tx: optax.GradientTransformation, steps: int) -> bool:
  """Whether the learning rate still rises when a run of `steps` ends."""
  last, after = rate_at(tx, steps - 1), rate_at(tx, steps)
  return last is not None and after > last


def notes(
  txs: Mapping[str, optax.GradientTransformation], steps: int, waits: Mapping[str, int] = {}
) -> list[str]:
  """Notes on learning rates that a run of `steps` hardly wants; a network trains after the steps it waits."""
  texts = []
  for name, tx in txs.items():
    wait = waits.get(name, 0)
    own = steps - wait
    if wait and own <= 0:
      texts.append(
        f'note: the {name} network does not train: the value is trained alone for {wait} steps, and the run '
        f'has {steps}. Lower VALUE_WARMUP_STEPS, or raise STEPS.'
      )
    elif own <= 0:
      continue  # A run without steps trains nothing, whatever its rate.
    elif still_rises(tx, own):
      texts.append(
        f"note: the {name} network's learning rate still rises when the run ends, after {own} steps: its "
        f'warm-up is as long as the run. It ends at {rate_at(tx, own - 1):.3g}. Lower WARMUP_STEPS.'
      )
    elif all(rate_at(tx, step) == 0 for step in (0, own // 2, own - 1)):
      texts.append(f'note: the {name} network does not train, because its learning rate is 0.')
  return texts


def path_names(path: tuple[Hashable, ...]) -> tuple[str, ...]:
  """A parameter's path as names."""
  return tuple(str(key.key) if isinstance(key, DictKey) else str(key) for key in path)


def kind_of_parameter(path: tuple[Hashable, ...]) -> str:
  """The rule that a parameter follows: `head` (a value's read-out), `plain`, or a scanned stack's name.

  nn.scan's module is named like its parent, `encoder/encoder` and `decoder/decoder`: two rules, because the
  numbers of layers may differ.
  """
  names = path_names(path)
  if names[0] == 'head':
    return 'head'
  stacks = [above for above, below in itertools.pairwise(names) if above == below and above in STACKS]
  return stacks[0] if stacks else 'plain'


def over_layers(tx: optax.GradientTransformation, axis: int = LAYER_AXIS) -> optax.GradientTransformation:
  """Applies `tx` to each layer of a scanned stack, so that scanned and unrolled updates are equal.

  Without it optax would treat a stack as one parameter, with one clip and one scale for all its layers.
  """

  def init(params: Params) -> optax.OptState:
    return jax.vmap(tx.init, in_axes=axis)(params) if jax.tree.leaves(params) else tx.init(params)

  def update(
    updates: Params, state: optax.OptState, params: Params | None = None
  ) -> tuple[Params, optax.OptState]:
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
  """Adafactor (arXiv 1804.04235) with T5X's settings, for one network.

  Args:
    learning_rate: a number, or a function of the optimiser step.
    decay_rate: the exponent c in β₂(t) = 1 − t^−c.
    multiply_by_parameter_scale: makes updates relative to each parameter's root mean square. Value heads,
      which start at zero, are left out, and so are networks with adapters, of which one factor does: they
      would stay there.
    clipping_threshold: largest root mean square of a parameter's update before the learning rate.
    min_dim_size_to_factor: smaller matrices keep a full second moment.
    momentum: decay of a first moment; none by default.
    max_gradient_norm: the norm to which this network's gradient is clipped; `None` clips nothing.

  Raises:
    UsageError: with such a setting the update would be NaN or 0, or would increase the loss.

  Example:
    >>> dro.adafactor(1e-4).learning_rate
    0.0001
  """
  _require_rate('learning_rate', learning_rate)
  _require(
    0 < decay_rate <= 1,
    'decay_rate',
    decay_rate,
    'pass c above 0 and at most 1, so that β₂ = 1 − t^−c is a decay',
  )
  _require_above_zero('clipping_threshold', clipping_threshold)
  _require(min_dim_size_to_factor >= 1, 'min_dim_size_to_factor', min_dim_size_to_factor, 'pass 1 or more')
  _require(momentum is None or 0 <= momentum < 1, 'momentum', momentum, 'pass 0 or more and below 1, or None')

  def rule(multiply: bool) -> optax.GradientTransformation:
    return optax.adafactor(
      learning_rate,
      decay_rate=decay_rate,
      multiply_by_parameter_scale=multiply,
      clipping_threshold=clipping_threshold,
      min_dim_size_to_factor=min_dim_size_to_factor,
      momentum=momentum,
    )

  def labels(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: kind_of_parameter(path), params)

  def by_kind(multiply: bool) -> optax.GradientTransformation:
    rules = {'plain': rule(multiply), **{stack: over_layers(rule(multiply)) for stack in STACKS}}
    return optax.partition({**rules, 'head': rule(False)}, labels)

  def of_tree(params: Params) -> optax.GradientTransformation:
    return by_kind(multiply_by_parameter_scale and not lora.is_adapted(params))

  tx = optax.GradientTransformation(
    lambda params: of_tree(params).init(params),
    lambda updates, state, params=None: of_tree(updates).update(updates, state, params),
  )
  return _finished(tx, max_gradient_norm, learning_rate)


def adamw(
  learning_rate: Schedule = 1e-4,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  max_gradient_norm: float | None = None,
) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101) for one network; see `optax.adamw`.

  Raises:
    UsageError: with such a setting the update would be NaN or 0, or would increase the loss.

  Example:
    >>> dro.adamw(1e-3, weight_decay=0.01).learning_rate
    0.001
  """
  _require_rate('learning_rate', learning_rate)
  for name, decay in {'b1': b1, 'b2': b2}.items():
    _require(
      0 <= decay < 1, name, decay, 'pass 0 or more and below 1, because a decay of 1 takes in no new gradient'
    )
  _require(0 < eps < math.inf, 'eps', eps, 'pass a number above 0, without which 0 / 0 would be NaN')
  _require(
    0 <= weight_decay < math.inf,
    'weight_decay',
    weight_decay,
    'pass 0 or more, because weights would grow below 0',
  )
  tx = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
  return _finished(tx, max_gradient_norm, learning_rate)


def _finished(tx: optax.GradientTransformation, max_norm: float | None, learning_rate: Schedule) -> Optimizer:
  """The optimiser with its clip and its learning rate."""
  _require_above_zero('max_gradient_norm', max_norm)
  if max_norm is not None:
    tx = optax.chain(optax.clip_by_global_norm(max_norm), tx)
  optimizer = Optimizer(tx.init, tx.update)
  optimizer.learning_rate = learning_rate
  return optimizer


# Settings that optax accepts silently. All comparisons with NaN are false, so NaN is refused.


def _require(admitted: bool, name: str, value: float | int | None, reason: str) -> None:
  if not admitted:
    raise UsageError(f'{name}={value}: {reason}.')


def _require_rate(name: str, rate: Schedule) -> None:
  if not callable(rate):
    _require(
      isinstance(rate, (numbers.Real, jax.Array)), name, rate, 'pass a number, or a function of the step'
    )
    _require(
      0 <= rate < math.inf, name, rate, 'pass 0 or more and finite, because a rate below 0 increases the loss'
    )


def _require_above_zero(name: str, largest: float | int | None) -> None:
  _require(
    largest is None or largest > 0,
    name,
    largest,
    'pass more than 0, which leaves a gradient to train with, or None',
  )


def _require_warmup(steps: int) -> None:
  _require(
    steps >= 0,
    'warmup_steps',
    steps,
    'pass 0 or more, as warmup_steps=... or --set WARMUP_STEPS=...; 0 starts at the full rate',
  )


def _require_decay(
  peak_value: float, end_value: float, warmup_steps: float | int, decay_steps: float | int
) -> None:
  _require_rate('peak_value', peak_value)
  _require_rate('end_value', end_value)
  if not 0 <= warmup_steps < decay_steps:
    raise UsageError(
      f'warmup_steps={warmup_steps}, decay_steps={decay_steps}: the decay begins where the warm-up ends, so '
      'pass 0 ≤ warmup_steps < decay_steps, as arguments of the schedule or --set WARMUP_STEPS=... and '
      '--set STEPS=....'
    )


def constant(value: float) -> optax.Schedule:
  """The same learning rate at every step."""
  _require_rate('value', value)
  return optax.schedules.constant_schedule(value)


def warmup_constant(peak_value: float, warmup_steps: int = 150) -> optax.Schedule:
  """Linear from 0 over `warmup_steps` optimiser steps, then constant (DRO's schedule); 0 is no warm-up."""
  _require_rate('peak_value', peak_value)
  _require_warmup(warmup_steps)
  if not warmup_steps:  # optax's schedule would be 0 at every step.
    return constant(peak_value)
  return optax.schedules.warmup_constant_schedule(0.0, peak_value, warmup_steps)


def warmup_linear(
  peak_value: float, decay_steps: int, warmup_steps: int = 150, end_value: float = 0.0
) -> optax.Schedule:
  """Linear from 0 over `warmup_steps`, then linear to `end_value` at `decay_steps`, warm-up included.

  With `end_value` 0 it is transformers' `get_linear_schedule_with_warmup`.

  Raises:
    UsageError: `decay_steps` leaves no step to decay in after the warm-up.
  """
  _require_decay(peak_value, end_value, warmup_steps, decay_steps)
  rise = optax.schedules.linear_schedule(0.0, peak_value, warmup_steps)
  fall = optax.schedules.linear_schedule(peak_value, end_value, decay_steps - warmup_steps)
  return optax.schedules.join_schedules([rise, fall], [warmup_steps])


def warmup_cosine(
  peak_value: float, decay_steps: int, warmup_steps: int = 150, end_value: float = 0.0
) -> optax.Schedule:
  """Linear from 0 over `warmup_steps`, then a cosine to `end_value` at `decay_steps`, warm-up included."""
  _require_decay(peak_value, end_value, warmup_steps, decay_steps)
  return optax.schedules.warmup_cosine_decay_schedule(0.0, peak_value, warmup_steps, decay_steps, end_value)


__all__ = ['adafactor', 'adamw', 'constant', 'warmup_constant', 'warmup_cosine', 'warmup_linear']
