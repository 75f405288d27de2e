"""The `cache_reference` command: scores every response under the reference once, for any run."""

import logging
from typing import Annotated, Any

import jax
import numpy as np

from dro_jax.checkpoints import policy
from dro_jax.configs.effects import ELSEWHERE, PARTS, PLACE
from dro_jax.data.table import column_store
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError
from dro_jax.names import MISMATCHED_LOGPS, TOKEN_LOGPS
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import batches, networks, reference_store, table_scores
from dro_jax.run.data import make_loaders, read_triplets
from dro_jax.run.model import find_model_config
from dro_jax.run.schedule import Schedule
from dro_jax.run.spec import RunSpec


def cache_reference(
  model_dir: Annotated[str, PLACE],
  spec: Annotated[RunSpec, PARTS],
  *,
  score_batch_size: Annotated[int, ELSEWHERE] = 32,
) -> dict[str, Any]:
  """Scores every response, to train on or held out, under a policy, and writes the log-probs by token.

  For an algorithm that reads mismatched pairs (KTO) it scores the pairs of the run's plan too: then pass the
  seed, steps, batches and mesh of the run. A shorter run may read the store too.

  Args:
    model_dir: the store's folder; it must not exist or hold a complete store.
    spec: the run that will read the store; `policy.init_from` is the reference.
    score_batch_size: responses scored at once.

  Returns:
    How many responses, tokens and mismatched pairs were scored, and their mean log-prob.

  Raises:
    UsageError: there is no checkpoint, or the data cannot make the run.
  """
  init_from, algorithm, schedule = spec.policy.init_from, spec.algorithm, spec.schedule
  if init_from is None:
    raise UsageError('cache_reference needs --init_from=DIR: the checkpoint the run will start from.')
  if jax.process_index() == 0:
    column_store.refuse_place(model_dir, '--model_dir')
  vocabulary, mesh = policy.find_vocabulary(spec.policy.vocabulary, init_from), spec.mesh.over()
  config = find_model_config(spec.policy, spec.compute, vocabulary)
  nets = networks.build(config, uses_value=False, lora=spec.policy.lora)
  triplets = batches.with_rewards(read_triplets(spec.data, vocabulary), algorithm)
  params = networks.first_policy(nets, init_from, mesh)
  score = table_scores.make_token_scorer(nets.policy, mesh, spec.compute.chunk_size)
  tables = [table for table in (triplets.train, triplets.eval) if table is not None]
  scored = [
    reference_store.token_logps(score, params, batches.once(table, mesh, score_batch_size), mesh)
    for table in tables
  ]
  flat, lengths = (np.concatenate(parts) for parts in zip(*scored))
  origin, pairs = {'init_from': init_from, 'triplets': triplets.report.get('triplets')}, None
  if algorithm.uses_mismatched:
    loaders = _plan_of_run(spec, triplets, schedule, mesh)
    origin['plan'] = reference_store.plan_of(loaders.train, loaders.eval, spec.seed, schedule.steps)
    pairs = _mismatched(score, params, loaders, schedule.steps, mesh)
  identity = reference_store.fingerprint(config, vocabulary, triplets.report.get('options', {}))
  if jax.process_index() == 0:
    column_store.write(
      model_dir, np.concatenate([column_store.keys(table) for table in tables]),
      token_columns={TOKEN_LOGPS: (flat, lengths)}, pairs=pairs,
      fingerprint={**identity, 'parameters': reference_store.digest_of(params)}, origin=origin,
    )  # fmt: skip
  return {
    'model_dir': model_dir, 'responses': len(lengths), 'tokens': int(lengths.sum()),
    'mismatched_pairs': 0 if pairs is None else len(pairs.keys),
    'logp': float(flat.sum(dtype=np.float64) / len(lengths)),
  }  # fmt: skip


def _plan_of_run(spec: RunSpec, triplets: Triplets, schedule: Schedule, mesh: Mesh) -> batches.Loaders:
  """The batches that the run will see."""
  triplets = batches.admitted(triplets, spec.algorithm)
  triplets = triplets if schedule.eval_every > 0 else triplets._replace(eval=None)
  return make_loaders(spec, spec.algorithm, triplets, schedule, mesh)


def _mismatched(
  score: table_scores.TokenScorer, params: Any, loaders: batches.Loaders, steps: int, mesh: Mesh
) -> column_store.Pairs:
  """The pairs of every batch that the run will see."""
  steps_of = {loaders.train: steps} | ({loaders.eval: loaders.eval.plan.num_batches} if loaders.eval else {})
  logging.getLogger(__name__).info('scoring the mismatched pairs of %d batches', sum(steps_of.values()))
  keys, logps = zip(*reference_store.mismatched_logps(score, params, steps_of, mesh))
  return column_store.Pairs(np.concatenate(keys), {MISMATCHED_LOGPS: np.concatenate(logps)})


__all__ = ['cache_reference']
