"""Signals: the handler only notes them; the launcher raises them where it waits, and nowhere else.

A handler that raised could interrupt the launcher after it created a machine and before it noted its name.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
  """A signal came."""

  def __init__(self, number: int):
    super().__init__(f'stopped by {signal.Signals(number).name}')
    self.number = number

  @property
  def exit_code(self) -> int:
    return 128 + self.number


class Watch:
  """The signals that came so far. A `shielded` wait does not raise them."""

  def __init__(self):
    self._came = threading.Event()
    self._number: int | None = None

  def note(self, number: int) -> None:
    self._number = number
    self._came.set()

  def check(self) -> None:
    """Raises `Interrupted`, once for each signal."""
    if self._came.is_set():
      self._came.clear()
      raise Interrupted(self._number)

  def pause(self, seconds: float | int, *, shielded: bool = False) -> None:
    """Sleeps; raises `Interrupted` as soon as a signal comes."""
    if shielded:
      time.sleep(seconds)
    else:
      self._came.wait(seconds)
      self.check()


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
  """Notes SIGINT, SIGTERM and SIGHUP (a closed terminal) until the block ends."""
  watch = Watch()
  before = {number: signal.signal(number, lambda number, _: watch.note(number)) for number in STOPPING}
  try:
    yield watch
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
