"""Requests and replies as JSON lines, by a digest of their contents; and what they spent.

`requests.jsonl` holds a line for each thing that happened to a request:

  sent      before it is sent: its contents (the first time), and the tokens that it may cost at most
  answered  the reply, and the tokens that the endpoint counted
  failed    why it has no reply; `charged` is false where the endpoint refused it, which costs no tokens;
            `sent` is false where no connection was made, and the attempt counts in no budget
  withdrawn  why a program's reply is none: its lines did not fit what it was asked

A request that was answered is never sent again. One that was sent and has neither a reply nor a failure was
in flight when the command was killed: whether it was paid for cannot be known, and it is sent again only on
request.
"""

import pathlib
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from dro_jax import files
from dro_jax.data.storage.journal import Journal

FILE = 'requests.jsonl'
SENT, ANSWERED, FAILED, WITHDRAWN = 'sent', 'answered', 'failed', 'withdrawn'


class Spent(NamedTuple):
  """What a folder's requests have spent, over all calls of the command.

  requests       attempts that were sent.
  input_tokens   as endpoints counted them.
  output_tokens  as endpoints counted them.
  unknown        tokens that attempts without a count may have cost at most.
  """

  requests: int = 0
  input_tokens: int = 0
  output_tokens: int = 0
  unknown: int = 0

  @property
  def tokens(self) -> int:
    """Tokens at most."""
    return self.input_tokens + self.output_tokens + self.unknown


def key_of(contents: Mapping[str, Any]) -> str:
  """The digest by which a request is known: of all that decides its reply."""
  return files.hash_parts([files.json_text(contents, sort_keys=True).encode()])


class Requests:
  """The requests of a judge's folder.

  Args:
    folder: the judge's.
    max_requests: attempts at most, over all calls; `None` sets no bound.
    max_tokens: tokens at most, likewise: an attempt that might pass it is not sent.

  Attributes:
    answers: replies by key: `text`, `labels`.
    lost: keys in flight when an earlier call was killed.
  """

  def __init__(self, folder: pathlib.Path, max_requests: int | None = None, max_tokens: int | None = None):
    self._journal = Journal(folder / FILE)
    self._settled = threading.Condition()
    self._max_requests, self._max_tokens = max_requests, max_tokens
    self.answers: dict[str, Mapping[str, Any]] = {}
    self._in_flight: dict[str, int] = {}
    self._known: set[str] = set()
    self.spent = Spent()
    for record in self._journal.records:
      self._count(record)
    self._journal.records.clear()  # The texts of all requests need not stay in memory.
    self.lost = frozenset(self._in_flight)
    self._live: set[str] = set()  # Those in flight of this call.

  def send(self, key: str, contents: Mapping[str, Any], tokens: int) -> bool:
    """Records that a request is about to be sent; `False`, and nothing recorded, where the budget ends.

    Args:
      key: its digest.
      contents: what is sent.
      tokens: the most that it can cost.
    """
    with self._settled:
      while (self._lacks_tokens(tokens) or self._lacks_requests()) and self._live:
        self._settled.wait()  # What is in flight may cost less than it might, or never arrive.
      if self._lacks_tokens(tokens) or self._lacks_requests():
        return False
      described = {} if key in self._known else {'contents': contents}
      self._live.add(key)
      self._record({'key': key, 'event': SENT, 'tokens': tokens} | described)
      return True

  def answered(
    self,
    key: str,
    text: str,
    *,
    labels: Any = (),
    usage: tuple[int, int] | None = None,
    contents: Mapping[str, Any] | None = None,
  ) -> None:
    """Records a reply.

    Args:
      key: the request's.
      text: the reply.
      labels: its tokens that are labels.
      usage: tokens (of input, of output) as the endpoint counted them.
      contents: of a request that was sent nowhere and spends no budget, as a program's and a function's.
    """
    record = {'key': key, 'event': ANSWERED, 'text': text}
    record |= {} if contents is None else {'contents': contents}
    record |= {'labels': list(labels)} if labels else {}
    record |= {} if usage is None else {'input_tokens': usage[0], 'output_tokens': usage[1]}
    with self._settled:
      self._record(record)

  def withdrawn(self, key: str, why: str) -> None:
    """Records that a program's reply, kept or not, does not belong to the request.

    Args:
      key: the request's.
      why: in words.
    """
    with self._settled:
      self._record({'key': key, 'event': WITHDRAWN, 'why': why})

  def failed(self, key: str, why: str, *, charged: bool, sent: bool = True) -> None:
    """Records that an attempt has no reply.

    Args:
      key: the request's.
      why: in words.
      charged: whether it may have cost tokens all the same.
      sent: whether it may have reached the endpoint.
    """
    with self._settled:
      self._record(
        {'key': key, 'event': FAILED, 'why': why, 'charged': charged} | ({} if sent else {'sent': False})
      )

  def release(self) -> None:
    """Lets nobody wait for what is in flight: the call ends."""
    with self._settled:
      self._live.clear()
      self._settled.notify_all()

  def _lacks_tokens(self, tokens: int) -> bool:
    return self._max_tokens is not None and self.spent.tokens + tokens > self._max_tokens

  def _lacks_requests(self) -> bool:
    return self._max_requests is not None and self.spent.requests >= self._max_requests

  def close(self) -> None:
    self._journal.close()

  def _record(self, record: Mapping[str, Any]) -> None:
    self._journal.append(record)
    self._journal.records.clear()
    self._count(record)
    if record['event'] != SENT:
      self._live.discard(record['key'])
      self._settled.notify_all()

  def _count(self, record: Mapping[str, Any]) -> None:
    key, spent = record['key'], self.spent
    if record['event'] == SENT:
      self._known.add(key)
      self._in_flight[key] = record['tokens']
      self.spent = spent._replace(requests=spent.requests + 1, unknown=spent.unknown + record['tokens'])
      return
    reserved = self._in_flight.pop(key, 0)
    if record['event'] == WITHDRAWN:
      self.answers.pop(key, None)
      return
    if record['event'] == ANSWERED:
      self.answers[key] = {'text': record['text'], 'labels': record.get('labels', ())}
    if 'input_tokens' in record:
      self.spent = spent._replace(
        input_tokens=spent.input_tokens + record['input_tokens'],
        output_tokens=spent.output_tokens + record['output_tokens'], unknown=spent.unknown - reserved,
      )  # fmt: skip
    elif not record.get('charged', True):
      never = 0 if record.get('sent', True) else 1
      self.spent = spent._replace(requests=spent.requests - never, unknown=spent.unknown - reserved)
