"""Training a run that is built, or resuming it, in a folder."""

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from dro_jax import __version__, files
from dro_jax.checkpoints import adapters, folders, orbax
from dro_jax.checkpoints.bound import parse as parse_bound
from dro_jax.checkpoints.metadata import FORMAT, saved_format
from dro_jax.errors import UsageError
from dro_jax.models.lora import Base
from dro_jax.parallel import machine
from dro_jax.run import best, networks, readers, reward_records
from dro_jax.run import hooks as hooking
from dro_jax.run.build import Run, build
from dro_jax.run.folder import configs, legacy, lock
from dro_jax.run.folder.configs import Recorded
from dro_jax.run.hooks import NO_HOOKS, Hooks
from dro_jax.run.loop import run_loop
from dro_jax.step.state import TrainState
from dro_jax.types import Params


def train(
  run: Run,
  folder: str | os.PathLike[str],
  configs: Callable[[], Recorded] = Recorded,
  hooks: Hooks = NO_HOOKS,
) -> dict[str, Any]:
  """Trains a run, or resumes the one in `folder`; returns its last metrics.

  Args:
    run: see `build`.
    folder: where metrics, events, checkpoints and the configuration go.
    configs: how the run was configured, to be saved with it.
    hooks: the user's metrics and trackers, and steps to profile; they change no number of the run.

  Raises:
    UsageError: another run has the folder, or the run draws no samples for a metric, or does not measure the
      one that chooses its best checkpoint.
    NotFinite: a loss is not finite.
    Failed: the disk is full, or otherwise not to be written.
    Stopped: SIGTERM came; the state is saved.
    Interrupted: Ctrl-C came, which is a KeyboardInterrupt; the state is saved.

  Example:
    >>> metrics = dro.train(dro.build(spec), 'runs/dro_v')  # Resumes the run that is there.
    >>> metrics['step']
    2
  """
  refuse_unbuilt(run)
  run = _by_rules_of(local_folder(folder), run)
  hooking.refuse_unsampled(hooks, run.validator.draw is not None)
  hooking.refuse_unreached(hooks, run.schedule.steps)
  _refuse_unmeasured(run, hooks)
  with opened(run, folder, configs) as own:
    if jax.process_index() == 0:
      _describe(own, configs().texts)
    return run_loop(own.run, own.folder, own.checkpoints, own.state, hooks)


def refuse_unbuilt(run: Any) -> None:
  """Refuses what is no built run, such as its spec.

  Raises:
    UsageError: says how to build one.
  """
  if not isinstance(run, Run):
    raise UsageError(
      f'a {type(run).__name__} is not a built run: pass dro.build(spec), as dro.train(dro.build(spec), '
      "'runs/mine')."
    )


def _by_rules_of(folder: pathlib.Path, run: Run) -> Run:
  """The run, built by the rules of the version that made the one in its folder."""
  rules = legacy.read(folder)
  return run if rules == run.legacy else build(run.spec, run.devices, rules)


def _refuse_unmeasured(run: Run, hooks: Hooks) -> None:
  """Refuses a best metric or bound that the run would not measure: only steps later would anyone find out."""
  held_out, decisive = run.loaders.statistics or run.loaders.eval, best.metrics_of(run.spec.keep)
  if held_out is None or not {*decisive.values()} - {best.CRITERION}:
    return
  names = run.measured_names()
  if hooks.metrics and {*decisive.values()} - names:
    rewarded = run.spec.rollouts.reward is not None
    names |= hooking.measured_names(hooks, held_out.table, run.schedule.kl_prompts, rewarded=rewarded)
  for setting, metric in decisive.items():
    best.refuse_unmeasured(metric, names, setting)


class OpenedRun(NamedTuple):
  """A run in its folder: the built run, the state that it resumes from, and its metadata."""

  run: Run
  folder: pathlib.Path
  checkpoints: orbax.Checkpoints
  state: TrainState
  metadata: Mapping[str, Any]


@contextlib.contextmanager
def opened(
  run: Run, folder: str | os.PathLike[str], configs: Callable[[], Recorded] = Recorded, *, writes: bool = True
) -> Iterator[OpenedRun]:
  """A run at its newest checkpoint, or at its beginning; its folder is locked meanwhile.

  Without `writes` a folder that has lost its checkpoints starts at step 0, because no file is overwritten.

  Raises:
    UsageError: another process runs in the folder, or the settings belong to another run.
  """
  folder = local_folder(folder)
  run = _by_rules_of(folder, run)
  legacy.warn(run.legacy, run.spec.value.readout, folder)
  metadata = _metadata(run, folder)
  with lock.locked(folder), files.disk_of(folder), _cleared_without_memory(folder):
    # A refusal must leave the folder as it was, so all checks come before the first write.
    resumes = folders.has_any(folder)
    base = None if resumes else _load_base(run, metadata)
    state = None if resumes else _first_state(run, folder, writes, base)
    if resumes:
      _refuse_other_run(run, folder, metadata, configs())
      base = _load_base(run, metadata)
    else:
      chunk_size = run.spec.compute.chunk_size
      metadata |= run.store.try_out(run.networks.policy, _first_policy(run, state), run.mesh, chunk_size)
    keep = run.spec.keep
    checkpoints = orbax.Checkpoints(
      folder / 'checkpoints', keep_last=keep.last, keep_best=keep.best, best_metric=keep.metric,
      best_mode=keep.mode, best_bound=keep.bound and parse_bound(keep.bound), metadata=metadata,
    )  # fmt: skip
    if resumes:
      state = checkpoints.restore_newest(run.abstract_state._replace(base=None))._replace(base=base)
    yield OpenedRun(run, folder, checkpoints, state, metadata)


def _first_state(run: Run, folder: pathlib.Path, writes: bool, base: Base | None) -> TrainState:
  if writes:
    configs.refuse_lost(folder, run.schedule.checkpoint_every, run.schedule.steps)
  return run.init(base)


def _load_base(run: Run, metadata: dict[str, Any]) -> Base | None:
  """The base of the run's adapters, if it has such; the metadata gets their entry."""
  if run.networks.lora is None:
    return None
  saved = adapters.entry_of(metadata) if 'base' in metadata[adapters.ENTRY] else None
  base, saved = networks.load_run_base(run.networks, run.mesh, run.spec.policy.init_from, saved)
  metadata[adapters.ENTRY] = saved.to_json()
  return base


def _first_policy(run: Run, state: TrainState) -> Params:
  """The initial policy: that of a fresh adapter is its base alone."""
  own = state.params['policy'] if networks.continues(run.networks, run.spec.policy.init_from) else None
  return state.networks['policy'] if state.base is None else state.policy_of(own)


def _refuse_other_run(
  run: Run, folder: pathlib.Path, metadata: Mapping[str, Any], recorded: Recorded
) -> None:
  saved, unread = folders.run_metadata(folder), readers.unread(run.spec)
  configs.refuse_other_run(folder, saved, metadata, recorded, unread)


def local_folder(folder: str | os.PathLike[str]) -> pathlib.Path:
  """The run's folder, absolute.

  Raises:
    UsageError: the path cannot be the folder of a run.
  """
  folder = os.fspath(folder)
  if '://' in folder:
    raise UsageError(
      f'model_dir={folder!r} is remote, and metrics are appended to a file: pass a local or mounted folder.'
    )
  path = pathlib.Path(folder).expanduser().absolute()
  if not folder or path.is_file():
    raise UsageError(
      f'model_dir={folder!r} is not a folder: pass a new folder, or the folder of a run to resume.'
    )
  return path


def _metadata(run: Run, folder: pathlib.Path) -> dict[str, Any]:
  """The metadata of the run's checkpoints."""
  spec, reference, triplets = run.spec, run.reference, run.triplets
  saved = folders.run_metadata(folder) if folders.has_any(folder) else {}
  data = {'scaling': triplets.scaling.to_json(run.algorithm.temperature), 'units': run.loaders.units}
  init_from = spec.policy.init_from
  value = run.value
  return networks.metadata(
    run.networks.policy.config, vocabulary=run.vocabulary, algorithm=run.algorithm, readout=value.readout,
    shared=value.shared, frozen_trunk=value.frozen_trunk, value_warmup_steps=value.warmup_steps,
    data=triplets.report | data,
    format=saved_format(saved) if saved else FORMAT,
    keeps_initial=reference is not None and reference.initial is not None,
    reference=run.store.settings, uses_reference=reference is not None and reference.is_kept,
    batch_size=spec.batches.size, deal=spec.batches.deal, seed=spec.seed, init_from=init_from,
    online=run.rollouts and run.rollouts.settings, decoding=run.validator.decoding,
    zero_warmup=configs.FULL_RATE,
    init_digest=init_from and folders.init_digest(init_from, saved.get('init_digest')),
    code={'algorithm_code': run.algorithm.code}, next_token_kl=_next_token_kl(run),
    **_lora_entry(run, saved),
    **reward_records.entries(spec, run.algorithm, triplets),
  )  # fmt: skip


def _next_token_kl(run: Run) -> dict[str, Any] | None:
  added = run.spec.next_token_kl
  return dataclasses.asdict(added) if added.weight else None


def _lora_entry(run: Run, saved: Mapping[str, Any]) -> dict[str, Any]:
  """The adapters' settings now, and what the run's checkpoints say of their base."""
  if run.networks.lora is None:
    return {}
  settings = dataclasses.asdict(dataclasses.replace(run.networks.lora, base=None))
  return {adapters.ENTRY: {**(saved.get(adapters.ENTRY) or {}), 'lora': settings}}


@contextlib.contextmanager
def _cleared_without_memory(folder: pathlib.Path) -> Iterator[None]:
  """Removes the files of a run that ended without a checkpoint because memory did not suffice."""
  before = set(os.listdir(folder)) if folder.is_dir() else set()
  try:
    yield
  except Exception as error:
    if machine.is_out_of_memory(error) and jax.process_index() == 0 and not folders.has_any(folder):
      for name in {*os.listdir(folder)} - before:
        epath.Path(folder / name).rmtree() if (folder / name).is_dir() else (folder / name).unlink()
    raise


def _describe(own: OpenedRun, texts: Mapping[str, str]) -> None:
  """Writes the run's data report, versions and configuration; those of earlier starts stay."""
  folder, step = own.folder, int(own.state.step)
  folder.mkdir(parents=True, exist_ok=True)
  packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {'dro_jax': __version__} | {name: found for name in packages if (found := _version(name))}
  versions |= {'python': platform.python_version(), 'device': jax.devices()[0].device_kind}
  configs.describe(folder, own.metadata, has_saved=step > 0)
  configs.record(folder, {'versions.json': files.json_text(versions, indent=2) + '\n', **texts}, step)


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
