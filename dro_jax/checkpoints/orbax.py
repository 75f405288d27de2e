"""Checkpoints of a run, and parameters on disk for a run to start from.

    MODEL_DIR/checkpoints/STEP/{state, metadata, metrics}      written by `Checkpoints`
    IMPORTED_DIR/{params, metadata}                            written by `save_params`

Each STEP and each IMPORTED_DIR appears by one rename, complete or not at all. `--init_from` takes an imported
folder, a run's folder, or one STEP of it, and reads the policy's parameters only.
"""

import contextlib
import functools
import json
import logging
import math
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers, type_handlers

from dro_jax import files
from dro_jax.checkpoints import digest
from dro_jax.errors import Failed, UsageError
from dro_jax.files import to_json
from dro_jax.types import Params

# Keys of the metadata: the meaning of "best" in the run, and the hash of the state.
_BEST_METRIC, _BEST_MODE, _DIGEST = 'best_metric', 'best_mode', 'digest'
# Errors that do not mean a damaged checkpoint; reading one may raise any other, orbax's assertions included.
_UNRELATED = (UsageError, PermissionError, MemoryError, jax.errors.JaxRuntimeError)
# Size of the parts in which a tree is read on a host, whose memory may hardly hold the whole tree.
_PART_BYTES = 2**28
# How much a process reads at once for its devices, and the size of pieces that can be read alone.
_RESTORED_AT_ONCE_GB = 1
_CHUNK_BYTES = 2**26
# Endings of files with another project's weights, whose folder also describes the model.
_WEIGHTS = ('.bin', '.safetensors', '.pt', '.pth', '.h5', '.msgpack')
# The version of the metadata. In 1, which was not written down, a value `batch` was today's `scalar`, and
# statistics that couple held-out responses were taken over each batch, in the order of the file.
FORMAT = 2
# The prefix that earlier versions gave to the names of dro_jax's own reward functions.
_EARLIER_REWARDS = 'dro_jax.rewards:'
# The folder for a run's damaged checkpoints.
DAMAGED = 'damaged'

Path = tuple[str, ...]


class Checkpoints:
  """The newest and the best states of a run, saved while the run goes on.

  Keeps the `keep_last` newest steps and, where `best_metric` is named, the `keep_best` steps with the largest
  (`best_mode='max'`) or smallest (`'min'`) value of it. `metadata` (JSON) is written beside every state: all
  that is needed to rebuild the model before its arrays are read.

  Saving returns once the arrays are copied off the devices, so their buffers may be donated to the next step;
  a failure to write is raised by the next call, as `Failed` where the disk caused it. All processes make the
  same calls.
  """

  def __init__(
    self,
    directory: str | epath.PathLike,
    *,
    keep_last: int = 2,
    keep_best: int = 1,
    best_metric: str | None = None,
    best_mode: str = 'max',
    metadata: Mapping[str, Any] | None = None,
  ):
    if keep_last < 1:
      raise UsageError(f'keep_last is {keep_last}, but a run resumes from its newest state: pass 1 or more')
    if best_mode not in ('min', 'max'):
      raise UsageError(f"best_mode is {best_mode!r}: pass 'max' where a larger metric is better, or 'min'")
    self._best_metric = best_metric
    self._metadata = to_json({**(metadata or {}), _BEST_METRIC: best_metric, _BEST_MODE: best_mode})
    self._manager = ocp.CheckpointManager(
      _absolute(directory), options=_options(keep_last, keep_best, best_metric, best_mode)
    )

  def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
    """Starts to save `state` as `step`; a step that is already there is left as it is."""
    if step in self._manager.all_steps():
      return
    metadata = {**self._metadata, 'step': step, _DIGEST: digest.hash_tree(state)}
    saved = _without_absent(state)
    arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(saved), metadata=ocp.args.JsonSave(metadata))
    with self._writing():
      self._manager.save(step, args=arguments, metrics=self._rankable(metrics or {}), force=True)

  def _rankable(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
    # A checkpoint whose metric was not measured, or is not finite, can never be the best.
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return finite if self._best_metric in finite else None

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best metric; `None` where none was measured."""
    return self._manager.best_step() if self._best_metric else None

  def restore(self, step: int, abstract_state: Any) -> Any:
    """The state saved as `step`, bit for bit, laid out as `abstract_state`'s shardings say.

    `abstract_state` is a tree of `jax.ShapeDtypeStruct`: the mesh need not be the one that saved it.

    Raises:
      UsageError: there is no such step, or it holds another tree.
      Damaged: its arrays differ from those that were saved.
    """
    folder = epath.Path(self._manager.directory)
    if step not in self._manager.all_steps():
      raise UsageError(f'no checkpoint of step {step} in {folder}: it has {self._manager.all_steps()}')
    return _read_intact(folder / str(step), abstract_state)

  def restore_newest(self, abstract_state: Any) -> Any:
    """The newest intact state, as `restore` gives it; damaged newer ones are moved aside.

    Raises:
      UsageError: there is none, or it holds another tree.
    """
    folder, damaged = epath.Path(self._manager.directory), {}
    for step in sorted(_numbered(folder), reverse=True):
      try:
        state = _read_intact(folder / str(step), abstract_state)
      except Damaged as error:
        damaged[step] = str(error)
      else:
        self._put_aside(damaged, instead=step)
        return state
    reason = '; '.join(damaged.values()) or 'it is empty'
    raise UsageError(
      f'no intact checkpoint in {folder}: {reason}. Restore a copy, or choose another --model_dir'
    )

  def _put_aside(self, damaged: Mapping[int, str], instead: int) -> None:
    """Moves damaged checkpoints away, which would otherwise take the places of these steps."""
    folder = epath.Path(self._manager.directory)
    for step, error in damaged.items():
      place = folder.parent / DAMAGED / str(step)
      logging.getLogger(__name__).error(
        'DAMAGED: %s. The run continues from step %d; the damaged checkpoint is moved to %s',
        error,
        instead,
        place,
      )
      if jax.process_index() == 0:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.rmtree(missing_ok=True)
        (folder / str(step)).rename(place)
    if damaged:
      _wait_for_all('damaged checkpoints put aside')
      self._manager.reload()

  def wait(self) -> None:
    """Blocks until all saves are on disk."""
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError) as error:  # ValueError is tensorstore's, for everything that a disk refuses.
      raise Failed(
        f'a checkpoint could not be written in {self._manager.directory}: {_first_line(error)}. Earlier '
        'checkpoints are intact: once there is room and permission to write, the same command resumes.'
      ) from error

  def close(self) -> None:
    with self._writing():
      self._manager.close()


class Damaged(Exception):
  """A checkpoint that cannot be read, or whose arrays differ from those that were saved."""


def _read_intact(folder: epath.Path, abstract_state: Any) -> Any:
  """A step's state, if all processes can read it and its digest is the saved one."""
  state, error = None, None
  try:
    saved = _read_metadata(folder)
    state = _read_tree(folder / 'state', (), _without_absent(abstract_state))
    if isinstance(state, dict) and not isinstance(abstract_state, dict):
      state = type(abstract_state)(**state)
  except _UNRELATED:
    raise
  except Exception as caught:
    error = caught
  if not _all_agree(error is None):
    reason = _first_line(error) if error else 'another process cannot'
    raise Damaged(f'{folder} cannot be read: {reason}') from error
  if saved.get(_DIGEST) not in (None, digest.hash_tree(state)):
    raise Damaged(f'{folder} holds other numbers than those that were saved')
  return state


def _without_absent(state: Any) -> Any:
  """A state without the optional parts that are `None`, as earlier versions wrote it."""
  defaults = getattr(type(state), '_field_defaults', {})
  absent = [name for name, value in defaults.items() if value is None and getattr(state, name) is None]
  return {name: x for name, x in state._asdict().items() if name not in absent} if absent else state


def _first_line(error: Exception) -> str:
  # tensorstore appends its whole request.
  return (str(error) or type(error).__name__).splitlines()[0].partition(' [tensorstore_spec=')[0]


def _all_agree(own: bool) -> bool:
  """Whether it is true in every process."""
  return bool(own if jax.process_count() == 1 else multihost_utils.process_allgather(own).all())


def _wait_for_all(event: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(event)


def _options(
  keep_last: int, keep_best: int, best_metric: str | None, best_mode: str
) -> ocp.CheckpointManagerOptions:
  kept = [checkpoint_managers.LatestN(keep_last)]
  best_fn = None
  if best_metric:
    # A checkpoint from a time with another best metric can never be the best.
    worst = math.inf if best_mode == 'min' else -math.inf
    best_fn = lambda metrics: metrics.get(best_metric, worst)  # noqa: E731
    kept.append(
      checkpoint_managers.BestN(
        get_metric_fn=best_fn, reverse=best_mode == 'min', n=keep_best, keep_checkpoints_without_metrics=False
      )
    )
  return ocp.CheckpointManagerOptions(
    best_fn=best_fn,
    best_mode=best_mode,
    preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
    cleanup_tmp_directories=True,
  )


def save_params(directory: str | epath.PathLike, params: Params, metadata: Mapping[str, Any]) -> None:
  """Writes a policy's parameters and their metadata (JSON) for `--init_from`, complete or not at all."""
  directory = _absolute(directory)
  if directory.exists():
    raise UsageError(f'{directory} exists already: name a folder that does not, or remove it first')
  arguments = ocp.args.Composite(
    params=ocp.args.PyTreeSave(
      jax.tree.map(np.asarray, params),
      jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params),
    ),
    metadata=ocp.args.JsonSave(to_json({**metadata, _DIGEST: digest.hash_bytes(params)})),
  )
  # Without copies: orbax would copy the arrays first, and its one-file format would buffer them again.
  as_is = type_handlers.create_type_handler_registry(
    (np.ndarray, type_handlers.NumpyHandler(deepcopy_host_arrays=False))
  )
  handlers = {
    'params': ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=as_is),
    'metadata': ocp.JsonCheckpointHandler(),
  }
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
    checkpointer.save(directory, args=arguments)


def load_metadata(directory: str | epath.PathLike) -> dict[str, Any]:
  """The metadata of the parameters that `load_params` would read from `directory`."""
  return _read_metadata(find_checkpoint(directory))


def init_digest(directory: str | epath.PathLike, started: str | None = None) -> str | None:
  """The digest of the checkpoint that `load_params` would read from `directory`.

  Args:
    directory: see `load_params`.
    started: the digest of the checkpoint from which a run started. It is returned where the folder's run
      still has that checkpoint, whichever of its steps is the best now.

  Returns:
    The digest; `None` for a checkpoint that an earlier version wrote without one.
  """
  folder = find_checkpoint(directory)
  beside = [folder.parent / str(step) for step in _steps(folder.parent)] if folder.name.isdigit() else []
  is_step_of_run = folder != _absolute(directory)
  digests = [_read_metadata(each).get(_DIGEST) for each in (folder, *(beside if is_step_of_run else ()))]
  return started if started is not None and started in digests else digests[0]


def run_metadata(model_dir: str | epath.PathLike) -> dict[str, Any]:
  """The metadata of the newest checkpoint of a run's folder whose metadata can be read.

  Raises:
    UsageError: none can be read.
  """
  folder = _absolute(model_dir) / 'checkpoints'
  for step in reversed(_numbered(folder)):
    try:
      return _read_metadata(folder / str(step))
    except (OSError, ValueError):
      continue
  raise UsageError(f'no checkpoint in {folder} can be read. Restore a copy, or pass another --model_dir')


def load_params(
  directory: str | epath.PathLike, abstract: Params | None = None
) -> tuple[Params, dict[str, Any]]:
  """The policy's parameters and their metadata from an imported folder, a run's folder or one step of it.

  Of a run it takes the best step, or the newest where no best was measured. `abstract` is the model's tree of
  `jax.ShapeDtypeStruct`; with shardings the arrays are created sharded. Without it they are numpy arrays.
  """
  folder = find_checkpoint(directory)
  with _refusing_torn(folder):
    return _read_tree(*_policy_item(folder), abstract), _read_metadata(folder)


def stream_params(
  directory: str | epath.PathLike, together: Callable[[Path], Hashable] = lambda path: path
) -> Iterator[dict[Path, np.ndarray]]:
  """The parameters that `load_params` reads, one part after the other, by their paths in the tree.

  Args:
    directory: see `load_params`.
    together: parameters for which it returns the same come in one part.
  """
  folder = find_checkpoint(directory)
  with _refusing_torn(folder):
    item, path = _policy_item(folder)
    tree = _subtree(ocp.PyTreeCheckpointHandler().metadata(item).tree, path)
    shapes = traverse_util.flatten_dict(_shapes_only(tree))
    for names in _parts(shapes, together):
      part = traverse_util.unflatten_dict({name: shapes[name] for name in names})
      yield traverse_util.flatten_dict(_read_some(item, path, part, partial=True))


def _parts(shapes: Mapping[Path, Any], together: Callable[[Path], Hashable]) -> Iterator[list[Path]]:
  groups: dict[Hashable, list[Path]] = {}
  for path in shapes:
    groups.setdefault(together(path), []).append(path)
  part, filled = [], 0
  for group in groups.values():
    size = sum(math.prod(shapes[path].shape) * shapes[path].dtype.itemsize for path in group)
    if part and filled + size > _PART_BYTES:
      yield part
      part, filled = [], 0
    part, filled = part + group, filled + size
  yield part


def _policy_item(folder: epath.Path) -> tuple[epath.Path, tuple[str, ...]]:
  """The place of a policy's tree: the folder that orbax wrote, and the path in its tree."""
  imported = (folder / 'params').exists()
  return (folder / 'params', ()) if imported else (folder / 'state', ('params', 'policy'))


@contextlib.contextmanager
def _refusing_torn(folder: epath.Path) -> Iterator[None]:
  try:
    yield
  except _UNRELATED:
    raise
  except Exception as error:
    raise UsageError(
      f"{folder} cannot be read: {_first_line(error)}. Pass another of the run's checkpoints/STEP, or a copy"
    ) from error


def load_part(directory: str | epath.PathLike, path: tuple[str, ...], abstract: Any) -> Any:
  """One subtree of a run's saved state, such as `('reference',)`; nothing else is read."""
  return _read_tree(find_checkpoint(directory) / 'state', path, abstract)


def newest_step(model_dir: str | epath.PathLike) -> int | None:
  """The newest complete checkpoint of a run's folder; `None` where there is none."""
  return max(_steps(_absolute(model_dir) / 'checkpoints'), default=None)


def has_any(model_dir: str | epath.PathLike) -> bool:
  """Whether a run's folder holds checkpoints, intact or not."""
  return bool(_numbered(_absolute(model_dir) / 'checkpoints'))


def find_checkpoint(directory: str | epath.PathLike) -> epath.Path:
  """The checkpoint of a folder: an imported one, one step, or a run's best step or else its newest."""
  name, directory = directory, _absolute(directory)
  if _is_checkpoint(directory):
    return directory
  if problem := _other_projects(directory):
    raise UsageError(problem)
  for steps_folder in (directory / 'checkpoints', directory):
    steps = _steps(steps_folder)
    if steps:
      return steps_folder / str(_preferred_step(steps_folder, steps))
  hint = 'it does not exist'
  if str(name).count('/') == 1 and str(name)[0] not in '/.~' and not directory.exists():
    hint += f' (import a model of the Hugging Face Hub first: {_import_command(name)})'
  if directory.exists():
    names = sorted(path.name for path in directory.iterdir())[:8]
    hint = f'it holds {", ".join(names) or "nothing"}'
  raise UsageError(
    f"no checkpoint in {directory}: {hint}. Pass a run's model_dir, one of its checkpoints/STEP folders, "
    'or a folder written by `dro_jax import_checkpoint`'
  )


def _other_projects(path: epath.Path) -> str | None:
  """The error for another project's file or folder, with its remedy; `None` for other paths."""
  if path.exists() and not path.is_dir():
    source = path.parent if path.suffix in _WEIGHTS else path
    return (
      f"{path} is a file, but a checkpoint is a folder: pass a run's model_dir, or import it first: "
      f'{_import_command(source)}'
    )
  if problem := adapter_problem(path):
    return problem
  if (path / 'config.json').exists() and not _is_checkpoint(path):
    return f'{path} is a folder of Hugging Face transformers. Import it first: {_import_command(path)}'
  return None


def adapter_problem(folder: epath.PathLike) -> str | None:
  """The error for a folder that holds an adapter instead of a whole model, with its remedy; else `None`."""
  if not (epath.Path(folder) / 'adapter_config.json').exists():
    return None
  return (
    f'{folder} holds an adapter (PEFT), which is not a whole model: merge it into its base model with peft '
    "(model.merge_and_unload().save_pretrained('MERGED')), then import the result: "
    f'{_import_command("MERGED")}'
  )


def _import_command(source: epath.Path | str) -> str:
  name = epath.Path(source).name or 'imported'
  return f'dro_jax import_checkpoint --init_from={source} --model_dir=checkpoints/{name}'


def _is_checkpoint(folder: epath.Path) -> bool:
  holds = any((folder / item).exists() for item in ('params', 'state'))
  return holds and (folder / 'metadata').exists() and ocp.path.step.is_path_finalized(folder)


def _steps(folder: epath.Path) -> list[int]:
  return [step for step in _numbered(folder) if _is_checkpoint(folder / str(step))]


def _numbered(folder: epath.Path) -> list[int]:
  """The steps with a subfolder, complete or not."""
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _preferred_step(folder: epath.Path, steps: list[int]) -> int:
  newest = _read_metadata(folder / str(steps[-1]))
  scores = {step: _read_metric(folder / str(step), newest[_BEST_METRIC]) for step in steps}
  measured = {step: score for step, score in scores.items() if score is not None}
  if not measured:
    return steps[-1]
  sign = -1 if newest[_BEST_MODE] == 'min' else 1
  return max(measured, key=lambda step: (sign * measured[step], step))


def _read_metric(folder: epath.Path, name: str | None) -> float | None:
  file = folder / 'metrics' / 'metrics'
  return json.loads(file.read_text()).get(name) if file.exists() else None


def _read_metadata(folder: epath.Path) -> dict[str, Any]:
  return upgrade_metadata(json.loads((folder / 'metadata' / 'metadata').read_text()))


def saved_format(saved: Mapping[str, Any]) -> int:
  """The version of a run's metadata (see `FORMAT`)."""
  return saved.get('format', 1)


def upgrade_metadata(saved: Mapping[str, Any]) -> dict[str, Any]:
  """Metadata of any earlier version, in the form of this one."""
  upgraded = {'family': 't5', **saved}  # Earlier versions had T5 only.
  value = saved.get('value') or {}
  if saved_format(saved) < 2 and value.get('readout') == 'batch':
    upgraded['value'] = {**value, 'readout': 'scalar'}
  for settings in ('online', 'decoding'):
    if isinstance(reward := (saved.get(settings) or {}).get('reward'), str):
      upgraded[settings] = {**saved[settings], 'reward': reward.removeprefix(_EARLIER_REWARDS)}
  return upgraded


def _read_tree(folder: epath.Path, path: tuple[str, ...], abstract: Any | None) -> Any:
  """The subtree at `path` of the tree saved in `folder`; nothing else is read."""
  saved = _subtree(ocp.PyTreeCheckpointHandler().metadata(folder).tree, path)
  abstract = _shapes_only(saved) if abstract is None else abstract
  refuse_other_tree(folder.parent, saved, abstract)
  return _read_some(folder, path, abstract, partial=bool(path))


def _read_some(folder: epath.Path, path: tuple[str, ...], abstract: Any, *, partial: bool) -> Any:
  """The arrays of the subtree at `path` that `abstract` names."""
  item = abstract
  for name in reversed(path):
    item = {name: item}
  arguments = ocp.args.PyTreeRestore(
    item=item, restore_args=jax.tree.map(_restore_args, item), partial_restore=partial
  )
  handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_RESTORED_AT_ONCE_GB)
  return _subtree(handler.restore(folder, args=arguments), path)


def _subtree(tree: Any, path: tuple[str, ...]) -> Any:
  return functools.reduce(operator.getitem, path, tree)


def _shapes_only(saved: Any) -> Any:
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
  return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def refuse_other_tree(folder: str | epath.PathLike, saved: Any, target: Any) -> None:
  """Refuses a checkpoint that does not fit the target, by the first array that differs."""
  saved_shapes, target_shapes = dict(_shapes(saved)), dict(_shapes(target))
  for name in sorted(saved_shapes.keys() | target_shapes.keys()):
    saved_shape, target_shape = saved_shapes.get(name), target_shapes.get(name)
    if saved_shape != target_shape:
      raise UsageError(
        f'the checkpoint {folder} does not fit: {name} is {_shape_text(saved_shape)} there and '
        f'{_shape_text(target_shape)} in this run. Use the model configuration, vocabulary and optimizers '
        'that it was made with'
      )


def _shapes(tree: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path, simple=True, separator='/'), tuple(leaf.shape)


def _shape_text(shape: tuple[int, ...] | None) -> str:
  return 'absent' if shape is None else f'of shape {list(shape)}'


def _absolute(directory: str | epath.PathLike) -> epath.Path:
  return files.absolute(directory)
