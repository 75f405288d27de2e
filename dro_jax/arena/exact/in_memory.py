"""Training in memory: all batches of a run on the device, hyperparameters traced, one compilation a method.

What a run does is the train step of `train_step`, as everywhere; only the loop around it differs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from dro_jax import algorithms
from dro_jax.costs import flops
from dro_jax.data.batches import groups, loader, packing, plan
from dro_jax.data.triplets import Triplets
from dro_jax.models import scoring
from dro_jax.models.policy import smallest_rows
from dro_jax.models.value import ValueNetwork, start_from_policy
from dro_jax.run.batches import derive
from dro_jax.run.networks import Networks
from dro_jax.step import optimizers, reference, train_step
from dro_jax.step import state as train_state
from dro_jax.types import Array, Params, Rows, Scalar

Factory = Callable[[Scalar], algorithms.Algorithm]


class Recipe(NamedTuple):
  """How a method runs, apart from temperature and learning rate.

  steps         optimiser steps, the learning rate's cosine included.
  warmup_steps  of these, linear from 0.
  """

  steps: int
  warmup_steps: int


# --- batches ------------------------------------------------------------------------------------------------


class Feed(NamedTuple):
  """A run's batches by step, numpy, read once; and the triplets whose records they number."""

  batch: Callable[[int], Rows]
  triplets: Triplets


def feed(
  triplets: Triplets,
  unit: str,
  *,
  responses: int,
  seed: int,
  options: groups.UnitOptions,
  row_lengths: tuple[int, int],
) -> Feed:
  """The batches of the endless plan by response, pair or group, mismatched pairs included.

  Args:
    triplets: whose training part to batch.
    unit: 'response', 'pair' or 'group'.
    responses: of a batch; pairs and groups are as many as make up about that.
    seed: of the plan.
    options: how pairs and groups are formed.
    row_lengths: prompt and response tokens of a row.
  """
  table = triplets.train
  if unit == 'response':
    batches: plan.Plan | plan.UnitPlan = plan.Plan.from_table(table, responses, seed)
  else:
    table, members, _ = groups.form(table, unit, options)
    # As many units as hold `responses`: all pairs of four are six.
    batches = plan.UnitPlan.from_table(
      table, members, max(round(responses * len(members) / len(table)), 1), seed
    )
  fitted = packing.Layout.fit(table, batches, prompt_length=row_lengths[0], response_length=row_lengths[1])
  source = loader.Loader(table, batches, fitted, mismatched=True)
  return Feed(functools.cache(source.rows), triplets._replace(train=table))


def first(source: Feed, steps: int, mismatched: bool = False) -> Rows:
  """The first batches, stacked on a leading axis, with mismatched pairs or without."""
  batches = [source.batch(step) for step in range(steps)]
  return _stacked(batches if mismatched else [rows._replace(mismatched=None) for rows in batches])


def _stacked(batches: Sequence[Rows]) -> Rows:
  """Batches of one shape: those of fewer rows than others get empty ones."""
  most = max(len(rows.valid) for rows in batches)

  def fill(rows: Rows) -> Rows:
    short = most - len(rows.valid)
    filled = jax.tree.map(
      lambda x: np.pad(x, ((0, short),) + ((0, 0),) * (x.ndim - 1)), rows._replace(units=None)
    )
    return filled._replace(units=rows.units)

  return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *map(fill, batches))


def with_columns(rows: Rows, columns: Mapping[str, np.ndarray]) -> Rows:
  """Rows with some columns of the table that they number, and no others."""

  def spread(column: np.ndarray) -> Array:
    return jnp.where(rows.valid, jnp.asarray(column, jnp.float32)[rows.example_id], 0.0)

  return rows._replace(columns={name: spread(column) for name, column in columns.items()})


def fitted_to(
  algorithm: algorithms.Algorithm, source: Feed, steps: int, columns: Mapping[str, np.ndarray]
) -> Rows:
  """The first batches, stacked, as an algorithm wants them: with what it derives from the data, and no more.

  Args:
    algorithm: which of it.
    source: the batches.
    steps: how many.
    columns: of the data, by record of the feed's table.

  Raises:
    UsageError: the algorithm cannot learn from this data.
  """
  triplets = source.triplets
  triplets = triplets._replace(train=triplets.train.with_columns(columns))
  algorithms.check_columns(algorithm, triplets.train.columns)
  algorithm.check(triplets)
  derived = derive(triplets, algorithm.columns).train.columns
  wanted = {name: derived[name] for name in (*algorithm.columns, *algorithm.requires)}
  return with_columns(first(source, steps, algorithm.uses_mismatched), wanted)


# --- runs ---------------------------------------------------------------------------------------------------


def fresh_policy(nets: Networks, seed: int) -> Params:
  """A policy's parameters at random."""
  return nn.unbox(jax.jit(nets.policy.init)(jax.random.key(seed), smallest_rows())['params'])


def start(nets: Networks, policy: Params, algorithm: algorithms.Algorithm) -> train_state.TrainState:
  """A run's first state: the policy's parameters as policy, value trunk and reference, a copy each."""
  params = {'policy': policy}
  if algorithm.uses_value:
    params['value'] = initial_value(nets.value, policy)
  return _created(params, algorithm.uses_reference, tuple(sorted(algorithm.statistics.items())))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _created(
  params: dict[str, Params], uses_reference: bool, statistics: tuple[tuple[str, float], ...]
) -> train_state.TrainState:
  # Copies, for a run is handed its state for good.
  params = jax.tree.map(jnp.copy, params)
  return train_state.create(params, _optimizers(params, 0.0, Recipe(1, 0)), uses_reference, dict(statistics))


def initial_value(value: ValueNetwork, policy: Params) -> Params:
  """A value network that starts from the policy, its head at zero."""
  return start_from_policy(_fresh_value(value), policy)


@functools.lru_cache(maxsize=4)
def _fresh_value(value: ValueNetwork) -> Params:
  states = jnp.zeros((1, 1, value.config.emb_dim))
  return nn.unbox(jax.jit(value.init)(jax.random.key(0), smallest_rows(), states, states)['params'])


def _optimizers(
  params: Mapping[str, Params], learning_rate: Scalar, recipe: Recipe
) -> dict[str, optax.GradientTransformation]:
  shape = optimizers.warmup_cosine(1.0, recipe.steps, recipe.warmup_steps)
  return {name: optimizers.adamw(lambda step: learning_rate * shape(step)) for name in params}


@functools.lru_cache(maxsize=64)
def make_step(nets: Networks, factory: Factory, recipe: Recipe) -> Callable[..., train_state.TrainState]:
  """Returns `step(state, rows, temperature, learning_rate) -> state`, its hyperparameters traced."""

  def step(
    state: train_state.TrainState, rows: Rows, temperature: Array, learning_rate: Array
  ) -> train_state.TrainState:
    algorithm = factory(temperature)
    value = nets.value if algorithm.uses_value else None
    held = algorithm.kl_direction
    frozen = reference.Frozen().build(scoring.make_score(nets.policy, keeps_states=held is not None))
    one = train_step.make_train_step(
      scoring.make_score(nets.policy, value, kl_direction=held), algorithm,
      _optimizers(state.params, learning_rate, recipe), frozen if algorithm.uses_reference else None,
    )  # fmt: skip
    return one(state, rows)[0]

  return step


@functools.lru_cache(maxsize=64)
def make_stretch(nets: Networks, factory: Factory, recipe: Recipe) -> Callable[..., train_state.TrainState]:
  """Returns `stretch(state, rows, temperature, learning_rate)`, compiled: a step for each of the rows."""
  step = make_step(nets, factory, recipe)

  @functools.partial(jax.jit, donate_argnums=0)
  def stretch(
    state: train_state.TrainState, rows: Rows, temperature: Array, learning_rate: Array
  ) -> train_state.TrainState:
    return jax.lax.scan(
      lambda state, rows: (step(state, rows, temperature, learning_rate), None), state, rows
    )[0]

  return stretch


def flops_per_step(nets: Networks, factory: Factory, state: train_state.TrainState, rows: Rows) -> float:
  """FLOPs of one step; `rows` are stacked."""
  one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  return flops.count(make_step(nets, factory, Recipe(2, 1)), state, one, scalar, scalar)


def part(rows: Rows, first: int, last: int) -> Rows:
  """Some of the stacked batches."""
  return jax.tree.map(lambda x: x[first:last], rows)


# --- values by regression -----------------------------------------------------------------------------------


class Regressed(NamedTuple):
  """Mean rewards by prompt, fitted by least squares on other prompts; and the FLOPs of the fit."""

  values: np.ndarray
  flops: float


def regress_values(
  value: ValueNetwork,
  policy: Params,
  rows: Rows,
  prompts: Int[np.ndarray, 'P S'],
  prompt_of_record: Int[np.ndarray, 'N'],
  *,
  learning_rate: float,
  seed: int,
) -> Regressed:
  """V(x) = E_μ[r | x] of every prompt, cross-fitted over two folds of prompts: none sees its own rewards.

  Args:
    value: the network.
    policy: where its trunk starts.
    rows: stacked batches, a step for each.
    prompts: every prompt's tokens, 0 where there is none.
    prompt_of_record: which prompt each record answers.
    learning_rate: at its peak.
    seed: of the folds.
  """
  fold_P = np.random.default_rng((seed, 1)).permutation(len(prompts)) % 2
  fold_N = jnp.asarray(fold_P[prompt_of_record])
  first, steps = initial_value(value, policy), len(rows.valid)
  fit = functools.partial(_fit_value, value, Recipe(steps, min(30, steps // 2)))
  fitted = [fit(first, rows, fold_N, jnp.asarray(fold), jnp.asarray(learning_rate)) for fold in (0, 1)]
  by_fold = [np.asarray(prompt_values(value, params, jnp.asarray(prompts))) for params in fitted]
  shapes = jax.eval_shape(lambda: (first, rows, fold_N, jnp.asarray(0), jnp.asarray(0.1)))
  return Regressed(np.where(fold_P == 0, *by_fold).astype(np.float64), 2 * flops.count(fit, *shapes))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit_value(
  value: ValueNetwork, recipe: Recipe, params: Params, rows: Rows, fold_N: Array, held_out: Array, rate: Array
) -> Params:
  """Least squares on the rewards of all prompts but a fold's."""
  tx = _optimizers({'value': params}, rate, recipe)['value']

  def loss(params: Params, rows: Rows) -> Float[Array, '']:
    width = value.config.emb_dim
    no_states = jnp.zeros((*rows.prompt_tokens.shape, width)), jnp.zeros((*rows.response_tokens.shape, width))
    values_BR, _ = value.apply({'params': params}, rows, *no_states)
    mine_BR: Bool[Array, 'B R'] = rows.valid & (fold_N[rows.example_id] != held_out)
    errors_BR = jnp.where(mine_BR, jnp.square(values_BR - rows.rewards) / 2, 0.0)
    return jnp.sum(errors_BR) / jnp.maximum(jnp.sum(mine_BR), 1)

  def step(carry: tuple[Params, optax.OptState], rows: Rows) -> tuple[tuple[Params, optax.OptState], None]:
    params, opt_state = carry
    updates, opt_state = tx.update(jax.grad(loss)(params, rows), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  return jax.lax.scan(step, (params, tx.init(params)), rows)[0][0]


@functools.partial(jax.jit, static_argnums=0)
def prompt_values(value: ValueNetwork, params: Params, prompts: Int[Array, 'P S']) -> Float[Array, 'P']:
  """V(x) of prompts, one a row."""
  count = len(prompts)
  one, zero = jnp.ones((count, 1), jnp.int32), jnp.zeros((count, 1), jnp.int32)
  rows = Rows(
    prompts, (prompts > 0).astype(jnp.int32), jnp.zeros_like(prompts), one, one, zero, one,
    jnp.zeros((count, 1)), zero, jnp.ones((count, 1), bool),
  )  # fmt: skip
  width = value.config.emb_dim
  states = jnp.zeros((*prompts.shape, width)), jnp.zeros((count, 1, width))
  return value.apply({'params': params}, rows, *states)[0][:, 0]
