"""Runs external commands, so that no signal leaves one half done without notice; or only prints them."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from launch import children, signals
from launch.say import say

_TICK = 0.2  # Seconds between looks at the watch while a command runs.
_LAST_WISH_SECONDS = 5


class Result(NamedTuple):
  code: int
  out: bytes = b''
  err: str = ''


class Commands(NamedTuple):
  """How commands are run.

  call   runs a command; `pretend` is its output in a dry run, and no signal interrupts a `shielded` one.
  pause  waits some seconds; a dry run does not wait.
  start  starts a command and shows its lines as they come (`children.start`); a dry run returns `None`.
  """

  call: Callable[..., Result]
  pause: Callable[..., None]
  start: Callable[..., children.Process | None] = children.start


def real(watch: signals.Watch) -> Commands:
  """Runs commands; waiting raises `Interrupted` when a signal has come."""

  def call(command: Sequence[str], *, pretend: str = '', shielded: bool = False) -> Result:
    if not shielded:
      watch.check()
    try:
      # A session of its own: the terminal's Ctrl-C must not reach a deletion.
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
      )
    except OSError as error:
      return Result(127, err=f'{command[0]}: {error.strerror}')
    while True:
      try:
        out, err = process.communicate(timeout=_TICK)
        return Result(process.returncode, out, err.decode(errors='replace').strip())
      except subprocess.TimeoutExpired:
        if not shielded:
          _check(watch, process)

  return Commands(call, watch.pause)


def _check(watch: signals.Watch, process: subprocess.Popen) -> None:
  try:
    watch.check()
  except signals.Interrupted:
    _end(process)
    raise


def _end(process: subprocess.Popen) -> None:
  """Ends a command and its own child processes."""
  for number in (signal.SIGTERM, signal.SIGKILL):
    try:
      os.killpg(process.pid, number)
      process.communicate(timeout=_LAST_WISH_SECONDS)
      return
    except ProcessLookupError:
      return
    except subprocess.TimeoutExpired:
      continue


def dry() -> Commands:
  """Prints commands as a shell reads them; every command succeeds."""

  def call(command: Sequence[str], *, pretend: str = '', shielded: bool = False) -> Result:
    say(shlex.join(command), stream=sys.stdout)
    return Result(0, pretend.encode())

  return Commands(call, lambda seconds, **_: None, lambda label, command, **_: call(command) and None)
