"""The `train` command: one run, from triplets to an aligned policy."""

import contextlib
import functools
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax
from etils import epath

from dro_jax import __version__, algorithms, files, limits
from dro_jax.algorithms import base
from dro_jax.checkpoints import orbax
from dro_jax.data.batches import groups
from dro_jax.data.triplets import Triplets, load_triplets
from dro_jax.errors import UsageError
from dro_jax.models import scoring
from dro_jax.models.family import Config
from dro_jax.parallel import machine, partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import batches, best, networks, reference_store, table_scores
from dro_jax.run.build import (
  Rehearsal,
  Run,
  abstract_state,
  compile_on_mesh,
  compile_step,
  find_model_config,
  find_vocabulary,
  fresh_state,
  init_digest,
  label_notes,
  make_samplers,
  measured_as_before,
  prepare_triplets,
  read_as_before,
  refuse_settings,
  refuse_unmeasured,
  saved_readout,
)
from dro_jax.run.folder import configs as resume
from dro_jax.run.folder import lock
from dro_jax.run.loop import run_loop
from dro_jax.run.replay import run_replay
from dro_jax.run.sampling import rollouts as online
from dro_jax.run.schedule import Schedule
from dro_jax.step import optimizers, train_step
from dro_jax.step import state as train_state
from dro_jax.step.reference import Reference, frozen


def train(
  model_dir: str,
  data: Callable[..., Triplets] = load_triplets,
  algorithm: Callable[[], algorithms.Algorithm] = algorithms.dro_v,
  *,
  reference: Callable[[scoring.Score], Reference] = frozen,
  model: Config | None = None,
  init_from: str | None = None,
  vocabulary: str | None = None,
  value_readout: str = 'prompt',
  value_shared: bool = False,
  value_frozen_trunk: bool = False,
  policy_optimizer: Callable[[], optax.GradientTransformation] = optimizers.adafactor,
  value_optimizer: Callable[[], optax.GradientTransformation] = optimizers.adafactor,
  mesh: Callable[[], Mesh] = partitioning.make_mesh,
  schedule: Callable[[], Schedule] = Schedule,
  batch_size: int = 32,
  deal: str = 'together',
  num_microbatches: int = 1,
  rows: Callable[[], batches.RowOptions] = batches.RowOptions,
  unit_options: Callable[[], groups.UnitOptions] = groups.UnitOptions,
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
    data: the triplets and how to read them, but for the vocabulary (see `data.triplets.load_triplets`).
    algorithm: what to minimise (see `algorithms`).
    reference: where the reference's log-probs come from (see `reference`).
    model: size and kind of the model; `None` takes the checkpoint's.
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
  chosen, words, options = algorithm(), find_vocabulary(vocabulary, init_from), rollouts()
  config = find_model_config(
    model, init_from, words, dtype=dtype, scan_layers=scan_layers, remat=remat, dropout_rate=dropout_rate
  )
  refuse_settings(chosen, dropout_rate, value_readout, num_microbatches)
  layout = mesh if rehearsal is None else functools.partial(mesh, devices=rehearsal.devices)
  folder, grid, timing = _local_folder(model_dir), layout(), schedule()
  earlier = orbax.run_metadata(folder) if orbax.has_any(folder) else None
  is_old = earlier is not None and orbax.saved_format(earlier) < 2
  value_readout = saved_readout(value_readout, folder, earlier)
  if earlier is None and value_readout == 'scalar' and (value_shared or value_frozen_trunk):
    raise UsageError(
      'VALUE_READOUT=scalar is one learned number, which reads no network, so that VALUE_SHARED and '
      'VALUE_FROZEN_TRUNK would change nothing: remove them, or pass --set VALUE_READOUT=batch, which is one '
      'number for a batch too and reads one.'
    )
  if chosen.uses_value and value_readout == 'batch':
    chosen = algorithms.with_batch_value(chosen)
  triplets, timing, longest = prepare_triplets(read_as_before(data, earlier), chosen, words, timing)
  value = {'readout': value_readout, 'shared': value_shared, 'frozen_trunk': value_frozen_trunk}
  nets = networks.build(config, uses_value=chosen.uses_value, **value)
  txs = {'policy': policy_optimizer() if chosen.trains_policy else optax.set_to_zero()}
  txs |= {'value': value_optimizer()} if chosen.uses_value else {}
  ref = reference(scoring.make_score(nets.policy, chunk_size=chunk_size)) if chosen.uses_reference else None
  ref = measured_as_before(ref, folder, earlier)
  opened = reference_store.open_for(ref, chosen, config, words, triplets)
  feed = batches.make_loaders(
    opened.triplets, chosen, rows(), unit_options(), batch_size=batch_size, seed=seed,
    multiple=partitioning.num_row_shards(grid) * num_microbatches, eval_examples=timing.eval_examples,
    deal=deal, in_file_order=is_old,
  )  # fmt: skip
  for name in ('prompt', 'response'):
    partitioning.refuse_length(grid, name, getattr(feed.train.layout, f'{name}_length'))
  if opened.store is not None and chosen.uses_mismatched:
    opened.refuse_other_plan(reference_store.plan_of(feed.train, feed.eval, seed, timing.steps))
  samplers = make_samplers(
    nets, chosen, ref, grid, words, options, timing, longest=longest, seed=seed, chunk_size=chunk_size
  )
  is_kept, moves = ref is not None and ref.is_kept, ref is not None and ref.initial is not None
  metadata = networks.metadata(
    config, vocabulary=words, algorithm=chosen, **value,
    data=triplets.report | {'scaling': triplets.scaling.to_json(chosen.temperature), 'units': feed.units},
    format=orbax.FORMAT if earlier is None else orbax.saved_format(earlier), keeps_initial=moves,
    reference=opened.settings, uses_reference=is_kept, batch_size=batch_size, deal=deal, seed=seed,
    init_from=init_from, online=samplers.responder and samplers.responder.settings,
    decoding=samplers.decoding, zero_warmup=resume.FULL_RATE,
    init_digest=init_digest(init_from, folder), code={'algorithm_code': files.source_of(algorithm)},
  )  # fmt: skip
  score = scoring.make_score(nets.policy, nets.value, chunk_size=chunk_size)
  step = train_step.make_train_step(
    score, chosen, txs, ref, seed=seed, num_microbatches=num_microbatches, dropout=dropout_rate > 0
  )
  kinds = {'optimizers': txs, 'uses_reference': is_kept, 'statistics': chosen.statistics}
  create = functools.partial(train_state.create, **kinds, keeps_initial=moves)
  abstract = abstract_state(create, nets, grid)
  score_table = functools.partial(
    table_scores.make_table_scorer, nets, reference=ref, mesh=grid, chunk_size=chunk_size, by_batch=is_old
  )
  run = Run(
    folder, grid, nets, words, compile_step(step, abstract, grid, compiler_options), feed.train, feed.eval,
    score_table(algorithm=chosen), samplers, best_metric, chosen, feed.statistics,
    feed.statistics and score_table(algorithm=base.NO_LOSS),
    notes=(
      *label_notes(triplets.report), *optimizers.notes(txs, timing.steps), *groups.notes(feed.units),
      best.described(best_metric, best_mode) if feed.eval is not None else '',
    ),
    measure=compile_on_mesh(train_step.make_measure(ref, num_microbatches), grid) if moves else None,
  )  # fmt: skip
  refuse_unmeasured(run, train_step.make_evaluate(score, chosen, ref), abstract, ref, options.reward)
  if rehearsal is not None:
    return rehearsal.receive(run, abstract)
  with lock.locked(folder), files.disk_of(folder), _cleared_without_memory(folder):
    # Nothing is written before all that could be refused has been looked at.
    resumes = orbax.has_any(folder)
    if not resumes and replay is None:
      resume.refuse_lost(folder, timing.checkpoint_every, timing.steps)
    if resumes:
      resume.refuse_other_run(folder, orbax.run_metadata(folder), metadata, configs())
    else:
      state = fresh_state(create, nets, grid, abstract, seed, init_from)
      metadata |= opened.try_out(nets.policy, state.params['policy'], grid, chunk_size)
    saved = orbax.Checkpoints(
      folder / 'checkpoints', keep_last=keep_last, keep_best=keep_best, best_metric=best_metric,
      best_mode=best_mode, metadata=metadata,
    )  # fmt: skip
    state = saved.restore_newest(abstract) if resumes else state
    if replay is not None:
      return run_replay(run, state, replay, step, train_step.make_evaluate(score, chosen, ref))
    if jax.process_index() == 0:
      _describe(folder, metadata, configs(), int(state.step))
    return run_loop(run._replace(checkpoints=saved), state, timing)


def _local_folder(model_dir: str) -> pathlib.Path:
  if '://' in model_dir:
    raise UsageError(f'model_dir={model_dir!r}: metrics are appended to, so pass a local or mounted folder.')
  folder = pathlib.Path(model_dir).expanduser().absolute()
  if not model_dir or folder.is_file():
    raise UsageError(f'model_dir={model_dir!r} is no folder: pass a new one, or that of a run to resume.')
  return folder


@contextlib.contextmanager
def _cleared_without_memory(folder: pathlib.Path) -> Iterator[None]:
  """Leaves nothing that looks like a run where memory does not suffice for one: no checkpoint came about."""
  before = set(os.listdir(folder)) if folder.is_dir() else set()
  try:
    yield
  except Exception as error:
    if machine.is_out_of_memory(error) and jax.process_index() == 0 and not orbax.has_any(folder):
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


__all__ = ['train']
