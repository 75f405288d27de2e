"""Answers of files, to score or to compare: each with its texts, and its record's fields under our names."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax import files
from dro_jax.data.records import (
  comparisons,
  field_paths,
  inheritance,
  numbers,
  products,
  readers,
  texts,
)
from dro_jax.data.records.fields import FIELDS, checked_names
from dro_jax.data.records.file_names import expand
from dro_jax.data.records.ids import Ids, read_id
from dro_jax.errors import UsageError


class Answer(NamedTuple):
  """One answer.

  Attributes:
    prompt, response: texts; a prompt that is a conversation is its turns as JSON (see `text.chat`).
    fields: all that its record holds, by our names.
    where: file:line, for errors.
  """

  prompt: str
  response: str
  fields: dict[str, Any]
  where: str


def read_answers(
  paths: str | Sequence[str], columns: str | Mapping[str, str] | None = None, *, keep_pairs: bool = False
) -> Iterator[Answer]:
  """The answers of triplet files, with or without rewards; a comparison is two, as in `read_triplets`.

  Fields that the user named have our names, and those that he ignores are left out. A field's number that a
  format without types holds as text is a number. A response may be blank: a policy may answer nothing. The
  fields make the same triplet when they are read again.

  Args:
    paths: of any triplet format.
    columns: our name to the file's: 'prompt=question,response=answer'.
    keep_pairs: whether the two answers of a comparison have its number, as the field `comparison`.

  Raises:
    UsageError: names file:line and field.
  """
  names, ids = checked_names(columns), Ids()
  for path in expand(paths):
    is_textual = readers.format_of(path) in ('csv', 'tsv')
    for where, record in _located(path, names):
      record_id = read_id(record, names, where, ids)
      fields = _in_our_names(record, names, is_textual) | {'id': record_id}
      if comparisons.is_one(record, names):
        number = {comparisons.COLUMN: comparisons.number(record_id)} if keep_pairs else {}
        yield from _compared(record, names, where, fields | number)
        continue
      spoken = texts.with_sharegpt(record, names)
      prompt, response = texts.prompt_and_response(record, spoken, where, None, blank_responses=True)
      yield Answer(prompt, response, fields, where)


def read_unchecked(
  path: str, columns: str | Mapping[str, str] | None = None, *, chat_template: str | None = None
) -> Iterator[Answer]:
  """The answers of a file to be compared, as a policy gave them, otherwise as `read_answers`.

  A response may be any text, ids may repeat or be missing, and a comparison is refused.

  Args:
    path: of any triplet format.
    columns: our name to the file's; those that the file lacks are passed over.
    chat_template: of each turn of a prompt that is a conversation; `None` leaves it its turns as JSON.

  Raises:
    UsageError: a record has no prompt or response; names file:line and field.
  """
  present = inheritance.options({'columns': columns}, path, None)['columns'] if columns else None
  names = checked_names(present)
  for file in expand(path):
    is_textual = readers.format_of(file) in ('csv', 'tsv')
    for where, record in _located(file, names):
      prompt, response = _unchecked_texts(record, names, where, chat_template)
      yield Answer(prompt, response, _in_our_names(record, names, is_textual), where)


def _unchecked_texts(
  record: Mapping[str, Any], names: Mapping[str, str], where: str, template: str | None
) -> tuple[str, str]:
  response = field_paths.value(record, names, 'response')
  if isinstance(response, str):  # Neither read as turns nor refused for its characters.
    return texts.read_prompt(record, names, where, template), response
  spoken = texts.with_sharegpt(record, names)
  return texts.prompt_and_response(record, spoken, where, template)


def new_file(output: str, paths: Sequence[str]) -> pathlib.Path:
  """The file for answers that are made of those in other files.

  Args:
    output: its name, .jsonl.
    paths: the other files.

  Raises:
    UsageError: its name ends otherwise, it is one of the others, or it cannot be written.
  """
  target = files.output_file(output)
  if not target.name.endswith('.jsonl'):
    raise UsageError(
      f'--output={output}: answers are written as JSON lines, so that the name must end in .jsonl: pass '
      f'--output={target.with_suffix(".jsonl")}.'
    )
  files.refuse_input(target, paths)
  return target


def can_train(response: str) -> bool:
  """Whether a file of triplets may have this response: it is not blank, and holds no NUL character."""
  return bool(response.strip()) and '\0' not in response


def _located(path: str, names: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
  """(file:line, fields) of a file, with all of its fields; of a chat product's export its rated answers."""
  records = readers.located(path)
  named = any(names.get(name) for name in ('prompt', 'response', 'messages', *comparisons.SIDES))
  return records if named or readers.format_of(path) != 'json' else products.opened(path, records)


def _in_our_names(record: Mapping[str, Any], names: Mapping[str, str], is_textual: bool) -> dict[str, Any]:
  kept = {
    name: _typed(name, value, is_textual)
    for name, value in record.items()
    if name not in names.values() and names.get(name) != ''
  }
  named = {name: field_paths.reach(record, path) for name, path in names.items() if path}
  return kept | {name: _typed(name, value, is_textual) for name, value in named.items() if value is not None}


def _typed(name: str, value: Any, is_textual: bool) -> Any:
  if not is_textual or name in ('prompt', 'response', 'id', *comparisons.SIDES):
    return value
  number = numbers.plain_number(value, True)
  return value if number is None else number


def _compared(
  record: Mapping[str, Any], names: Mapping[str, str], where: str, fields: Mapping[str, Any]
) -> Iterator[Answer]:
  """The two answers of a comparison."""
  others = {name: value for name, value in fields.items() if name not in (*FIELDS, *comparisons.SIDES)}
  for side, (prompt, response) in texts.read_sides(record, names, where, None).items():
    own = {'id': f'{fields["id"]}/{side}', 'prompt': prompt, 'response': response}
    yield Answer(prompt, response, {**own, 'reward': comparisons.REWARDS[side], **others}, where)


__all__ = ['Answer', 'can_train', 'new_file', 'read_answers', 'read_unchecked']
