"""Conversations, lists of {"role": ..., "content": ...}, as the texts of prompts and responses.

A prompt is its turns by a template, each on its own line: by default `user: ...` and `assistant: ...`. (T5's
vocabulary turns line breaks into blanks; then the roles' names separate the turns.) A response is one turn of
the assistant, without its role.

A model with a chat template of its own renders the turns itself (see `tokenise`). Then a prompt stays a list,
as JSON, or, of one turn of the user, its text; such a text reads back as the turns.

A turn may be ShareGPT's {"from": "human" or "gpt" or "system", "value": ...} too.

A conversation may be a list; text that spells the list, in JSON or as Python writes it; an object with such a
list as `messages`; or an object that is one turn.

A turn, a part of its content or the record may hold more that a model's own template would show and this
template would lose: calls of tools, names, reasoning, files. Such a record is refused. Numbers, empty fields
and `METADATA`, which no model reads, are ignored.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax import files
from dro_jax.data.records import field_paths
from dro_jax.data.text import templates
from dro_jax.errors import UsageError, did_you_mean, shown

TEMPLATE = '{role}: {content}'
ANSWERS, ASKS = '\n\nAssistant:', '\n\nHuman:'  # How turns begin in a dialogue of HH.
ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
_SHAREGPT = {'human': 'user', 'gpt': 'assistant'}  # Its names of roles; others are ours.
_OPTIONAL = ('system', 'developer')  # Roles whose empty turns are left out.
# The author of a turn, its time, its cost and its rating.
METADATA = frozenset((
  '_id', 'id', 'index', 'type', 'object', 'status', 'message_id', 'messageId', 'parent_id', 'parentId',
  'parentMessageId', 'childrenIds', 'conversation_id', 'conversationId', 'conversation_hash', 'chat_id',
  'session_id', 'thread_id', 'run_id', 'trace_id', 'span_id', 'assistant_id', 'request_id', 'response_id',
  'tool_call_id', 'turn_identifier', 'user', 'user_id', 'hashed_ip',
  'created', 'created_at', 'createdAt', 'created_date', 'updated', 'updated_at', 'updatedAt', 'timestamp',
  'date', 'time',
  'model', 'models', 'model_id', 'modelName', 'modelIdx', 'selectedModelId', 'provider', 'endpoint',
  'system_fingerprint', 'service_tier', 'usage', 'token_count', 'tokenCount', 'latency', 'cost', 'info',
  'logprobs', 'finish_reason', 'stop_reason', 'stop_sequence', 'cache_control',
  'metadata', 'meta', 'tags', 'labels', 'category', 'source', 'language', 'lang', 'country', 'state',
  'header', 'toxic', 'redacted', 'openai_moderation', 'detoxify_moderation', 'moderation',
  'feedback', 'feedbackId', 'annotation', 'rating', 'score',
  'followUps', 'statusHistory', 'userContext', 'lastSentence', 'iconURL',
))  # fmt: skip
# Fields beside a conversation that a model's own template would show.
BESIDE = (
  'system', 'tools', 'functions', 'tool_calls', 'function_call', 'documents', 'images', 'image', 'videos',
  'video', 'audios', 'audio',
)  # fmt: skip
# A list whose first object has a role or a content, among its first fields.
_BEGINS = re.compile(r"""\s*\[\s*\{[^{}\[\]]{0,200}?["'](role|content)["']\s*:""")
_EMPTY = re.compile(r'\s*(\[\s*\]|\{\s*\}|null|None)?\s*')  # Text of an empty list or object, or no text.
_TEXTS = ('text', 'input_text', 'output_text')  # Types of parts.


_HH_ROLES = {ANSWERS: 'assistant', ASKS: 'user'}


class Turn(NamedTuple):
  """One turn of a conversation: a role and its text."""

  role: str
  content: str


def check_template(template: str | None) -> str | None:
  """Refuses a turn's template that lacks {content}, or has a field other than {content} and {role}.

  None leaves conversations to the model's own template.
  """
  if template is None:
    return None
  return templates.check_fields(template, 'chat template', needed='content', optional=('role',))


def conversation(value: Any, place: str, ignored: Collection[str] = ()) -> list[Any] | None:
  """The list of turns that a value is or holds; None for text and all other values.

  Args:
    value: as read.
    place: file:line and field, for errors.
    ignored: fields that the user ignores with --columns FIELD=.

  Raises:
    UsageError: text begins like a conversation and is none, or an object holds more than its turns.
  """
  if isinstance(value, list):
    return value if not value or isinstance(value[0], dict) else None
  value = _parsed(value, place) if isinstance(value, str) else value
  if isinstance(value, dict) and isinstance(value.get('messages'), list):
    if lost := lost_beside(value, value['messages'], ignored):
      raise UsageError(
        f'{place} holds {shown(lost)} ({shown(value[lost])}) beside its messages; {remedy(lost)}'
      )
    value = value['messages']
  value = [value] if isinstance(value, dict) and 'content' in value else value
  has_turns = isinstance(value, list) and value and isinstance(value[0], dict) and 'role' in value[0]
  return value if has_turns else None


def remedy(lost: str) -> str:
  """The remedy for a field that the template would lose: the end of an error's sentence."""
  return (
    'the chat template would lose it: write it into a turn, remove the record, or ignore the field with '
    f'--columns {lost}='
  )


def _parsed(text: str, place: str) -> list[Any] | dict[Any, Any] | None:
  """The list or object that a text spells; None for other texts."""
  if text.lstrip().startswith('"'):
    text = _unquoted(text)
  if not text.lstrip().startswith(('[', '{')):
    return None
  value = field_paths.structured(text)
  if value is None and _BEGINS.match(text):
    raise UsageError(
      f'{place} begins like a conversation, {shown(text)}, but is a list in neither JSON nor Python (arrays '
      'that pandas wrote have no commas, and cut texts have no end); write it as JSON (json.dumps), or .jsonl'
    )
  return value


def _unquoted(text: str) -> str:
  """The text in a JSON string, as in a list that was converted to text twice; other texts unchanged."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return text
  return value if isinstance(value, str) else text


def prompt(value: Any, template: str | None, place: str) -> str:
  """The text of a prompt's turns.

  Args:
    value: the list, as read.
    template: of one turn.
    place: file:line and field, for errors.

  Raises:
    UsageError: a turn is malformed, or the last turn is the assistant's.
  """
  checked = turns(value, place)
  if checked[-1].role == 'assistant':
    raise UsageError(
      f'{place} ends in a turn of the assistant, but a prompt must end in a turn to answer; remove the last '
      'turn, or read the list as a whole conversation with the response last: --columns messages=FIELD'
    )
  return render(checked, template)


def response(value: Any, place: str) -> str:
  """The text of a response that is a list of one turn, the assistant's.

  Raises:
    UsageError: the list is malformed, or holds other turns.
  """
  checked = turns(value, place)
  if [turn.role for turn in checked] != ['assistant']:
    raise UsageError(
      f'{place} has the turns {", ".join(turn.role for turn in checked[:8])}; a response is one turn of the '
      'assistant, and earlier turns belong to the prompt'
    )
  return checked[0].content


def split(value: Any, template: str | None, place: str) -> tuple[str, str]:
  """(prompt, response) of a conversation whose last turn is the assistant's.

  Raises:
    UsageError: the last turn is another's, or the only one.
  """
  *before, last = turns(value, place)
  if last.role != 'assistant' or not before:
    raise UsageError(
      f'{place} ends in a turn of the {last.role}, after {len(before)} others; the last turn must be the '
      "assistant's, which is the response, and the turns before it are the prompt; or name both: --columns "
      'prompt=FIELD,response=FIELD'
    )
  return render(before, template), last.content


def question(value: Any, template: str | None, place: str) -> str:
  """The turns to answer in a conversation: all, without a last turn of the assistant."""
  checked = turns(value, place)
  before = checked[:-1] if checked[-1].role == 'assistant' else checked
  if not before:
    raise UsageError(f'{place} has only a turn of the assistant: there is nothing to answer')
  return render(before, template)


class Rendered(str):
  """The text of a conversation; its end is the question, and matters most."""

  __slots__ = ()


def is_rendered(prompt: str) -> bool:
  """Whether a prompt is a conversation: rendered turns, or a dialogue in the form of Anthropic's HH."""
  return isinstance(prompt, Rendered) or prompt.endswith(ANSWERS)


def render(turns: Sequence[Turn], template: str | None) -> str:
  """Turns by the template, one a line; without a template as text that `turns_of` reads back."""
  if template is None:
    return _as_text(turns)
  return Rendered('\n'.join(template.format(role=turn.role, content=turn.content) for turn in turns))


def rendered_by(prompt: str, template: str | None) -> str:
  """A prompt, whose turns are by the template where it is a conversation as JSON; other text unchanged."""
  messages = None if template is None else conversation(prompt, 'the prompt')
  return prompt if messages is None else render(turns(messages, 'the prompt'), template)


def _as_text(turns: Sequence[Turn]) -> str:
  if len(turns) == 1 and _reads_as(turns[0].content, turns[0]):
    return turns[0].content
  return files.json_text([turn._asdict() for turn in turns], ensure_ascii=False)


def _reads_as(text: str, turn: Turn) -> bool:
  try:
    return turns_of(text) == [turn]
  except UsageError:
    return False


def turns_of(prompt: str) -> list[Turn]:
  """The turns of a prompt: of a conversation as JSON or in the form of HH; other text is a turn of the user.

  Raises:
    UsageError: the text begins like a conversation and is none.
  """
  if (messages := conversation(prompt, 'the prompt')) is not None:
    return turns(messages, 'the prompt')
  if prompt.startswith(ASKS) and prompt.endswith(ANSWERS):
    parts = re.split(f'({ASKS}|{ANSWERS})', prompt.removesuffix(ANSWERS))[1:]
    spoken = [(_HH_ROLES[name], text.strip()) for name, text in zip(parts[::2], parts[1::2])]
    return [Turn(*turn) for turn in spoken if turn[1]] or [Turn('user', prompt)]
  return [Turn('user', prompt)]


def turns(value: Any, place: str) -> list[Turn]:
  """The checked turns of a list of {"role", "content"}, without empty system turns.

  Raises:
    UsageError: the value is not a list, a turn is malformed or empty, or a role is unknown.
  """
  value = (field_paths.structured(value) or value) if isinstance(value, str) else value
  if not isinstance(value, list | tuple):
    raise UsageError(
      f'{place} is {shown(value)}, a {type(value).__name__}; a conversation is a list of '
      '{"role": ..., "content": ...}, or the same as JSON text'
    )
  checked = [_turn(turn, f'{place}, turn {i},') for i, turn in enumerate(value, 1)]
  kept = [turn for turn in checked if turn.content.strip() or turn.role not in _OPTIONAL]
  if not kept:
    raise UsageError(f'{place} is a conversation without turns; remove the record or fill it in')
  if empty := [i for i, turn in enumerate(checked, 1) if turn in kept and not turn.content.strip()]:
    raise UsageError(f'{place}, turn {empty[0]}, has empty content; remove the record or fill it in')
  return kept


def is_sharegpt(turn: Any) -> bool:
  """Whether a turn is {"from": ..., "value": ...}."""
  return isinstance(turn, dict) and {'from', 'value'} <= turn.keys() and not {'role', 'content'} & turn.keys()


def _in_our_names(turn: dict[str, Any]) -> dict[str, Any]:
  """ShareGPT's turn as {"role": ..., "content": ...}."""
  others = {name: value for name, value in turn.items() if name not in ('from', 'value')}
  role = turn['from']
  return {
    'role': _SHAREGPT.get(role, role) if isinstance(role, str) else role,
    'content': turn['value'],
  } | others


def _turn(turn: Any, place: str) -> Turn:
  turn = _in_our_names(turn) if is_sharegpt(turn) else turn
  if not isinstance(turn, dict) or 'role' not in turn or 'content' not in turn:
    raise UsageError(f'{place} is {shown(turn)}; it must be {{"role": ..., "content": ...}}')
  role = turn['role']
  if role not in ROLES:
    near = did_you_mean(role, ROLES) if isinstance(role, str) else ''
    raise UsageError(f'{place} has the role {shown(role)}{near}; the roles are {", ".join(ROLES)}')
  content = _content(turn['content'], place)
  if lost := _lost(turn, ('role', 'content')):
    raise UsageError(
      f'{place} has the field {shown(lost)} ({shown(turn[lost])}), which the chat template would lose: write '
      'it into the content, remove the record, or remove the field if no model should read it'
    )
  return Turn(role, content)


def _lost(mapping: Mapping[str, Any], known: Collection[str]) -> str | None:
  """The first field with content that is neither known nor metadata."""
  return next(
    (
      key for key, value in mapping.items()
      if key not in known and key not in METADATA and _has_content(value)
    ),
    None,
  )  # fmt: skip


def _has_content(value: Any) -> bool:
  """Whether a value holds text or an object; bare numbers and dates count as no content."""
  left = [value] if isinstance(value, str | bytes | list | tuple | dict) else []
  while left:  # A stack: values may be nested deeper than Python calls.
    item = left.pop()
    if isinstance(item, dict):
      left += item.values()
    elif isinstance(item, list | tuple):
      left += item
    elif item is not None and not (isinstance(item, str) and _EMPTY.fullmatch(item)):
      return True
  return False


def lost_beside(fields: Mapping[str, Any], messages: Any, ignored: Collection[str] = ()) -> str | None:
  """The first field of `BESIDE` with content in a record; a `system` text may also be a turn."""
  turns = messages if isinstance(messages, list | tuple) else ()
  contents = [turn.get('content', turn.get('value')) for turn in turns if isinstance(turn, dict)]
  for key in BESIDE:
    value = fields.get(key)
    if key not in ignored and _has_content(value) and not (key == 'system' and value in contents):
      return key
  return None


def _content(content: Any, place: str) -> str:
  """Text, or the texts of several parts, one a line."""
  if isinstance(content, str):
    return content
  if not isinstance(content, list | tuple):
    raise UsageError(
      f'{place} has the content {shown(content)}, a {type(content).__name__}; it must be text (calls of '
      'tools have none: write them out, or remove the record)'
    )
  return '\n'.join(_part(part, place) for part in content)


def _part(part: Any, place: str) -> str:
  if isinstance(part, dict) and part.get('type') in _TEXTS and isinstance(part.get('text'), str):
    if lost := _lost(part, ('type', 'text')):
      raise UsageError(
        f'{place} has a part of content with the field {shown(lost)} ({shown(part[lost])}), which the chat '
        'template would lose: write it into the text, or remove the field or the record'
      )
    return part['text']
  kind = part.get('type') if isinstance(part, dict) else part
  raise UsageError(
    f'{place} has a part of content that is {shown(kind)}; a text model reads only parts of type "text": '
    'remove the record, or describe the part in words'
  )
