"""The `cache_reference` command: a reference's log-probs of every response, taken once, for any run."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dro_jax import algorithms, limits
from dro_jax.checkpoints import policy
from dro_jax.data.batches import groups
from dro_jax.data.table import column_store
from dro_jax.data.triplets import Triplets, load_triplets, require_rewards, with_missing_rewards_zero
from dro_jax.errors import UsageError
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import batches, networks, reference_store, table_scores
from dro_jax.run.batches import RowOptions, derive
from dro_jax.run.schedule import Schedule
from dro_jax.types import MISMATCHED_LOGPS, TOKEN_LOGPS


def cache_reference(
  model_dir: str,
  data: Callable[..., Triplets] = load_triplets,
  algorithm: Callable[[], algorithms.Algorithm] = algorithms.dro_v,
  *,
  init_from: str | None = None,
  vocabulary: str | None = None,
  mesh: Callable[[], Mesh] = partitioning.make_mesh,
  schedule: Callable[[], Schedule] = Schedule,
  batch_size: int = 32,
  deal: str = 'together',
  num_microbatches: int = 1,
  rows: Callable[[], RowOptions] = RowOptions,
  unit_options: Callable[[], groups.UnitOptions] = groups.UnitOptions,
  score_batch_size: int = 32,
  chunk_size: int | None = None,
  dtype: str | None = None,
  scan_layers: bool | None = None,
  seed: int = 0,
) -> dict[str, Any]:
  """Scores every response, to train on or held out, under a policy, and writes the log-probs by token.

  Of an algorithm that reads mismatched pairs (KTO), those of the run's plan are scored too: then pass the
  run's own seed, steps, batch size, microbatches, mesh and layout.

  Args:
    model_dir: the store's folder, complete or not there.
    data: the run's triplets, read as the run reads them.
    algorithm: the run's; it matters only where it reads mismatched pairs.
    init_from: the checkpoint of the reference, from which the run will start.
    vocabulary: as the run's.
    mesh: devices' arrangement.
    schedule: the run's; a shorter run may read the store too.
    batch_size: the run's.
    deal: the run's.
    num_microbatches: the run's.
    rows: how the run's batches are laid out.
    unit_options: the run's.
    score_batch_size: responses scored at once.
    chunk_size: response tokens projected to the vocabulary at once; `None` for all.
    dtype: activations' type; the run's must be the same.
    scan_layers: one compiled layer for all, where it is to differ from the model's.
    seed: the run's.

  Returns:
    How many responses, tokens and mismatched pairs were scored, and their mean log-prob.

  Raises:
    UsageError: there is no checkpoint, or the data cannot make the run.
  """
  limits.seed(seed)
  if init_from is None:
    raise UsageError('whose log-probs? Pass --init_from=DIR, the checkpoint from which the run will start.')
  if jax.process_index() == 0:
    column_store.refuse_place(model_dir, '--model_dir')
  chosen, words, grid = algorithm(), policy.vocabulary_of(init_from, vocabulary), mesh()
  nets = networks.build_policy(init_from, dtype=dtype, scan_layers=scan_layers)
  triplets = data(vocabulary=words)
  if chosen.uses_rewards:
    require_rewards(triplets, chosen.name)
  else:
    triplets = with_missing_rewards_zero(triplets)
  params = networks.load_policy(nets, init_from, grid)
  score = table_scores.make_token_scorer(nets.policy, grid, chunk_size)
  tables = [table for table in (triplets.train, triplets.eval) if table is not None]
  taken = [
    reference_store.token_logps(score, params, batches.once(table, grid, score_batch_size), grid)
    for table in tables
  ]
  flat, lengths = (np.concatenate(parts) for parts in zip(*taken))
  origin, pairs = {'init_from': init_from, 'triplets': triplets.report.get('triplets')}, None
  if chosen.uses_mismatched:
    chosen.check(triplets)
    triplets = derive(triplets, chosen.columns, chosen.select, chosen.weights)
    validates = schedule().eval_every > 0
    feed = batches.make_loaders(
      triplets if validates else triplets._replace(eval=None), chosen, rows(), unit_options(),
      batch_size=batch_size, seed=seed, multiple=partitioning.num_row_shards(grid) * num_microbatches,
      eval_examples=schedule().eval_examples, deal=deal,
    )  # fmt: skip
    origin['plan'] = reference_store.plan_of(feed.train, feed.eval, seed, schedule().steps)
    pairs = _mismatched(score, params, feed, schedule().steps, grid)
  made_of = reference_store.fingerprint(nets.policy.config, words, triplets.report.get('options', {}))
  if jax.process_index() == 0:
    column_store.write(
      model_dir, np.concatenate([column_store.keys(table) for table in tables]),
      token_columns={TOKEN_LOGPS: (flat, lengths)}, pairs=pairs,
      fingerprint={**made_of, 'parameters': reference_store.digest_of(params)}, origin=origin,
    )  # fmt: skip
  return {
    'model_dir': model_dir, 'responses': len(lengths), 'tokens': int(lengths.sum()),
    'mismatched_pairs': 0 if pairs is None else len(pairs.keys),
    'logp': float(flat.sum(dtype=np.float64) / len(lengths)),
  }  # fmt: skip


def _mismatched(
  score: table_scores.TokenScorer, params: Any, feed: batches.Loaders, steps: int, mesh: Mesh
) -> column_store.Pairs:
  """The pairs of every batch that the run will see."""
  steps_of = {feed.train: steps} | ({feed.eval: feed.eval.plan.num_batches} if feed.eval else {})
  logging.getLogger(__name__).info('scoring the mismatched pairs of %d batches', sum(steps_of.values()))
  keys, logps = zip(*reference_store.mismatched_logps(score, params, steps_of, mesh))
  return column_store.Pairs(np.concatenate(keys), {MISMATCHED_LOGPS: np.concatenate(logps)})


__all__ = ['cache_reference']
