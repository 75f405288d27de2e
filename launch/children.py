"""Child processes; their lines are passed on as they come, each with a prefix."""

import collections
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple

from launch.say import say

_SECONDS = 1  # A pump may take this long to end after its process.


class Process(NamedTuple):
  """A child process.

  label  the prefix of its lines
  popen  the process
  last   its last lines
  pumps  the threads that pass the lines on
  """

  label: str
  popen: subprocess.Popen
  last: collections.deque
  pumps: tuple[threading.Thread, ...]


def start(
  label: str,
  command: Sequence[str],
  variables: Mapping[str, str] | None = None,
  *,
  tail: int = 0,
  shown: Callable[[str], str | None] = lambda line: line,
) -> Process:
  """Starts a process.

  Args:
    label: the prefix of its lines, shown in brackets; '' for none.
    command: the command.
    variables: environment variables besides the launcher's own.
    tail: how many of its last lines to keep.
    shown: from a line of standard output to the text to show; `None` shows nothing.
  """
  # A session of its own: the terminal's Ctrl-C reaches the launcher alone, which sends the signal that saves.
  popen = subprocess.Popen(
    command,
    env={**os.environ, **(variables or {})},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )
  last = collections.deque(maxlen=tail)
  pairs = ((popen.stdout, sys.stdout, shown), (popen.stderr, sys.stderr, lambda line: line))
  pumps = [threading.Thread(target=_pump, args=(label, *pair, last), daemon=True) for pair in pairs]
  for pump in pumps:
    pump.start()
  return Process(label, popen, last, tuple(pumps))


def _pump(
  label: str, source: IO[bytes], to: IO[str], shown: Callable[[str], str | None], last: collections.deque
) -> None:
  """Passes lines on, each with the label of the process."""
  prefix = f'[{label}] ' if label else ''
  with source:
    for line in source:
      text = shown(line.decode(errors='replace').rstrip('\n'))
      if text is not None:
        last.append(text)
        say(prefix + text, stream=to)


def send(processes: Sequence[Process], number: int) -> None:
  """Sends a signal to the processes that still run."""
  for process in processes:
    if process.popen.poll() is None:
      process.popen.send_signal(number)


def end(processes: Sequence[Process]) -> None:
  """Kills the processes that still run, and waits until the last lines of all have been shown."""
  send(processes, signal.SIGKILL)
  for process in processes:
    finish(process)


def finish(process: Process) -> int:
  """Waits for a process and for its last lines; returns its exit code."""
  code = process.popen.wait()
  for pump in process.pumps:
    pump.join(timeout=_SECONDS)
  return code
