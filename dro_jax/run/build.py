"""A run, built: networks, step, batches, samplers. Nothing is compiled or written, no parameter is read."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax

from dro_jax import algorithms
from dro_jax.algorithms.base import NO_LOSS
from dro_jax.checkpoints import policy as saved_policies
from dro_jax.data.batches import groups, loader
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError
from dro_jax.models import scoring
from dro_jax.models.lora import Base
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.printing.result import to_html
from dro_jax.run import batches, best, networks, reference_store, summary, table_scores
from dro_jax.run.folder.legacy import Legacy
from dro_jax.run.measure import Validator
from dro_jax.run.model import find_model_config, refuse_idle_value
from dro_jax.run.sampling import generation, policy_samples, rollouts
from dro_jax.run.schedule import Clock, Schedule
from dro_jax.run.spec import Compute, RunSpec, Value
from dro_jax.step import optimizers, train_step
from dro_jax.step import state as train_state
from dro_jax.step.reference import AdapterOff, Frozen, Reference
from dro_jax.types import Rows


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
  """A run, built from its spec: what can be had without compiling, reading parameters or writing.

  Attributes:
    spec: what it was built from.
    legacy: what an earlier version, which made the run that is resumed, did otherwise.
    devices: what its mesh lies on; `None` for all that are here.
    mesh: its devices.
    vocabulary: the policy's.
    networks: policy and value.
    algorithm: the spec's, on one value for a batch where the value is read so.
    value: how the value is read.
    schedule: the spec's; without held-out triplets it never validates.
    reference: the reference policy; `None` where the algorithm has none.
    store: the reference's log-probs on disk, if the run reads such.
    triplets: what it trains on, with the algorithm's columns.
    loaders: its batches.
    optimizers: by network.
    abstract_state: shapes and shardings of its state.
    pure_step: one training step, a pure function.
    jitted_step: the same with shardings and a donated state, to be called in the mesh.
    measure: log-ratios to the initial policy of a step's responses, where the reference moves; else `None`.
    validator: how it is validated.
    answer: greedy answers to prompts.
  """

  spec: RunSpec
  legacy: Legacy
  devices: Sequence[Any] | None
  mesh: Mesh
  vocabulary: vocabularies.Vocabulary
  networks: networks.Networks
  algorithm: algorithms.Algorithm
  value: Value
  schedule: Schedule
  reference: Reference | None
  store: reference_store.Opened
  triplets: Triplets
  loaders: batches.Loaders
  optimizers: Mapping[str, optax.GradientTransformation]
  abstract_state: train_state.TrainState
  pure_step: Callable[[train_state.TrainState, Rows], tuple[train_state.TrainState, train_step.StepOutput]]
  jitted_step: Callable[..., Any]
  measure: Callable[..., Any] | None
  validator: Validator
  answer: generation.Generator

  @property
  def rollouts(self) -> rollouts.Rollouts | None:
    """How an online algorithm gets fresh responses; `None` of one that learns from logged ones."""
    return self.validator.rollouts

  def init(self, base: Base | None = None) -> train_state.TrainState:
    """The first state: shapes first, then shardings, then arrays born sharded.

    Args:
      base: of adapters, where it is loaded already; `None` loads it.
    """
    init_from = self.spec.policy.init_from
    if self.networks.lora is not None and base is None:
      base, _ = networks.load_run_base(self.networks, self.mesh, init_from)
    where = jax.tree.map(lambda x: x.sharding, self.abstract_state._replace(base=None))
    create = jax.jit(functools.partial(_create, self), donate_argnums=0, out_shardings=where)
    params = networks.initial_params(self.networks, self.mesh, self.spec.seed, init_from)
    return create(params)._replace(base=base)

  def step(
    self, state: train_state.TrainState, rows: Rows
  ) -> tuple[train_state.TrainState, train_step.StepOutput]:
    """One training step; the state that it is given is used up."""
    with partitioning.use_mesh(self.mesh):
      return self.jitted_step(state, rows)

  def batches(self, first: int, last: int) -> Iterator[tuple[int, Rows]]:
    """(step, rows) of each batch from step `first` up to `last`: this host's part of the global batch.

    An online algorithm's rows are prompts, which `with_responses` answers.
    """
    source = self.loaders.train
    host = functools.partial(partitioning.host_rows, self.mesh)
    for step, rows in loader.prefetch(source, range(first, last), host):
      yield step, partitioning.global_batch(self.mesh, rows, source.num_rows(step))

  def with_responses(
    self, state: train_state.TrainState, step: int, rows: Rows
  ) -> tuple[Rows, dict[str, float]]:
    """A batch as loaded, or with fresh responses to its prompts, and the seconds that those took."""
    if self.rollouts is None:
      return rows, {}
    clock = Clock()
    rows = self.rollouts.respond(state, self.loaders.train, step, rows)
    return rows, {'time/generate_seconds': clock.lap()}

  def validate(self, state: train_state.TrainState) -> dict[str, float]:
    """Losses and statistics of the held-out prompts, by name.

    Raises:
      UsageError: nothing is held out.
      NotFinite: a loss is not finite.
    """
    if self.loaders.eval is None:
      raise UsageError(
        'no triplets are held out, so there is nothing to validate on: pass eval_triplets, or a '
        'validation_fraction above 0, to load_triplets.'
      )
    return self.validator.validate(state)[0]

  def evaluate_rows(self) -> Callable[..., Any]:
    """Returns `evaluate(state, rows) -> (scores, reference scores, losses)` of a batch, to be jitted."""
    return train_step.make_evaluate(
      _score_all(self.networks, self.spec.compute), self.algorithm, self.reference
    )

  def notes(self) -> list[str]:
    """Lines that a reader of the run's first lines should know."""
    labels = self.triplets.report.get('labels')
    keep, validates = self.spec.keep, self.loaders.eval is not None
    return [
      *([f'labels: {labels["said"]}'] if labels else []),
      *optimizers.notes(self.optimizers, self.schedule.steps),
      *groups.notes(self.loaders.units),
      *([best.described(keep.metric, keep.mode)] if validates else []),
    ]

  def __repr__(self) -> str:
    return summary.line(self)

  def __rich__(self) -> Any:
    return summary.table(self)

  def _repr_html_(self) -> str:
    return to_html(self)


def build(spec: RunSpec, devices: Sequence[Any] | None = None, legacy: Legacy = Legacy()) -> Run:
  """Builds a run: all of it that can be had without compiling, reading parameters or writing.

  Args:
    spec: the run.
    devices: what to lay the mesh out on, which need not be here (see `preflight`); `None` takes all that are.
    legacy: what the version did otherwise that made the run to be resumed (see `run.folder.legacy`).

  Raises:
    UsageError: settings or data cannot make a run.

  Example:
    >>> run = dro.build(spec)
    >>> state = run.init()
    >>> for step, rows in run.batches(0, 1):
    ...   state, output = run.step(state, rows)
    >>> int(state.step), float(output.metrics['loss/value']) > 0
    (1, True)
  """
  vocabulary = saved_policies.find_vocabulary(spec.policy.vocabulary, spec.policy.init_from)
  config = find_model_config(spec.policy, spec.compute, vocabulary)
  value = dataclasses.replace(spec.value, readout=legacy.readout(spec.value.readout))
  refuse_idle_value(value, legacy)
  pools = spec.algorithm.uses_value and value.readout == 'batch'
  algorithm = algorithms.with_batch_value(spec.algorithm) if pools else spec.algorithm
  mesh = spec.mesh.over(devices)
  triplets, schedule, longest = _prepare_triplets(
    legacy.data(spec.data), algorithm, vocabulary, spec.schedule
  )
  nets = networks.build(
    config, uses_value=algorithm.uses_value, lora=spec.policy.lora, **dataclasses.asdict(value)
  )
  reference = legacy.reference(_build_reference(spec, nets) if algorithm.uses_reference else None)
  store = reference_store.open_for(reference, algorithm, config, vocabulary, triplets)
  loaders = make_loaders(spec, algorithm, store.triplets, schedule, mesh, legacy)
  if store.store is not None and algorithm.uses_mismatched:
    store.refuse_other_plan(reference_store.plan_of(loaders.train, loaders.eval, spec.seed, schedule.steps))
  validator, answer = _make_samplers(
    spec, algorithm, nets, reference, mesh, vocabulary, schedule, loaders, longest, legacy
  )
  txs = {'policy': spec.optimizers.policy if algorithm.trains_policy else optax.set_to_zero()}
  txs |= {'value': spec.optimizers.value} if algorithm.uses_value else {}
  pure_step = train_step.make_train_step(
    _score_all(nets, spec.compute), algorithm, txs, reference, seed=spec.seed,
    num_microbatches=spec.batches.microbatches, dropout=spec.compute.dropout_rate > 0,
  )  # fmt: skip
  run = Run(
    spec, legacy, devices, mesh, vocabulary, nets, algorithm, value, schedule, reference, store, triplets,
    loaders, txs, None, pure_step, None, None, validator, answer,
  )  # fmt: skip
  run = _compiled(dataclasses.replace(run, abstract_state=_abstract_state(run)))
  _refuse_unmeasured(run)
  return run


def _build_reference(spec: RunSpec, nets: networks.Networks) -> Reference:
  """The run's reference; the initial policy of a fresh adapter is its base with the adapter off."""
  scheme = spec.reference
  is_fresh = nets.lora is not None and not networks.continues(nets, spec.policy.init_from)
  if scheme == Frozen() and is_fresh:
    scheme = AdapterOff()
  return scheme.build(scoring.make_score(nets.policy, chunk_size=spec.compute.chunk_size))


def _prepare_triplets(
  data: Triplets | Callable[..., Triplets],
  algorithm: algorithms.Algorithm,
  vocabulary: vocabularies.Vocabulary,
  schedule: Schedule,
) -> tuple[Triplets, Schedule, int]:
  """The triplets with the algorithm's columns, when to validate, and the longest response."""
  triplets = read_triplets(data, vocabulary)
  longest = int(triplets.train.response_lengths.max())
  triplets = batches.admitted(triplets, algorithm)
  if triplets.eval is None:
    return triplets, dataclasses.replace(schedule, eval_every=0), longest
  return triplets if schedule.eval_every else triplets._replace(eval=None), schedule, longest


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


def _make_samplers(
  spec: RunSpec,
  algorithm: algorithms.Algorithm,
  nets: networks.Networks,
  reference: Reference | None,
  mesh: Mesh,
  vocabulary: vocabularies.Vocabulary,
  schedule: Schedule,
  loaders: batches.Loaders,
  longest: int,
  legacy: Legacy,
) -> tuple[Validator, generation.Generator]:
  """How the run is validated, and how it answers prompts greedily."""
  options, responder, draw, decoding = spec.rollouts, None, None, None
  shared = {'seed': spec.seed, 'chunk_size': spec.compute.chunk_size}
  if algorithm.online is not None:
    responder = rollouts.make_rollouts(
      nets, algorithm, reference, mesh, vocabulary, options, max_length=longest, **shared
    )
  if schedule.eval_every and schedule.kl_prompts:
    draw, decoding = policy_samples.make_draw(
      nets, reference, mesh, vocabulary, schedule.kl_prompts, max_length=options.max_length or longest,
      reward=options.reward, **shared,
    )  # fmt: skip
  most = longest if responder is None else responder.settings['max_length']
  answer = generation.make_generator(
    nets.policy, mesh, max_length=most, temperature=0.0, batch_size=schedule.sample_prompts
  )
  make = functools.partial(
    table_scores.make_table_scorer, nets, reference=reference, mesh=mesh, chunk_size=spec.compute.chunk_size,
    by_batch=legacy.validates_by_batch,
  )  # fmt: skip
  statistics = None if loaders.statistics is None else make(algorithm=NO_LOSS)
  return Validator(
    algorithm, loaders, make(algorithm=algorithm), statistics, responder, draw, decoding
  ), answer


def _score_all(nets: networks.Networks, compute: Compute) -> scoring.Score:
  return scoring.make_score(nets.policy, nets.value, chunk_size=compute.chunk_size)


def _create(run: Run, params: Mapping[str, Any]) -> train_state.TrainState:
  reference = run.reference
  return train_state.create(
    params, run.optimizers, reference is not None and reference.is_kept, run.algorithm.statistics,
    keeps_initial=reference is not None and reference.initial is not None,
  )  # fmt: skip


def _abstract_state(run: Run) -> train_state.TrainState:
  """Shapes and shardings of the state."""
  params, where = networks.abstract_on(run.networks, run.mesh), networks.shardings(run.networks, run.mesh)
  abstract = jax.eval_shape(functools.partial(_create, run), params)
  abstract = networks.with_shardings(abstract, partitioning.state_shardings(abstract, where, run.mesh))
  return abstract._replace(base=networks.abstract_base_on(run.networks, run.mesh))


def _compiled(run: Run) -> Run:
  """The run with its step, and what it measures of one, to be compiled when they are first called."""
  where, whole = jax.tree.map(lambda x: x.sharding, run.abstract_state), partitioning.replicated(run.mesh)
  options = partitioning.COMPILER_OPTIONS | dict(run.spec.compute.compiler_options or {})
  step = jax.jit(run.pure_step, donate_argnums=0, out_shardings=(where, whole), compiler_options=options)
  measure = None
  if run.reference is not None and run.reference.initial is not None:
    measure = train_step.make_measure(run.reference, run.spec.batches.microbatches)
    measure = partitioning.jit_on(run.mesh, measure)
  return dataclasses.replace(run, jitted_step=step, measure=measure)


def _refuse_unmeasured(run: Run) -> None:
  """Refuses a best metric that the run would not measure: only steps later would anyone find out."""
  held_out, metric = run.loaders.eval, run.spec.keep.metric
  if held_out is None or metric in (None, best.CRITERION):
    return
  terms, reference = [], run.reference
  if run.algorithm.online is None:
    with partitioning.use_mesh(run.mesh):
      terms = jax.eval_shape(run.evaluate_rows(), run.abstract_state, held_out.rows(0))[2].terms
  names = best.measured_names(
    (run.loaders.statistics or held_out).table, run.algorithm, terms,
    moves=reference is not None and reference.initial is not None, draws=run.validator.draw is not None,
    draws_ratios=reference is not None and reference.is_live,
    draws_rewards=run.spec.rollouts.reward is not None,
  )  # fmt: skip
  best.refuse_unmeasured(metric, names)
