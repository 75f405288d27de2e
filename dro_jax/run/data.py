"""A run's data: triplets with the algorithm's columns, when to validate on them, and their batches."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from dro_jax import algorithms
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError
from dro_jax.models.family import Config
from dro_jax.models.policy import refuse_long_texts
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import batches, reference_store
from dro_jax.run.folder.legacy import Legacy
from dro_jax.run.learner import Learner
from dro_jax.run.schedule import Schedule
from dro_jax.run.spec import RunSpec

# The settings that bound the texts of triplets, as errors name them.
_LENGTHS = (
  'load_triplets(prompt_length=..., response_length=...), or --set PROMPT_LENGTH=... and RESPONSE_LENGTH=...,'
)


class Data(NamedTuple):
  """What a run learns from and is validated on.

  Attributes:
    triplets: with the algorithm's columns.
    store: the reference's log-probs on disk, if the run reads such, and the triplets joined to them.
    schedule: the spec's; without held-out triplets it never validates.
    loaders: the batches.
    longest: tokens of the longest response to train on.
  """

  triplets: Triplets
  store: reference_store.Opened
  schedule: Schedule
  loaders: batches.Loaders
  longest: int


def prepare_data(spec: RunSpec, learner: Learner, legacy: Legacy) -> Data:
  """Reads a run's triplets, joins them to the reference store, and lays out their batches.

  Raises:
    UsageError: the data cannot be read, or the algorithm cannot learn from it.
  """
  algorithm, vocabulary = learner.algorithm, learner.vocabulary
  triplets = read_triplets(legacy.data(spec.data), vocabulary)
  longest = int(triplets.train.response_lengths.max())
  triplets, schedule = _with_schedule(batches.admitted(triplets, algorithm), spec.schedule)
  config = learner.networks.policy.config
  sampled = None if algorithm.online is None else spec.rollouts.max_length
  _refuse_long_texts(config, triplets, sampled, is_read=algorithm.uses_response_values)
  store = reference_store.open_for(learner.reference, algorithm, config, vocabulary, triplets)
  loaders = make_loaders(spec, algorithm, store.triplets, schedule, learner.mesh, legacy)
  if store.store is not None and algorithm.uses_mismatched:
    store.refuse_other_plan(reference_store.plan_of(loaders.train, loaders.eval, spec.seed, schedule.steps))
  return Data(triplets, store, schedule, loaders, longest)


def _refuse_long_texts(config: Config, triplets: Triplets, sampled: int | None, *, is_read: bool) -> None:
  """Refuses triplets that are longer than the model has positions for; `sampled` is the longest sample's."""
  tables = [table for table in (triplets.train, triplets.eval) if table is not None]
  prompt = max(int(table.prompt_lengths.max()) for table in tables)
  response = sampled or max(int(table.response_lengths.max()) for table in tables)
  refuse_long_texts(config, prompt, response, _LENGTHS, is_read=is_read)


def _with_schedule(triplets: Triplets, schedule: Schedule) -> tuple[Triplets, Schedule]:
  """Both without validation where either has none."""
  if triplets.eval is None:
    return triplets, dataclasses.replace(schedule, eval_every=0)
  return triplets if schedule.eval_every else triplets._replace(eval=None), schedule


def read_triplets(data: Triplets | Callable[..., Triplets], vocabulary: vocabularies.Vocabulary) -> Triplets:
  """A run's triplets: those that it is given, or those that it reads.

  Raises:
    UsageError: they were tokenised by another vocabulary, or cannot be read.
  """
  if not isinstance(data, Triplets):
    return data(vocabulary=vocabulary)
  _refuse_other_vocabulary(data, vocabulary)
  return data


def _refuse_other_vocabulary(triplets: Triplets, vocabulary: vocabularies.Vocabulary) -> None:
  made_with = triplets.report.get('vocabulary')
  if made_with not in (None, vocabulary.fingerprint):
    raise UsageError(
      f'the triplets were tokenised by another vocabulary than the policy reads, {vocabulary.spec!r}: load '
      "them with load_triplets(..., vocabulary=policy.vocabulary), the policy's own."
    )


def make_loaders(
  spec: RunSpec,
  algorithm: algorithms.Algorithm,
  triplets: Triplets,
  schedule: Schedule,
  mesh: Mesh,
  legacy: Legacy = Legacy(),
) -> batches.Loaders:
  """The batches of a run: what it trains on, and what it validates on.

  Raises:
    UsageError: a batch cannot give every part of the mesh its rows, or the data has no units for the
      algorithm.
  """
  loaders = batches.make_loaders(
    triplets, algorithm, spec.batches.rows, spec.batches.units, batch_size=spec.batches.size, seed=spec.seed,
    multiple=partitioning.num_row_shards(mesh) * spec.batches.microbatches, deal=spec.batches.deal,
    eval_examples=schedule.eval_examples, in_file_order=legacy.validates_by_batch,
  )  # fmt: skip
  for name in ('prompt', 'response'):
    partitioning.refuse_length(mesh, name, getattr(loaders.train.layout, f'{name}_length'))
  return loaders
