"""Our names for a file's fields, and the errors that name a field."""

import difflib
from collections.abc import Mapping
from typing import Any

from dro_jax.data.records import comparisons, field_paths
from dro_jax.data.text import chat
from dro_jax.errors import UsageError, did_you_mean, shown

FIELDS = ('prompt', 'response', 'reward', 'id', 'messages')
# Names that logs use, and the names of this project.
ALIASES = {'behaviour_logprob': 'behaviour_logps', 'reference_logprob': 'reference_logps'}
# The text column that says how a response was drawn, and its number: 1 where it was sampled.
SAMPLER, SAMPLED = 'behaviour_sampler', 'behaviour_sampled'
NUMERIC = ('label', 'behaviour_logps', 'reference_logps')  # Columns with a meaning: text in them is an error.
_LISTED = 20  # Fields that an error lists.
_NAME_LENGTH = 40  # Letters of a field's name that an error shows whole.


def parse_columns(columns: str | Mapping[str, str | None] | None) -> dict[str, str]:
  """'prompt=question,label=' (or a mapping, or nothing) as a dict; '' marks a column to ignore."""
  if not columns:
    return {}
  if isinstance(columns, Mapping):
    return {name: value or '' for name, value in columns.items()}
  parts = [part.partition('=') for part in columns.split(',')]
  if not all(key.strip() and equals for key, equals, _ in parts):
    raise UsageError(
      f"columns '{columns}': pass NAME=FIELD pairs separated by commas; NAME= alone ignores that column"
    )
  names = {key.strip(): value.strip() for key, _, value in parts}
  if len(names) < len(parts):
    raise UsageError(f"columns '{columns}': a name has two values; give it one")
  return names


def checked_names(columns: str | Mapping[str, str] | None) -> dict[str, str]:
  """Our names to the file's, '' where a column is ignored; two numbers never share a field."""
  names = parse_columns(columns)
  if needed := [name for name in ('prompt', 'response') if names.get(name) == '']:
    raise UsageError(
      f"columns '{needed[0]}=': every record needs its {needed[0]}; name its field: --columns "
      f'{needed[0]}=FIELD'
    )
  fields = [field for name, field in names.items() if name not in FIELDS and field]
  if repeated := [field for i, field in enumerate(fields) if field in fields[:i]]:
    raise UsageError(f"columns '{columns}': field '{repeated[0]}' has two names; give it one")
  return names


def described(name: str, names: Mapping[str, str]) -> str:
  """A field in an error: the file's name, with ours where it differs."""
  field = names.get(name) or name
  return f"'{field}'" if field == name else f"'{field}' (the {name})"


def wrong(name: str, names: Mapping[str, str], where: str, reason: str) -> UsageError:
  """The error of a field whose value cannot be used."""
  return UsageError(f'{where}: field {described(name, names)} {reason}')


def missing(fields: Mapping[str, Any], names: Mapping[str, str], name: str, where: str) -> UsageError:
  """The error of a field that a record lacks: lists the record's fields and suggests one."""
  listed = ', '.join(map(short, list(fields)[:_LISTED])) or 'no fields'
  listed += ', ...' if len(fields) > _LISTED else ''
  hint = did_you_mean(names.get(name, name), [str(field) for field in fields if str(field) not in FIELDS])
  own = [ours for ours in names if ours not in (*FIELDS, *comparisons.SIDES)]
  if name not in names and (typed := difflib.get_close_matches(name, own, n=1, cutoff=0.7)):
    hint = f'; --columns {typed[0]}={names[typed[0]]} names another column (did you mean {name}?)'
  path = names.get(name, name)
  if path not in fields and field_paths.is_path(path):
    hint = field_paths.how_far(fields, path)
  has_list = any(isinstance(value, list) for value in fields.values())
  remedy = ' (or, of a whole conversation, --columns messages=FIELD)' if has_list else ''
  remedy = _in_a_field(fields, where) or remedy
  if name == 'response' and any(isinstance(fields.get(side), str) for side in comparisons.SIDES):
    remedy += ' (a comparison has both chosen and rejected, and this record lacks one of them)'
  return UsageError(
    f'{where}: field {described(name, names)} is missing or empty; the record has {listed}{hint}. Name its '
    f'field with --columns {name}=FIELD{remedy}, or fill it in'
  )


def _in_a_field(fields: Mapping[str, Any], where: str) -> str:
  """The remedy where a .json is one object that holds the records as a list in one of its fields."""
  path, _, number = where.rpartition(':')
  lists = [
    name for name, value in fields.items()
    if isinstance(value, list) and value and isinstance(value[0], dict) and 'role' not in value[0]
    and not chat.is_sharegpt(value[0])
  ]  # fmt: skip
  if number != '1' or not path.endswith('.json') or len(lists) != 1:
    return ''
  return f"; if the records are in '{lists[0]}', make them lines: jq -c '.{lists[0]}[]' FILE > FILE.jsonl"


def short(name: Any) -> str:
  """A field's name, abbreviated where it is long."""
  return str(name) if len(str(name)) <= _NAME_LENGTH else shown(str(name))


def why_unusable(text: str) -> str:
  """Why a file or tokeniser could not hold a text; '' where all can."""
  if '\0' in text:
    return 'holds a NUL character, which ends the text for some programs; remove it'
  try:
    text.encode()
  except UnicodeEncodeError:
    return 'holds half a surrogate pair; repair the text'
  return ''
