"""Sources of triplets: files, data sets by name, seqio tasks."""

import glob
import hashlib
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax import files
from dro_jax.data.records import triplets
from dro_jax.data.records.triplets import Record
from dro_jax.data.storage import buckets, fingerprints
from dro_jax.data.text import chat
from dro_jax.errors import UsageError, did_you_mean


class Source(NamedTuple):
  """A name, a function that reads the records, a fingerprint of the records, and mixture rates."""

  name: str
  records: Callable[[], Iterator[Record]]
  fingerprint: str
  rates: Mapping[str, float | int] | None = None


def find(
  name: str | Sequence[str],
  *,
  columns: str | Mapping[str, str] | None = None,
  map_reward: str | Mapping[str, float | int] | None = None,
  chat_template: str | None = chat.TEMPLATE,
  split: str = 'train',
  data_dir: str | None = None,
) -> Source:
  """The source with this name: triplet files, or seqio tasks or mixtures."""
  options = {'columns': columns, 'map_reward': map_reward, 'chat_template': chat_template}
  if not name:
    raise UsageError(
      "there are no triplets: pass a file, as load_triplets('feedback.jsonl') or --triplets=feedback.jsonl."
    )
  if isinstance(name, Mapping) or any(isinstance(part, Mapping) for part in name):
    raise UsageError(
      'these are records in memory, and triplets are read from files: write them with json.dumps, one JSON '
      "object a line, and pass the file's path, as load_triplets('feedback.jsonl')."
    )
  if not triplets.is_files(name):
    names = [part.strip() for text in as_names(name) for part in text.split(',')]
    return _joined([_find_task(part, split, options, data_dir) for part in names])
  files = triplets.expand(name)
  before = stamps(files)
  mark = files_mark(fingerprints.files_fingerprint(files), options)

  def records() -> Iterator[Record]:
    yield from triplets.read_triplets(files, rewards_required=False, **options)
    refuse_changed(before)

  return Source(os.path.basename(files[0]), records, mark)


def files_mark(fingerprint: str, options: Mapping[str, Any]) -> str:
  """A fingerprint of the records of triplet files, read with these options."""
  return fingerprints.fingerprint(triplets.READING, fingerprint, sorted(options.items()))


def stamps(files: Sequence[str]) -> dict[str, tuple[int, int] | None]:
  """The size and time of each file, on a disk or in a bucket; None for a missing file."""
  return {path: _stamp(path) for path in files}


def _stamp(path: str) -> tuple[int, int] | None:
  try:
    if files.is_remote(path):
      return buckets.stamp(path)
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns
  except OSError:
    return None


def refuse_changed(before: Mapping[str, tuple[int, int] | None]) -> None:
  """Refuses files that changed while they were read: their table would have a wrong fingerprint."""
  changed = [path for path, stamp in stamps(list(before)).items() if stamp != before[path]]
  if changed:
    raise UsageError(f'{changed[0]}: the file changed while it was read; run again when it is complete')


def _joined(parts: Sequence[Source]) -> Source:
  """All records of all sources, each once."""
  names = [part.name for part in parts]
  if len(parts) == 1:
    return parts[0]
  if mixed := [part.name for part in parts if part.rates]:
    raise UsageError(
      f"triplets '{','.join(names)}': '{mixed[0]}' is a mixture by rate, which cannot be "
      'joined with other names; name its tasks to have every record once, or register one mixture of all'
    )
  if repeated := {name for name in names if names.count(name) > 1}:
    raise UsageError(f"triplets '{','.join(names)}': '{min(repeated)}' is named twice; name every task once")
  mark = fingerprints.fingerprint(*(part.fingerprint for part in parts))
  return Source('+'.join(names), lambda: (r for part in parts for r in part.records()), mark)


def as_texts(name: Any) -> Any:
  """One name or several as they came, with paths as texts."""
  if isinstance(name, os.PathLike):
    return os.fspath(name)
  if isinstance(name, (list, tuple)):
    return [os.fspath(part) if isinstance(part, os.PathLike) else part for part in name]
  return name


def as_names(name: str | Sequence[str]) -> list[str]:
  """One name or several as a list."""
  return [name] if isinstance(name, str) else [str(part) for part in name]


def _find_task(name: str, split: str, options: Mapping[str, Any], data_dir: str | None) -> Source:
  import seqio

  from dro_jax.data.sources import public

  public.read_from(data_dir)
  try:
    source = seqio.get_mixture_or_task(name)
  except ValueError as error:
    known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    files_here = [file for file in os.listdir() if file.endswith(triplets.FORMATS)]
    near = did_you_mean(name, [*files_here, *known])
    raise UsageError(
      f"triplets '{name}'{near}: neither a triplet file ({', '.join(triplets.FORMATS)}) "
      f'nor a data set, seqio task or mixture ({", ".join(known) or "none is registered"}); for your own '
      'task pass the module that registers it: --set TASK_MODULES=FILE.py'
    ) from error
  is_mixture = isinstance(source, seqio.Mixture)
  tasks = source.tasks if is_mixture else [source]
  for task in tasks:
    if split not in task.splits:
      raise UsageError(f"seqio task '{task.name}' has no split '{split}'; it has {', '.join(task.splits)}")
  rates = _rates(source) if is_mixture else None
  mark = fingerprints.fingerprint(
    triplets.READING,
    seqio.__version__,
    split,
    sorted(options.items()),
    *(_task_fingerprint(task, split) for task in tasks),
  )

  def records() -> Iterator[Record]:
    for task in tasks:
      read = triplets.from_mappings(
        _examples(task, split), f'{task.name}[{split}]', rewards_required=False, **options
      )
      yield from (record._replace(source=task.name) for record in read)

  return Source(name, records, mark, rates)


def _rates(mixture: Any) -> dict[str, float]:
  try:
    return {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
  except (AssertionError, TypeError, ValueError) as error:
    tasks = ','.join(task.name for task in mixture.tasks)
    raise UsageError(
      f"seqio mixture '{mixture.name}': a rate that counts examples needs seqio's offline cache ({error}); "
      f"use numbers as rates, or pass the tasks' names to have every record once: {tasks}"
    ) from error


def _examples(task: Any, split: str) -> Iterator[dict[str, Any]]:
  """A task's examples in order, with text as str; the original text where a task tokenises."""
  import tensorflow as tf

  dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
  try:
    for example in dataset.as_numpy_iterator():
      yield _fields(example)
  except tf.errors.OpError:
    if error := getattr(getattr(task.source, '_dataset_fn', None), 'error', None):
      raise error from None
    raise


def _fields(example: Mapping[str, Any]) -> dict[str, Any]:
  fields = {name: value.decode() if isinstance(value, bytes) else value for name, value in example.items()}
  for side in ('prompt', 'response'):
    fields[side] = fields.pop(f'{side}_pretokenized', fields.get(side))
  return {name: value for name, value in fields.items() if np.ndim(value) == 0}


def _task_fingerprint(task: Any, split: str) -> str:
  """A fingerprint of a task's examples as far as it can be known: source, files, code of functions."""
  source = task.source
  named = getattr(source, '_split_to_filepattern', {}).get(split, [])
  patterns = [named] if isinstance(named, str) else list(named)
  paths = sorted({path for pattern in patterns for path in glob.glob(pattern)})
  function = getattr(source, '_dataset_fn', None)
  own = getattr(function, 'fingerprint', None)
  tfds = getattr(source, 'tfds_dataset', None)
  # The byte code does not contain the functions that these functions call.
  code_files = [files.source_of(step) for step in ([] if own else [function]) + list(task.preprocessors)]
  return fingerprints.fingerprint(
    task.name, type(source).__name__, fingerprints.files_fingerprint(paths),
    own(split) if own else _code(function), getattr(tfds, 'name', None),
    [_code(step) for step in task.preprocessors], *filter(None, code_files),
  )  # fmt: skip


def _code(function: Any) -> str:
  """A hash of a function's byte code, constants, closure and bound arguments."""
  if function is None:
    return ''
  parts = [getattr(function, '__qualname__', type(function).__name__)]
  bound = getattr(function, 'args', ()), getattr(function, 'keywords', {})
  inner = getattr(function, 'func', None) or getattr(function, '__wrapped__', None)
  code = getattr(function, '__code__', None)
  closure = [cell.cell_contents for cell in getattr(function, '__closure__', None) or ()]
  values = [value for value in closure if isinstance(value, str | int | float | bool | tuple)]
  if code is not None:
    constants = [constant for constant in code.co_consts if not isinstance(constant, types.CodeType)]
    parts += [hashlib.blake2b(code.co_code).hexdigest(), repr(constants), repr(code.co_names)]
  return fingerprints.fingerprint(*parts, repr(bound), repr(values), _code(inner) if inner else '')
