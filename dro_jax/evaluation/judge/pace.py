"""When the next request may be sent: limits by minute, and pauses that an endpoint asks for."""

import collections
import threading
import time
from collections.abc import Callable

_WINDOW = 60.0  # Seconds.


class Pace:
  """Lets requests pass at a rate, from any number of threads.

  Args:
    requests: by minute at most; `None` sets no limit.
    tokens: by minute at most, counted as each request may cost at most.
    clock: seconds.
  """

  def __init__(
    self, requests: int | None = None, tokens: int | None = None, clock: Callable[[], float] = time.monotonic
  ):
    self._requests, self._tokens, self._clock = requests, tokens, clock
    self._sent: collections.deque[tuple[float, int]] = collections.deque()
    self._not_before = 0.0
    self._lock = threading.Lock()
    self.stopped = threading.Event()

  def pause(self, seconds: float) -> None:
    """Lets nothing pass for some seconds."""
    with self._lock:
      self._not_before = max(self._not_before, self._clock() + seconds)

  def wait(self, tokens: int) -> bool:
    """Waits until a request of so many tokens may be sent, which it then counts; `False` once stopped."""
    while not self.stopped.is_set():
      with self._lock:
        delay = self._delay(tokens)
        if delay <= 0:
          self._sent.append((self._clock(), tokens))
          return True
      self.stopped.wait(min(delay, 1.0))
    return False

  def sleep(self, seconds: float) -> bool:
    """Waits; `False` once stopped."""
    return not self.stopped.wait(seconds)

  def _delay(self, tokens: int) -> float:
    """Seconds until the request may be sent, as far as is known now."""
    now = self._clock()
    while self._sent and self._sent[0][0] <= now - _WINDOW:
      self._sent.popleft()
    until = self._not_before
    if self._requests is not None and len(self._sent) >= self._requests:
      until = max(until, self._sent[-self._requests][0] + _WINDOW)
    # A request above the limit by itself waits for an empty minute and no longer.
    if self._tokens is not None and self._sent and sum(n for _, n in self._sent) + tokens > self._tokens:
      until = max(until, self._sent[0][0] + _WINDOW)
    return until - now
