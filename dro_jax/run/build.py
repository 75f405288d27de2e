"""A run, built: networks, step, batches, samplers. Nothing is compiled or written, no parameter is read."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax

from dro_jax import algorithms
from dro_jax.data.batches import loader
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError
from dro_jax.models import chunks, scoring
from dro_jax.models.lora import Base
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.printing.result import to_html
from dro_jax.run import batches, best, networks, notes, reference_store, summary
from dro_jax.run.data import prepare_data
from dro_jax.run.folder.legacy import Legacy
from dro_jax.run.learner import Learner, make_learner
from dro_jax.run.measure import Validator, make_validator
from dro_jax.run.sampling import generation, rollouts
from dro_jax.run.sampling.decoding import Decoding
from dro_jax.run.schedule import Clock, Schedule
from dro_jax.run.spec import Compute, RunSpec, Value
from dro_jax.step import state as train_state
from dro_jax.step import train_step
from dro_jax.step.reference import Reference
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
    algorithm: the spec's, with next-token KL where the run adds it, on one value for a batch where the value
      is read so.
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

  @property
  def chunk_size(self) -> int | None:
    """Tokens of each logged response row that a step projects to the vocabulary at once; `None` is all."""
    layout, vocab_size = self.loaders.train.layout, self.networks.policy.config.vocab_size
    rows = layout.rows // self.spec.batches.microbatches
    with partitioning.use_mesh(self.mesh):
      return chunks.choose_chunk_size(
        self.spec.compute.chunk_size, rows, layout.response_length, vocab_size,
        policies=1 if self.algorithm.kl_direction is None else 2,
      )  # fmt: skip

  def init(self, base: Base | None = None) -> train_state.TrainState:
    """The first state: shapes first, then shardings, then arrays born sharded.

    Args:
      base: of adapters, where it is loaded already; `None` loads it.
    """
    init_from = self.spec.policy.init_from
    if self.networks.lora is not None and base is None:
      base, _ = networks.load_run_base(self.networks, self.mesh, init_from)
    where = jax.tree.map(lambda x: x.sharding, self.abstract_state._replace(base=None))
    create = functools.partial(_create, self.algorithm, self.reference, self.optimizers)
    params = networks.initial_params(self.networks, self.mesh, self.spec.seed, init_from)
    state: train_state.TrainState = jax.jit(create, donate_argnums=0, out_shardings=where)(params)
    return state._replace(base=base)

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
    score = _score_all(self.networks, self.spec.compute, self.algorithm)
    return train_step.make_evaluate(score, self.algorithm, self.reference)

  def measured_names(self) -> set[str]:
    """Names of what a validation measures; nothing where nothing is held out."""
    if self.loaders.eval is None:
      return set()
    terms, reference = [], self.reference
    if self.algorithm.online is None:
      with partitioning.use_mesh(self.mesh):
        terms = jax.eval_shape(self.evaluate_rows(), self.abstract_state, self.loaders.eval.rows(0))[2].terms
    return best.measured_names(
      (self.loaders.statistics or self.loaders.eval).table, self.algorithm, terms,
      moves=reference is not None and reference.initial is not None, draws=self.validator.draw is not None,
      draws_ratios=reference is not None and reference.is_live,
      draws_rewards=self.spec.rollouts.reward is not None,
    )  # fmt: skip

  def notes(self) -> list[str]:
    """What a reader should know before the run starts, a line each."""
    return notes.of(self)

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
  if not isinstance(spec, RunSpec):
    raise UsageError(
      f'{spec!r} is not a spec, and build needs one: pass dro.RunSpec(data=..., policy=..., algorithm=...).'
    )
  learner = make_learner(spec, devices, legacy)
  data = prepare_data(spec, learner, legacy)
  txs = {'policy': spec.optimizers.policy if learner.algorithm.trains_policy else optax.set_to_zero()}
  txs |= {'value': spec.optimizers.value} if learner.algorithm.uses_value else {}
  abstract_state = _abstract_state(learner, txs)
  pure_step = _make_step(spec, learner, txs)
  validator = make_validator(spec, learner, data, legacy)
  longest = data.longest if validator.rollouts is None else validator.rollouts.settings['max_length']
  answer = generation.make_generator(
    learner.networks.policy, learner.mesh,
    Decoding(longest, temperature=0.0, batch_size=data.schedule.sample_prompts),
  )  # fmt: skip
  return Run(
    spec=spec, legacy=legacy, devices=devices, mesh=learner.mesh, vocabulary=learner.vocabulary,
    networks=learner.networks, algorithm=learner.algorithm, value=learner.value, schedule=data.schedule,
    reference=learner.reference, store=data.store, triplets=data.triplets, loaders=data.loaders,
    optimizers=txs, abstract_state=abstract_state, pure_step=pure_step,
    jitted_step=_jit_step(pure_step, abstract_state, learner.mesh, spec.compute),
    measure=_make_measure(learner, spec.batches.microbatches), validator=validator, answer=answer,
  )  # fmt: skip


def _make_step(
  spec: RunSpec, learner: Learner, txs: Mapping[str, optax.GradientTransformation]
) -> Callable[..., Any]:
  """The run's pure step; before the policy's own steps come those that train the value alone, if any do."""
  score = _score_all(learner.networks, spec.compute, learner.algorithm)
  make = functools.partial(
    train_step.make_train_step, score, learner.algorithm, reference=learner.reference, seed=spec.seed,
    num_microbatches=spec.batches.microbatches, dropout=spec.compute.dropout_rate > 0,
  )  # fmt: skip
  step, warmup_steps = make(txs), spec.value.warmup_steps
  if not warmup_steps:
    return step
  return train_step.make_value_first_step(step, make({'value': txs['value']}), warmup_steps)


def _score_all(nets: networks.Networks, compute: Compute, algorithm: algorithms.Algorithm) -> scoring.Score:
  return scoring.make_score(
    nets.policy, nets.value, chunk_size=compute.chunk_size, kl_direction=algorithm.kl_direction,
    scores_policy=algorithm.scores_policy,
  )  # fmt: skip


def _create(
  algorithm: algorithms.Algorithm,
  reference: Reference | None,
  optimizers: Mapping[str, optax.GradientTransformation],
  params: Mapping[str, Any],
) -> train_state.TrainState:
  return train_state.create(
    params, optimizers, reference is not None and reference.is_kept, algorithm.statistics,
    keeps_initial=reference is not None and reference.initial is not None,
  )  # fmt: skip


def _abstract_state(
  learner: Learner, optimizers: Mapping[str, optax.GradientTransformation]
) -> train_state.TrainState:
  """Shapes and shardings of the state."""
  nets, mesh = learner.networks, learner.mesh
  create = functools.partial(_create, learner.algorithm, learner.reference, optimizers)
  abstract = jax.eval_shape(create, networks.abstract_on(nets, mesh))
  where = partitioning.state_shardings(abstract, networks.shardings(nets, mesh), mesh)
  return networks.with_shardings(abstract, where)._replace(base=networks.abstract_base_on(nets, mesh))


def _jit_step(
  pure_step: Callable[..., Any], abstract_state: train_state.TrainState, mesh: Mesh, compute: Compute
) -> Callable[..., Any]:
  """The step with shardings and a donated state, to be compiled when it is first called."""
  where, whole = jax.tree.map(lambda x: x.sharding, abstract_state), partitioning.replicated(mesh)
  options = partitioning.COMPILER_OPTIONS | dict(compute.compiler_options or {})
  return jax.jit(pure_step, donate_argnums=0, out_shardings=(where, whole), compiler_options=options)


def _make_measure(learner: Learner, microbatches: int) -> Callable[..., Any] | None:
  """What is measured of a step against the initial policy; `None` where the reference does not move."""
  reference = learner.reference
  if reference is None or reference.initial is None:
    return None
  return partitioning.jit_on(learner.mesh, train_step.make_measure(reference, microbatches))
