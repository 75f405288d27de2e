"""A run's networks: built from settings, initialised or restored sharded, and scored over a whole table."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from dro_jax import algorithms
from dro_jax.batch import Batch
from dro_jax.checkpoints import orbax as checkpoints
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models import scoring
from dro_jax.models.t5 import FAMILY, T5, Path, T5Config, convert_leaves, in_stack, smallest_rows
from dro_jax.models.value import ValueNetwork, start_from_policy
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Grid
from dro_jax.step import state as train_state
from dro_jax.step import train_step
from dro_jax.step.reference import MOVING, Reference
from dro_jax.types import Mismatched, Params, Rows

_log = logging.getLogger(__name__)


class Networks(NamedTuple):
  """The policy, and the value network where the algorithm has one."""

  policy: T5
  value: ValueNetwork | None


def build(
  config: T5Config,
  *,
  uses_value: bool,
  readout: str = 'prompt',
  shared: bool = False,
  frozen_trunk: bool = False,
) -> Networks:
  """The networks of a configuration; the value trunk has the policy's architecture."""
  value = ValueNetwork(config, readout=readout, shared=shared, frozen_trunk=frozen_trunk)
  return Networks(T5(config), value if uses_value else None)


@functools.lru_cache(maxsize=8)
def abstract_params(networks: Networks) -> dict[str, Params]:
  """Shapes of all parameters, boxed with their logical axes."""
  return jax.eval_shape(lambda key: _init(networks, key), jax.random.key(0))


def shardings(networks: Networks, mesh: Grid) -> dict[str, Params]:
  """Where each parameter lives."""
  return {
    name: partitioning.parameter_shardings(tree, mesh) for name, tree in abstract_params(networks).items()
  }


def abstract_on(networks: Networks, mesh: Grid) -> dict[str, Params]:
  """Shapes of all parameters with their shardings: what a restore fills."""
  return with_shardings(nn.unbox(abstract_params(networks)), shardings(networks, mesh))


def with_shardings(abstract: Any, sharding: Any) -> Any:
  """Joins a tree of shapes and a tree of shardings."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, sharding)


def _init(networks: Networks, key: jax.Array) -> dict[str, Params]:
  rows, policy_key, value_key = smallest_rows(), *jax.random.split(key)
  params = {'policy': networks.policy.init(policy_key, rows)['params']}
  if networks.value is not None:
    states = jnp.zeros((1, 1, networks.policy.config.emb_dim))
    params['value'] = networks.value.init(value_key, rows, states, states)['params']
  return params


def initial_params(networks: Networks, mesh: Grid, seed: int, init_from: str | None) -> dict[str, Params]:
  """First parameters, each born on its shard.

  The policy comes from the checkpoint `init_from` (or at random without one); the value's trunk starts from
  the policy, its head at zero.

  Raises:
    UsageError: the checkpoint is missing or does not fit.
  """
  where = shardings(networks, mesh)
  # Never two policies.
  made = {name: where[name] for name in where if name != 'policy' or init_from is None}

  def init(key: jax.Array) -> dict[str, Params]:
    every = nn.unbox(_init(networks, key))
    return {name: every[name] for name in made}

  params = jax.jit(init, out_shardings=made)(jax.random.key(seed))
  if init_from is not None:
    params['policy'] = load_policy(init_from, networks.policy.config, abstract_on(networks, mesh)['policy'])
  if networks.value is not None:
    start = jax.jit(start_from_policy, out_shardings=where['value'])
    params['value'] = start(params['value'], params['policy'])
    if init_from is not None:
      _log.info('%s', _say_fresh(params['value'], init_from))
  return params


def _say_fresh(value: Params, init_from: str) -> str:
  """What of a value network is new."""
  trunk = "its trunk is a copy of the policy's" if 'trunk' in value else 'it has no trunk of its own'
  has = checkpoints.load_metadata(init_from).get('value')
  why = 'that of a checkpoint is never taken' if has else 'the checkpoint has none'
  return f'{init_from}: V starts fresh, for {why}: {trunk}, its head starts anew'


def load_policy(directory: str, config: T5Config, abstract: Params) -> Params:
  """The policy saved in `directory`, scanned or not, laid out as `abstract` says."""
  saved = checkpoints.load_metadata(directory).get('model', {})
  if saved.get('scan_layers', False) == config.scan_layers:
    return checkpoints.load_params(directory, abstract)[0]
  wanted, placed = traverse_util.flatten_dict(abstract), {}
  for path, x in stream_policy(directory, scan=config.scan_layers):
    fits = path in wanted and wanted[path].shape == x.shape
    # Not device_put: that would first compare all hosts' copies.
    placed[path] = jax.make_array_from_callback(x.shape, wanted[path].sharding, x.__getitem__) if fits else x
  params = traverse_util.unflatten_dict(placed)
  checkpoints.refuse_other_tree(directory, params, abstract)
  return params


def stream_policy(directory: str, *, scan: bool) -> Iterator[tuple[Path, np.ndarray]]:
  """The parameters of the policy saved in `directory`, scanned or not; the host never holds all of them."""
  together = lambda path: (in_stack(path) or (path,))[0] if scan else path  # noqa: E731
  for part in checkpoints.stream_params(directory, together):
    yield from convert_leaves(part, scan=scan)


def config_of(directory: str) -> T5Config:
  """The model configuration saved beside a checkpoint."""
  return T5Config(**checkpoints.load_metadata(directory)['model'])


def vocabulary_of(directory: str, spec: str | None = None) -> vocabularies.Vocabulary:
  """The vocabulary of a checkpoint: what `spec` names, or else what is saved beside it.

  Raises:
    UsageError: nothing names one, or `spec` is another than the checkpoint was made with.
  """
  saved = checkpoints.load_metadata(directory)
  if spec is None and saved.get('vocabulary') is None:
    raise UsageError(
      f'the checkpoint {directory} does not say which vocabulary it was made with: pass '
      f'{vocabularies.offer(saved["model"]["vocab_size"])} of it.'
    )
  words = vocabularies.vocabulary(spec or saved['vocabulary'])
  rows, mark = saved['model']['vocab_size'], saved.get('vocabulary_fingerprint')
  if mark is not None and mark != words.fingerprint:
    raise UsageError(
      f'the checkpoint {directory} was made with the vocabulary {saved["vocabulary"]!r}, not with '
      f'{words.spec!r}: its ids would mean other words. Pass --set VOCABULARY={saved["vocabulary"]}.'
    )
  if words.size > rows:
    raise UsageError(
      f'the vocabulary {words.spec!r} has {words.size} ids, but the checkpoint {directory} embeds {rows}: '
      'choose the vocabulary that it was trained with (--set VOCABULARY=...).'
    )
  return words


class ScoredTable(NamedTuple):
  """Every response of a table, scored once, in the table's order; and its losses' weighted means by name.

  Where the reference moves, `reference_logps` and the losses are of the initial one; `moving_logps`, and the
  losses whose names end in `_moving`, are of that as it is.
  """

  logps: np.ndarray
  lengths: np.ndarray
  rewards: np.ndarray
  reference_logps: np.ndarray | None
  values: np.ndarray | None
  losses: Mapping[str, float]
  moving_logps: np.ndarray | None = None


def make_scorer(
  networks: Networks,
  algorithm: algorithms.Algorithm,
  reference: Reference | None,
  mesh: Grid,
  chunk_size: int | None = None,
  *,
  by_batch: bool = False,
) -> Callable[[train_state.TrainState, Any], ScoredTable]:
  """Returns `score_table(state, loader)`, compiled once: no gradient, no dropout, each response once.

  Scores are taken batch by batch. What couples responses (a mean of the batch, KTO's reference point, one
  value for all) is taken once over the whole table, so that no order and no batch size decides a loss; but
  which mismatched pairs KTO's is of follows the batches.

  Args:
    networks: the run's.
    algorithm: whose losses.
    reference: the run's.
    mesh: rows are split over it.
    chunk_size: response tokens projected to the vocabulary at once.
    by_batch: what couples responses is taken over each batch, as in runs of earlier versions.
  """
  pools = networks.value is not None and networks.value.readout == 'batch'
  algorithm = algorithms.with_batch_value(algorithm) if pools else algorithm
  score = scoring.make_score(networks.policy, networks.value, chunk_size=chunk_size)
  # A pair's or a group's responses lie in one batch: there each loss is known.
  whole = algorithm.couples and algorithm.unit == 'response' and not by_batch
  yardsticks = {'': None} if reference is None else reference.yardsticks
  losses = functools.partial(_loss_sums, algorithm)

  def batch(state: train_state.TrainState, rows: Rows):
    scores, arrays, seen = score(state.params, rows, None), {}, {}
    for ending, scores_of in yardsticks.items():
      by = scores_of and scores_of(state, rows)
      arrays[f'reference_logps{ending}'] = by and by.logps
      seen[ending] = Batch(scores, by, rows, state.statistics)
    arrays |= {'logps': scores.logps, 'values': scores.values}
    return arrays, jax.tree.map(_without_texts if whole else losses, seen, is_leaf=_is_batch)

  batch = jax.jit(
    batch, out_shardings=partitioning.replicated(mesh), compiler_options=partitioning.COMPILER_OPTIONS
  )
  # Of small vectors, which every host has: each computes it by itself.
  of_all = jax.jit(lambda seen: jax.tree.map(losses, seen, is_leaf=_is_batch))

  def score_table(state: train_state.TrainState, loader: Any) -> ScoredTable:
    table, columns, parts = loader.table, {}, []
    for step in range(loader.plan.num_batches):
      num_rows = loader.num_rows(step)
      rows = loader.rows(step, *partitioning.host_rows(mesh, num_rows))
      with partitioning.use_mesh(mesh):
        arrays, part = jax.device_get(batch(state, partitioning.global_batch(mesh, rows, num_rows)))
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
    return ScoredTable(
      columns['logps'], table.response_lengths, table.rewards,
      columns.get('reference_logps'), columns.get('values'), means,
      columns.get(f'reference_logps{MOVING}'),
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
  """What a loss reads of a batch: no token of it, and no prompt."""
  texts = ('prompt_tokens', 'prompt_segments', 'prompt_positions', 'response_tokens', 'response_positions')
  empty = batch.rows.prompt_tokens[:, :0]
  rows = batch.rows._replace(response_prompt=empty, **dict.fromkeys(texts, empty))
  if rows.mismatched is not None:
    rows = rows._replace(mismatched=Mismatched(*[empty] * 4, rows.mismatched.valid))
  return batch._replace(rows=rows, statistics={})


def _joined(parts: Sequence[Mapping[str, Batch]], statistics: Mapping[str, Any]) -> Mapping[str, Batch]:
  """All batches as one, by what they are measured against."""
  joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  return {ending: batch._replace(statistics=statistics) for ending, batch in joined.items()}


def metadata(
  config: T5Config,
  *,
  vocabulary: vocabularies.Vocabulary,
  algorithm: algorithms.Algorithm,
  readout: str,
  shared: bool,
  frozen_trunk: bool = False,
  **settings: Any,
) -> dict[str, Any]:
  """What is saved beside every checkpoint: enough to rebuild the networks and read data as the run did."""
  value = {'readout': readout, 'shared': shared} | ({'frozen_trunk': True} if frozen_trunk else {})
  return {
    'family': FAMILY,
    'model': dataclasses.asdict(config),
    'value': value if algorithm.uses_value else None,
    'vocabulary': vocabulary.spec,
    'vocabulary_fingerprint': vocabulary.fingerprint,
    'algorithm': algorithm.name,
    'temperature': algorithm.temperature,
    **settings,
  }
