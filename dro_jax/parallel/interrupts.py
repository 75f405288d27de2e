"""Ctrl-C and SIGTERM: a run is asked to save and stop, and what does not stop is ended."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

# As shells call a program that Ctrl-C ended.
ENDED = 130
_SOON = 0.5  # Seconds.


class Request:
  """Whether a signal has asked a run to stop, and which."""

  def __init__(self) -> None:
    self.signals: set[int] = set()

  def __bool__(self) -> bool:
    return bool(self.signals)

  @property
  def by_interrupt(self) -> bool:
    """Whether Ctrl-C was pressed."""
    return signal.SIGINT in self.signals


@contextlib.contextmanager
def noticed(several: bool = False) -> Iterator[Request]:
  """A block in which SIGTERM and the first Ctrl-C are requests to stop; a second Ctrl-C interrupts it.

  The handlers are restored after the block. Signals belong to the main thread: in another nothing is noticed.

  Args:
    several: the run has several processes. Then jax's own handler of SIGTERM tells the others, and it must
      stay; Ctrl-C becomes a SIGTERM.
  """
  request, before = Request(), {}
  if threading.current_thread() is threading.main_thread():
    wanted = {signal.SIGINT: _interrupt(request, several)}
    wanted |= {} if several else {signal.SIGTERM: lambda number, _: request.signals.add(number)}
    # A shell's background jobs ignore Ctrl-C, which is meant for what is in front.
    before = {number: signal.getsignal(number) for number in wanted}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
      signal.signal(number, wanted[number])
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(request: Request, several: bool) -> Callable[[int, Any], None]:
  def handle(number: int, _: Any) -> None:
    if number in request.signals:
      raise KeyboardInterrupt
    request.signals.add(number)
    if several:
      os.kill(os.getpid(), signal.SIGTERM)

  return handle


@contextlib.contextmanager
def second_ends() -> Iterator[None]:
  """A block of the command line in which a second Ctrl-C ends the process at once, with exit code 130.

  Python handles signals between two of its own instructions, and a compilation may last minutes: a thread
  that reads the numbers of signals as they come answers at once.
  """
  received, sent = os.pipe()
  os.set_blocking(sent, False)
  before = signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(received,), daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(sent)


def _watch(received: int) -> None:
  pressed = 0
  while numbers := os.read(received, 64):
    for _ in range(numbers.count(signal.SIGINT)):
      pressed += 1
      if pressed > 1:
        _say('ended at once. What was saved before is intact.')
        os._exit(ENDED)
      # What stops at once has its own words.
      if not select.select([received], [], [], _SOON)[0]:
        _say('Ctrl-C: stopping. Press it again to end at once.')
  os.close(received)


def _say(text: str) -> None:
  print(f'\ndro_jax: {text}', file=sys.stderr, flush=True)
