"""Feedback as chat products export it: the answers that people rated, each with the turns before it.

One of the first objects of a .json file shows which product wrote it:

    Open WebUI, feedback   {"data": {"rating": 1}, "meta": {"message_id": ...}, "snapshot": {"chat": ...}}
    Open WebUI, chats      {"chat": {"history": {"messages": {ID: {..., "annotation": {"rating": -1}}}}}}
    LibreChat, exported    {"conversationId": ..., "messages": [{..., "feedback": {"rating": "thumbsUp"}}]}
    LibreChat, dumped      {"messageId": ..., "isCreatedByUser": false, "feedback": ...}, a message an object

An answer's prompt is the chain of its parents, without later turns and other branches. The log counts the
answers without a rating, and those whose conversation text cannot represent.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dro_jax.data.records import field_paths
from dro_jax.data.text import chat
from dro_jax.errors import UsageError

_LARGEST = 2**30  # Bytes of a file of messages, held in memory because parents may stand anywhere in it.
_SAMPLE = 20  # Objects that show which product wrote a file.
_ZIPPED = 8  # About how many times as large text is as its gzip data.
_ROOT = '00000000-0000-0000-0000-000000000000'  # The parent of a first message in LibreChat.
_OWN = ('id', 'prompt', 'response', 'reward', 'messages', 'label', *chat.BESIDE)


class _Answer(NamedTuple):
  """An answer of a model.

  Attributes:
    id: the product's, or None.
    reward: as the product wrote it, or None.
    turns: up to the answer, which is the last; empty where the file lacks one of them.
    fields: all other fields, so that --columns may name them.
  """

  id: Any
  reward: Any
  turns: list[dict[str, Any]]
  fields: Mapping[str, Any]


class _Product(NamedTuple):
  """A product's file format: its name, whether an object has it, and the answers of a file's objects."""

  name: str
  fits: Callable[[Mapping[str, Any]], bool]
  answers: Callable[[Iterable[dict[str, Any]], str], Iterator[_Answer]]


def opened(path: str, located: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
  """(file:number, fields) of the rated answers of a product's export; other files' records unchanged."""
  # The first object may be incomplete: a chat without messages, feedback without its snapshot.
  first = list(itertools.islice(located, _SAMPLE))
  objects = itertools.chain(first, located)
  product = next((product for _, x in first for product in _PRODUCTS if product.fits(x)), None)
  return objects if product is None else _rated(path, product, (fields for _, fields in objects))


def _rated(
  path: str, product: _Product, objects: Iterable[dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
  number = unrated = 0
  left_out = []
  for answer in product.answers(objects, path):
    if answer.reward is None:
      unrated += 1
      continue
    number += 1
    where = f'{path}:{number}'
    if reason := _why_unusable(answer.turns, where):
      left_out.append(reason)
      continue
    yield where, {
      **{name: value for name, value in answer.fields.items() if name not in _OWN},
      'id': answer.id, 'prompt': answer.turns[:-1], 'response': answer.turns[-1:], 'reward': answer.reward,
    }  # fmt: skip
  log = logging.getLogger(__name__)
  log.info('%s: %s; answers that were rated: %d, not rated: %d', path, product.name, number, unrated)
  if left_out:
    log.warning(
      '%s: %d of %d rated answers are left out; the first: %s', path,
      len(left_out), number, left_out[0],
    )  # fmt: skip


def _why_unusable(turns: list[dict[str, Any]], where: str) -> str:
  """Why an answer's turns make no prompt and response; '' where they do."""
  if len(turns) < 2:
    return f'{where}: the file lacks the question'
  try:
    chat.response(turns[-1:], f'{where}: the answer')
    chat.prompt(turns[:-1], chat.TEMPLATE, f'{where}: the conversation')
  except UsageError as error:
    return str(error)
  return ''


def _chain(
  last: Any, parent: Callable[[Mapping[str, Any]], Any], messages: Mapping[Any, Any]
) -> list[dict[str, Any]]:
  """The messages from the first to the one with the id `last`; [] where one of them is missing."""
  chain: dict[Any, dict[str, Any]] = {}
  while last is not None:
    message = messages.get(last) if isinstance(last, str) and last not in chain else None
    if not isinstance(message, dict):
      return []
    chain[last] = message
    last = parent(message)
  return list(chain.values())[::-1]


def _with_system(text: Any, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
  has_text = isinstance(text, str) and text.strip() and turns
  return [{'role': 'system', 'content': text}, *turns] if has_text else turns


# --- Open WebUI ---------------------------------------------------------------------------------------------


def _thread(conversation: Any, last: Any) -> list[dict[str, Any]]:
  """The turns of a chat up to a message."""
  messages = field_paths.reach({'chat': conversation}, 'chat.history.messages')
  if not isinstance(messages, dict):
    return []
  turns = _chain(last, lambda message: message.get('parentId'), messages)
  return _with_system(conversation.get('system') or field_paths.reach(conversation, 'params.system'), turns)


def _feedback_answers(objects: Iterable[dict[str, Any]], path: str) -> Iterator[_Answer]:
  for fields in objects:
    turns = _thread(
      field_paths.reach(fields, 'snapshot.chat.chat'), field_paths.reach(fields, 'meta.message_id')
    )
    others = {name: value for name, value in fields.items() if name != 'snapshot'}
    yield _Answer(fields.get('id'), field_paths.reach(fields, 'data.rating'), turns, others)


def _chat_answers(objects: Iterable[dict[str, Any]], path: str) -> Iterator[_Answer]:
  for fields in objects:
    messages = field_paths.reach(fields, 'chat.history.messages')
    for name, message in messages.items() if isinstance(messages, dict) else ():
      if isinstance(message, dict) and message.get('role') == 'assistant':
        reward = field_paths.reach(message, 'annotation.rating')
        turns = _thread(fields.get('chat'), name) if reward is not None else []
        yield _Answer(f'{fields.get("id", "")}/{name}', reward, turns, message)


# --- LibreChat ----------------------------------------------------------------------------------------------


def _conversation_answers(objects: Iterable[dict[str, Any]], path: str) -> Iterator[_Answer]:
  for fields in objects:
    options = fields.get('options')
    system = [options.get(name) for name in ('promptPrefix', 'system')] if isinstance(options, dict) else []
    messages = _flat(_list(fields.get('messages') or fields.get('messagesTree')))
    yield from _answers(messages, next(filter(None, system), None))


def _message_answers(objects: Iterable[dict[str, Any]], path: str) -> Iterator[_Answer]:
  if os.path.getsize(path) * (_ZIPPED if path.endswith('.gz') else 1) > _LARGEST:
    raise UsageError(
      f'{path}: more than {_LARGEST // 2**30} GiB of messages. All messages of a file are held in memory, '
      'because the turns before an answer may stand anywhere in it: dump fewer, whole conversations at a time'
    )
  yield from _answers(list(objects), None)


def _flat(messages: list[Any]) -> list[dict[str, Any]]:
  """All messages of a list, and of their `children`."""
  flat, left = [], messages[::-1]
  while left:
    message = left.pop()
    if isinstance(message, dict):
      flat.append({name: value for name, value in message.items() if name != 'children'})
      left += _list(message.get('children'))[::-1]
  return flat


def _list(value: Any) -> list[Any]:
  return value if isinstance(value, list) else []


def _answers(messages: list[dict[str, Any]], system: Any) -> Iterator[_Answer]:
  known = {name: message for message in messages if isinstance(name := message.get('messageId'), str)}
  for message in messages:
    if message.get('isCreatedByUser'):
      continue
    reward = field_paths.reach(message, 'feedback.rating')
    turns = [] if reward is None else _chain(message.get('messageId'), _parent, known)
    yield _Answer(message.get('messageId'), reward, _with_system(system, [*map(_turn, turns)]), message)


def _is_conversation(fields: Mapping[str, Any]) -> bool:
  first = next(iter(_list(fields.get('messages') or fields.get('messagesTree'))), None)
  return 'conversationId' in fields and isinstance(first, dict) and 'isCreatedByUser' in first


def _parent(message: Mapping[str, Any]) -> Any:
  parent = message.get('parentMessageId')
  return None if parent in (None, '', _ROOT) else parent


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
  """A message as a turn, with the files, attachments and quotes that it holds."""
  parts = message.get('content')
  content = (
    [*map(_part, filter(None, parts))] if isinstance(parts, list) and any(parts) else message.get('text')
  )
  beside = {name: message.get(name) for name in ('files', 'attachments', 'quotes')}
  return {'role': 'user' if message.get('isCreatedByUser') else 'assistant', 'content': content, **beside}


def _part(part: Any) -> Any:
  """A part of content; its text may be the `value` of an object."""
  text = field_paths.reach(part, 'text.value') if isinstance(part, dict) else None
  return part if text is None else {'type': part.get('type'), 'text': text}


_PRODUCTS = (
  _Product("Open WebUI's feedback", lambda x: {'data', 'meta', 'snapshot'} <= x.keys(), _feedback_answers),
  _Product(
    "Open WebUI's chats",
    lambda x: isinstance(field_paths.reach(x, 'chat.history.messages'), dict), _chat_answers,
  ),
  _Product("LibreChat's conversations", _is_conversation, _conversation_answers),
  _Product("LibreChat's messages", lambda x: {'messageId', 'isCreatedByUser'} <= x.keys(), _message_answers),
)  # fmt: skip
