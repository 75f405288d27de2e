"""Conversations, lists of {"role": ..., "content": ...}, as the texts of prompts and responses.

A prompt is its turns by a template, each on a line of its own, `user: ...` and `assistant: ...` unless told
otherwise. The line breaks are for vocabularies that know them: T5's own makes each a blank, and the roles'
names tell turns apart. A response is one turn of the assistant's, without its role.

A conversation may be text, the list in JSON or as Python writes it; an object with such a list as `messages`;
or an object that is one turn.

Whatever else a turn, a part of its content or the record says, a model's own template would show and this one
would lose: calls of tools, names, reasoning, files. It is refused. Left alone are numbers, empty fields and
`METADATA`, which no model reads.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.data.records import field_paths
from dro_jax.data.text import templates
from dro_jax.errors import UsageError, did_you_mean, shown

TEMPLATE = '{role}: {content}'
ANSWERS = '\n\nAssistant:'  # How the answer to a dialogue of HH begins.
ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
_SAYS_NOTHING = ('system', 'developer')  # Whose empty turns are left out.
# Who wrote a turn, when, at what cost, and what was thought of it.
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
# What a record may say beside its conversation that a model's own template would show.
BESIDE = (
  'system', 'tools', 'functions', 'tool_calls', 'function_call', 'documents', 'images', 'image', 'videos',
  'video', 'audios', 'audio',
)  # fmt: skip
# A list whose first object has a role or a content, among its first fields.
_BEGINS = re.compile(r"""\s*\[\s*\{[^{}\[\]]{0,200}?["'](role|content)["']\s*:""")
_EMPTY = re.compile(r'\s*(\[\s*\]|\{\s*\}|null|None)?\s*')  # Text of a list, object or nothing.
_TEXTS = ('text', 'input_text', 'output_text')  # Types of parts.


class Turn(NamedTuple):
  """Who says what."""

  role: str
  content: str


def check_template(template: str) -> str:
  """Refuses a turn's template without {content}, or with another field than that and {role}."""
  return templates.check_fields(template, 'chat template', needed='content', optional=('role',))


def conversation(value: Any, what: str, left_alone: Collection[str] = ()) -> list | None:
  """The list of turns that a value is or holds; None where it is a text, or anything else.

  Args:
    value: as read.
    what: file:line and field, for errors.
    left_alone: fields that the template may lose.

  Raises:
    UsageError: text that begins like a conversation and is none, or an object that holds more than its turns.
  """
  if isinstance(value, list):
    return value if not value or isinstance(value[0], dict) else None
  value = _parsed(value, what) if isinstance(value, str) else value
  if isinstance(value, dict) and isinstance(value.get('messages'), list):
    if lost := lost_beside(value, value['messages'], left_alone):
      raise UsageError(
        f'{what} holds {shown(lost)} ({shown(value[lost])}) beside its messages; {remedy(lost)}'
      )
    value = value['messages']
  value = [value] if isinstance(value, dict) and 'content' in value else value
  is_talk = isinstance(value, list) and value and isinstance(value[0], dict) and 'role' in value[0]
  return value if is_talk else None


def remedy(lost: str) -> str:
  """What to do with a field that the template would lose, to end an error's sentence."""
  return (
    'the chat template would lose it: write it into a turn, remove the record, or leave the field alone by '
    f'--columns {lost}='
  )


def _parsed(text: str, what: str) -> list | dict | None:
  """The list or object that a text is; None where it is a text."""
  if text.lstrip().startswith('"'):
    text = _unquoted(text)
  if not text.lstrip().startswith(('[', '{')):
    return None
  found = field_paths.structured(text)
  if found is None and _BEGINS.match(text):
    raise UsageError(
      f'{what} begins like a conversation, {shown(text)}, but is a list in neither JSON nor Python (arrays '
      'that pandas wrote have no commas, and cut texts no end); write it as JSON (json.dumps), or .jsonl'
    )
  return found


def _unquoted(text: str) -> str:
  """The text that a JSON string is, as of a list that was made text twice; another text as it is."""
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    return text
  return found if isinstance(found, str) else text


def prompt(value: Any, template: str, what: str) -> str:
  """The text of a prompt's turns.

  Args:
    value: the list, as read.
    template: of one turn.
    what: file:line and field, for errors.

  Raises:
    UsageError: a turn that is none, or the last one is the assistant's.
  """
  found = turns(value, what)
  if found[-1].role == 'assistant':
    raise UsageError(
      f'{what} ends in a turn of the assistant, and a prompt is what it answers; take that turn out, or read '
      'the list as a whole conversation, whose last turn is the response: --columns messages=FIELD'
    )
  return render(found, template)


def response(value: Any, what: str) -> str:
  """The text of a response that is a list of one turn, the assistant's.

  Raises:
    UsageError: it is anything else.
  """
  found = turns(value, what)
  if [turn.role for turn in found] != ['assistant']:
    raise UsageError(
      f'{what} has the turns {", ".join(turn.role for turn in found[:8])}; a response is one turn of the '
      'assistant, and what comes before belongs to the prompt'
    )
  return found[0].content


def split(value: Any, template: str, what: str) -> tuple[str, str]:
  """(prompt, response) of a conversation whose last turn is the assistant's.

  Raises:
    UsageError: it is not, or nothing comes before it.
  """
  *before, last = turns(value, what)
  if last.role != 'assistant' or not before:
    raise UsageError(
      f'{what} ends in a turn of the {last.role}, after {len(before)} others; the last turn must be the '
      "assistant's, which is the response, and what comes before is the prompt; or name both: --columns "
      'prompt=FIELD,response=FIELD'
    )
  return render(before, template), last.content


def question(value: Any, template: str, what: str) -> str:
  """What there is to answer in a conversation: all before the last turn, if that is the assistant's."""
  found = turns(value, what)
  asked = found[:-1] if found[-1].role == 'assistant' else found
  if not asked:
    raise UsageError(f'{what} has no turn but the assistant’s: there is nothing to answer')
  return render(asked, template)


class Rendered(str):
  """The text of a conversation, of which the end matters most: it is the question."""

  __slots__ = ()


def is_rendered(prompt: str) -> bool:
  """Whether a prompt is a conversation: of turns, or a dialogue as Anthropic's HH writes them."""
  return isinstance(prompt, Rendered) or prompt.endswith(ANSWERS)


def render(found: Sequence[Turn], template: str) -> Rendered:
  """Turns by the template, a line each."""
  return Rendered('\n'.join(template.format(role=turn.role, content=turn.content) for turn in found))


def turns(value: Any, what: str) -> list[Turn]:
  """The turns of a list of {"role", "content"}, checked; system turns that say nothing are left out.

  Raises:
    UsageError: no list, no such object in it, an unknown role, content that is no text.
  """
  if not isinstance(value, list | tuple):
    raise UsageError(
      f'{what} is {shown(value)}, a {type(value).__name__}; a conversation is a list of '
      '{"role": ..., "content": ...}, or the same as JSON text'
    )
  read = [_turn(turn, f'{what}, turn {i},') for i, turn in enumerate(value, 1)]
  found = [turn for turn in read if turn.content.strip() or turn.role not in _SAYS_NOTHING]
  if not found:
    raise UsageError(f'{what} is a conversation without turns; remove the record or fill it in')
  if silent := [i for i, turn in enumerate(read, 1) if turn in found and not turn.content.strip()]:
    raise UsageError(f'{what}, turn {silent[0]}, has empty content; remove the record or fill it in')
  return found


def _turn(turn: Any, what: str) -> Turn:
  if not isinstance(turn, dict) or 'role' not in turn or 'content' not in turn:
    raise UsageError(f'{what} is {shown(turn)}; it must be {{"role": ..., "content": ...}}')
  role = turn['role']
  if role not in ROLES:
    near = did_you_mean(role, ROLES) if isinstance(role, str) else ''
    raise UsageError(f'{what} has the role {shown(role)}{near}; the roles are {", ".join(ROLES)}')
  content = _content(turn['content'], what)
  if lost := _lost(turn, ('role', 'content')):
    raise UsageError(
      f'{what} has the field {shown(lost)} ({shown(turn[lost])}), which the chat template would lose: write '
      'it into the content, remove the record, or take out the field if no model is to read it'
    )
  return Turn(role, content)


def _lost(mapping: Mapping[str, Any], known: Collection[str]) -> str | None:
  """The first field that says something and is neither known nor metadata."""
  return next(
    (
      key for key, value in mapping.items()
      if key not in known and key not in METADATA and _says_something(value)
    ),
    None,
  )  # fmt: skip


def _says_something(value: Any) -> bool:
  """Whether there is any text or object in a value that is not a bare number or date."""
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


def lost_beside(fields: Mapping[str, Any], messages: Any, left_alone: Collection[str] = ()) -> str | None:
  """The first field of `BESIDE` in which a record says something; a `system` text may be a turn as well."""
  turns = messages if isinstance(messages, list | tuple) else ()
  contents = [turn.get('content') for turn in turns if isinstance(turn, dict)]
  for key in BESIDE:
    value = fields.get(key)
    if key not in left_alone and _says_something(value) and not (key == 'system' and value in contents):
      return key
  return None


def _content(content: Any, what: str) -> str:
  """Text, or the texts of several parts, each on a line of its own."""
  if isinstance(content, str):
    return content
  if not isinstance(content, list | tuple):
    raise UsageError(
      f'{what} has the content {shown(content)}, a {type(content).__name__}; it must be text (calls of tools '
      'have none: write them out, or remove the record)'
    )
  return '\n'.join(_part(part, what) for part in content)


def _part(part: Any, what: str) -> str:
  if isinstance(part, dict) and part.get('type') in _TEXTS and isinstance(part.get('text'), str):
    if lost := _lost(part, ('type', 'text')):
      raise UsageError(
        f'{what} has a part of content with the field {shown(lost)} ({shown(part[lost])}), which the chat '
        'template would lose: write it into the text, or remove it or the record'
      )
    return part['text']
  kind = part.get('type') if isinstance(part, dict) else part
  raise UsageError(
    f'{what} has a part of content that is {shown(kind)}; a text model reads parts of type "text" only: '
    'remove the record, or say it in words'
  )
