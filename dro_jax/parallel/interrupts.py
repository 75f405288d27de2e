"""Ctrl-C and SIGTERM: the first asks a run to save and stop, a second Ctrl-C ends it at once."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

# The exit code of a program that Ctrl-C ended, as shells report it.
ENDED = 130
_SOON = 0.5  # Seconds.


class Request:
  """The signals that have asked a run to stop."""

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

  The handlers are restored after the block. Signals belong to the main thread; another gets no requests.

  Args:
    several: the run has several processes. Then jax's own handler of SIGTERM stays, which informs the others,
      and Ctrl-C becomes a SIGTERM.
  """
  request, before = Request(), {}
  if threading.current_thread() is threading.main_thread():
    handlers = {signal.SIGINT: _interrupt(request, several)}
    handlers |= {} if several else {signal.SIGTERM: lambda number, _: request.signals.add(number)}
    # A shell's background jobs ignore Ctrl-C, which is meant for the job in the foreground.
    before = {number: signal.getsignal(number) for number in handlers}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
      signal.signal(number, handlers[number])
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

  Python handles signals between two of its own instructions, and a compilation may last minutes. A thread
  that reads signal numbers as they arrive responds at once.
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
        _say('ended at once. Earlier saves are intact.')
        os._exit(ENDED)
      # A run that stops right away prints its own message.
      if not select.select([received], [], [], _SOON)[0]:
        _say('Ctrl-C: stopping. Press it again to end at once.')
  os.close(received)


def _say(text: str) -> None:
  print(f'\ndro_jax: {text}', file=sys.stderr, flush=True)
