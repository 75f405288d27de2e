"""Checkpoints of a run, and parameters on disk for a run to start from.

    MODEL_DIR/checkpoints/STEP/{state, metadata, metrics}      written by `Checkpoints`
    IMPORTED_DIR/{params, metadata}                            written by `save_params`

Each STEP and each IMPORTED_DIR appears by one rename, complete or not at all. `--init_from` takes an imported
folder, a run's folder, or one STEP of it, and reads the policy's parameters only.
"""

import contextlib
import ctypes
import logging
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers, type_handlers

from dro_jax.checkpoints import digest
from dro_jax.checkpoints.bound import Bound
from dro_jax.checkpoints.folders import absolute_path, find_checkpoint, numbered_steps
from dro_jax.checkpoints.metadata import BEST_BOUND, BEST_METRIC, BEST_MODE, DIGEST, read_metadata
from dro_jax.checkpoints.trees import (
  CHUNK_BYTES,
  PART_BYTES,
  Path,
  read_part,
  read_tree,
  shapes_only,
  subtree,
)
from dro_jax.errors import Failed, UsageError
from dro_jax.files import to_json
from dro_jax.types import Params

# Errors that do not mean a damaged checkpoint; reading one may raise any other, orbax's assertions included.
_UNRELATED = (UsageError, PermissionError, MemoryError, jax.errors.JaxRuntimeError)
# The folder for a run's damaged checkpoints.
DAMAGED = 'damaged'


class Checkpoints:
  """The newest and the best states of a run, saved while the run goes on.

  Keeps the `keep_last` newest steps and, where `best_metric` is named, the `keep_best` steps with the largest
  (`best_mode='max'`) or smallest (`'min'`) value of it, of those whose metrics keep `best_bound`. `metadata`
  (JSON) is written beside every state: all that is needed to rebuild the model before its arrays are read.

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
    best_bound: Bound | None = None,
    metadata: Mapping[str, Any] | None = None,
  ):
    if keep_last < 1:
      raise UsageError(f'keep_last is {keep_last}, but a run resumes from its newest state: pass 1 or more')
    if best_mode not in ('min', 'max'):
      raise UsageError(f"best_mode is {best_mode!r}: pass 'max' where a larger metric is better, or 'min'")
    self._best_metric = best_metric
    self._measured: dict[int, Mapping[str, float]] = {}
    best = {BEST_METRIC: best_metric, BEST_MODE: best_mode}
    best |= {} if best_bound is None else {BEST_BOUND: str(best_bound)}
    self._metadata = to_json({**(metadata or {}), **best})
    self._score = _make_score(best_metric, best_mode, best_bound)
    options = _options(keep_last, keep_best, self._score if best_metric else None)
    self._manager = ocp.CheckpointManager(absolute_path(directory), options=options)

  def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
    """Starts to save `state` as `step`; a step that is already there is left as it is."""
    if step in self._manager.all_steps():
      return
    metadata = {**self._metadata, 'step': step, DIGEST: digest.hash_state(state)}
    saved = _without_absent(state)
    arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(saved), metadata=ocp.args.JsonSave(metadata))
    rankable = self._rankable(metrics or {})
    self._measured[step] = rankable or {}
    with self._writing():
      self._manager.save(step, args=arguments, metrics=rankable, force=True)

  def _rankable(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
    # A checkpoint whose metric was not measured, or is not finite, can never be the best.
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return finite if self._best_metric in finite else None

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best metric; `None` where none was measured, or none keeps the bound."""
    step = self._manager.best_step() if self._best_metric else None
    if step is None:
      return None
    if step not in self._measured:  # It was saved by an earlier process.
      self._measured[step] = self._manager.metrics(step) or {}
    return step if self._score(self._measured[step]) > -math.inf else None

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
    for step in sorted(numbered_steps(folder), reverse=True):
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
    saved = read_metadata(folder)
    state = read_tree(folder / 'state', (), _without_absent(abstract_state))
    if isinstance(state, dict) and not isinstance(abstract_state, dict):
      state = type(abstract_state)(**state)
  except _UNRELATED:
    raise
  except Exception as caught:
    error = caught
  if not _all_agree(error is None):
    reason = _first_line(error) if error else 'another process cannot'
    raise Damaged(f'{folder} cannot be read: {reason}') from error
  if (known := saved.get(DIGEST)) is not None and digest.hash_state(state, known) != known:
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


Score = Callable[[Mapping[str, float]], float]


def _make_score(metric: str | None, mode: str, bound: Bound | None) -> Score:
  """How good a checkpoint's metrics are; −∞ where they can never be the best.

  That is where they break the bound, or come from a time with another best metric.
  """
  sign = -1 if mode == 'min' else 1

  def score(metrics: Mapping[str, float]) -> float:
    can_be_best = metric in metrics and (bound is None or bound.keeps(metrics))
    return sign * metrics[metric] if can_be_best else -math.inf

  return score


class _BestN(checkpoint_managers.BestN):
  """Keeps the best, but none that can never be the best, though there be no other."""

  def should_preserve(
    self,
    checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: checkpoint_managers.PreservationContext,
  ) -> Sequence[bool]:
    kept = super().should_preserve(checkpoints, context=context)
    return [
      keeps and info.metrics is not None and self.get_metric_fn(info.metrics) > -math.inf
      for keeps, info in zip(kept, checkpoints)
    ]


def _options(keep_last: int, keep_best: int, score: Score | None) -> ocp.CheckpointManagerOptions:
  kept = [checkpoint_managers.LatestN(keep_last)]
  if score is not None:
    kept.append(_BestN(get_metric_fn=score, n=keep_best, keep_checkpoints_without_metrics=False))
  return ocp.CheckpointManagerOptions(
    best_fn=score,
    preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
    cleanup_tmp_directories=True,
  )


def save_params(directory: str | epath.PathLike, params: Params, metadata: Mapping[str, Any]) -> None:
  """Writes a policy's parameters and their metadata (JSON) for `--init_from`, complete or not at all."""
  directory = absolute_path(directory)
  if directory.exists():
    raise UsageError(f'{directory} exists already: name a folder that does not, or remove it first')
  arguments = ocp.args.Composite(
    params=ocp.args.PyTreeSave(
      jax.tree.map(np.asarray, params),
      jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params),
    ),
    metadata=ocp.args.JsonSave(to_json({**metadata, DIGEST: digest.hash_bytes(params)})),
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


def load_params(
  directory: str | epath.PathLike, abstract: Params | None = None
) -> tuple[Params, dict[str, Any]]:
  """The policy's parameters and their metadata from an imported folder, a run's folder or one step of it.

  Of a run it takes the best step, or the newest where no best was measured. `abstract` is the model's tree of
  `jax.ShapeDtypeStruct`; with shardings the arrays are created sharded. Without it they are numpy arrays.
  """
  folder = find_checkpoint(directory)
  with _refusing_torn(folder):
    return read_tree(*_policy_item(folder), abstract), read_metadata(folder)


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
    tree = subtree(ocp.PyTreeCheckpointHandler().metadata(item).tree, path)
    shapes = traverse_util.flatten_dict(shapes_only(tree))
    for names in _parts(shapes, together):
      part = traverse_util.unflatten_dict({name: shapes[name] for name in names})
      yield traverse_util.flatten_dict(read_part(item, path, part, partial=True))
      _release_freed_memory()


def _release_freed_memory() -> None:
  """Gives the system back what glibc keeps of freed arrays: up to a third of a tree that is read in parts."""
  with contextlib.suppress(AttributeError):  # Other C libraries give it back by themselves.
    ctypes.CDLL(None).malloc_trim(0)


def _parts(shapes: Mapping[Path, Any], together: Callable[[Path], Hashable]) -> Iterator[list[Path]]:
  groups: dict[Hashable, list[Path]] = {}
  for path in shapes:
    groups.setdefault(together(path), []).append(path)
  part, filled = [], 0
  for group in groups.values():
    size = sum(math.prod(shapes[path].shape) * shapes[path].dtype.itemsize for path in group)
    if part and filled + size > PART_BYTES:
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
  return read_tree(find_checkpoint(directory) / 'state', path, abstract)
