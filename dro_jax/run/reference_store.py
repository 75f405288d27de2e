"""The reference's log-probs on disk: their identity, how they are scored, and how a run checks them."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from dro_jax import algorithms
from dro_jax.checkpoints import digest
from dro_jax.data.batches import loader
from dro_jax.data.batches.rows import place_batch
from dro_jax.data.storage import fingerprints
from dro_jax.data.table import column_store
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError
from dro_jax.files import hash_parts
from dro_jax.models import lora, stacks
from dro_jax.models.family import Config
from dro_jax.names import TOKEN_LOGPS
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import batches, networks
from dro_jax.run.table_scores import TokenScorer, make_token_scorer
from dro_jax.step.reference import Reference
from dro_jax.types import Params

# Settings of a model that change no score.
_INDIFFERENT = ('scan_layers', 'remat', 'attention', 'dropout_rate')
_TOLERANCE = {'float32': 1e-3, 'bfloat16': 0.1}


def fingerprint(
  config: Config, vocabulary: vocabularies.Vocabulary, options: Mapping[str, Any]
) -> dict[str, Any]:
  """The policy's architecture, vocabulary and way of reading data; `digest_of` covers its parameters."""
  model = {name: x for name, x in dataclasses.asdict(config).items() if name not in _INDIFFERENT}
  identity = {'model': model, 'vocabulary': vocabulary.fingerprint, 'data': dict(options)}
  return json.loads(json.dumps(identity))


def digest_of(params: Params) -> str:
  """A hash of parameters, the same for any mesh, scanned or not."""
  variables = lora.variables_of(params)
  unrolled = {name: stacks.convert_layers(tree, scan=False) for name, tree in variables.items()}
  return digest.hash_tree(unrolled['params'] if len(unrolled) == 1 else unrolled)


def plan_of(train: loader.Loader, held_out: loader.Loader | None, seed: int, steps: int) -> dict[str, Any]:
  """Everything that decides which responses a run scores under which other prompts."""

  def describe(feed: loader.Loader | None) -> dict[str, Any] | None:
    if feed is None:
      return None
    table = feed.table
    weights = b'' if table.weights is None else np.asarray(table.weights, np.float64).tobytes()
    records = hash_parts([column_store.keys(table).tobytes(), weights])
    plan = {'batch_size': feed.plan.batch_size, 'layout': feed.layout._asdict(), 'records': records}
    # Stores of earlier versions do not record that batches were dealt together.
    return plan | ({'deal': 'uniform'} if feed.plan.deal == 'uniform' else {})

  plans = {'seed': seed, 'steps': steps, 'train': describe(train), 'eval': describe(held_out)}
  return json.loads(json.dumps(plans))


def token_logps(
  score: TokenScorer, params: Params, feed: loader.Loader, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
  """(log-prob of every response token, in the table's order; tokens of each response)."""
  lengths = np.asarray(feed.table.response_lengths)
  starts = np.cumsum(lengths) - lengths
  flat = np.zeros(lengths.sum(), np.float32)
  for step in range(feed.plan.num_batches):
    _, logps_BT = score(params, place_batch(mesh, feed, step))
    for record, row, start in zip(*feed.places(step)):
      flat[starts[record] : starts[record] + lengths[record]] = logps_BT[row, start : start + lengths[record]]
  return flat, lengths


def mismatched_logps(
  score: TokenScorer, params: Params, steps_of: Mapping[loader.Loader, int], mesh: Mesh
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(keys, log-probs) of each batch's mismatched pairs; `steps_of` says how many of each loader's."""
  for feed, steps in steps_of.items():
    for step in range(steps):
      rows, pairs = place_batch(mesh, feed, step), feed.mismatched_pairs(step)
      logps_BR, _ = score(params, rows._replace(**rows.mismatched._asdict()))
      digests = feed.table.prompt_digests[pairs.prompt], feed.table.response_digests(pairs.response)
      yield column_store.keys_of(*digests), logps_BR[pairs.row, pairs.slot]


class Opened(NamedTuple):
  """A run's reference, the store that it reads, if any, and the data joined to the store."""

  reference: Reference | None
  store: column_store.Store | None
  triplets: Triplets

  @property
  def settings(self) -> dict[str, Any] | None:
    """The settings of the reference that decide the run's numbers."""
    if self.reference is None or self.store is None:
      return self.reference and dict(self.reference.settings)
    return {**self.reference.settings, 'parameters': self.store.fingerprint['parameters']}

  def refuse_other_plan(self, now: Mapping[str, Any]) -> None:
    """Refuses mismatched pairs that were taken for another plan (see `plan_of`).

    Raises:
      UsageError: the plans differ; the message names the differences.
    """
    if self.store is None:
      return
    saved = self.store.origin.get('plan')
    if not isinstance(saved, Mapping) or not isinstance(saved.get('steps'), int):
      raise UsageError(
        f'the reference store {self.store.directory} has no mismatched pairs, which this algorithm reads: '
        'they depend on the run’s batches. Run `dro_jax cache_reference` with this run’s algorithm, seed, '
        'steps, batch size and layout.'
      )
    # The pairs of a shorter run are among those of a longer one.
    now = {**now, 'steps': max(now['steps'], saved['steps'])}
    self._refuse('was made for the mismatched pairs of another plan', now, saved)

  def _refuse(self, problem: str, now: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    if differences := list(fingerprints.differences(now, saved)):
      raise UsageError(
        f'the reference store {self.store.directory} {problem}: {"; ".join(differences)}. Set these back, '
        'or run `dro_jax cache_reference` again with this run’s settings.'
      )

  def try_out(
    self, policy: nn.Module, params: Params, mesh: Mesh, chunk_size: int | None = None
  ) -> dict[str, Any]:
    """Scores a sample of responses again with the run's initial policy; returns the largest difference.

    Raises:
      UsageError: another policy made the store, or the numbers differ.
    """
    if self.store is None:
      return {}
    saved = self.store.fingerprint['parameters']
    self._refuse(
      'holds another reference’s log-probs', {'parameters': digest_of(params)}, {'parameters': saved}
    )
    stored, table = self.reference.stored, self.triplets.train
    count = min(stored.sample, len(table))
    sample = table.subset(np.unique(np.linspace(0, len(table) - 1, count).astype(int)))
    score = make_token_scorer(policy, mesh, chunk_size)
    rescored, _ = token_logps(score, params, batches.once(sample, mesh, min(32, count)), mesh)
    kept = np.concatenate([sample.token_column(TOKEN_LOGPS, i) for i in range(len(sample))])
    largest = float(np.abs(rescored - kept).max())
    tolerance = _TOLERANCE[policy.config.dtype] if stored.tolerance is None else stored.tolerance
    report = {'responses': len(sample), 'largest_difference': largest, 'tolerance': tolerance}
    # NaN fails this comparison too.
    if not largest <= tolerance:
      raise UsageError(
        f'the reference store {self.store.directory}: {len(sample)} responses were scored again, and a token '
        f'differs by {largest:.3g} nats, more than {tolerance:g}. The store is damaged, or another kind of '
        'device or precision made it: make it again, or accept it by Cached(tolerance=...) or --set '
        'REFERENCE_TOLERANCE=....'
      )
    logging.getLogger(__name__).info(
      'reference log-probs from %s: %d responses scored again differ by %.2g nats a token at most',
      self.store.directory, len(sample), largest,
    )  # fmt: skip
    return {'reference_check': report}


def open_for(
  reference: Reference | None,
  algorithm: algorithms.Algorithm,
  config: Config,
  vocabulary: vocabularies.Vocabulary,
  triplets: Triplets,
) -> Opened:
  """Joins the store that a run's reference reads, if it reads one, to the run's data.

  Raises:
    UsageError: the store does not exist, has another reference, lacks examples, or cannot serve the run.
  """
  opened = Opened(reference, None, triplets)
  if reference is None or reference.stored is None:
    return opened
  if algorithm.online is not None:
    raise UsageError(
      f'{algorithm.name} learns from fresh responses, which a store cannot hold: pass '
      'RunSpec(reference=Frozen()), or --gin_file=references/frozen.gin.'
    )
  store = column_store.read(reference.stored.directory)
  if 'parameters' not in store.fingerprint or TOKEN_LOGPS not in store.token_columns:
    raise UsageError(
      f'{store.directory} holds {", ".join(sorted(store.columns)) or "nothing"}, and no log-probs of a '
      'reference: pass a folder that `dro_jax cache_reference` wrote.'
    )
  opened = opened._replace(store=store)
  now = fingerprint(config, vocabulary, triplets.report.get('options', {}))
  saved = {name: x for name, x in store.fingerprint.items() if name != 'parameters'}
  opened._refuse('does not fit', now, saved)
  return opened._replace(triplets=_joined(triplets, store))


def _joined(triplets: Triplets, store: column_store.Store) -> Triplets:
  """Both tables with the store's log-probs."""
  train, held_out = (
    table and column_store.join(table, store).table for table in (triplets.train, triplets.eval)
  )
  return triplets._replace(train=train, eval=held_out)


def load_reference(
  saved: Mapping[str, Any], init_from: str | None, nets: networks.Networks, mesh: Mesh
) -> Params:
  """The parameters of a run's cached reference, which the run did not keep.

  Args:
    saved: the run's metadata.
    init_from: the folder that holds the parameters now; `None` takes the folder in the metadata.
    nets: the run's networks.
    mesh: the devices that will hold them.

  Raises:
    UsageError: the parameters are missing, or belong to another policy.
  """
  directory = init_from or saved.get('init_from')
  try:
    params = networks.load_policy(nets, directory, mesh)
  except UsageError as error:
    raise UsageError(
      f'the run read log-probs of its reference from a store, so its checkpoints hold no parameters of the '
      f'reference. These came from {directory}, which cannot be read ({error}): pass --init_from=DIR, the '
      'folder that holds them now.'
    ) from error
  if digest_of(params) != saved['reference']['parameters']:
    raise UsageError(
      f'{directory} holds another policy than this run’s reference: pass --init_from=DIR, a folder with the '
      'policy from which the run started.'
    )
  return params
