"""Trackers: where a run's metrics and samples go. JSON lines and TensorBoard always; others where named.

A tracker of one's own is a function of the run's folder and of the steps that are done, which returns a
`Tracker`. Only the first process of a run makes trackers.
"""

import functools
import importlib
import json
import logging
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax import files
from dro_jax.errors import UsageError
from dro_jax.files import write_atomically


def _ignore(*_: Any) -> None:
  pass


class Tracker(NamedTuple):
  """Functions that a run calls; those that are left out do nothing.

  Attributes:
    metrics: `metrics(step, scalars)`, of a step or a validation: a mapping of names to floats.
    samples: `samples(step, records)`: mappings with `prompt`, `response` and `logp`.
    flush: what was recorded so far is to be kept.
    close: the run has ended, or was stopped.

  Example:
    >>> def printed(folder, first_step):
    ...   return dro.Tracker(metrics=lambda step, scalars: print(folder.name, step, sorted(scalars)))
    >>> hooks = dro.make_hooks(trackers=[printed])
  """

  metrics: Callable[[int, Mapping[str, float]], None] = _ignore
  samples: Callable[[int, Sequence[Mapping[str, Any]]], None] = _ignore
  flush: Callable[[], None] = _ignore
  close: Callable[[], None] = _ignore


MakeTracker = Callable[[pathlib.Path, int], Tracker]


def find(names: str | Sequence[str | MakeTracker] | None) -> list[MakeTracker]:
  """Trackers by name: `wandb`, `mlflow`, or one's own as FILE.py:NAME; or functions that make one.

  Raises:
    UsageError: there is none of the name, or its package is not installed.
  """
  parts = names.split(',') if isinstance(names, str) else names or ()
  return [_find_one(part.strip()) if isinstance(part, str) else part for part in parts]


def _find_one(name: str) -> MakeTracker:
  if ':' in name:
    return files.import_function(name, 'TRACKERS')
  if name not in _OPTIONAL:
    raise UsageError(
      f'TRACKERS={name} is not a tracker: pass {" or ".join(_OPTIONAL)}, or your own as FILE.py:NAME. JSON '
      'lines and TensorBoard are always written.'
    )
  try:
    module = importlib.import_module(name)
  except ImportError as error:
    raise UsageError(
      f'TRACKERS={name}: the package {name} is not installed. Install it with `pip install {name}`, or leave '
      'TRACKERS out.'
    ) from error
  return functools.partial(_OPTIONAL[name], module)


def made(make: MakeTracker, folder: pathlib.Path, first_step: int) -> Tracker:
  """A tracker that a user's function makes. When it fails later, it is called no more, and the run goes on.

  Raises:
    UsageError: the function fails, or returns something else than a tracker.
  """
  service = next((name for name, of in _OPTIONAL.items() if getattr(make, 'func', None) is of), None)
  name = service or getattr(make, '__name__', type(make).__name__)
  try:
    tracker = make(folder, first_step)
  except (Exception, SystemExit) as error:
    if service:  # It says by itself what it lacks.
      raise
    raise UsageError(
      f"TRACKERS: {name} raised {files.raised(error)}. It gets the run's folder and the number of steps that "
      'are done, and must return a dro.Tracker.'
    ) from error
  if not isinstance(tracker, Tracker):
    raise UsageError(
      f'TRACKERS: {name} returned {tracker!r}, which is not a tracker: return dro.Tracker(metrics=...).'
    )
  return _until_it_fails(tracker, name)


def _until_it_fails(tracker: Tracker, name: str) -> Tracker:
  """The tracker, called until it raises: what watches a run does not end it."""
  has_failed = False

  def guarded(call: Callable[..., None]) -> Callable[..., None]:
    def try_to_call(*told: Any) -> None:
      nonlocal has_failed
      if has_failed:
        return
      try:
        call(*told)
      except Exception as error:
        has_failed = True
        logging.getLogger(__name__).error(
          'TRACKERS: %s raised %s and is called no more. The run goes on; metrics.jsonl has all metrics.',
          name, files.raised(error),
        )  # fmt: skip

    return try_to_call

  return Tracker(*map(guarded, tracker))


def keep_until(path: pathlib.Path, step: int) -> None:
  """Drops what a JSON-lines file says of later steps, and a torn last line: a resumed run says it again."""
  if not path.exists():
    return
  kept = []
  for line in path.read_bytes().split(b'\n'):
    record = files.parsed(line)
    if record is not None and record['step'] <= step:
      kept.append(line.decode() + '\n')
  write_atomically(path, ''.join(kept))


def json_lines(folder: pathlib.Path, first_step: int) -> Tracker:
  """metrics.jsonl and samples.jsonl."""
  for name in ('metrics.jsonl', 'samples.jsonl'):
    # A run that saved nothing begins anew, and measures its first policy again.
    keep_until(folder / name, first_step if first_step else -1)

  def append(name: str, record: Mapping[str, Any]) -> None:
    with open(folder / name, 'a', encoding='utf-8') as file:
      file.write(files.json_line(record))

  def samples(step: int, records: Sequence[Mapping[str, Any]]) -> None:
    for record in records:
      append('samples.jsonl', {'step': step, **record})

  return Tracker(lambda step, scalars: append('metrics.jsonl', {'step': step, **scalars}), samples)


def tensorboard(folder: pathlib.Path, first_step: int) -> Tracker:
  """Events that TensorBoard shows."""
  from tensorboardX import SummaryWriter

  events = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else 0)

  def metrics(step: int, scalars: Mapping[str, float]) -> None:
    for name, value in scalars.items():
      events.add_scalar(name, value, step)

  return Tracker(metrics, flush=events.flush, close=events.close)


def _wandb(module: Any, folder: pathlib.Path, first_step: int) -> Tracker:
  """Weights & Biases; a run that is resumed goes on in the one that it began."""
  run = module.init(
    dir=str(folder), name=folder.name, id=_kept_id(folder / 'wandb_run.json', first_step), resume='allow',
    config=_description(folder),
  )  # fmt: skip
  return Tracker(lambda step, scalars: run.log(dict(scalars), step=step), close=run.finish)


def _kept_id(path: pathlib.Path, first_step: int) -> str:
  """The id by which another service knows the run."""
  if not first_step or not path.exists():
    write_atomically(path, files.json_text({'id': uuid.uuid4().hex}) + '\n')
  return json.loads(path.read_text(encoding='utf-8'))['id']


def _description(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / 'run.json'
  return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}


def _mlflow(module: Any, folder: pathlib.Path, first_step: int) -> Tracker:
  """MLflow; where it records is its own affair (MLFLOW_TRACKING_URI)."""
  path = folder / 'mlflow_run.json'
  kept = json.loads(path.read_text(encoding='utf-8'))['id'] if first_step and path.exists() else None
  run = module.start_run(run_id=kept, run_name=None if kept else folder.name)
  write_atomically(path, files.json_text({'id': run.info.run_id}) + '\n')
  if kept is None and (folder / 'run.json').exists():
    module.log_artifact(str(folder / 'run.json'))
  return Tracker(lambda step, scalars: module.log_metrics(dict(scalars), step=step), close=module.end_run)


_OPTIONAL = {'wandb': _wandb, 'mlflow': _mlflow}

__all__ = ['Tracker', 'find', 'json_lines', 'tensorboard']
