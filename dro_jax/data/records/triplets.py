"""Triplet files: one record a line or row with a prompt, a response, and (but for plain imitation) a reward.

A record with `chosen` and `rejected` in place of these is a comparison, and two triplets (see `comparisons`).

Formats by name: .jsonl, .json, .csv, .tsv, each also .gz, and .parquet. Whatever is wrong with a record is
one error that names the file, the line and the field, and says what to do.
"""

import collections
import glob
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.data.records import comparisons, field_paths, products, readers, reward_words
from dro_jax.data.records.readers import FORMATS as FORMATS
from dro_jax.data.records.readers import located as located
from dro_jax.data.storage import buckets
from dro_jax.data.storage.disk_index import DiskIndex
from dro_jax.data.text import chat
from dro_jax.errors import UsageError, did_you_mean, shown
from dro_jax.files import is_remote
from dro_jax.types import SAMPLED

READING = 2  # Counts up where the same files give other records, so that no older table is taken for theirs.
FIELDS = ('prompt', 'response', 'reward', 'id', 'messages')
# What a log calls them, and what the rest of the project does.
_ALIASES = {'behaviour_logprob': 'behaviour_logps', 'reference_logprob': 'reference_logps'}
# Which text says how a log was drawn, and the number that it becomes: 1 where it was sampled.
_SAMPLER, _SAMPLED = 'behaviour_sampler', 'behaviour_sampled'
NUMERIC = (
  'label',
  'behaviour_logps',
  'reference_logps',
)  # Columns that mean something: text in them is an error.
_SHOWN = 20  # Fields that an error names.
_MOST_WORDS = 24  # More are no ratings.
_LINES = 2**40  # More than a file has.
_NAME_LENGTH = 40  # Letters of a field's name that it shows whole.


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


def is_files(name: str | Sequence[str]) -> bool:
  """Whether this looks like triplet files: a known ending, a path separator, or an existing file."""
  names = name.split(',') if isinstance(name, str) else list(name)
  # A seqio name has no separator; asking seqio takes ten seconds, too long for a mistyped path.
  return any(
    n.endswith(FORMATS) or os.sep in n or os.path.exists(n) or glob.has_magic(n) for n in map(str, names)
  )


def expand(paths: str | Sequence[str]) -> list[str]:
  """File names from one path, several, a comma-separated string or glob patterns, in order.

  Those in a bucket (gs://...) are copied here (see `staging`).

  Raises:
    UsageError: nothing there, no file, one file twice, or a format that is not known.
  """
  if isinstance(paths, str):
    paths = [paths] if os.path.exists(paths) else paths.split(',')
  found = []
  for path in map(os.path.expanduser, map(str, paths)):
    if is_remote(path):
      found += buckets.files(path)
      continue
    matches = sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
    found += [_file(match, path) for match in matches or ['']]
  for path in found:
    if not path.endswith(FORMATS):
      raise UsageError(f"triplets '{path}': unknown format; the name must end in one of {', '.join(FORMATS)}")
  real = [os.path.realpath(path) for path in found]
  if repeated := [path for i, path in enumerate(found) if real[i] in real[:i]]:
    raise UsageError(
      f"triplets '{repeated[0]}': the file is named twice, so each of its records would count twice; name it "
      'once'
    )
  return found


def _files_of(folder: str) -> str:
  """A pattern of the files in a folder that can be read."""
  names = sorted(name for name in os.listdir(folder) if name.endswith(FORMATS))
  # The longest ending that a name has: a .jsonl.gz is no .gz of anything else.
  endings = [max(filter(names[0].endswith, FORMATS), key=len)] if names else ['.jsonl']
  return os.path.join(folder, f'*{endings[0]}')


def _file(path: str, pattern: str) -> str:
  if os.path.isdir(path):
    raise UsageError(f"triplets '{path}': it is a folder; pass its files: '{_files_of(path)}'")
  if os.path.exists(path) and not os.path.isfile(path):
    raise UsageError(f"triplets '{path}': a pipe or device, which cannot be read twice; pass a file")
  if not os.path.isfile(path):
    raise UsageError(f"triplets '{pattern}': there is no such file")
  return path


def parse_columns(columns: str | Mapping[str, str | None] | None) -> dict[str, str]:
  """'prompt=question,label=' (or a mapping, or nothing) as a dict; what is '' there is left alone."""
  if not columns:
    return {}
  if isinstance(columns, Mapping):
    return {name: value or '' for name, value in columns.items()}
  parts = [part.partition('=') for part in columns.split(',')]
  if not all(key.strip() and equals for key, equals, _ in parts):
    raise UsageError(
      f"columns '{columns}': pass NAME=FIELD pairs separated by commas; NAME= alone leaves that column alone"
    )
  found = {key.strip(): value.strip() for key, _, value in parts}
  if len(found) < len(parts):
    raise UsageError(f"columns '{columns}': a name has two values; give it one")
  return found


def read_triplets(
  paths: str | Sequence[str],
  columns: str | Mapping[str, str] | None = None,
  *,
  rewards_required: bool = True,
  map_reward: str | Mapping[str, float | int] | None = None,
  chat_template: str = chat.TEMPLATE,
) -> Iterator[Record]:
  """Records of triplet files, one after the other.

  A prompt may be a conversation (see `chat`), and a response its one turn. A record of neither may have
  `messages`, whose last turn, the assistant's, is the response. A record with `chosen` and `rejected` is two,
  ID/chosen of reward 1 and ID/rejected of reward 0.

  Ids must differ, or the record is refused: errors, samples and replays name an example by its id. (What is
  joined to examples later goes by their texts.)

  A chat product's export gives the answers that people rated (see `products`).

  Args:
    paths: see `expand`.
    columns: our name to the file's: 'prompt=question,response=answer,reward=thumbs'.
    rewards_required: whether a record without a usable reward is an error; otherwise its reward is None, and
      the first such record says why.
    map_reward: numbers for rewards that are words: 'up=1,down=0' (see `reward_words`).
    chat_template: of a turn of a conversation.

  Raises:
    UsageError: names file:line and field.
  """
  files = expand(paths)
  names = _names(columns)
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
  """Texts that stand for rewards and that `map_reward` does not read, each with how often it occurs.

  So many that they cannot be words (a field of free text) are nothing: {}.
  """
  names, rewards = _names(columns), reward_words.Rewards(reward_words.parse(map_reward))
  counts: collections.Counter[str] = collections.Counter()
  for path in expand(paths):
    textual = readers.format_of(path) in ('csv', 'tsv')
    for _, fields in _located(path, names):
      value = field_paths.value(fields, names, 'reward')
      if isinstance(value, str) and rewards(value, _number(value, textual)) is None:
        counts[value] += 1
      if len(counts) > _MOST_WORDS:
        return {}
  return dict(counts.most_common())


def read_prompts(
  paths: str | Sequence[str],
  columns: str | Mapping[str, str] | None = None,
  *,
  chat_template: str = chat.TEMPLATE,
) -> Iterator[tuple[str, str]]:
  """(id, prompt) of the records of files that need not hold more; arguments and errors as `read_triplets`.

  Of `messages` it is what comes before the assistant's last turn, or all, if the last turn is another's.
  """
  names = _names(columns)
  chat.check_template(chat_template)
  ids = _Ids()
  for path in expand(paths):
    for where, fields in _located(path, names):
      record_id = _id(fields, names, where, ids)
      if comparisons.is_one(fields, names):
        yield record_id, _sides(fields, names, where, chat_template)['chosen'][0]
      elif _is_conversation(fields, names, ('prompt',)):
        yield record_id, _of_messages(chat.question, fields, names, where, chat_template)
      else:
        yield record_id, _text(fields, names, 'prompt', where, chat_template)


def from_located(
  located: Iterable[tuple[str, Mapping[str, Any]]], name: str, *, typeless: Collection[str] = (), **options
) -> Iterator[Record]:
  """Records of (file:line, fields); `typeless` files know text only; options as `read_triplets`."""
  return _records(located, name=name, typeless=typeless, **options)


def from_mappings(
  mappings: Iterable[Mapping[str, Any]], where: str = 'record', **options
) -> Iterator[Record]:
  """Records from dicts in memory, checked like those of files; options as `read_triplets`."""
  return _records(((f'{where}:{i}', fields) for i, fields in enumerate(mappings, 1)), name=where, **options)


# --- fields to records --------------------------------------------------------------------------------------


def _records(
  raw: Iterable[tuple[str, Mapping[str, Any]]],
  *,
  columns: str | Mapping[str, str] | None = None,
  rewards_required: bool = True,
  map_reward: str | Mapping[str, float | int] | None = None,
  chat_template: str = chat.TEMPLATE,
  typeless: Collection[str] = (),
  name: str = 'records',
) -> Iterator[Record]:
  names = _names(columns)
  chat.check_template(chat_template)
  carried, rewards = _Carried(names), reward_words.Rewards(reward_words.parse(map_reward))
  ids = _Ids()
  has_problem = False
  for where, fields in raw:
    textual = where.rpartition(':')[0] in typeless
    if comparisons.is_one(fields, names):
      yield from _compared(fields, names, where, _id(fields, names, where, ids), textual, chat_template)
      continue
    record_id = _id(fields, names, where, ids)
    prompt, response = _texts(fields, names, where, chat_template)
    number = _reward(fields, names, rewards, textual)
    reward, problem = (number if number is not None and _is_finite(number) else None), ''
    if reward is None and (rewards_required or not has_problem):
      error = _reward_problem(fields, names, where, rewards, number)
      if rewards_required:
        raise error
      has_problem, problem = True, str(error)
    numbers = _columns(fields, names, carried, where, textual)
    yield Record(record_id, prompt, response, reward, numbers, where, reward_problem=problem)
  rewards.warn(name)


def _compared(
  fields: Mapping[str, Any], names: Mapping[str, str], where: str, name: str, textual: bool, template: str
) -> Iterator[Record]:
  """The two triplets of a comparison."""
  others = {ours: theirs for ours, theirs in names.items() if ours not in comparisons.SIDES}
  carried = _Carried(others)
  carried |= dict.fromkeys((*comparisons.SIDES, *(names.get(side) or side for side in comparisons.SIDES)))
  numbers = _columns(fields, others, carried, where, textual)
  numbers |= {comparisons.COLUMN: comparisons.number(name)}
  for side, (prompt, response) in _sides(fields, names, where, template).items():
    yield Record(f'{name}/{side}', prompt, response, comparisons.REWARDS[side], numbers, where)


def _sides(
  fields: Mapping[str, Any], names: Mapping[str, str], where: str, template: str
) -> dict[str, tuple[str, str]]:
  """(prompt, response) of a comparison's sides."""
  values = {side: field_paths.value(fields, names, side) for side in comparisons.SIDES}
  if lacking := [side for side, value in values.items() if value is None]:
    raise _missing(fields, names, lacking[0], where)
  prompt = field_paths.value(fields, names, 'prompt')
  if prompt is None and names.get('prompt'):
    raise _missing(fields, names, 'prompt', where)
  talks = {side: _turns(fields, names, side, where) for side in values}
  if prompt is None and all(isinstance(value, str) and not talks[side] for side, value in values.items()):
    return comparisons.split_texts(*(_text(fields, names, side, where, template) for side in values), where)
  return {side: _side(fields, names, side, talks[side], prompt, where, template) for side in values}


def _turns(fields: Mapping[str, Any], names: Mapping[str, str], side: str, where: str) -> list | None:
  """A side's turns, where it is a conversation."""
  what = f'{where}: field {_called(side, names)}'
  return chat.conversation(field_paths.value(fields, names, side), what, names)


def _side(
  fields, names: Mapping[str, str], side: str, turns: list | None, prompt: Any, where: str, template: str
) -> tuple[str, str]:
  """(prompt, response) of one side: by the record's prompt or, of a whole conversation, its own turns."""
  if turns is None or (prompt is not None and len(turns) == 1):
    asked = _text(fields, names, 'prompt', where, template)
    return asked, _text(fields, names, side, where, template)
  _refuse_lost(fields, names, side, turns, where)
  found = comparisons.split_turns(turns, prompt, template, f'{where}: field {_called(side, names)}')
  if reason := _unsound(''.join(found)):
    raise _wrong(side, names, where, reason)
  return found


def _names(columns: str | Mapping[str, str] | None) -> dict[str, str]:
  """Our names to the file's, '' where a column is left alone; a number of ours has its own field."""
  names = parse_columns(columns)
  if needed := [name for name in ('prompt', 'response') if names.get(name) == '']:
    raise UsageError(
      f"columns '{needed[0]}=': every record needs its {needed[0]}; say which field it is: {needed[0]}=FIELD"
    )
  fields = [field for name, field in names.items() if name not in FIELDS and field]
  if repeated := [field for i, field in enumerate(fields) if field in fields[:i]]:
    raise UsageError(f"columns '{columns}': field '{repeated[0]}' is given two names; give it one")
  return names


def _wanted(names: Mapping[str, str]) -> set[str]:
  """The file's fields that may be read as anything but a number of the record's."""
  ours = (*FIELDS, *comparisons.SIDES, *chat.BESIDE, *NUMERIC, *_ALIASES, _SAMPLER)
  theirs = [path for name in {*ours, *names} if (path := names.get(name, name))]
  return {step for path in theirs for step in field_paths.first_steps(path)}


def _located(path: str, names: Mapping[str, str]) -> Iterator[tuple[str, dict]]:
  """(file:line, fields) of a file; of a chat product's export, unless fields are named, its rated answers."""
  found = located(path, _wanted(names))
  named = any(names.get(name) for name in ('prompt', 'response', 'messages', *comparisons.SIDES))
  if named or readers.format_of(path) != 'json':
    return found
  return products.opened(path, found)


def _called(name: str, names: Mapping[str, str]) -> str:
  """How errors name a field: by the file's name, and ours where it differs."""
  theirs = names.get(name) or name
  return f"'{theirs}'" if theirs == name else f"'{theirs}' (the {name})"


def _missing(fields: Mapping[str, Any], names: Mapping[str, str], name: str, where: str) -> UsageError:
  known = ', '.join(map(_short, list(fields)[:_SHOWN])) or 'no fields'
  known += ', ...' if len(fields) > _SHOWN else ''
  near = did_you_mean(names.get(name, name), [str(field) for field in fields if str(field) not in FIELDS])
  talk = ' (or, of a whole conversation, --columns messages=FIELD)' if _has_list(fields) else ''
  path = names.get(name, name)
  near = field_paths.how_far(fields, path) if path not in fields and field_paths.is_path(path) else near
  talk = _in_a_field(fields, where) or talk
  if name == 'response' and any(isinstance(fields.get(side), str) for side in comparisons.SIDES):
    talk += ' (a comparison has both chosen and rejected, and this record lacks one of them)'
  return UsageError(
    f'{where}: field {_called(name, names)} is missing or empty; the record has {known}{near}. Say which one '
    f'it is with --columns {name}=FIELD{talk}, or fill it in'
  )


def _in_a_field(fields: Mapping[str, Any], where: str) -> str:
  """What to do where a .json is one object, and its records are the list in one of its fields."""
  path, _, number = where.rpartition(':')
  lists = [
    name for name, value in fields.items()
    if isinstance(value, list) and value and isinstance(value[0], dict) and 'role' not in value[0]
  ]  # fmt: skip
  if number != '1' or not path.endswith('.json') or len(lists) != 1:
    return ''
  return f"; if the records are in '{lists[0]}', make them lines: jq -c '.{lists[0]}[]' FILE > FILE.jsonl"


def _short(name: Any) -> str:
  return str(name) if len(str(name)) <= _NAME_LENGTH else shown(str(name))


def _has_list(fields: Mapping[str, Any]) -> bool:
  return any(isinstance(value, list) for value in fields.values())


class _Ids:
  """Ids that were given, and where, in memory that does not grow with them."""

  def __init__(self):
    self._seen, self._files = DiskIndex(), {}

  def __contains__(self, text: str) -> bool:
    return self._seen.get(text) is not None

  def add(self, text: str, where: str) -> str | None:
    """Where the id was given before, or None."""
    path, _, line = where.rpartition(':')
    number = self._files.setdefault(path, len(self._files)) * _LINES + int(line)
    if (first := self._seen.setdefault(text, number)) == number:
      return None
    file, line = divmod(first, _LINES)
    return f'{list(self._files)[file]}:{line}'


def _id(fields: Mapping[str, Any], names: Mapping[str, str], where: str, seen: _Ids) -> str:
  """The record's own id, or else file:line; it is put with those seen."""
  value = field_paths.value(fields, names, 'id')
  if value is None and names.get('id'):
    raise _missing(fields, names, 'id', where)
  if value is None:
    short = os.path.basename(where)
    value = where if short in seen else short
  if not isinstance(value, str | int) or isinstance(value, bool):
    raise _wrong(
      'id', names, where, f'is {shown(value)}; an id must be text or a whole number. If it is none, leave '
      'the column alone by --columns id=, and ids will be FILE:LINE'
    )  # fmt: skip
  text = str(value)
  if reason := _unsound(text):
    raise _wrong('id', names, where, reason)
  if before := seen.add(text, where):
    raise UsageError(
      f'{where}: id {shown(value)} (field {_called("id", names)}) was used before at {before}; give every '
      'record its own id, or remove the field and ids will be FILE:LINE'
    )
  return text


def _texts(fields: Mapping[str, Any], names: Mapping[str, str], where: str, template: str) -> tuple[str, str]:
  """(prompt, response)."""
  if _is_conversation(fields, names, ('prompt', 'response')):
    return _of_messages(chat.split, fields, names, where, template)
  prompt = _text(fields, names, 'prompt', where, template)
  return prompt, _text(fields, names, 'response', where, template)


def _is_conversation(fields: Mapping[str, Any], names: Mapping[str, str], instead_of: Sequence[str]) -> bool:
  """Whether `messages` stands for these fields: it is asked for, or they are neither named nor there."""
  if names.get('messages') or field_paths.value(fields, names, 'messages') is None:
    return bool(names.get('messages'))
  return not any(name in names or fields.get(name) is not None for name in instead_of)


def _of_messages(read: Callable, fields, names: Mapping[str, str], where: str, template: str) -> Any:
  value = field_paths.value(fields, names, 'messages')
  if value is None:
    raise _missing(fields, names, 'messages', where)
  what = f'{where}: field {_called("messages", names)}'
  messages = chat.conversation(value, what, names)
  if messages is not None:
    _refuse_lost(fields, names, 'messages', messages, where)
  found = read(value if messages is None else messages, template, what)
  if reason := _unsound(found if isinstance(found, str) else ''.join(found)):
    raise _wrong('messages', names, where, reason)
  return found


def _refuse_lost(
  fields: Mapping[str, Any], names: Mapping[str, str], name: str, messages: list, where: str
) -> None:
  """Refuses what a record, or an object on the way to its conversation, says beside it."""
  for holder in field_paths.holders(fields, names.get(name, name)):
    if lost := chat.lost_beside(holder, messages, names):
      raise UsageError(
        f"{where}: field '{lost}' ({shown(holder[lost])}) stands beside a conversation; {chat.remedy(lost)}"
      )


def _refuse_torn(fields: Mapping[str, Any], names: Mapping[str, str], name: str, where: str) -> None:
  """Refuses a path to a turn's content that leaves behind what else the turn says, as calls of tools."""
  path = names.get(name, name)
  for holder in field_paths.holders(fields, path)[1:]:
    if 'role' in holder and (lost := chat.lost_beside(holder, [holder], names)):
      raise UsageError(
        f"{where}: field '{lost}' ({shown(holder[lost])}) stands beside '{path}' in a turn, and would be "
        f'lost: write it into the text, remove the record, or leave the field alone by --columns {lost}='
      )


def _text(fields: Mapping[str, Any], names: Mapping[str, str], name: str, where: str, template: str) -> str:
  value = field_paths.value(fields, names, name)
  if value is None:
    raise _missing(fields, names, name, where)
  what = f'{where}: field {_called(name, names)}'
  if (messages := chat.conversation(value, what, names)) is not None:
    _refuse_lost(fields, names, name, messages, where)
    value = chat.prompt(messages, template, what) if name == 'prompt' else chat.response(messages, what)
  else:
    _refuse_torn(fields, names, name, where)
  if not isinstance(value, str):
    raise _wrong(name, names, where, f'is {shown(value)}, a {type(value).__name__}; it must be text')
  if not value or value.isspace():
    raise _wrong(name, names, where, 'is empty; remove the record or fill it in')
  if reason := _unsound(value):
    raise _wrong(name, names, where, reason)
  return value


def _wrong(name: str, names: Mapping[str, str], where: str, what: str) -> UsageError:
  return UsageError(f'{where}: field {_called(name, names)} {what}')


def _unsound(text: str) -> str:
  """Why some file or tokeniser could not hold a text; '' where all can."""
  if '\0' in text:
    return 'holds a NUL character, which ends a text for some; remove it'
  try:
    text.encode()
  except UnicodeEncodeError:
    return 'holds half a surrogate pair; repair the text'
  return ''


def _reward(
  fields: Mapping[str, Any], names: Mapping[str, str], rewards: reward_words.Rewards, textual: bool
) -> float | None:
  """The number that the record's reward is or stands for; None where it is missing or stands for none."""
  value = field_paths.value(fields, names, 'reward')
  return rewards(value, _number(value, textual))


def _reward_problem(
  fields: Mapping[str, Any],
  names: Mapping[str, str],
  where: str,
  rewards: reward_words.Rewards,
  number: float | None,
) -> UsageError:
  """Why a record has no reward, or why the number that it has cannot be one."""
  value = field_paths.value(fields, names, 'reward')
  if value is None:
    return _missing(fields, names, 'reward', where)
  described = f'{where}: field {_called("reward", names)} is {shown(value)}'
  if number is not None:
    return UsageError(
      f'{described}; a reward must be finite in float32: remove the record, or correct the number'
    )
  return UsageError(
    f'{described}, {_inside(value, names.get("reward") or "reward") or rewards.why_not(value)}'
  )


def _inside(value: Any, path: str) -> str:
  """How to name the reward in a list or object; '' where it is neither."""
  found = field_paths.structured(value) if isinstance(value, str) else value
  if isinstance(found, list) and found:
    return f'not a number but a list of {len(found)}; name one of its items: --columns reward={path}.0'
  if isinstance(found, dict) and found:
    return (
      f'not a number but an object; name a field of it: --columns reward={path}.{_short(next(iter(found)))}'
    )
  return ''


_LARGEST = float(np.finfo(np.float32).max)


def _is_finite(number: float) -> bool:
  """As the networks have it: in float32."""
  return abs(number) <= _LARGEST


def _number(value: Any, textual: bool) -> float | None:
  """A number or boolean as a float, from text too where the format has no types; None for anything else."""
  try:
    if isinstance(value, str):
      return _of_text(value) if textual else None
    return float(value) if hasattr(value, '__float__') else None
  except OverflowError:
    return math.inf
  except (TypeError, ValueError):
    return None


def _of_text(text: str) -> float | None:
  lowered = text.strip().lower()
  return float(lowered == 'true') if lowered in ('true', 'false') else reward_words.as_number(text)


class _Carried(dict):
  """From the file's name of a column to ours; None for the fields that every triplet has."""

  def __init__(self, names: Mapping[str, str]):
    super().__init__(dict.fromkeys([*FIELDS, *(names.get(field, field) for field in FIELDS)]))
    self |= {theirs: _ALIASES.get(name, name) for name, theirs in names.items() if name not in FIELDS}
    taken = {*names.values()}
    self |= dict.fromkeys(name for name, theirs in names.items() if not theirs and name not in taken)

  def __missing__(self, theirs: str) -> str:
    return self.setdefault(theirs, _ALIASES.get(theirs, theirs))


def _columns(
  fields, names: Mapping[str, str], carried: _Carried, where: str, textual: bool
) -> dict[str, float]:
  """The record's other numbers, under our names; text is left out, unless the column has a meaning."""
  found = {}
  asked = {
    name: field_paths.reach(fields, path) for name, path in names.items() if path and name not in FIELDS
  }
  for name, value in asked.items():
    if value is None:
      raise _missing(fields, names, name, where)
  for theirs, value in {**fields, **{names[name]: value for name, value in asked.items()}}.items():
    name = carried[theirs]
    if name is None or value is None:
      continue
    if name == _SAMPLER:
      found[_SAMPLED] = float(str(value).strip().lower() in SAMPLED)
      continue
    number = _number(value, textual)
    if number is not None and _is_finite(number):
      found[name] = number
    elif name in NUMERIC or theirs in names.values():
      raise UsageError(
        f"{where}: field '{theirs}' is {shown(value)}; it must be a finite number{_alone(theirs, names)}"
      )
  if found.get('label', 0) not in (0, 1):
    label = names.get('label', 'label')
    raise UsageError(
      f"{where}: field '{label}' is {found['label']}; a label must be 0 or 1{_alone(label, names)}"
    )
  return found


def _alone(theirs: str, names: Mapping[str, str]) -> str:
  """How to leave alone a column that nobody named."""
  if theirs in names.values():
    return ''
  return f'. If it is something else, leave it alone by --columns {theirs}='
