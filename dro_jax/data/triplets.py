"""Triplets for a run: read, split, scaled, and joined with column stores."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from dro_jax.configs.effects import ELSEWHERE, PLACE
from dro_jax.data import reward_columns
from dro_jax.data import scaling as scalings
from dro_jax.data.records import inheritance
from dro_jax.data.records import scored as scored_files
from dro_jax.data.records.file_names import expand, is_files
from dro_jax.data.sources.find import as_names, as_texts, find
from dro_jax.data.sources.task_modules import import_modules
from dro_jax.data.storage import hashes
from dro_jax.data.table import column_store
from dro_jax.data.table.cache import build_table
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import tokenise, vocabularies
from dro_jax.data.text.chat import TEMPLATE
from dro_jax.data.text.templates import PLAIN, PROMPT_LENGTH, RESPONSE_LENGTH
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError

FEW_HELD_OUT = 10  # Statistics of fewer decide nothing: draws of so few make intervals too narrow.


class Triplets(NamedTuple):
  """The data that a run trains and validates on.

  Attributes:
    train: with scaled rewards.
    eval: with the training set's scaling; None where nothing is held out.
    scaling: of the rewards.
    report: plain JSON: the data's sources, what was cut or dropped, the split, the reward statistics. Save it
      with the run.
  """

  train: TokenTable
  eval: TokenTable | None
  scaling: scalings.RewardScaling
  report: dict[str, Any]

  def __repr__(self) -> str:
    held_out = 0 if self.eval is None else len(self.eval)
    return f'Triplets({len(self.train):,} records to train on, {held_out:,} held out)'


class Parts(NamedTuple):
  """The three parts of triplets, by prompt; rewards are as they came.

  Attributes:
    train: to train on.
    eval: to validate on; None where nothing is held out.
    test: neither trains nor validates; None where nothing is kept for tests.
    report: see `Triplets`.
  """

  train: TokenTable
  eval: TokenTable | None
  test: TokenTable | None
  report: dict[str, Any]


def load_triplets(
  triplets: Annotated[str | Sequence[str], PLACE],
  *,
  eval_triplets: Annotated[str | Sequence[str] | None, PLACE] = None,
  columns: str | Mapping[str, str] | None = None,
  map_reward: str | Mapping[str, float | int] | None = None,
  rewards: str | Mapping[str, float | int] | None = None,
  template: str = PLAIN,
  chat_template: str = TEMPLATE,
  chat: bool | None = None,
  vocabulary: Annotated[str | Vocabulary, PLACE] = 'bytes',
  prompt_length: int = PROMPT_LENGTH,
  response_length: int = RESPONSE_LENGTH,
  overlong: str = 'truncate',
  keep: str = 'auto',
  scaling: str = 'none',
  validation_fraction: float | int = 0.05,
  test_fraction: float | int = 0.0,
  split_salt: str = '',
  task_split: str = 'train',
  eval_task_split: str = 'validation',
  task_modules: str | Sequence[str] = (),
  columns_from: Annotated[str | Sequence[str] | None, PLACE] = None,
  data_dir: Annotated[str | None, PLACE] = None,
  cache_dir: Annotated[str | None, PLACE] = None,
  inherited: Annotated[Mapping[str, Any] | None, ELSEWHERE] = None,
) -> Triplets:
  """Token tables of training and validation triplets.

  A missing or unusable reward is NaN in the tables; algorithms that need rewards refuse it (see
  `require_rewards`).

  Args:
    triplets: files (a path, several, a comma-separated text, glob patterns), or the name of a seqio task or
      mixture whose examples have text `prompt` and `response` and a number `reward`. Names of several tasks,
      separated by commas, stand for all their records. Public data sets have names: see
      `sources.public`.
    eval_triplets: triplets for validation, named as `triplets` are; without them, prompts of `triplets` are
      held out by their hash.
    columns: the files' names of fields: 'prompt=question,response=answer,reward=thumbs'. A path leads into
      nested fields, 'prompt=chat.messages', and nothing, 'label=', ignores a column.
    map_reward: numbers for rewards that are words: 'up=1,down=0'; or a rule, 'numbers' or 'stars' (see
      `records.reward_words`).
    rewards: weights of several rewards, which are columns, 'helpful=1,safe=0.5': their weighted sum is the
      reward. `reward` is the records' own (see `reward_columns`).
    template: the text around every prompt: 'Translate: {prompt}'.
    chat_template: the text of each turn, with {role} and {content}, where a file's prompts are conversations
      (see `text.chat`).
    chat: whether the model's own chat template writes conversations, and text prompts as one turn of the
      user; None uses it where the vocabulary brings one (see `text.tokenise`).
    vocabulary: 'bytes', the path of a SentencePiece model or tokenizer.json, or a tokenizer's folder.
    prompt_length: tokens of a prompt at most, EOS included.
    response_length: tokens of a response at most, EOS included.
    overlong: 'truncate' cuts a longer response, which then has no EOS; 'drop' leaves it out.
    keep: the part of an overlong prompt to keep, 'start' or 'end'; 'auto' keeps the end of a conversation,
      which is the question, and the start of other prompts.
    scaling: how rewards are scaled, 'none', 'standardise', 'standardise_within', 'minmax' or 'quantile',
      fitted on the training part (see `scaling.fit`).
    validation_fraction: the share of prompts to hold out, in [0, 1), where `eval_triplets` is not given; 0
      holds out none.
    test_fraction: the share of prompts of `triplets` to keep for tests, in [0, 1): they neither train nor
      validate, and a run does not read them; `dro_jax export_split` writes them.
    split_salt: a different salt gives a different split.
    task_split: a seqio task's split to train on.
    eval_task_split: the split of `eval_triplets`, if that is a seqio task.
    task_modules: modules (dotted names or .py files) to import first, which register the user's tasks.
    columns_from: column stores whose columns join the data (see `table.column_store`): folders that
      `fit_value` wrote, several or a comma-separated string.
    data_dir: a folder that holds the public data sets' folders; None downloads them.
    cache_dir: the folder of token tables; None is ~/.cache/dro_jax, or XDG_CACHE_HOME/dro_jax. Tables in a
      bucket (gs://...) serve all machines, and each copies those it needs to the default folder.
    inherited: the `columns`, `map_reward` and `rewards` of a run, which replace None here for files that have
      the run's fields (see `records.inheritance`).

  Raises:
    UsageError: the files, fields or options are wrong; names the place and the remedy.

  Example:
    >>> data = dro.load_triplets('feedback.jsonl', vocabulary=policy.vocabulary, validation_fraction=0.25)
    >>> len(data.train) + len(data.eval)
    120
  """
  train, held_out, _, report = read_parts(
    triplets, eval_triplets=eval_triplets, columns=columns, map_reward=map_reward, rewards=rewards,
    template=template, chat_template=chat_template, chat=chat, vocabulary=vocabulary,
    prompt_length=prompt_length, response_length=response_length, overlong=overlong, keep=keep,
    validation_fraction=validation_fraction, test_fraction=test_fraction, split_salt=split_salt,
    task_split=task_split, eval_task_split=eval_task_split, task_modules=task_modules, data_dir=data_dir,
    cache_dir=cache_dir, inherited=inherited,
  )  # fmt: skip
  loaded = scaled(train, held_out, scaling, report)
  return with_columns(loaded, columns_from) if columns_from else loaded


def read_parts(
  triplets: str | Sequence[str],
  *,
  eval_triplets: str | Sequence[str] | None = None,
  columns: str | Mapping[str, str] | None = None,
  map_reward: str | Mapping[str, float | int] | None = None,
  rewards: str | Mapping[str, float | int] | None = None,
  chat_template: str = TEMPLATE,
  chat: bool | None = None,
  vocabulary: str | Vocabulary = 'bytes',
  validation_fraction: float | int = 0.05,
  test_fraction: float | int = 0.0,
  split_salt: str = '',
  task_split: str = 'train',
  eval_task_split: str = 'validation',
  task_modules: str | Sequence[str] = (),
  data_dir: str | None = None,
  cache_dir: str | None = None,
  inherited: Mapping[str, Any] | None = None,
  **options: Any,
) -> Parts:
  """The parts of triplets, before rewards are scaled; arguments and errors as `load_triplets`.

  `options` are those of a table: template, prompt_length, response_length, overlong, keep.
  """
  import_modules(task_modules)
  triplets, eval_triplets = as_texts(triplets), as_texts(eval_triplets)
  vocabulary = vocabularies.vocabulary(vocabulary) if isinstance(vocabulary, str) else vocabulary
  weights = reward_columns.parse_weights(rewards)
  by_chat = tokenise.uses_chat(vocabulary, chat, chat_template)
  turn, by = tokenise.turn_template(by_chat, chat_template), tokenise.chat_option(vocabulary, by_chat)

  def build(name: str | Sequence[str], task_split: str) -> TokenTable:
    named = inheritance.options(inherited, name, columns, map_reward)
    source = find(name, chat_template=turn, split=task_split, data_dir=data_dir, **named)
    table = build_table(source, vocabulary, cache_dir, **options, **by)
    return reward_columns.weighted(table, reward_columns.inherited(table, weights, inherited))

  train = build(triplets, task_split)
  report: dict[str, Any] = {'triplets': as_names(triplets), 'train_table': train.report}
  train, test = _keep_for_tests(train, test_fraction, split_salt)
  if eval_triplets:
    held_out = _without(build(eval_triplets, eval_task_split), test, as_names(eval_triplets))
    shared = int(np.isin(np.unique(held_out.prompt_digests), train.prompt_digests).sum())
    report |= {
      'eval_triplets': as_names(eval_triplets),
      'eval_table': held_out.report,
      'eval_prompts_in_train': shared,
    }
  else:
    train, held_out = hold_out(train, validation_fraction, split_salt)
    report['split'] = {'by': 'prompt hash', 'fraction': validation_fraction, 'salt': split_salt}
  if test is not None:
    # Runs without a test part say nothing of one, as those of earlier versions.
    report['test_split'] = {'by': 'prompt hash', 'fraction': test_fraction, 'salt': split_salt}
    report |= _counts('test', test)
  report['options'] = {**options, 'chat_template': chat_template, **by}
  report['vocabulary'] = vocabulary.fingerprint
  weighed = {'rewards': weights} if weights else {}
  report['read'] = {'columns': _plain(columns), 'map_reward': _plain(map_reward), **weighed}
  if scored_by := _scored_by(triplets, [*weights] or [reward_columns.OWN]):
    report['scored_by'] = scored_by
  report['sources'] = {
    'task_split': task_split, 'eval_task_split': eval_task_split, 'task_modules': as_names(task_modules),
    'data_dir': data_dir,
  }  # fmt: skip
  return Parts(train, held_out, test, report)


def read_again(report: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments by which `read_parts` made a report, but for the vocabulary and the cache.

  Args:
    report: of triplets that were read from files or data sets, by this version or an earlier one.
  """
  split, tested = report.get('split') or {}, report.get('test_split') or {}
  return {
    'chat': None, 'chat_template': TEMPLATE, **report['options'], **(report.get('sources') or {}),
    **report.get('read', {}),
    'triplets': report['triplets'], 'eval_triplets': report.get('eval_triplets'),
    'validation_fraction': split.get('fraction', 0), 'test_fraction': tested.get('fraction', 0),
    'split_salt': (tested or split).get('salt', ''),
  }  # fmt: skip


def _scored_by(triplets: str | Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
  """What scored the files of a run, as `dro_jax score` recorded it beside them."""
  return scored_files.read(expand(triplets), columns) if is_files(triplets) else []


def _plain(pairs: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
  return pairs if pairs is None or isinstance(pairs, str) else dict(pairs)


def scaled(train: TokenTable, held_out: TokenTable | None, kind: str, report: Mapping[str, Any]) -> Triplets:
  """Triplets of two tables, with rewards scaled as the training part's are, and counts in the report.

  Raises:
    UsageError: an unknown kind of scaling, or rewards that are all missing or equal.
  """
  try:
    fitted = scalings.fit(kind, train.raw_rewards, train.prompt_index)
  except UsageError as error:
    if not np.isnan(train.raw_rewards).any():
      raise
    raise UsageError(
      f'{error}. The first record without a reward: {train.report["reward_problem"]}'
    ) from error
  counts = _counts('train', train) | _counts('eval', held_out)
  return Triplets(
    train.scaled(fitted), held_out and held_out.scaled(fitted), fitted,
    {**report, **counts, 'scaling': fitted.to_json()},
  )  # fmt: skip


def require_rewards(triplets: Triplets, reader: str) -> None:
  """Refuses records without a reward.

  Args:
    triplets: of both tables.
    reader: the algorithm or command that needs rewards.

  Raises:
    UsageError: a record has no reward; names its file, line and field, and the remedy.
  """
  for table in filter(None, (triplets.train, triplets.eval)):
    table.require_rewards(reader)


def with_missing_rewards_zero(triplets: Triplets) -> Triplets:
  """The triplets with the reward 0 where a record has none, for algorithms that read no rewards."""
  tables = [table and table.with_missing_rewards_zero(triplets.scaling) for table in triplets[:2]]
  return triplets._replace(train=tables[0], eval=tables[1])


def few_held_out(held_out: int, prompts: int) -> str:
  """A sentence where so few of a file's prompts are held out that they decide nothing, or ''.

  Args:
    held_out: prompts held out; 0 of them is no validation at all, which others say.
    prompts: all prompts, held out or not.
  """
  if not 0 < held_out < FEW_HELD_OUT:
    return ''
  share = math.ceil(20 * FEW_HELD_OUT / prompts) / 20
  remedy = f'--set VALIDATION_FRACTION={share:g} holds out about {round(share * prompts)}'
  remedy = remedy if share <= 0.5 else 'gather more prompts, or pass others as --eval_triplets'
  some = f'{held_out} of {prompts} prompts {"is" if held_out == 1 else "are"} held out'
  return f'{some}, and validation on fewer than {FEW_HELD_OUT} decides nothing: {remedy}.'


def _counts(part: str, table: TokenTable | None) -> dict[str, Any]:
  """The sizes of a part, a hash of it, and a hash of each of its columns."""
  records, prompts = (len(table), len(np.unique(table.prompt_index))) if table else (0, 0)
  mark, columns = (table.fingerprint(), table.column_fingerprints()) if table else (None, {})
  return {
    f'{part}_records': records, f'{part}_prompts': prompts, f'{part}_fingerprint': mark,
    f'{part}_columns': columns,
  }  # fmt: skip


def with_columns(triplets: Triplets, stores: str | Sequence[str]) -> Triplets:
  """Joins column stores to both tables; drops the records that a store leaves out on purpose.

  Args:
    triplets: every example must be in every store.
    stores: folders, or a comma-separated string of them.

  Raises:
    UsageError: there is no store, it lacks examples, or no training example is left.
  """
  train, held_out, marks = triplets.train, triplets.eval, []
  for directory in stores.split(',') if isinstance(stores, str) else stores:
    store = column_store.read(directory)
    train, left_out = column_store.join(train, store)
    if left_out.all():
      raise UsageError(f'column store {directory}: the store leaves out every training example')
    train = train.subset(~left_out) if left_out.any() else train
    if held_out is not None:
      held_out, left_out = column_store.join(held_out, store)
      held_out = held_out.subset(~left_out) if left_out.any() else held_out
    marks.append(store.mark)
  joined = [*triplets.report.get('columns_from', ()), *marks]
  report = triplets.report | {'columns_from': joined} | _counts('train', train)
  return triplets._replace(train=train, eval=held_out, report=report)


def hold_out(
  whole: TokenTable, fraction: float | int, salt: str = '', setting: str = 'validation_fraction'
) -> tuple[TokenTable, TokenTable | None]:
  """Splits a table by prompt hash into (the rest, held out).

  Args:
    whole: the table.
    fraction: share of prompts to hold out, in [0, 1); 0 holds out none.
    salt: a different salt gives a different split.
    setting: that has the fraction, for errors.

  Raises:
    UsageError: a bad fraction, or a side without records.
  """
  if not 0 <= fraction < 1:
    raise UsageError(f'{setting} must be at least 0 and below 1, got {fraction}')
  if fraction == 0:
    return whole, None
  held = hashes.by_prompt_hash(whole.prompt_digests, fraction, salt)
  if held.all() or not held.any():
    prompts = len(np.unique(whole.prompt_index))
    instead = '--eval_triplets, ' if setting == 'validation_fraction' else ''
    raise UsageError(
      f'holding out {fraction:.0%} of {prompts} prompts by their hash leaves no record on one side; pass '
      f'{instead}another share (--set {setting.upper()}=0.2; 0 holds out none) or another split_salt'
    )
  return whole.subset(~held), whole.subset(held)


def _keep_for_tests(
  whole: TokenTable, fraction: float | int, salt: str
) -> tuple[TokenTable, TokenTable | None]:
  """(what trains and validates, what is kept for tests); validation is chosen independently of it."""
  return hold_out(whole, fraction, f'{salt}/test', 'test_fraction')


def _without(held_out: TokenTable, test: TokenTable | None, names: Sequence[str]) -> TokenTable:
  """The held-out records whose prompts are not kept for tests."""
  tested = np.isin(held_out.prompt_digests, [] if test is None else test.prompt_digests)
  if tested.all():
    raise UsageError(
      f'{", ".join(names)}: all of its prompts are among those that test_fraction (TEST_FRACTION) keeps for '
      'tests: pass other eval_triplets (--eval_triplets), or another split_salt'
    )
  return held_out.subset(~tested) if tested.any() else held_out
