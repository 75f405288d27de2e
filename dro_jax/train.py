"""The `train` command: one run, from triplets to an aligned policy."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import logging
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from etils import epath
from jax.experimental import multihost_utils

from dro_jax import __version__, algorithms, evaluate, files, generate, limits, networks, writers
from dro_jax.checkpoints import orbax as checkpoints
from dro_jax.data import tasks
from dro_jax.data.batches import groups as units
from dro_jax.data.batches import loader
from dro_jax.data.text import vocabularies
from dro_jax.errors import Interrupted, NotFinite, Stopped, UsageError
from dro_jax.models import scoring
from dro_jax.models.t5 import T5Config
from dro_jax.parallel import interrupts, machine, partitioning
from dro_jax.parallel.partitioning import Grid
from dro_jax.run import batches as feeds
from dro_jax.run import best, reference_store
from dro_jax.run.folder import configs as resume
from dro_jax.run.folder import lock as claims
from dro_jax.run.folder import nonfinite as replays
from dro_jax.run.folder import spending as spent
from dro_jax.run.folder import validation
from dro_jax.run.sampling import policy_samples as own_samples
from dro_jax.run.sampling import rollouts as online
from dro_jax.step import optimizers, train_step
from dro_jax.step import reference as references
from dro_jax.step import state as train_state

MANY_PROMPTS = 8  # Below it a mean over a batch says little of other prompts.
# Rows of a fresh embedding table: divides over meshes, and is what T5 itself pads to.
VOCABULARY_MULTIPLE = 128

_DEALT = {'together': "one prompt's dealt together", 'uniform': 'dealt uniformly'}


class Samplers(NamedTuple):
  """What draws from the policy during a run.

  greedy     answers held-out prompts, for people to read.
  responder  makes an online algorithm's batches.
  draw       draws the samples to validate on.
  decoding   how it decodes.
  """

  greedy: generate.Generator
  responder: online.Responder | None = None
  draw: own_samples.Draw | None = None
  decoding: Mapping[str, Any] | None = None


class Run(NamedTuple):
  """All that the loop needs, built once."""

  model_dir: pathlib.Path
  mesh: Grid
  networks: networks.Networks
  vocabulary: vocabularies.Vocabulary
  step: Callable
  train_loader: loader.Loader
  eval_loader: loader.Loader | None
  score_table: Callable
  samplers: Samplers
  best_metric: str | None
  algorithm: algorithms.Algorithm
  statistics_loader: loader.Loader | None = None
  score_statistics: Callable | None = None
  checkpoints: 'checkpoints.Checkpoints | None' = None
  measure: Callable | None = None
  notes: Sequence[str] = ()


class Rehearsal(NamedTuple):
  """A run that is built for devices that need not be here, and not run.

  devices  to lay the mesh out on.
  receive  gets the run and its state's shapes with shardings; what it returns, `train` returns.
  """

  devices: Sequence[Any]
  receive: Callable[[Run, train_state.TrainState], Any]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When a run does what, in optimiser steps; 0 is never.

  Args:
    steps: the run's length.
    log_every: steps between records of metrics.
    eval_every: steps between validations on held-out prompts; the last step validates too.
    checkpoint_every: steps between checkpoints; the last step is saved too.
    eval_examples: held-out responses to validate on at most, `None` for all.
    sample_prompts: held-out prompts answered greedily at each validation.
    kl_prompts: held-out prompts at most, the answers to which estimate KL(π‖π_ref) at each validation.
  """

  steps: int = 1000
  log_every: int = 10
  eval_every: int = 200
  checkpoint_every: int = 500
  eval_examples: int | None = 1000
  sample_prompts: int = 3
  kl_prompts: int = 0

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value is not None and value < 0:
        raise UsageError(
          f'{name}={value}: pass 0 or more (--set {name.upper()}=...); 0 steps between is never.'
        )

  def is_due(self, every: int, step: int) -> bool:
    return every > 0 and (step % every == 0 or step == self.steps)


def train(
  model_dir: str,
  data: Callable[..., tasks.Triplets] = tasks.load_triplets,
  algorithm: Callable[[], algorithms.Algorithm] = algorithms.dro_v,
  *,
  reference: Callable[[scoring.Score], references.Reference] = references.frozen,
  model: T5Config | None = None,
  init_from: str | None = None,
  vocabulary: str | None = None,
  value_readout: str = 'prompt',
  value_shared: bool = False,
  value_frozen_trunk: bool = False,
  policy_optimizer: Callable[[], optax.GradientTransformation] = optimizers.adafactor,
  value_optimizer: Callable[[], optax.GradientTransformation] = optimizers.adafactor,
  mesh: Callable[[], Grid] = partitioning.make_mesh,
  schedule: Callable[[], Schedule] = Schedule,
  batch_size: int = 32,
  deal: str = 'together',
  num_microbatches: int = 1,
  rows: Callable[[], feeds.RowOptions] = feeds.RowOptions,
  unit_options: Callable[[], units.UnitOptions] = units.UnitOptions,
  rollouts: Callable[[], online.RolloutOptions] = online.RolloutOptions,
  chunk_size: int | None = None,
  dropout_rate: float | int = 0.0,
  dtype: str | None = None,
  scan_layers: bool | None = None,
  remat: bool | str | None = None,
  compiler_options: Mapping[str, Any] | None = None,
  keep_last: int = 2,
  keep_best: int = 1,
  best_metric: str | None = 'eval/criterion',
  best_mode: str = 'min',
  seed: int = 0,
  replay: str | None = None,
  rehearsal: Rehearsal | None = None,
  configs: Callable[[], Mapping[str, str]] = dict,
) -> Any:
  """Trains a policy, or resumes the run in `model_dir`; returns its last metrics.

  Args:
    model_dir: the run's folder: metrics, events, checkpoints, configuration.
    data: the triplets and how to read them, but for the vocabulary (see `data.tasks.load_triplets`).
    algorithm: what to minimise (see `algorithms`).
    reference: where the reference's log-probs come from (see `reference`).
    model: size and kind of a T5; `None` takes the checkpoint's.
    init_from: a checkpoint whose policy is the start and the reference; `None` starts at random.
    vocabulary: `bytes`, or a SentencePiece model; `None` takes the checkpoint's, or else bytes.
    value_readout: `prompt`, `attention`, `token`, `batch` or `scalar` (see `models.value.ValueNetwork`).
    value_shared: read the value off the policy's own trunk.
    value_frozen_trunk: fit only what reads that trunk's states, not the trunk.
    policy_optimizer: the policy's (see `optimizers`).
    value_optimizer: the value network's.
    mesh: devices' arrangement.
    schedule: how long, and when to log, validate and save.
    batch_size: responses of a batch (or pairs, groups, prompts: what the algorithm wants), exact.
    deal: `together`, responses to one prompt go to one batch; `uniform`, a batch is drawn from all of them.
    num_microbatches: parts in which a batch is scored and pulled back: less memory, the same numbers.
    rows: how a batch is laid out.
    unit_options: how pairs and groups are formed.
    rollouts: how an online algorithm gets its responses and rewards (see `online`).
    chunk_size: response tokens projected to the vocabulary at once; `None` for all.
    dropout_rate: dropout while training (supervised fine-tuning only).
    dtype: activations' type, where it is to differ from the model's.
    scan_layers: one compiled layer for all, where it is to differ from the model's.
    remat: recompute layers in the backward pass, where it is to differ from the model's.
    compiler_options: more of them for the step's compilation, by name; each kind of device has its own.
    keep_last: newest checkpoints kept: where the newest is damaged, the run goes on from the one before.
    keep_best: best checkpoints kept.
    best_metric: what best means, by default the algorithm's own criterion; `None` keeps the newest only.
    best_mode: `min` or `max`.
    seed: decides initial parameters, batches and random keys.
    replay: a batch whose loss was not finite, MODEL_DIR/nonfinite/STEP: goes there again from the newest
      checkpoint, says what the batch looks like and where its first NaN arises, and writes nothing.
    rehearsal: builds all of the run on other devices, hands it over, and neither runs nor writes.
    configs: texts to save with the run, by file name.

  Raises:
    UsageError: settings or data cannot make a run, or another run has the folder.
    NotFinite: a loss is not finite.
    Failed: the disk is full, or otherwise not to be written.
    Stopped: SIGTERM came; the state is saved.
    Interrupted: Ctrl-C came, which is a KeyboardInterrupt; the state is saved.
  """
  limits.seed(seed)
  chosen, words, options = algorithm(), _vocabulary(vocabulary, init_from), rollouts()
  config = _model_config(
    model, init_from, words, dtype=dtype, scan_layers=scan_layers, remat=remat, dropout_rate=dropout_rate
  )
  _refuse_settings(chosen, dropout_rate, value_readout, num_microbatches)
  layout = mesh if rehearsal is None else functools.partial(mesh, devices=rehearsal.devices)
  folder, grid, timing = _local_folder(model_dir), layout(), schedule()
  earlier = checkpoints.run_metadata(folder) if checkpoints.has_any(folder) else None
  is_old = earlier is not None and checkpoints.format_of(earlier) < 2
  value_readout = _readout(value_readout, folder, earlier)
  if earlier is None and value_readout == 'scalar' and (value_shared or value_frozen_trunk):
    raise UsageError(
      'VALUE_READOUT=scalar is one learned number, which reads no network, so that VALUE_SHARED and '
      'VALUE_FROZEN_TRUNK would change nothing: remove them, or pass --set VALUE_READOUT=batch, which is one '
      'number for a batch too and reads one.'
    )
  if chosen.uses_value and value_readout == 'batch':
    chosen = algorithms.with_batch_value(chosen)
  triplets, timing, longest = _prepared(_as_before(data, earlier), chosen, words, timing)
  value = {'readout': value_readout, 'shared': value_shared, 'frozen_trunk': value_frozen_trunk}
  nets = networks.build(config, uses_value=chosen.uses_value, **value)
  txs = {'policy': policy_optimizer() if chosen.trains_policy else optax.set_to_zero()}
  txs |= {'value': value_optimizer()} if chosen.uses_value else {}
  ref = reference(scoring.make_score(nets.policy, chunk_size=chunk_size)) if chosen.uses_reference else None
  ref = _measured_as_before(ref, folder, earlier)
  opened = reference_store.open_for(ref, chosen, config, words, triplets)
  feed = feeds.make(
    opened.triplets, chosen, rows(), unit_options(), batch_size=batch_size, seed=seed,
    multiple=partitioning.num_row_shards(grid) * num_microbatches, eval_examples=timing.eval_examples,
    deal=deal, in_file_order=is_old,
  )  # fmt: skip
  for name in ('prompt', 'response'):
    partitioning.refuse_length(grid, name, getattr(feed.train.layout, f'{name}_length'))
  if opened.store is not None and chosen.uses_mismatched:
    opened.refuse_other_plan(reference_store.plan_of(feed.train, feed.eval, seed, timing.steps))
  samplers = _samplers(
    nets, chosen, ref, grid, words, options, timing, longest=longest, seed=seed, chunk_size=chunk_size
  )
  is_kept, moves = ref is not None and ref.is_kept, ref is not None and ref.initial is not None
  metadata = networks.metadata(
    config, vocabulary=words, algorithm=chosen, **value,
    data=triplets.report | {'scaling': triplets.scaling.to_json(chosen.temperature), 'units': feed.units},
    format=checkpoints.FORMAT if earlier is None else checkpoints.format_of(earlier), keeps_initial=moves,
    reference=opened.settings, uses_reference=is_kept, batch_size=batch_size, deal=deal, seed=seed,
    init_from=init_from, online=samplers.responder and samplers.responder.settings,
    decoding=samplers.decoding, zero_warmup=resume.FULL_RATE,
    init_digest=_init_digest(init_from, folder), code={'algorithm_code': files.source_of(algorithm)},
  )  # fmt: skip
  score = scoring.make_score(nets.policy, nets.value, chunk_size=chunk_size)
  step = train_step.make_train_step(
    score, chosen, txs, ref, seed=seed, num_microbatches=num_microbatches, dropout=dropout_rate > 0
  )
  kinds = {'optimizers': txs, 'uses_reference': is_kept, 'statistics': chosen.statistics}
  create = functools.partial(train_state.create, **kinds, keeps_initial=moves)
  abstract = _abstract_state(create, nets, grid)
  score_table = functools.partial(
    networks.make_scorer, nets, reference=ref, mesh=grid, chunk_size=chunk_size, by_batch=is_old
  )
  run = Run(
    folder, grid, nets, words, _compiled(step, abstract, grid, compiler_options), feed.train, feed.eval,
    score_table(algorithm=chosen), samplers, best_metric, chosen, feed.statistics,
    feed.statistics and score_table(algorithm=evaluate.NO_LOSS),
    notes=(
      *_label_notes(triplets.report), *optimizers.notes(txs, timing.steps), *units.notes(feed.units),
      best.described(best_metric, best_mode) if feed.eval is not None else '',
    ),
    measure=_on_mesh(train_step.make_measure(ref, num_microbatches), grid) if moves else None,
  )  # fmt: skip
  _refuse_unmeasured(run, train_step.make_evaluate(score, chosen, ref), abstract, ref, options.reward)
  if rehearsal is not None:
    return rehearsal.receive(run, abstract)
  with claims.claimed(folder), writers.disk_of(folder), _cleared_without_memory(folder):
    # Nothing is written before all that could be refused has been looked at.
    resumes = checkpoints.has_any(folder)
    if not resumes and replay is None:
      resume.refuse_lost(folder, timing.checkpoint_every, timing.steps)
    if resumes:
      resume.refuse_other_run(folder, checkpoints.run_metadata(folder), metadata, configs())
    else:
      state = _fresh_state(create, nets, grid, abstract, seed, init_from)
      metadata |= opened.try_out(nets.policy, state.params['policy'], grid, chunk_size)
    saved = checkpoints.Checkpoints(
      folder / 'checkpoints', keep_last=keep_last, keep_best=keep_best, best_metric=best_metric,
      best_mode=best_mode, metadata=metadata,
    )  # fmt: skip
    state = saved.restore_newest(abstract) if resumes else state
    if replay is not None:
      return _replay(run, state, replay, step, train_step.make_evaluate(score, chosen, ref))
    if jax.process_index() == 0:
      _describe(folder, metadata, configs(), int(state.step))
    return _loop(run._replace(checkpoints=saved), state, timing)


def _as_before(
  data: Callable[..., tasks.Triplets], earlier: Mapping[str, Any] | None
) -> Callable[..., tasks.Triplets]:
  """The data, read as the run that is resumed, if one is, has read it: `run.folder.configs.data_options`."""
  return data if earlier is None else functools.partial(data, **resume.data_options(earlier))


def _refuse_unmeasured(
  run: Run,
  evaluate_rows: Callable,
  abstract: train_state.TrainState,
  ref: references.Reference | None,
  reward: Any,
) -> None:
  """Refuses a best metric that the run would not measure: only steps later would anyone find out."""
  if run.eval_loader is None or run.best_metric in (None, best.CRITERION):
    return
  terms, held_out = [], run.eval_loader
  if run.algorithm.online is None:
    with partitioning.use_mesh(run.mesh):
      terms = jax.eval_shape(evaluate_rows, abstract, held_out.rows(0))[2].terms
  names = best.measured_names(
    (run.statistics_loader or held_out).table, run.algorithm, terms,
    moves=ref is not None and ref.initial is not None, draws=run.samplers.draw is not None,
    draws_ratios=ref is not None and ref.is_kept, draws_rewards=reward is not None,
  )  # fmt: skip
  best.refuse_unmeasured(run.best_metric, names)


def _prepared(
  data: Callable[..., tasks.Triplets],
  algorithm: algorithms.Algorithm,
  words: vocabularies.Vocabulary,
  timing: Schedule,
) -> tuple[tasks.Triplets, Schedule, int]:
  """The triplets with what the algorithm makes of them, when to validate, and the longest response."""
  triplets = data(vocabulary=words, rewards_required=algorithm.uses_rewards)
  longest = int(triplets.train.response_lengths.max())
  triplets = feeds.admitted(triplets, algorithm)
  if triplets.eval is None:
    return triplets, dataclasses.replace(timing, eval_every=0), longest
  return triplets if timing.eval_every else triplets._replace(eval=None), timing, longest


def _label_notes(report: Mapping[str, Any]) -> list[str]:
  """What made the labels, where the algorithm has such."""
  return [f'labels: {report["labels"]["said"]}'] if 'labels' in report else []


def _samplers(
  nets: networks.Networks,
  algorithm: algorithms.Algorithm,
  ref: references.Reference | None,
  mesh: Grid,
  words: vocabularies.Vocabulary,
  options: online.RolloutOptions,
  timing: Schedule,
  *,
  longest: int,
  seed: int,
  chunk_size: int | None,
) -> Samplers:
  responder, draw, decoding = None, None, None
  if algorithm.online is not None:
    responder = online.make_responder(
      nets, algorithm, ref, mesh, words, options, max_length=longest, seed=seed, chunk_size=chunk_size
    )
  if timing.eval_every and timing.kl_prompts:
    draw, decoding = own_samples.make_draw(
      nets, ref, mesh, words, timing.kl_prompts, max_length=options.max_length or longest,
      reward=options.reward, seed=seed, chunk_size=chunk_size,
    )  # fmt: skip
  most = longest if responder is None else responder.settings['max_length']
  greedy = generate.make_generator(
    nets.policy, mesh, max_length=most, temperature=0.0, batch_size=timing.sample_prompts
  )
  return Samplers(greedy, responder, draw, decoding)


def _local_folder(model_dir: str) -> pathlib.Path:
  if '://' in model_dir:
    raise UsageError(f'model_dir={model_dir!r}: metrics are appended to, so pass a local or mounted folder.')
  folder = pathlib.Path(model_dir).expanduser().absolute()
  if not model_dir or folder.is_file():
    raise UsageError(f'model_dir={model_dir!r} is no folder: pass a new one, or that of a run to resume.')
  return folder


def _init_digest(init_from: str | None, folder: pathlib.Path) -> str | None:
  """The digest of the checkpoint that the run starts from, or did start from."""
  if init_from is None:
    return None
  started = checkpoints.run_metadata(folder).get('init_digest') if checkpoints.has_any(folder) else None
  return checkpoints.init_digest(init_from, started)


def _vocabulary(spec: str | None, init_from: str | None) -> vocabularies.Vocabulary:
  """The vocabulary that is named, else the checkpoint's, else bytes."""
  if init_from is not None:
    return networks.vocabulary_of(init_from, spec)
  return vocabularies.vocabulary(spec or 'bytes')


def _model_config(
  model: T5Config | None, init_from: str | None, words: vocabularies.Vocabulary, **changes
) -> T5Config:
  """The run's model: as given, or as the checkpoint's, with the vocabulary's size and what changes."""
  if model is None and init_from is None:
    raise UsageError(
      'no model: start from a checkpoint (--init_from=DIR), or name a size to start at random '
      '(--gin_file=models/t5_1_1_tiny.gin).'
    )
  if init_from is not None:
    saved = networks.config_of(init_from)
    model = saved if model is None else dataclasses.replace(model, vocab_size=saved.vocab_size)
  if model.vocab_size is None:
    size = VOCABULARY_MULTIPLE * math.ceil(words.size / VOCABULARY_MULTIPLE)
    model = dataclasses.replace(model, vocab_size=size)
  if model.vocab_size < words.size:
    raise UsageError(
      f'the vocabulary {words.spec!r} has {words.size} ids, but T5Config.vocab_size is {model.vocab_size}: '
      'leave it unset, or pass at least as many.'
    )
  return dataclasses.replace(model, **{name: value for name, value in changes.items() if value is not None})


def _readout(readout: str, folder: pathlib.Path, earlier: Mapping[str, Any] | None) -> str:
  """How V is read: a run that an earlier version made keeps what it meant by `batch`."""
  saved = (earlier or {}).get('value') or {}
  if readout != 'batch' or saved.get('readout') != 'scalar' or checkpoints.format_of(earlier) >= 2:
    return readout
  logging.getLogger(__name__).warning(
    '%s was made when VALUE_READOUT=batch was one learned number, which is called scalar now: the run goes '
    'on with that. A new run with batch reads a network.', folder,
  )  # fmt: skip
  return 'scalar'


def _measured_as_before(
  ref: references.Reference | None, folder: pathlib.Path, earlier: Mapping[str, Any] | None
) -> references.Reference | None:
  """The reference; a run that kept no initial policy goes on being measured against that which moves."""
  if ref is None or ref.initial is None or earlier is None or earlier.get('keeps_initial'):
    return ref
  logging.getLogger(__name__).warning(
    '%s was made by a version that kept no initial policy where the reference moves: its KL, log-ratios and '
    'best checkpoint are measured against the moving reference, as before. A new run is measured against the '
    'initial policy.', folder,
  )  # fmt: skip
  return ref._replace(initial=None)


def _refuse_settings(
  algorithm: algorithms.Algorithm, dropout_rate: float | int, readout: str, num_microbatches: int
) -> None:
  if num_microbatches < 1:
    raise UsageError(f'num_microbatches={num_microbatches}: pass 1 or more (--set MICROBATCHES=1).')
  if not algorithm.temperature >= 0:  # NaN is refused too.
    raise UsageError(
      f'{algorithm.name} has temperature {algorithm.temperature}, and below 0 the policy is driven from '
      'its reference: pass 0 or more (--set TAU=1.0, or its own, as in --set copg.beta=0.06).'
    )
  if dropout_rate > 0 and (algorithm.uses_reference or algorithm.uses_value):
    raise UsageError(
      'dropout is for supervised fine-tuning: with it, an alignment loss would compare log-probs of two '
      'different networks. Pass --set DROPOUT_RATE=0.'
    )
  if algorithm.uses_token_values and readout != 'token':
    raise UsageError(
      f'{algorithm.name} reads a value for each token, and the value is read out by {readout}: pass --set '
      'VALUE_READOUT=token (or --gin_file=values/token.gin).'
    )


def _compiled(
  step: Callable, abstract: train_state.TrainState, mesh: Grid, options: Mapping[str, Any] | None
) -> Callable:
  where = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(where, partitioning.replicated(mesh)),
    compiler_options=partitioning.COMPILER_OPTIONS | dict(options or {}),
  )


def _on_mesh(function: Callable, mesh: Grid) -> Callable:
  """Compiled, with the whole result on every device."""
  return jax.jit(
    function, out_shardings=partitioning.replicated(mesh), compiler_options=partitioning.COMPILER_OPTIONS
  )


def _abstract_state(create: Callable, nets: networks.Networks, mesh: Grid) -> train_state.TrainState:
  """Shapes and shardings of the state."""
  abstract, where = jax.eval_shape(create, networks.abstract_on(nets, mesh)), networks.shardings(nets, mesh)
  return networks.with_shardings(abstract, partitioning.state_shardings(abstract, where, mesh))


def _fresh_state(
  create: Callable, nets: networks.Networks, mesh: Grid, abstract: Any, seed: int, init_from: str | None
) -> train_state.TrainState:
  """Shapes first, then shardings, then arrays born sharded."""
  where = jax.tree.map(lambda x: x.sharding, abstract)
  create = jax.jit(create, donate_argnums=0, out_shardings=where)
  return create(networks.initial_params(nets, mesh, seed, init_from))


@contextlib.contextmanager
def _cleared_without_memory(folder: pathlib.Path) -> Iterator[None]:
  """Leaves nothing that looks like a run where memory does not suffice for one: no checkpoint came about."""
  before = set(os.listdir(folder)) if folder.is_dir() else set()
  try:
    yield
  except Exception as error:
    if machine.is_out_of_memory(error) and jax.process_index() == 0 and not checkpoints.has_any(folder):
      for name in {*os.listdir(folder)} - before:
        epath.Path(folder / name).rmtree() if (folder / name).is_dir() else (folder / name).unlink()
    raise


def _describe(
  folder: pathlib.Path, metadata: Mapping[str, Any], configs: Mapping[str, str], step: int
) -> None:
  """Writes what the run is: data report, versions, configuration; what it was before `step` stays."""
  folder.mkdir(parents=True, exist_ok=True)
  packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {'dro_jax': __version__} | {name: found for name in packages if (found := _version(name))}
  versions |= {'python': platform.python_version(), 'device': jax.devices()[0].device_kind}
  resume.describe(folder, metadata, has_saved=step > 0)
  resume.record(folder, {'versions.json': files.json_text(versions, indent=2) + '\n', **configs}, step)


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


class _Pending(NamedTuple):
  """A step whose numbers may still be in the making."""

  step: int
  rows: Any
  output: train_step.StepOutput
  times: Mapping[str, float]


class Clock:
  """Seconds between two moments at which the devices were waited for."""

  def __init__(self):
    self._last = time.monotonic()

  def lap(self) -> float:
    """Seconds since the last lap."""
    before, self._last = self._last, time.monotonic()
    return self._last - before


def _loop(run: Run, state: train_state.TrainState, timing: Schedule) -> dict[str, Any]:
  """Steps until the schedule's end, a signal, or a loss that is not finite."""
  first = int(state.step)
  writer = writers.RunWriter(
    str(run.model_dir), first_step=first, num_steps=timing.steps, primary=jax.process_index() == 0
  )
  latest: dict[str, Any] = {}
  total = spent.Spent(
    run.model_dir / 'metrics.jsonl', run.train_loader.num_rows, run.train_loader.plan.batch_size,
    first=first, counts_flops=run.samplers.responder is None,
  )  # fmt: skip
  noticed = interrupts.noticed(several=jax.process_count() > 1)
  with contextlib.closing(writer), contextlib.closing(run.checkpoints), noticed as stopped:
    _announce(run, writer, state, timing)
    pending, clock, said = None, Clock(), first > 0
    for step, rows in _batches(run, first, timing.steps):
      rows, times = _answered(run, state, step, rows)
      with partitioning.use_mesh(run.mesh):
        so_far = total.add(run.step, step, state, rows, num_rows=len(rows.valid))
        state, output = run.step(state, rows)
        output = _measured(run, state, step + 1, rows, output, timing)
      if pending is not None:
        latest = _report(run, writer, pending, timing, clock) or latest
      pending = _Pending(step + 1, rows, output, times | so_far)
      stop = _agreed(stopped, step)
      saving = timing.is_due(timing.checkpoint_every, step + 1) or step + 1 == timing.steps
      # What is saved is measured too, or it could never be the best; but not against a deadline.
      evaluating = (saving or timing.is_due(timing.eval_every, step + 1)) and run.eval_loader is not None
      pausing = evaluating or saving or stop
      if pausing or run.samplers.responder is not None:  # Fresh responses wait for the step anyway.
        latest, pending = _report(run, writer, pending, timing, clock) or latest, None
      if pausing:
        measured = _evaluate(run, writer, state, step + 1, timing, so_far) if evaluating else {}
        latest = latest | measured
        stop = stop or (_agreed(stopped, step) if jax.process_count() == 1 else False)
        if saving or stop:
          run.checkpoints.save(step + 1, state, measured)
        _keep_validations(run)
        clock.lap()
      if stop:
        run.checkpoints.wait()
      said = said or _say_saved(run)
      if stop:
        _raise_stopped(stopped, step + 1)
    run.checkpoints.wait()
    _ = said or _say_saved(run)
  return {'model_dir': str(run.model_dir), 'step': max(first, timing.steps), **latest}


def _say_saved(run: Run) -> bool:
  """Whether a checkpoint is on disk; the run's description then says so."""
  begun = run.checkpoints.latest_step() is not None  # Asks no disk, step after step.
  if jax.process_index() or not begun or checkpoints.newest_step(run.model_dir) is None:
    return False
  resume.say_saved(run.model_dir)
  return True


def _announce(run: Run, writer: writers.RunWriter, state: train_state.TrainState, timing: Schedule) -> None:
  sizes = ', '.join(f'{name} {optax.tree.size(tree):,}' for name, tree in state.params.items())
  first = int(state.step)
  grid = ' × '.join(f'{axis} {size}' for axis, size in run.mesh.shape.items())
  shape = run.train_loader.layout
  verb = f'resuming after step {first}' if first else 'starting'
  records = 'responses' if run.samplers.responder is None else 'prompts'
  writer.say(
    f'{verb}: {timing.steps} steps on {jax.device_count()} {jax.devices()[0].device_kind} devices ({grid}); '
    f'parameters: {sizes}; '
    f'{len(run.train_loader.table):,} {records}, {run.train_loader.plan.batch_size} {run.algorithm.unit}s a '
    f'batch ({_DEALT[run.train_loader.plan.deal]}) in {shape.rows} rows of {shape.prompt_length} + '
    f'{shape.response_length} tokens'
  )
  if run.samplers.responder is not None:
    writer.say(
      'each prompt gets {samples} fresh responses of {max_length} tokens at most, rewarded by {reward}; '
      'optimiser steps on each batch of them: {epochs}'.format(**run.samplers.responder.settings)
    )
  about_batches = (
    few_prompts(run.train_loader, run.algorithm, first),
    repeated(run.train_loader.plan, run.algorithm),
  )
  for note in filter(None, (*about_batches, *run.notes)):
    writer.say(note)


def few_prompts(batches: loader.Loader, algorithm: algorithms.Algorithm, step: int) -> str:
  """A note where a batch's few prompts make its statistics nearly those of one prompt, or ''."""
  batch, deal = batches.plan.batch(step), batches.plan.deal
  prompts = len(np.unique(batches.table.prompt_index[batch]))
  if not (algorithm.couples and algorithm.unit == 'response' and prompts < MANY_PROMPTS < len(batch)):
    return ''
  why, remedy = {
    'together': (', for those to one prompt are dealt together', ', and so does --set DEAL=uniform'),
    'uniform': ('', ''),
  }[deal]
  return (
    f"note: a batch holds the responses to {prompts} prompts{why}: {algorithm.name}'s statistics of a batch "
    f'are nearly those of a prompt. A larger BATCH helps{remedy}.'
  )


def repeated(plan: Any, algorithm: algorithms.Algorithm) -> str:
  """A note where a batch is larger than what there is to train on, or ''."""
  if plan.batches_per_epoch >= 1:
    return ''
  there = round(plan.batches_per_epoch * plan.batch_size)
  return (
    f'note: a batch of {plan.batch_size} {algorithm.unit}s is more than the {there} that there are to train '
    f'on, so every batch repeats them. Pass --set BATCH={there} or less, or more data.'
  )


def _batches(run: Run, first: int, last: int) -> Iterator[tuple[int, Any]]:
  """This host's rows of every batch, as its part of the global batch."""
  source = run.train_loader
  host = functools.partial(partitioning.host_rows, run.mesh)
  for step, rows in loader.prefetch(source, range(first, last), host):
    yield step, partitioning.global_batch(run.mesh, rows, source.num_rows(step))


def _answered(run: Run, state: train_state.TrainState, step: int, rows: Any) -> tuple[Any, dict[str, float]]:
  """A batch as loaded, or with fresh responses to its prompts, and the seconds that those took."""
  if run.samplers.responder is None:
    return rows, {}
  clock = Clock()
  rows = run.samplers.responder.respond(state, run.train_loader, step, rows)
  return rows, {'time/generate_seconds': clock.lap()}


def _measured(
  run: Run,
  state: train_state.TrainState,
  step: int,
  rows: Any,
  output: train_step.StepOutput,
  timing: Schedule,
) -> train_step.StepOutput:
  """A step's numbers; where the reference moves and they are logged, those against the initial policy too."""
  if run.measure is None or not timing.is_due(timing.log_every, step):
    return output
  return output._replace(metrics={**output.metrics, **run.measure(state, rows, output.logps)})


def _report(
  run: Run, writer: writers.RunWriter, pending: _Pending, timing: Schedule, clock: Clock
) -> dict[str, float] | None:
  """Waits for a step's numbers; refuses what is not finite, and records them when it is time."""
  scalars, ids = jax.device_get((pending.output.metrics, pending.output.nonfinite_ids))
  seconds = clock.lap()
  _refuse_nonfinite(run, pending, scalars, ids)
  writer.advance(pending.step)
  if not timing.is_due(timing.log_every, pending.step):
    return None
  scalars = {name: float(value) for name, value in scalars.items()}
  times = {'time/step_seconds': seconds, 'time/tokens_per_second': scalars['tokens'] / seconds}
  times |= pending.times
  writer.metrics(pending.step, scalars | times)
  return scalars | times


def _refuse_nonfinite(run: Run, pending: _Pending, scalars: Mapping[str, Any], ids: np.ndarray) -> None:
  bad, table = np.unique(ids[ids >= 0]), run.train_loader.table
  if not len(bad):
    return
  names = ', '.join(table.ids[int(i)] for i in bad[:8]) + (', ...' if len(bad) > 8 else '')
  folder = replays.keep(run.model_dir, pending.step, pending.rows, bad, table, run.vocabulary)
  wrong = [name for name, value in scalars.items() if not np.isfinite(value)]
  subject = ', '.join(wrong) if wrong and 'loss' not in wrong else 'the loss'
  raise NotFinite(
    f'{subject} of step {pending.step} is not finite, in {len(bad)} examples: {names}. Earlier checkpoints '
    f'are intact. {folder / "examples.jsonl"} shows the batch; the same command with --replay={folder} goes '
    'there again and says where it arises. Lower the learning rate or raise τ if the examples are sound.'
  )


def _replay(run: Run, state: train_state.TrainState, folder: str, step: Callable, score: Callable):
  """Steps from a state to a kept batch, and tells what is not finite there."""
  last, first = replays.step_of(folder), int(state.step)
  if first >= last:
    raise UsageError(
      f"--replay={folder}: the newest checkpoint is of step {first}, after it. Copy the run's folder without "
      f'the checkpoints of step {last} and later, and pass it as --model_dir.'
    )
  for i, rows in _batches(run, first, last):
    rows, _ = _answered(run, state, i, rows)
    if i + 1 < last:
      with partitioning.use_mesh(run.mesh):
        state, _ = run.step(state, rows)
  rows, where = replays.load(folder, rows), partitioning.replicated(run.mesh)
  with partitioning.use_mesh(run.mesh):
    examples = replays.examine(jax.jit(score, out_shardings=where), state, rows, run.train_loader.table)
    found = replays.origin(step, state, rows)
    _, output = run.step(state, rows)
  scalars = jax.device_get(output.metrics)
  wrong = {name: replays.shown(value) for name, value in scalars.items() if not np.isfinite(value)}
  return {
    'step': last, 'from_checkpoint': first, 'not_finite': bool(wrong or examples), 'first_nan': found,
    'examples': examples, 'metrics': wrong,
  }  # fmt: skip


def _evaluate(
  run: Run,
  writer: writers.RunWriter,
  state: train_state.TrainState,
  step: int,
  timing: Schedule,
  so_far: Mapping[str, float],
) -> dict[str, float]:
  """Validates on held-out prompts and answers a few of them."""
  table = run.eval_loader.table
  summary, found = _validated(run, state)
  if jax.process_index() == 0:
    validation.save(run.model_dir, step, found)
  measured = {f'eval/{name}': value for name, value in summary.items()}
  if run.best_metric is not None and run.best_metric not in measured:
    writer.say(f'note: {run.best_metric} is undefined at step {step}, which so cannot be the best')
  writer.metrics(step, measured | so_far)
  count = min(timing.sample_prompts, len(table))
  if count:
    firsts = np.unique(table.prompt_index, return_index=True)[1]
    writer.samples(step, _answers(run, state, table, np.sort(firsts)[:count]))
  writer.flush()
  return measured


def _validated(run: Run, state: train_state.TrainState) -> tuple[dict[str, float], validation.Validation]:
  """Losses and statistics of held-out prompts, of responses logged and own; and each response's numbers."""
  every = run.statistics_loader or run.eval_loader
  drawn = run.samplers.draw and run.samplers.draw(state, every.table)
  own = own_samples.summary(drawn) if drawn else {}
  if run.samplers.responder is not None:
    found = validation.of(run.algorithm.temperature, every.table, None, drawn)
    measured = own | run.samplers.responder.validate(state, run.eval_loader)
    _refuse_nonfinite_validation(int(state.step), measured, found, every.table)
    return measured, found
  scored = run.score_table(state, run.eval_loader)
  losses = scored.losses
  if run.statistics_loader is not None:
    scored = run.score_statistics(state, every)
  found = validation.of(run.algorithm.temperature, every.table, scored, drawn)
  criteria = {
    f'criterion{ending}': losses[f'{run.algorithm.criterion}{ending}']
    for ending in ('', references.MOVING)
    if f'{run.algorithm.criterion}{ending}' in losses
  }
  measured = {**losses, **own, **criteria}
  _refuse_nonfinite_validation(int(state.step), measured, found, every.table)
  # A statistic may be undefined, as a correlation is where rewards are equal; a loss may not.
  defined = {name: value for name, value in validation.summary(found).items() if math.isfinite(value)}
  return measured | defined, found


def _refuse_nonfinite_validation(
  step: int, measured: Mapping[str, float], found: validation.Validation, table: Any
) -> None:
  wrong = [name for name, value in measured.items() if not math.isfinite(value)]
  if not wrong:
    return
  arrays = [x for x in (found.logps, found.reference_logps, found.values, found.rewards) if x is not None]
  bad = np.flatnonzero(~np.isfinite(arrays).all(axis=0)) if arrays else ()
  names = ', '.join(table.ids[int(i)] for i in bad[:8]) + (', ...' if len(bad) > 8 else '')
  where = f', in {len(bad)} of them: {names}' if len(bad) else ''
  raise NotFinite(
    f'{", ".join(wrong)} of the held-out responses is not finite after step {step}{where}. That step is not '
    'saved, and earlier checkpoints are intact. Lower the learning rate or raise τ if the data are sound.'
  )


def _keep_validations(run: Run) -> None:
  """Keeps those of the newest validation and of the checkpoints that are kept."""
  if jax.process_index() == 0:
    newest = validation.steps(run.model_dir)[-1:]
    validation.keep(run.model_dir, (*newest, run.checkpoints.latest_step(), run.checkpoints.best_step()))


def _answers(
  run: Run, state: train_state.TrainState, table: Any, records: np.ndarray
) -> list[dict[str, Any]]:
  """Greedy responses to some records' prompts."""
  prompts = [table.prompt(int(i)) for i in records]
  answers = run.samplers.greedy(state.params['policy'], prompts, records.tolist())
  return [
    {'prompt': table.prompts[int(i)], 'response': run.vocabulary.decode(answer.tokens), 'logp': answer.logp}
    for i, answer in zip(records, answers)
  ]


def _agreed(stopped: interrupts.Request, step: int) -> bool:
  """Whether to stop after this step: with several processes, all of them at the same one."""
  if jax.process_count() > 1:
    return multihost_utils.reached_preemption_sync_point(step)
  return bool(stopped)


def _raise_stopped(stopped: interrupts.Request, step: int) -> None:
  if stopped.by_interrupt:
    raise Interrupted(f'stopped by Ctrl-C after step {step}, which is saved: the same command resumes')
  raise Stopped(f'stopped by SIGTERM after step {step}, which is saved: the same command resumes')


__all__ = ['Schedule', 'train']
