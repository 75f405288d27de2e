"""A table's responses scored by networks on a mesh, batch by batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dro_jax import algorithms
from dro_jax.algorithms.batch import Batch
from dro_jax.data.batches.loader import Loader
from dro_jax.data.batches.rows import place_batch
from dro_jax.models import scoring
from dro_jax.names import NEXT_TOKEN_KL
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run.networks import Networks
from dro_jax.step import state as train_state
from dro_jax.step import train_step
from dro_jax.step.reference import MOVING, Reference
from dro_jax.types import Array, Mismatched, Params, Rows


class ScoredTable(NamedTuple):
  """Every response of a table, scored once, in the table's order, and weighted means of losses by name.

  Where the reference moves, `reference_logps` and the losses are those of the initial reference, and
  `moving_logps` and the losses with the ending `_moving` those of the current reference.
  `next_token_kls` are each response's, in nats, by the ending of the reference; empty where none are taken.
  """

  logps: np.ndarray
  lengths: np.ndarray
  rewards: np.ndarray
  reference_logps: np.ndarray | None
  values: np.ndarray | None
  losses: Mapping[str, float]
  moving_logps: np.ndarray | None = None
  next_token_kls: Mapping[str, np.ndarray] = {}

  @property
  def log_ratio(self) -> np.ndarray | None:
    """ρ = log π(y|x) − log π_ref(y|x) in nats; `None` without a reference."""
    return None if self.reference_logps is None else self.logps - self.reference_logps


def make_table_scorer(
  networks: Networks,
  algorithm: algorithms.Algorithm,
  reference: Reference | None,
  mesh: Mesh,
  chunk_size: int | None = None,
  *,
  by_batch: bool = False,
) -> Callable[[train_state.TrainState, Loader], ScoredTable]:
  """Returns `score_table(state, loader)`, compiled once: no gradient, no dropout, each response once.

  Scores are taken batch by batch. A number that couples responses (a mean of the batch, KTO's reference
  point, one value for all) is taken once over the whole table, so the order and the batch size decide no
  loss. Only the mismatched pairs of KTO's reference point follow the batches.

  Args:
    networks: the run's.
    algorithm: the algorithm with the losses.
    reference: the run's.
    mesh: rows are split over it.
    chunk_size: response tokens projected to the vocabulary at once.
    by_batch: takes numbers that couple responses over each batch, as in runs of earlier versions.
  """
  pools = networks.value is not None and networks.value.readout == 'batch'
  algorithm = algorithms.with_batch_value(algorithm) if pools else algorithm
  direction = algorithm.kl_direction
  score = scoring.make_score(networks.policy, networks.value, chunk_size=chunk_size, kl_direction=direction)
  # The responses of a pair or a group lie in one batch, which therefore gives their loss.
  whole = algorithm.couples and algorithm.unit == 'response' and not by_batch
  yardsticks = {'': None} if reference is None else reference.yardsticks
  losses = functools.partial(_loss_sums, algorithm)

  def score_rows(
    state: train_state.TrainState, rows: Rows
  ) -> tuple[dict[str, Array | None], dict[str, Batch | _Sums]]:
    arrays, seen = {}, {}
    for ending, scores_of in yardsticks.items():
      by = scores_of and scores_of(state, rows)
      if direction is not None:
        scores = score(reference.beside(state.networks, state, ending), rows, None, by)
      elif not seen:
        scores = score(state.networks, rows, None)
      seen[ending] = Batch(scores, by and by._replace(states=None), rows, state.statistics)
      arrays[f'reference_logps{ending}'] = by and by.logps
      if direction is not None:
        arrays[f'{NEXT_TOKEN_KL}{ending}'] = seen[ending].next_token_kls.reshape(rows.valid.shape)
    arrays |= {'logps': scores.logps, 'values': scores.values}
    return arrays, jax.tree.map(_without_texts if whole else losses, seen, is_leaf=_is_batch)

  score_on_mesh = partitioning.jit_on(mesh, score_rows)
  # Of small vectors, which every host has: each computes it by itself.
  of_all = jax.jit(lambda seen: jax.tree.map(losses, seen, is_leaf=_is_batch))

  def score_table(state: train_state.TrainState, loader: Loader) -> ScoredTable:
    table, columns, parts = loader.table, {}, []
    for step in range(loader.plan.num_batches):
      arrays, part = jax.device_get(score_on_mesh(state, place_batch(mesh, loader, step)))
      parts.append(part)
      example_id, valid = loader.slots(step)
      ids = example_id[valid]
      for name, array in arrays.items():
        if array is not None:
          columns.setdefault(name, np.zeros(len(table)))[ids] = array[valid]
    if pools:
      columns['values'][:] = columns['values'].mean()
    sums = of_all(_joined(parts, jax.device_get(state.statistics))) if whole else _added(parts)
    means = {f'{name}{ending}': mean for ending, of in sums.items() for name, mean in _means(of).items()}
    kls = {ending: columns[f'{NEXT_TOKEN_KL}{ending}'] for ending in yardsticks if direction is not None}
    return ScoredTable(
      columns['logps'], table.response_lengths, table.rewards,
      columns.get('reference_logps'), columns.get('values'), means,
      columns.get(f'reference_logps{MOVING}'), kls,
    )  # fmt: skip

  return score_table


_Sums = Mapping[str, tuple[Any, Any]]  # Of a loss by name: Σ weights · loss, Σ weights.


def _loss_sums(algorithm: algorithms.Algorithm, batch: Batch) -> _Sums:
  """Each loss's weighted sum, and the sum of its weights."""
  output = algorithm.loss(batch._replace(scores=train_step.as_read(algorithm, batch.scores, batch.rows)))
  totals = train_step.weighted_losses(output, dict.fromkeys(output.terms, jnp.ones(())))
  return {name: (totals[name], jnp.sum(term.weights)) for name, term in output.terms.items()}


def _is_batch(tree: Any) -> bool:
  return isinstance(tree, Batch)


def _added(parts: Sequence[Mapping[str, _Sums]]) -> Mapping[str, _Sums]:
  return jax.tree.map(lambda *x: np.sum(x, dtype=np.float64), *parts)


def _means(sums: _Sums) -> dict[str, float]:
  """The losses' weighted means by name, and their sum."""
  means = {name: float(total) / max(float(weight), 1.0) for name, (total, weight) in sums.items()}
  return {'loss': float(sum(means.values())), **{f'loss/{name}': mean for name, mean in means.items()}}


def _without_texts(batch: Batch) -> Batch:
  """A batch without the tokens and prompts, which no loss reads."""
  texts = ('prompt_tokens', 'prompt_segments', 'prompt_positions', 'response_tokens', 'response_positions')
  empty = batch.rows.prompt_tokens[:, :0]
  rows = batch.rows._replace(response_prompt=empty, **dict.fromkeys(texts, empty))
  if rows.mismatched is not None:
    rows = rows._replace(mismatched=Mismatched(*[empty] * 4, rows.mismatched.valid))
  return batch._replace(rows=rows, statistics={})


def _joined(parts: Sequence[Mapping[str, Batch]], statistics: Mapping[str, Any]) -> Mapping[str, Batch]:
  """All batches as one, by the reference that they are measured against."""
  joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  return {ending: batch._replace(statistics=statistics) for ending, batch in joined.items()}


TokenScorer = Callable[[Params, Rows], tuple[np.ndarray, np.ndarray]]


def make_token_scorer(policy: nn.Module, mesh: Mesh, chunk_size: int | None = None) -> TokenScorer:
  """Returns `score(params, rows on the mesh) -> (logps [B, R], token log-probs [B, T])`.

  The scoring function is that of training.
  """
  score = scoring.make_score(policy, chunk_size=chunk_size)

  def numbers(params: Params, rows: Rows) -> tuple[jax.Array, jax.Array]:
    scores = score({'policy': params}, rows, None)
    return scores.logps, scores.token_logps

  numbers_on_mesh = partitioning.jit_on(mesh, numbers)

  def score_rows(params: Params, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    # Without the fields that scoring does not read, so that rows of all kinds share a compilation.
    bare = rows._replace(columns={}, token_columns={}, mismatched=None, units=None)
    return jax.device_get(numbers_on_mesh(params, bare))

  return score_rows
