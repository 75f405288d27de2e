"""A record's prompt and response: from fields, from a conversation, or from a comparison's sides."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dro_jax.data.records import comparisons, field_paths, fields
from dro_jax.data.text import chat
from dro_jax.errors import UsageError, shown

SHAREGPT = 'conversations'  # Its field with the turns.


def with_sharegpt(record: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, str]:
  """Our names of fields; where a record has no `messages` but ShareGPT's `conversations`, these are it."""
  talk = record.get(SHAREGPT)
  talk = field_paths.structured(talk) if isinstance(talk, str) else talk
  if 'messages' in names or 'messages' in record or not isinstance(talk, list) or not talk:
    return names
  return {**names, 'messages': SHAREGPT} if chat.is_sharegpt(talk[0]) else names


def prompt_and_response(
  record: Mapping[str, Any],
  names: Mapping[str, str],
  where: str,
  template: str | None,
  *,
  blank_responses: bool = False,
) -> tuple[str, str]:
  """(prompt, response) of a record that is not a comparison; a response's field may be blank if so asked."""
  if is_conversation(record, names, ('prompt', 'response')):
    return read_messages(chat.split, record, names, where, template)
  prompt = read_text(record, names, 'prompt', where, template)
  return prompt, read_text(record, names, 'response', where, template, may_be_blank=blank_responses)


def read_prompt(record: Mapping[str, Any], names: Mapping[str, str], where: str, template: str | None) -> str:
  """The prompt of a record that may hold nothing else: its field, or the turns to answer in `messages`."""
  spoken = with_sharegpt(record, names)
  if is_conversation(record, spoken, ('prompt',)):
    return read_messages(chat.question, record, spoken, where, template)
  return read_text(record, names, 'prompt', where, template)


def is_conversation(record: Mapping[str, Any], names: Mapping[str, str], replaced: Sequence[str]) -> bool:
  """Whether `messages` replaces these fields: the user named it, or they are neither named nor there."""
  if names.get('messages') or field_paths.value(record, names, 'messages') is None:
    return bool(names.get('messages'))
  return not any(name in names or record.get(name) is not None for name in replaced)


def read_messages(
  read: Callable[[Any, str | None, str], str | tuple[str, str]],
  record: Mapping[str, Any],
  names: Mapping[str, str],
  where: str,
  template: str | None,
) -> Any:
  """The field `messages`, read by `chat.split` or `chat.question`."""
  value = field_paths.value(record, names, 'messages')
  if value is None:
    raise fields.missing(record, names, 'messages', where)
  place = f'{where}: field {fields.described("messages", names)}'
  messages = chat.conversation(value, place, names)
  if messages is not None:
    _refuse_lost(record, names, 'messages', messages, where)
  texts = read(value if messages is None else messages, template, place)
  if reason := fields.why_unusable(texts if isinstance(texts, str) else ''.join(texts)):
    raise fields.wrong('messages', names, where, reason)
  return texts


def read_text(
  record: Mapping[str, Any],
  names: Mapping[str, str],
  name: str,
  where: str,
  template: str | None,
  *,
  may_be_blank: bool = False,
) -> str:
  """A field's text; a conversation becomes the text of a prompt or response.

  Raises:
    UsageError: the field is missing, not text, or blank where it may not be.
  """
  value = field_paths.value(record, names, name)
  if value is None:
    raise fields.missing(record, names, name, where)
  place = f'{where}: field {fields.described(name, names)}'
  if (messages := chat.conversation(value, place, names)) is not None:
    _refuse_lost(record, names, name, messages, where)
    value = chat.prompt(messages, template, place) if name == 'prompt' else chat.response(messages, place)
  else:
    _refuse_torn(record, names, name, where)
  if not isinstance(value, str):
    raise fields.wrong(name, names, where, f'is {shown(value)}, a {type(value).__name__}; it must be text')
  if not may_be_blank and (not value or value.isspace()):
    raise fields.wrong(name, names, where, 'is empty; remove the record or fill it in')
  if reason := fields.why_unusable(value):
    raise fields.wrong(name, names, where, reason)
  return value


def _refuse_lost(
  record: Mapping[str, Any], names: Mapping[str, str], name: str, messages: list[Any], where: str
) -> None:
  """Refuses content beside a conversation, in the record or in an object on the path to the conversation."""
  for holder in field_paths.holders(record, names.get(name, name)):
    if lost := chat.lost_beside(holder, messages, names):
      raise UsageError(
        f"{where}: field '{lost}' ({shown(holder[lost])}) stands beside a conversation; {chat.remedy(lost)}"
      )


def _refuse_torn(record: Mapping[str, Any], names: Mapping[str, str], name: str, where: str) -> None:
  """Refuses a path to a turn's content where the turn says more, such as calls of tools."""
  path = names.get(name, name)
  for holder in field_paths.holders(record, path)[1:]:
    if 'role' in holder and (lost := chat.lost_beside(holder, [holder], names)):
      raise UsageError(
        f"{where}: field '{lost}' ({shown(holder[lost])}) stands beside '{path}' in a turn, and would be "
        f'lost: write it into the text, remove the record, or ignore the field with --columns {lost}='
      )


# --- comparisons --------------------------------------------------------------------------------------------


def read_sides(
  record: Mapping[str, Any], names: Mapping[str, str], where: str, template: str | None
) -> dict[str, tuple[str, str]]:
  """(prompt, response) of each side of a comparison."""
  values = {side: field_paths.value(record, names, side) for side in comparisons.SIDES}
  if lacking := [side for side, value in values.items() if value is None]:
    raise fields.missing(record, names, lacking[0], where)
  prompt = field_paths.value(record, names, 'prompt')
  if prompt is None and names.get('prompt'):
    raise fields.missing(record, names, 'prompt', where)
  turns = {side: _turns(record, names, side, where) for side in values}
  if prompt is None and all(isinstance(value, str) and not turns[side] for side, value in values.items()):
    chosen, rejected = (read_text(record, names, side, where, template) for side in values)
    return comparisons.split_texts(chosen, rejected, where)
  return {side: _side(record, names, side, turns[side], prompt, where, template) for side in values}


def _turns(record: Mapping[str, Any], names: Mapping[str, str], side: str, where: str) -> list[Any] | None:
  """A side's turns, where it is a conversation."""
  place = f'{where}: field {fields.described(side, names)}'
  return chat.conversation(field_paths.value(record, names, side), place, names)


def _side(
  record: Mapping[str, Any],
  names: Mapping[str, str],
  side: str,
  turns: list[Any] | None,
  prompt: Any,
  where: str,
  template: str | None,
) -> tuple[str, str]:
  """(prompt, response) of one side: with the record's prompt, or split off its own whole conversation."""
  if turns is None or (prompt is not None and len(turns) == 1):
    question = read_text(record, names, 'prompt', where, template)
    return question, read_text(record, names, side, where, template)
  _refuse_lost(record, names, side, turns, where)
  texts = comparisons.split_turns(turns, prompt, template, f'{where}: field {fields.described(side, names)}')
  if reason := fields.why_unusable(''.join(texts)):
    raise fields.wrong(side, names, where, reason)
  return texts
