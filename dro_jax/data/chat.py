"""Conversations, lists of {"role": ..., "content": ...}, as the texts of prompts and responses.

A prompt is its turns by a template, each on a line of its own, `user: ...` and `assistant: ...` unless told
otherwise. The line breaks are for vocabularies that know them: T5's own makes each a blank, and the roles'
names tell turns apart. A response is one turn of the assistant's, without its role.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dro_jax.data import preprocessors
from dro_jax.data.readers import shown
from dro_jax.errors import UsageError, did_you_mean

TEMPLATE = '{role}: {content}'
ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
_SAYS_NOTHING = ('system', 'developer')  # Whose empty turns are left out.


class Turn(NamedTuple):
  """Who says what."""

  role: str
  content: str


def check_template(template: str) -> str:
  """Refuses a turn's template without {content}, or with another field than that and {role}."""
  return preprocessors.check_fields(template, 'chat template', needed='content', optional=('role',))


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


def render(found: Sequence[Turn], template: str) -> str:
  """Turns by the template, a line each."""
  return '\n'.join(template.format(role=turn.role, content=turn.content) for turn in found)


def turns(value: Any, what: str) -> list[Turn]:
  """The turns of a list of {"role", "content"}, checked; system turns that say nothing are left out.

  Raises:
    UsageError: no list, no such object in it, an unknown role, content that is no text.
  """
  if not isinstance(value, list | tuple):
    raise UsageError(
      f'{what} is {shown(value)}, a {type(value).__name__}; a conversation is a list of '
      '{"role": ..., "content": ...}, which .jsonl and .parquet hold'
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
  return Turn(role, _content(turn['content'], what))


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
  if isinstance(part, dict) and part.get('type') == 'text' and isinstance(part.get('text'), str):
    return part['text']
  kind = part.get('type') if isinstance(part, dict) else part
  raise UsageError(
    f'{what} has a part of content that is {shown(kind)}; a text model reads parts of type "text" only: '
    'remove the record, or say it in words'
  )
