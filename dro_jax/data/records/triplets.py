"""Triplet files: one record a line or row with a prompt, a response and, except for imitation, a reward.

A record with `chosen` and `rejected` instead is a comparison, and becomes two triplets (see `comparisons`).

Formats by name: .jsonl, .json, .csv, .tsv, each also .gz, and .parquet. An error in a record names the file,
the line and the field, and says how to fix it.
"""

import collections
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.data.records import (
  comparisons,
  field_paths,
  numbers,
  products,
  readers,
  reward_words,
  texts,
)
from dro_jax.data.records.fields import ALIASES, FIELDS, SAMPLER, checked_names
from dro_jax.data.records.fields import NUMERIC as NUMERIC
from dro_jax.data.records.fields import parse_columns as parse_columns
from dro_jax.data.records.file_names import expand as expand
from dro_jax.data.records.file_names import is_files as is_files
from dro_jax.data.records.ids import Ids, read_id
from dro_jax.data.records.readers import FORMATS as FORMATS
from dro_jax.data.records.readers import located as located
from dro_jax.data.text import chat

READING = 2  # Increase it where the same files give other records, so that older tables are not used.
_MOST_WORDS = 24  # More distinct texts are not ratings.


class Record(NamedTuple):
  """One triplet.

  Attributes:
    id: differs from every other record's.
    prompt, response: texts.
    reward: None where the record has no reward, or one that is not a number.
    columns: its other numbers.
    where: file:line, for errors.
    source: the seqio task that it comes from.
    reward_problem: why the reward is None, and what to do about it; only the first such record has it.
  """

  id: str
  prompt: str
  response: str
  reward: float | None
  columns: dict[str, float]
  where: str
  source: str = ''
  reward_problem: str = ''


def read_triplets(
  paths: str | Sequence[str],
  columns: str | Mapping[str, str] | None = None,
  *,
  rewards_required: bool = True,
  map_reward: str | Mapping[str, float | int] | None = None,
  chat_template: str | None = chat.TEMPLATE,
) -> Iterator[Record]:
  """Records of triplet files, one after the other.

  A prompt may be a conversation (see `chat`), and a response its one turn. A record without these two may
  have `messages`, or ShareGPT's `conversations`, whose last turn, the assistant's, is the response. A record
  with `chosen` and `rejected` is two: ID/chosen with reward 1 and ID/rejected with reward 0.

  Ids must differ, because errors, samples and replays name an example by its id. (Columns are joined to
  examples by their texts.)

  A chat product's export gives the answers that people rated (see `products`).

  Args:
    paths: see `expand`.
    columns: our name to the file's: 'prompt=question,response=answer,reward=thumbs'.
    rewards_required: whether a record without a usable reward is an error; otherwise its reward is None, and
      the first such record says why.
    map_reward: numbers for rewards that are words: 'up=1,down=0' (see `reward_words`).
    chat_template: of a turn of a conversation; None leaves turns to the model's own (see `chat`).

  Raises:
    UsageError: names file:line and field.
  """
  files = expand(paths)
  names = checked_names(columns)
  raw = (pair for path in files for pair in _located(path, names))
  options = {
    'columns': columns, 'rewards_required': rewards_required, 'map_reward': map_reward,
    'chat_template': chat_template,
  }  # fmt: skip
  typeless = {path for path in files if readers.format_of(path) in ('csv', 'tsv')}
  return _records(raw, typeless=typeless, name=', '.join(map(os.path.basename, files[:3])), **options)


def reward_words_of(
  paths: str | Sequence[str],
  columns: str | Mapping[str, str] | None = None,
  map_reward: str | Mapping[str, float | int] | None = None,
) -> dict[str, int]:
  """Counts of the reward texts that `map_reward` does not read.

  Returns {} where there are so many that they cannot be words (a field of free text).
  """
  names, rewards = checked_names(columns), reward_words.Rewards(reward_words.parse(map_reward))
  counts: collections.Counter[str] = collections.Counter()
  for path in expand(paths):
    textual = readers.format_of(path) in ('csv', 'tsv')
    for _, record in _located(path, names):
      value = field_paths.value(record, names, 'reward')
      if isinstance(value, str) and rewards(value, numbers.plain_number(value, textual)) is None:
        counts[value] += 1
      if len(counts) > _MOST_WORDS:
        return {}
  return dict(counts.most_common())


def read_prompts(
  paths: str | Sequence[str],
  columns: str | Mapping[str, str] | None = None,
  *,
  chat_template: str | None = chat.TEMPLATE,
) -> Iterator[tuple[str, str]]:
  """(id, prompt) of records that may hold nothing else; arguments and errors as `read_triplets`.

  The prompt of `messages` is all that comes before the assistant's last turn, or all of it where the last
  turn is another's.
  """
  names = checked_names(columns)
  chat.check_template(chat_template)
  ids = Ids()
  for path in expand(paths):
    for where, record in _located(path, names):
      record_id = read_id(record, names, where, ids)
      if comparisons.is_one(record, names):
        yield record_id, texts.read_sides(record, names, where, chat_template)['chosen'][0]
      else:
        yield record_id, texts.read_prompt(record, names, where, chat_template)


def from_located(
  located: Iterable[tuple[str, Mapping[str, Any]]],
  name: str,
  *,
  typeless: Collection[str] = (),
  **options: Any,
) -> Iterator[Record]:
  """Records of (file:line, fields); `typeless` files know text only; options as `read_triplets`."""
  return _records(located, name=name, typeless=typeless, **options)


def from_mappings(
  mappings: Iterable[Mapping[str, Any]], where: str = 'record', **options: Any
) -> Iterator[Record]:
  """Records from dicts in memory, checked like those of files; options as `read_triplets`."""
  return _records(((f'{where}:{i}', record) for i, record in enumerate(mappings, 1)), name=where, **options)


def _wanted_fields(names: Mapping[str, str]) -> set[str]:
  """The file's fields that may be read as something other than a number."""
  known = (*FIELDS, *comparisons.SIDES, *chat.BESIDE, *NUMERIC, *ALIASES, SAMPLER, texts.SHAREGPT)
  paths = [path for name in {*known, *names} if (path := names.get(name, name))]
  return {step for path in paths for step in field_paths.first_steps(path)}


def _located(path: str, names: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
  """(file:line, fields) of a file; of a chat product's export only its rated answers.

  Where the user named fields, an export is read like any other file.
  """
  records = located(path, _wanted_fields(names))
  named = any(names.get(name) for name in ('prompt', 'response', 'messages', *comparisons.SIDES))
  if named or readers.format_of(path) != 'json':
    return records
  return products.opened(path, records)


# --- fields to records --------------------------------------------------------------------------------------


def _records(
  raw: Iterable[tuple[str, Mapping[str, Any]]],
  *,
  columns: str | Mapping[str, str] | None = None,
  rewards_required: bool = True,
  map_reward: str | Mapping[str, float | int] | None = None,
  chat_template: str | None = chat.TEMPLATE,
  typeless: Collection[str] = (),
  name: str = 'records',
) -> Iterator[Record]:
  names = checked_names(columns)
  chat.check_template(chat_template)
  our_names, rewards = numbers.OurNames(names), reward_words.Rewards(reward_words.parse(map_reward))
  ids = Ids()
  has_problem = False
  for where, record in raw:
    textual = where.rpartition(':')[0] in typeless
    record_id = read_id(record, names, where, ids)
    if comparisons.is_one(record, names):
      yield from _compared(record, names, where, record_id, textual, chat_template)
      continue
    text_names = texts.with_sharegpt(record, names)
    prompt, response = texts.prompt_and_response(record, text_names, where, chat_template)
    number = numbers.read_reward(record, names, rewards, textual)
    reward, problem = (number if number is not None and numbers.is_finite(number) else None), ''
    if reward is None and (rewards_required or not has_problem):
      error = numbers.reward_problem(record, names, where, rewards, number)
      if rewards_required:
        raise error
      has_problem, problem = True, str(error)
    others = numbers.read_columns(record, names, our_names, where, textual)
    yield Record(record_id, prompt, response, reward, others, where, reward_problem=problem)
  rewards.warn(name)


def _compared(
  record: Mapping[str, Any],
  names: Mapping[str, str],
  where: str,
  record_id: str,
  textual: bool,
  template: str | None,
) -> Iterator[Record]:
  """The two triplets of a comparison."""
  other_names = {name: field for name, field in names.items() if name not in comparisons.SIDES}
  our_names = numbers.OurNames(other_names)
  our_names |= dict.fromkeys((*comparisons.SIDES, *(names.get(side) or side for side in comparisons.SIDES)))
  columns = numbers.read_columns(record, other_names, our_names, where, textual)
  columns |= {comparisons.COLUMN: comparisons.number(record_id)}
  for side, (prompt, response) in texts.read_sides(record, names, where, template).items():
    yield Record(f'{record_id}/{side}', prompt, response, comparisons.REWARDS[side], columns, where)
