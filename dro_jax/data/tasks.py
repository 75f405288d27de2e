"""From names to tables: triplet files, seqio tasks and mixtures, and the split, in one call.

Several tasks are mixed in one of two ways. By rate: a seqio mixture, whose rates become sampling weights, and
an epoch is as many draws with replacement. By concatenation: their names separated by commas, every record
once.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax import derived, files, places
from dro_jax.data import scaling as scalings
from dro_jax.data.records import inheritance
from dro_jax.data.records import triplets as sources
from dro_jax.data.records.triplets import Record
from dro_jax.data.sources.seqio_tasks import register as register
from dro_jax.data.sources.seqio_tasks import text_features as text_features
from dro_jax.data.storage import buckets as staging
from dro_jax.data.storage import hashes as split
from dro_jax.data.table import column_store as column_stores
from dro_jax.data.table import table
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import chat, lost_text
from dro_jax.data.text.vocabularies import Vocabulary, vocabulary
from dro_jax.errors import UsageError, did_you_mean
from dro_jax.parallel import processes as cluster

_NAME_LENGTH = 100  # Characters of a source that name its folder; file systems allow 255 bytes.


class Triplets(NamedTuple):
  """What a run trains and validates on.

  Attributes:
    train: rewards scaled.
    eval: rewards scaled by the training set's scaling; None where nothing is held out.
    scaling: of the rewards.
    report: plain JSON: where the data came from, what was cut or dropped, the split, the reward statistics.
      Save it with the run.
  """

  train: TokenTable
  eval: TokenTable | None
  scaling: scalings.RewardScaling
  report: dict


def load_triplets(
  triplets: str | Sequence[str],
  *,
  eval_triplets: str | Sequence[str] | None = None,
  columns: str | Mapping[str, str] | None = None,
  map_reward: str | Mapping[str, float | int] | None = None,
  rewards_required: bool = True,
  template: str = '{prompt}',
  chat_template: str = chat.TEMPLATE,
  vocabulary: str | Vocabulary = 'bytes',
  prompt_length: int = 512,
  response_length: int = 512,
  overlong: str = 'truncate',
  keep: str = 'auto',
  scaling: str = 'none',
  validation_fraction: float | int = 0.05,
  split_salt: str = '',
  task_split: str = 'train',
  eval_task_split: str = 'validation',
  task_modules: str | Sequence[str] = (),
  columns_from: str | Sequence[str] | None = None,
  data_dir: str | None = None,
  cache_dir: str | None = None,
  inherited: Mapping[str, Any] | None = None,
) -> Triplets:
  """Token tables of training and validation triplets.

  Args:
    triplets: files (a path, several, a comma-separated string, glob patterns), or the name of a seqio task or
      mixture whose examples have text `prompt` and `response` and a number `reward`. Names of several tasks,
      separated by commas, stand for all their records. Public data sets have names: see `data.public`.
    eval_triplets: the same for validation; without it prompts are held out of `triplets` by their hash.
    columns: our names to the files': 'prompt=question,response=answer,reward=thumbs', paths into nested
      fields, 'prompt=chat.messages', or nothing, 'label=', for a column to be left alone.
    map_reward: numbers for rewards that are words: 'up=1,down=0'; or a rule, 'numbers' or 'stars' (see
      `data.reward_words`).
    rewards_required: False where rewards are of no use (SFT): a missing or unusable one is 0, and counted.
    template: of the prompt text: 'Translate: {prompt}'.
    chat_template: of each turn where a file's prompts are conversations, with {role} and {content} (see
      `data.chat`).
    vocabulary: 'bytes', or a SentencePiece model's path.
    prompt_length: prompt tokens at most, EOS included.
    response_length: response tokens at most, EOS included.
    overlong: longer responses are cut, without EOS ('truncate'), or left out ('drop').
    keep: the end of an overlong prompt that is kept: 'start' or 'end'; 'auto': the end of a conversation,
      which is the question, and the start of other prompts.
    scaling: of rewards: 'none', 'standardise', 'minmax' or 'quantile', fitted on the training part.
    validation_fraction: share of the prompts to hold out, in [0, 1); 0 holds out none.
    split_salt: another salt is another split.
    task_split: a seqio task's split to train on.
    eval_task_split: the split of `eval_triplets`, if that is a seqio task.
    task_modules: modules (dotted names or .py files) to import first: they register one's own tasks.
    columns_from: column stores of these examples, to be joined (see `data.columns`): folders that `fit_value`
      wrote, or a comma-separated string.
    data_dir: a folder that holds the public data sets' own; None: they are downloaded.
    cache_dir: where token tables are kept; None: ~/.cache/dro_jax, or under XDG_CACHE_HOME. In a bucket
      (gs://...) they are kept for all machines, and each copies what it needs to the usual place.
    inherited: the `columns` and `map_reward` of a run, which hold where None is given here, for files that
      have the run's fields (see `data.inheritance`).

  Raises:
    UsageError: whatever is wrong with the files, fields or options.
  """
  for module in [task_modules] if isinstance(task_modules, str) else task_modules:
    import_module(module)

  def build(name, task_split: str) -> TokenTable:
    source = find(
      name, rewards_required=rewards_required, chat_template=chat_template, split=task_split,
      data_dir=data_dir, **inheritance.options(inherited, name, columns, map_reward),
    )  # fmt: skip
    return build_table(
      source, vocabulary, cache_dir, prompt_length=prompt_length, response_length=response_length,
      overlong=overlong, keep=keep, template=template,
    )  # fmt: skip

  train = build(triplets, task_split)
  report = {'triplets': _names(triplets), 'train_table': train.report}
  if eval_triplets:
    held_out = build(eval_triplets, eval_task_split)
    shared = int(np.isin(np.unique(held_out.prompt_digests), train.prompt_digests).sum())
    report |= {
      'eval_triplets': _names(eval_triplets),
      'eval_table': held_out.report,
      'eval_prompts_in_train': shared,
    }
  else:
    train, held_out = hold_out(train, validation_fraction, split_salt)
    report['split'] = {'by': 'prompt hash', 'fraction': validation_fraction, 'salt': split_salt}
  report['options'] = {
    'template': template, 'prompt_length': prompt_length, 'response_length': response_length,
    'overlong': overlong, 'keep': keep, 'chat_template': chat_template,
  }  # fmt: skip
  report['read'] = {'columns': _plain(columns), 'map_reward': _plain(map_reward)}
  found = scaled(train, held_out, scaling, report)
  return with_columns(found, columns_from) if columns_from else found


def _plain(pairs: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
  return pairs if pairs is None or isinstance(pairs, str) else dict(pairs)


def scaled(train: TokenTable, held_out: TokenTable | None, kind: str, report: Mapping[str, Any]) -> Triplets:
  """Triplets of two tables, their rewards scaled as the training part's ask for, and counted in the report.

  Raises:
    UsageError: an unknown kind of scaling, or rewards that are all equal.
  """
  fitted = scalings.fit(kind, train.raw_rewards, train.prompt_index)
  counts = _counts('train', train) | _counts('eval', held_out)
  return Triplets(
    train.scaled(fitted), held_out and held_out.scaled(fitted), fitted,
    {**report, **counts, 'scaling': fitted.to_json()},
  )  # fmt: skip


def _counts(part: str, table: TokenTable | None) -> dict[str, Any]:
  """How much a part holds, a hash of it, and one of each of its columns."""
  records, prompts = (len(table), len(np.unique(table.prompt_index))) if table else (0, 0)
  mark, columns = (table.fingerprint(), table.column_fingerprints()) if table else (None, {})
  return {
    f'{part}_records': records, f'{part}_prompts': prompts, f'{part}_fingerprint': mark,
    f'{part}_columns': columns,
  }  # fmt: skip


def with_columns(triplets: Triplets, stores: str | Sequence[str]) -> Triplets:
  """Joins column stores to both tables; training records that a store leaves out on purpose are left out.

  Args:
    triplets: of which every example must be in every store.
    stores: folders, or a comma-separated string of them.

  Raises:
    UsageError: there is no store, examples are missing from it, or nothing is left to train on.
  """
  train, held_out, marks = triplets.train, triplets.eval, []
  for directory in stores.split(',') if isinstance(stores, str) else stores:
    store = column_stores.read(directory)
    train, left_out = column_stores.join(train, store)
    if left_out.all():
      raise UsageError(f'column store {directory}: it leaves out every training example')
    train = train.subset(~left_out) if left_out.any() else train
    if held_out is not None:
      held_out, left_out = column_stores.join(held_out, store)
      held_out = held_out.subset(~left_out) if left_out.any() else held_out
    marks.append(store.mark)
  joined = [*triplets.report.get('columns_from', ()), *marks]
  report = triplets.report | {'columns_from': joined} | _counts('train', train)
  return triplets._replace(train=train, eval=held_out, report=report)


def hold_out(
  whole: TokenTable, fraction: float | int, salt: str = ''
) -> tuple[TokenTable, TokenTable | None]:
  """Splits a table by prompt hash into (train, held out).

  Raises:
    UsageError: a bad fraction, or one side would be empty.
  """
  if not 0 <= fraction < 1:
    raise UsageError(f'validation_fraction must be at least 0 and below 1, got {fraction}')
  if fraction == 0:
    return whole, None
  held = split.by_prompt_hash(whole.prompt_digests, fraction, salt)
  if held.all() or not held.any():
    prompts = len(np.unique(whole.prompt_index))
    raise UsageError(
      f'holding out {fraction:.0%} of {prompts} prompts by their hash leaves no record on one side; pass '
      '--eval_triplets, another share (--set VALIDATION_FRACTION=0.2; 0 holds out none) or another split_salt'
    )
  return whole.subset(~held), whole.subset(held)


def derive(
  triplets: Triplets,
  columns: Mapping[str, Callable[[Triplets], Callable[[TokenTable], np.ndarray]]],
  select: Callable[[TokenTable], np.ndarray] | None = None,
  weights: Callable[[TokenTable], np.ndarray] | None = None,
) -> Triplets:
  """Adds columns that are made from the data, and then chooses what to train on.

  Args:
    triplets: whose training part decides every constant.
    columns: by name: from the triplets to a function from a table to `[N]`. What labels are made by is
      reported.
    select: which training responses to keep, `[N]` booleans.
    weights: how often to draw each of them, `[N]`, times the mixture's weights.
  """
  made = {name: fit(triplets) for name, fit in columns.items()}
  rules = [column for column in made.values() if isinstance(column, derived.Labelling)]

  def extended(table: TokenTable | None) -> TokenTable | None:
    return table and table.with_columns({name: column(table) for name, column in made.items()})

  train = extended(triplets.train)
  report = triplets.report | ({'labels': rules[0].report(train)} if rules else {})
  if select is not None:
    train = train.subset(select(train))
    report = report | {'selected_records': len(train)}
  if weights is not None:
    own = weights(train)
    train = dataclasses.replace(train, weights=own if train.weights is None else own * train.weights)
  return triplets._replace(train=train, eval=extended(triplets.eval), report=report)


class Source(NamedTuple):
  """Records to come, and what stands for them in a fingerprint."""

  name: str
  records: Callable[[], Iterator[Record]]
  fingerprint: str
  rates: Mapping[str, float | int] | None = None


def find(
  name: str | Sequence[str],
  *,
  columns: str | Mapping[str, str] | None = None,
  map_reward: str | Mapping[str, float | int] | None = None,
  rewards_required: bool = True,
  chat_template: str = chat.TEMPLATE,
  split: str = 'train',
  data_dir: str | None = None,
) -> Source:
  """The source that triplet files, or the names of seqio tasks or mixtures, stand for."""
  options = {
    'columns': columns, 'map_reward': map_reward, 'rewards_required': rewards_required,
    'chat_template': chat_template,
  }  # fmt: skip
  if not name:
    raise UsageError('no triplets given; pass --triplets FILE')
  if not sources.is_files(name):
    names = [part.strip() for text in _names(name) for part in text.split(',')]
    return _joined([_find_task(part, split, options, data_dir) for part in names])
  files = sources.expand(name)
  before = stamps(files)
  mark = files_mark(table.files_fingerprint(files), options)

  def records() -> Iterator[Record]:
    yield from sources.read_triplets(files, **options)
    refuse_changed(before)

  return Source(os.path.basename(files[0]), records, mark)


def files_mark(fingerprint: str, options: Mapping[str, Any]) -> str:
  """What stands for the records of triplet files, read with these options."""
  return table.fingerprint(sources.READING, fingerprint, sorted(options.items()))


def stamps(files: Sequence[str]) -> dict[str, tuple[int, int] | None]:
  """What changes with a file, on a disk or in a bucket: its size and time; None where it is gone."""
  return {path: _stamp(path) for path in files}


def _stamp(path: str) -> tuple[int, int] | None:
  try:
    if places.is_remote(path):
      return staging.stamp(path)
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns
  except OSError:
    return None


def refuse_changed(before: Mapping[str, tuple[int, int] | None]) -> None:
  """A table of other records than its fingerprint says would be taken for the right one for ever."""
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
      f"triplets '{','.join(names)}': '{mixed[0]}' is a mixture by rate, to which nothing can be added; "
      'name the tasks to have every record once, or register one mixture of all'
    )
  if repeated := {name for name in names if names.count(name) > 1}:
    raise UsageError(f"triplets '{','.join(names)}': '{min(repeated)}' is named twice; name every task once")
  mark = table.fingerprint(*(part.fingerprint for part in parts))
  return Source('+'.join(names), lambda: (r for part in parts for r in part.records()), mark)


def build_table(
  source: Source, spec: str | Vocabulary, cache_dir: str | None = None, **options
) -> TokenTable:
  """The source's token table in the cache, made if it is not there; options as `table.build`."""
  words = vocabulary(spec) if isinstance(spec, str) else spec
  remote = cache_dir if cache_dir and places.is_remote(cache_dir) else None
  name = table_name(source, words, options)
  directory = os.path.join(local_root(cache_dir), name)
  found = table.exists(directory) or (remote is not None and table.fetch(f'{remote}/{name}', directory))
  built = table.build(
    source.records(), words, directory, rates=source.rates, source_fingerprint=source.fingerprint, **options
  )
  if remote and cluster.is_first():
    staging.put(directory, f'{remote}/{name}', description=table.DESCRIPTION, always=not found)
  _tell_cuts(source.name, built.report, options)
  for sentence in lost_text.sentences(built.report.get('lost', {}), words):
    logging.getLogger(__name__).warning('%s: %s', source.name, sentence)
  return built


def local_root(cache_dir: str | None) -> str:
  """Where tables lie on this machine."""
  is_here = cache_dir and not places.is_remote(cache_dir)
  return os.path.expanduser(cache_dir) if is_here else staging.default_root()


def table_name(source: Source, words: Vocabulary, options: Mapping[str, Any]) -> str:
  """The folder in a cache that holds a source's table, built with these options."""
  mark = table.fingerprint(source.fingerprint, words.fingerprint, sorted(options.items()))
  return f'{source.name.partition(".jsonl")[0][:_NAME_LENGTH]}-{mark[:12]}'


def _tell_cuts(name: str, report: Mapping[str, Any], options: Mapping[str, Any]) -> None:
  """Logs how many texts were too long, and what became of them."""
  log = logging.getLogger(__name__)
  if report['overlong_responses']:
    fate = 'left out' if report['dropped_responses'] else 'cut, without EOS'
    examples = ', '.join(report['overlong_response_examples'])
    log.warning(
      '%s: %d of %d responses are longer than %d tokens and %s (%s, ...)', name, report['overlong_responses'],
      report['records'] + report['dropped_responses'], options['response_length'], fate, examples,
    )  # fmt: skip
  if report['truncated_prompts']:
    log.warning(
      '%s: %d of %d prompts are longer than %d tokens and cut', name, report['truncated_prompts'],
      report['prompts'], options['prompt_length'],
    )  # fmt: skip


def _names(name: str | Sequence[str]) -> list[str]:
  return [name] if isinstance(name, str) else [str(part) for part in name]


# --- seqio --------------------------------------------------------------------------------------------------


_imported: dict[str, str] = {}  # Digests of the task modules that this process has imported.


def import_module(name: str) -> types.ModuleType:
  """Imports a user's task module: a dotted name, or a .py file.

  Raises:
    UsageError: it cannot be imported, or its file changed since this process imported it.
  """
  try:
    module = _imported_module(name)
    file = getattr(module, '__file__', None)
    if file and file.endswith('.py'):
      now = files.code_digest(file)
      if _imported.setdefault(file, now) != now:
        raise UsageError(
          f"task module '{name}': the file, or one that it imports, changed since this process imported it, "
          'and its tasks are still those of before: start Python again'
        )
    return module
  except (ImportError, OSError) as error:
    raise UsageError(f"task module '{name}': {error}; pass a module on the path, or a .py file") from error


def _imported_module(name: str) -> types.ModuleType:
  if not name.endswith('.py'):
    return importlib.import_module(name)
  stem = os.path.splitext(os.path.basename(name))[0]
  spec = importlib.util.spec_from_file_location(stem, os.path.expanduser(name))
  module = importlib.util.module_from_spec(spec)
  if stem not in sys.modules:
    sys.modules[stem] = module
    spec.loader.exec_module(module)
  return sys.modules[stem]


def _find_task(name: str, split: str, options: Mapping[str, Any], data_dir: str | None) -> Source:
  import seqio

  from dro_jax.data.sources import public

  public.read_from(data_dir)
  try:
    found = seqio.get_mixture_or_task(name)
  except ValueError as error:
    known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    here = [file for file in os.listdir() if file.endswith(sources.FORMATS)]
    near = did_you_mean(name, [*here, *known])
    raise UsageError(
      f"triplets '{name}'{near}: neither a triplet file ({', '.join(sources.FORMATS)}) "
      f'nor a data set, seqio task or mixture ({", ".join(known) or "none is registered"}); for your own '
      'pass the module that registers it: --gin.load_triplets.task_modules="\'FILE.py\'"'
    ) from error
  mixed = isinstance(found, seqio.Mixture)
  tasks = found.tasks if mixed else [found]
  for task in tasks:
    if split not in task.splits:
      raise UsageError(f"seqio task '{task.name}' has no split '{split}'; it has {', '.join(task.splits)}")
  rates = _rates(found) if mixed else None
  mark = table.fingerprint(
    sources.READING,
    seqio.__version__,
    split,
    sorted(options.items()),
    *(_task_fingerprint(task, split) for task in tasks),
  )

  def records() -> Iterator[Record]:
    for task in tasks:
      read = sources.from_mappings(_examples(task, split), f'{task.name}[{split}]', **options)
      yield from (record._replace(source=task.name) for record in read)

  return Source(name, records, mark, rates)


def _rates(mixture) -> dict[str, float]:
  try:
    return {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
  except (AssertionError, TypeError, ValueError) as error:
    tasks = ','.join(task.name for task in mixture.tasks)
    raise UsageError(
      f"seqio mixture '{mixture.name}': a rate that counts examples needs seqio's offline cache ({error}); "
      f"give numbers as rates, or pass the tasks' names to have every record once: {tasks}"
    ) from error


def _examples(task, split: str) -> Iterator[dict]:
  """A task's examples in order, text as str; where a task tokenises, the text that it kept."""
  import tensorflow as tf

  dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
  try:
    for example in dataset.as_numpy_iterator():
      yield _fields(example)
  except tf.errors.OpError:
    if error := getattr(getattr(task.source, '_dataset_fn', None), 'error', None):
      raise error from None
    raise


def _fields(example: Mapping[str, Any]) -> dict:
  fields = {name: value.decode() if isinstance(value, bytes) else value for name, value in example.items()}
  for side in ('prompt', 'response'):
    fields[side] = fields.pop(f'{side}_pretokenized', fields.get(side))
  return {name: value for name, value in fields.items() if np.ndim(value) == 0}


def _task_fingerprint(task, split: str) -> str:
  """What decides a task's examples, as far as one can tell: its source, the files, its functions' code."""
  source = task.source
  named = getattr(source, '_split_to_filepattern', {}).get(split, [])
  patterns = [named] if isinstance(named, str) else list(named)
  paths = sorted({path for pattern in patterns for path in sources.glob.glob(pattern)})
  function = getattr(source, '_dataset_fn', None)
  own = getattr(function, 'fingerprint', None)
  tfds = getattr(source, 'tfds_dataset', None)
  # Byte code says nothing of the functions that these call.
  files_of = [files.source_of(step) for step in ([] if own else [function]) + list(task.preprocessors)]
  return table.fingerprint(
    task.name, type(source).__name__, table.files_fingerprint(paths), own(split) if own else _code(function),
    getattr(tfds, 'name', None), [_code(step) for step in task.preprocessors], *filter(None, files_of),
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
  return table.fingerprint(*parts, repr(bound), repr(values), _code(inner) if inner else '')
