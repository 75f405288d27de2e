"""Sends requests to an endpoint, several at once, until all have replies or the budget ends."""

import concurrent.futures
import logging
import threading
from collections.abc import Mapping
from typing import Any

from dro_jax.errors import Failed, Interrupted, Stopped
from dro_jax.evaluation.judge.endpoint import Client, Endpoint, Refused, Retry, back_off
from dro_jax.evaluation.judge.pace import Pace
from dro_jax.evaluation.judge.requests import Requests
from dro_jax.parallel import interrupts

_LOOK = 0.1  # Seconds between looks for a signal.
_SAY_EVERY = 100  # Replies.
LOST = 'in flight when an earlier call was killed'


class Sender:
  """Sends each request until it has a reply, and says why where it has none.

  Args:
    endpoint: where to.
    requests: the folder's, with the budget.
    client: of the endpoint.

  Attributes:
    problems: why a request has no reply, by its key.
    budget_ended: whether a request was not sent for want of budget.
  """

  def __init__(self, endpoint: Endpoint, requests: Requests, client: Client):
    self._endpoint, self._requests, self._client = endpoint, requests, client
    self._pace = Pace(endpoint.requests_per_minute, endpoint.tokens_per_minute)
    self._lock, self._failures, self._replies = threading.Lock(), 0, 0
    self._error: Exception | None = None
    self.problems: dict[str, str] = {}
    self.budget_ended = False

  def send(self, messages: Mapping[str, str]) -> None:
    """Sends messages by their keys; what was answered before is not sent again.

    Raises:
      UsageError: the endpoint takes no request.
      Failed: the endpoint is down.
      Stopped: SIGTERM came; what was in flight has been received.
      Interrupted: Ctrl-C came, likewise.
    """
    pending = [key for key in messages if self._is_pending(key)]
    if not pending:
      return
    logging.getLogger(__name__).info('%d requests to %s', len(pending), self._endpoint.model)
    pool = concurrent.futures.ThreadPoolExecutor(self._endpoint.concurrency)
    with interrupts.noticed() as signals:
      try:
        waiting = {pool.submit(self._send_one, key, messages[key]) for key in pending}
        while waiting:
          _, waiting = concurrent.futures.wait(waiting, _LOOK)
          if signals:
            self._pace.stopped.set()
      finally:
        self._pace.stopped.set()
        pool.shutdown(cancel_futures=True)
      if self._error is not None:
        raise self._error
      if signals:
        kind = Interrupted if signals.by_interrupt else Stopped
        raise kind(f'stopped; {len(self._requests.answers)} replies are saved: the same command goes on.')

  def _is_pending(self, key: str) -> bool:
    if key in self._requests.answers:
      return False
    if key in self._requests.lost and not self._endpoint.resend:
      self.problems[key] = LOST
      return False
    return True

  def _send_one(self, key: str, message: str) -> None:
    """Sends one request until it is settled; no error of one thread ends it silently."""
    try:
      for attempt in range(self._endpoint.retries + 1):
        if not self._passes(key, message):
          return
        if self._try(key, message, attempt):
          return
      self._give_up(key)
    except Exception as error:  # Raised again by the main thread.
      self._stop(error)

  def _passes(self, key: str, message: str) -> bool:
    """Waits for the pace, and records the attempt; `False` where nothing more may be sent."""
    tokens = self._endpoint.most_tokens(message)
    if self.budget_ended or not self._pace.wait(tokens):
      return False
    if self._requests.send(key, self._endpoint.contents(message), tokens):
      return True
    self.budget_ended = True
    return False

  def _try(self, key: str, message: str, attempt: int) -> bool:
    """One attempt; whether the request is settled."""
    try:
      reply = self._client.attempt(message, key)
    except Retry as failure:
      self._requests.failed(key, str(failure), charged=failure.charged, sent=failure.sent)
      self.problems[key] = str(failure)
      if failure.wait is not None:
        self._pace.pause(failure.wait)  # All requests wait: they share the endpoint's limit.
      elif attempt < self._endpoint.retries:
        return not self._pace.sleep(back_off(attempt, key))
      return False
    except Refused as refusal:
      self._refuse(key, str(refusal))
      return True
    except Exception as error:
      self._requests.failed(key, str(error), charged=False)
      raise
    self._requests.answered(key, reply.text, labels=reply.labels, usage=reply.usage)
    self.problems.pop(key, None)
    self._settle()
    return True

  def _settle(self) -> None:
    with self._lock:
      self._failures, self._replies = 0, self._replies + 1
      if self._replies % _SAY_EVERY == 0:
        spent = self._requests.spent
        logging.getLogger(__name__).info('%d replies; %d requests so far', self._replies, spent.requests)

  def _refuse(self, key: str, why: str) -> None:
    """A request that the endpoint does not take; where it has taken none yet, it will take none."""
    self._requests.failed(key, why, charged=False)
    self.problems[key] = why
    if not self._requests.answers:
      raise Failed(f'the endpoint refused the first request: {why}. Nothing else was sent after that.')

  def _give_up(self, key: str) -> None:
    """A request whose attempts are used up; several of them in a row mean that the endpoint is down."""
    with self._lock:
      self._failures += 1
      too_many = self._failures > max(3, self._endpoint.concurrency)
    if too_many:
      raise Failed(
        f'{self._failures} requests in a row failed {self._endpoint.retries + 1} times each, the last '
        f'one with: {self.problems[key]}. All replies so far are saved: the same command goes on.'
      )

  def _stop(self, error: Exception) -> None:
    with self._lock:
      self._error = self._error or error
    self._pace.stopped.set()
    self._requests.release()


def spent_of(requests: Requests, endpoint: Endpoint) -> dict[str, Any]:
  """What the folder's requests have spent, as plain values."""
  spent = requests.spent
  return spent._asdict() | {'cost': endpoint.cost(spent.input_tokens, spent.output_tokens)}
