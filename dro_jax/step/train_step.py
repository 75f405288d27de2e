"""One step, score → loss → pull back, for any loss and any model."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from dro_jax.algorithms import Algorithm
from dro_jax.algorithms.base import PREFERENCES
from dro_jax.algorithms.batch import Batch
from dro_jax.errors import UsageError
from dro_jax.models import value
from dro_jax.models.scoring import Score
from dro_jax.step import metrics
from dro_jax.step.reference import MOVING, Reference
from dro_jax.step.state import TrainState, join
from dro_jax.types import Array, LossOutput, Params, Rows, Scalar, Scores

# From parameters, a batch and a random key to its scores, its losses and their gradients.
Gradient = Callable[[Params, Batch, Array | None], tuple[Scores, LossOutput, Params]]
# From a state and rows to the policy's scores, the reference's and the losses.
Evaluate = Callable[[TrainState, Rows], tuple[Scores, Scores | None, LossOutput]]
_Part = tuple[Rows, Scores | None]  # A microbatch: its rows, and the reference's scores of them.
_Tree = TypeVar('_Tree')


class StepOutput(NamedTuple):
  """A step's metrics, and the ids of examples whose loss is not finite (−1 elsewhere).

  `logps` are the policy's log-probs of the step's responses, `[B, R]`, where these are measured later against
  the initial policy (see `make_measure`).
  """

  metrics: Mapping[str, Array]
  nonfinite_ids: Array
  logps: Array | None = None


def split(tree: _Tree, num_microbatches: int) -> _Tree:
  """`[B, ...]` to `[M, B/M, ...]` by every M-th row: a strided split moves nothing between devices."""
  return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0), tree)


def merge(tree: _Tree) -> _Tree:
  """Undoes `split`."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def total_weights(output: LossOutput) -> dict[str, Array]:
  """Each term's Σ weights, at least 1, so that an empty batch has loss 0."""
  return {
    name: jnp.maximum(jnp.sum(term.weights), 1).astype(jnp.float32) for name, term in output.terms.items()
  }


def weighted_losses(output: LossOutput, totals: Mapping[str, Array]) -> dict[str, Array]:
  """Each term's Σ weights · loss / total.

  Raises:
    UsageError: a term has not one loss for each weight.
  """
  for name, term in output.terms.items():
    if jnp.shape(term.per_example) != jnp.shape(term.weights):
      raise UsageError(
        f'the loss {name!r} has the shape {jnp.shape(term.per_example)} and its weights have '
        f'{jnp.shape(term.weights)}: return one loss for each response (or pair, or group), and never their '
        'mean, which the step takes over the global batch.'
      )
  return {
    name: jnp.sum(jnp.where(term.weights > 0, term.weights * term.per_example, 0.0)) / totals[name]
    for name, term in output.terms.items()
  }


def as_read(algorithm: Algorithm, scores: Scores, rows: Rows) -> Scores:
  """The global batch's scores as the loss reads them: with one value for all if it pools values."""
  if not algorithm.pools_values:
    return scores
  return scores._replace(values=value.batch_mean(scores.values, rows.valid))


def make_gradient(score: Score, algorithm: Algorithm, num_microbatches: int = 1) -> Gradient:
  """Returns `gradient(params, batch, rng) -> (scores, loss output, gradients)` of the global batch's loss.

  The batch needs no scores: (a) score every microbatch; (b) on those vectors, once for the global batch, the
  loss and its cotangents; (c) score again and pull each microbatch's cotangents back. One microbatch needs no
  (a), nor does a loss that couples no examples: then each microbatch has its own cotangents.

  Args:
    score: see `models.scoring.make_score`.
    algorithm: what to minimise.
    num_microbatches: M ≥ 1; the rows must divide into M. It changes memory and speed, never a number.
  """

  def weighted_loss(
    scores: Scores, batch: Batch, totals: Mapping[str, Array] | None = None
  ) -> tuple[Scalar, LossOutput]:
    output = algorithm.loss(batch._replace(scores=as_read(algorithm, scores, batch.rows)))
    totals = total_weights(output) if totals is None else totals
    return sum(weighted_losses(output, totals).values()), output

  loss_and_cotangents = jax.value_and_grad(weighted_loss, has_aux=True)

  def whole(params: Params, batch: Batch, rng: Array | None) -> tuple[Scores, LossOutput, Params]:
    scores, pullback = jax.vjp(lambda params: score(params, batch.rows, rng, batch.reference), params)
    (_, output), cotangents = loss_and_cotangents(scores, batch)
    return scores, output, pullback(cotangents)[0]

  def totals_before_scores(params: Params, batch: Batch, rng: Array | None) -> dict[str, Array]:
    """The global batch's total weights; weights never depend on scores, so zeros give them."""
    shapes = jax.eval_shape(score, params, batch.rows, rng, batch.reference)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return total_weights(weighted_loss(zeros, batch)[1])

  def in_parts(params: Params, batch: Batch, rng: Array | None) -> tuple[Scores, LossOutput, Params]:
    keys = None if rng is None else jax.random.split(rng, num_microbatches)
    parts = split((batch.rows._replace(units=None), batch.reference), num_microbatches)
    output = cotangents = totals = None

    def score_part(part: tuple[_Part, Array | None]) -> Scores:
      (rows, reference), key = part
      return score(params, rows, key, reference)

    if algorithm.couples:
      scores = merge(jax.lax.map(score_part, (parts, keys)))
      (_, output), cotangents = loss_and_cotangents(scores, batch)
      cotangents = split(cotangents, num_microbatches)
    else:
      totals = totals_before_scores(params, batch, rng)

    def pull_back(
      gradients: Params, part: tuple[_Part, Array | None, Scores | None]
    ) -> tuple[Params, Scores]:
      (rows, reference), key, cotangents = part
      scores, pullback = jax.vjp(lambda params: score(params, rows, key, reference), params)
      if cotangents is None:
        part_batch = Batch(None, reference, rows, batch.statistics)
        _, cotangents = loss_and_cotangents(scores, part_batch, totals)
      return jax.tree.map(jnp.add, gradients, pullback(cotangents)[0]), scores

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradients, scores = jax.lax.scan(pull_back, zeros, (parts, keys, cotangents))
    scores = merge(scores)
    # Metrics are of the global batch, which a loss that couples nothing has met in parts only.
    output = weighted_loss(scores, batch)[1] if output is None else output
    return scores, output, gradients

  return whole if num_microbatches == 1 else in_parts


def _with_frozen_policy(score: Score) -> Score:
  """The same scores without a gradient of the policy, so that its backward pass is never run."""
  return lambda params, *args: score({**params, 'policy': jax.lax.stop_gradient(params['policy'])}, *args)


def _beside(
  networks: Mapping[str, Params], algorithm: Algorithm, reference: Reference | None, state: TrainState
) -> Mapping[str, Params]:
  """Networks' parameters, and the reference's where next-token KL needs its logits."""
  return networks if algorithm.kl_direction is None else reference.beside(networks, state)


def apply_optimizers(
  state: TrainState, gradients: Mapping[str, Params], optimizers: Mapping[str, optax.GradientTransformation]
) -> TrainState:
  """One update of every network by its own optimiser; networks without one stay as they are, to the bit."""
  params, opt_state = dict(state.params), dict(state.opt_state)
  for name, optimizer in optimizers.items():
    updates, opt_state[name] = optimizer.update(gradients[name], state.opt_state[name], state.params[name])
    params[name] = optax.apply_updates(state.params[name], updates)
  return state._replace(step=state.step + 1, params=params, opt_state=opt_state)


def make_evaluate(score: Score, algorithm: Algorithm, reference: Reference | None = None) -> Evaluate:
  """Returns `evaluate(state, rows) -> (scores, reference scores, losses)`: no gradient, no dropout."""

  def evaluate(state: TrainState, rows: Rows) -> tuple[Scores, Scores | None, LossOutput]:
    reference_scores = None if reference is None else reference.scores(state, rows)
    params = _beside(state.networks, algorithm, reference, state)
    scores = score(params, rows, None, reference_scores)
    reference_scores = reference_scores and reference_scores._replace(states=None)
    batch = Batch(as_read(algorithm, scores, rows), reference_scores, rows, state.statistics)
    return scores, reference_scores, algorithm.loss(batch)

  return evaluate


def in_parts(
  scores: Callable[[TrainState, Rows], Scores], num_microbatches: int
) -> Callable[[TrainState, Rows], Scores]:
  """The same scores of a batch, microbatch by microbatch."""
  if num_microbatches == 1:
    return scores
  return lambda state, rows: merge(
    jax.lax.map(lambda part: scores(state, part), split(rows, num_microbatches))
  )


def make_measure(
  reference: Reference, num_microbatches: int = 1
) -> Callable[[TrainState, Rows, Array], dict[str, Array]]:
  """Returns `measure(state, rows, logps)`: log-ratios of a step's responses to the initial policy.

  It runs a pass of that policy, for logged steps only.
  """

  def measure(state: TrainState, rows: Rows, logps: Array) -> dict[str, Array]:
    unpaired = rows._replace(units=None, mismatched=None)
    initial = in_parts(reference.initial, num_microbatches)(state, unpaired)
    return metrics.log_ratios(logps, initial.logps, rows.valid)

  return measure


def make_train_step(
  score: Score,
  algorithm: Algorithm,
  optimizers: Mapping[str, optax.GradientTransformation],
  reference: Reference | None = None,
  *,
  seed: int = 0,
  num_microbatches: int = 1,
  dropout: bool = False,
) -> Callable[[TrainState, Rows], tuple[TrainState, StepOutput]]:
  """Returns the pure function of one step, to be jitted with shardings and a donated state.

  Args:
    score: see `models.scoring.make_score`.
    algorithm: see `algorithms`.
    optimizers: by network; a network without one is not trained.
    reference: how to get the reference's scores, and how it moves; `None` where the algorithm uses none.
    seed: with the step it makes the step's random key, fold_in(seed, step).
    num_microbatches: M; see `make_gradient`.
    dropout: whether scoring uses dropout (for supervised fine-tuning only, not for alignment losses).
  """
  score = score if algorithm.trains_policy and 'policy' in optimizers else _with_frozen_policy(score)
  epochs = 1 if algorithm.online is None else algorithm.online.epochs
  moves = reference is not None and reference.initial is not None

  def update(state: TrainState, rows: Rows, reference_scores: Scores | None) -> tuple[TrainState, StepOutput]:
    rng = jax.random.fold_in(jax.random.key(seed), state.step) if dropout else None
    batch = Batch(None, reference_scores, rows, state.statistics)

    def score_own(own: Params, *args: Any) -> Scores:
      """Of what is the networks' own: a base that they adapt is a constant, and so is the reference."""
      return score(_beside(join(state.base, own), algorithm, reference, state), *args)

    gradient = make_gradient(score_own, algorithm, num_microbatches)
    scores, output, gradients = gradient(state.params, batch, rng)
    scores = as_read(algorithm, scores, rows)
    new_state = apply_optimizers(state, gradients, optimizers)._replace(statistics=output.statistics)
    measured = metrics.score_metrics(scores, reference_scores, rows, MOVING if moves else '')
    if not algorithm.scores_policy:
      del measured['logp']
    if algorithm.scores == PREFERENCES:  # Logits explain no rewards.
      del measured['value_explained_variance']
    scalars = {
      **metrics.losses(weighted_losses(output, total_weights(output))),
      **output.metrics,
      **measured,
      **metrics.norms('gradient_norm', gradients),
      **metrics.norms('parameter_norm', new_state.params),
    }
    ids = metrics.nonfinite_ids(output, scalars, rows)
    return new_state, StepOutput(scalars, ids, scores.logps if moves else None)

  def train_step(state: TrainState, rows: Rows) -> tuple[TrainState, StepOutput]:
    reference_scores = None
    if reference is not None:
      score_reference = in_parts(reference.scores, num_microbatches)
      reference_scores = score_reference(state, rows._replace(units=None))
    new_state, output = update(state, rows, reference_scores)
    if epochs > 1:
      next_epoch = functools.partial(update, rows=rows, reference_scores=reference_scores)
      new_state, output = jax.lax.fori_loop(
        1, epochs, lambda _, carry: next_epoch(carry[0]), (new_state, output)
      )
      # A step is one batch, however many epochs it has: the plan and a moving reference count batches.
      new_state = new_state._replace(step=state.step + 1)
    return new_state if reference is None else reference.update(new_state), output

  return train_step


def make_value_first_step(
  step: Callable[[TrainState, Rows], tuple[TrainState, StepOutput]],
  value_step: Callable[[TrainState, Rows], tuple[TrainState, StepOutput]],
  warmup_steps: int,
) -> Callable[[TrainState, Rows], tuple[TrainState, StepOutput]]:
  """Returns the step of a run whose first steps train the value alone.

  The policy's optimiser is fresh when its own steps begin, and so is its learning rate's warm-up.

  Args:
    step: trains policy and value.
    value_step: trains the value, and leaves the policy and its optimiser as they are.
    warmup_steps: how many of these come first.
  """
  return lambda state, rows: jax.lax.cond(state.step < warmup_steps, value_step, step, state, rows)
