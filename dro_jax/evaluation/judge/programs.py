"""A user's program as a judge: it reads a comparison a line, as JSON, and writes a verdict a line."""

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any

from dro_jax import files
from dro_jax.errors import Failed, UsageError, shown
from dro_jax.run.sampling.reward_commands import kill_group, words_of

MUST = (
  'It must read lines of JSON with prompt, first and second until its input ends, and write one line for '
  'each, A, B, tie or {"first": PROBABILITY}, and nothing else, on standard output (what it says belongs on '
  'standard error)'
)
_READ = 65536  # Bytes at once.
_SHOWN = 2  # First lines that an error shows.


class OutOfStep(Failed):
  """A program wrote more than a line for each comparison, so that no line is known to be whose verdict."""


def words(command: str) -> list[str]:
  """The program and its arguments, as a shell quotes them.

  Raises:
    UsageError: there are none, or a quote is open.
  """
  found = words_of(command, 'COMMAND=')
  if not found:
    raise UsageError("COMMAND is empty: pass a program, as --set COMMAND='python mine.py'.")
  return found


class Program:
  """A program that answers lines by lines; started with the first question, and ended with the block.

  Args:
    command: the program and its arguments.
    timeout: seconds that a verdict may take, and the program's end after that of its input.
  """

  def __init__(self, command: str, timeout: float | int):
    self._command, self._words, self._timeout = command, words(command), timeout
    self._process: Any = None
    self._rest = b''  # What it wrote after the last line that was asked for.
    self._first: list[str] = []  # Its first lines, which an error shows: a banner is among them.
    self._late = threading.Event()

  def __enter__(self) -> 'Program':
    return self

  def __exit__(self, *_: Any) -> None:
    if self._process is not None:
      kill_group(self._process)
      self._process.wait()
      with contextlib.suppress(BrokenPipeError):
        self._process.stdin.close()
      self._process.stdout.close()

  def ask(self, question: Mapping[str, str]) -> str:
    """The line that the program writes about a question.

    Raises:
      OutOfStep: it wrote more lines than it was asked for.
      Failed: it ended, or took too long.
      UsageError: it cannot be started.
    """
    if self._process is None:
      self._process = self._start()
    self._refuse_surplus()
    line = b''
    with self._watched(), contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(files.json_line(question).encode())
      self._process.stdin.flush()
      line = self._line()
    if self._late.is_set():
      raise Failed(
        f'COMMAND={self._command}: the program wrote no verdict within {self._timeout:g} seconds and was '
        'ended. All verdicts so far are saved: the same command goes on. Pass more time as --set '
        'TIMEOUT=SECONDS (endpoint.timeout), which the first verdict needs for the start of the program too.'
      )
    if not line:
      code, left = self._process.wait(), f' It ended with {_text(self._rest)}.' if self._rest else ''
      raise Failed(
        f'COMMAND={self._command}: the program ended with exit code {code} and left a comparison without a '
        f'verdict.{left} {MUST}.'
      )
    if len(self._first) < _SHOWN:
      self._first.append(_text(line))
    return line.decode(errors='replace').strip()

  def finish(self) -> None:
    """Ends the program's input, and reads what it still writes.

    Raises:
      OutOfStep: it wrote more lines than it was asked for.
    """
    if self._process is None:
      return
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    ends = time.monotonic() + self._timeout
    # A program that does not end in time is killed with the block: its verdicts are all there.
    while not self._rest and self._readable(ends - time.monotonic()):
      if not self._read():
        break
    self._refuse_surplus()

  def _start(self) -> Any:
    # A session of its own, so that what the program starts ends with it.
    try:
      return subprocess.Popen(
        [os.path.expanduser(self._words[0]), *self._words[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
      )  # fmt: skip
    except OSError as error:
      raise UsageError(f'COMMAND={self._command}: cannot start it ({error}). Pass a program.') from error

  def _line(self) -> bytes:
    """The next line with its end; nothing where the output ends first."""
    while b'\n' not in self._rest:
      if not self._read():
        return b''
    line, _, self._rest = self._rest.partition(b'\n')
    return line + b'\n'

  def _read(self) -> bool:
    """Reads what there is; `False` at the end of the output."""
    found = os.read(self._process.stdout.fileno(), _READ)
    self._rest += found
    return bool(found)

  def _readable(self, seconds: float) -> bool:
    return bool(select.select([self._process.stdout], [], [], max(seconds, 0.0))[0])

  def _refuse_surplus(self) -> None:
    if not self._rest and self._readable(0.0):
      self._read()
    if self._rest:
      raise OutOfStep(
        f'COMMAND={self._command}: the program wrote {_text(self._rest)} beyond a line for each comparison '
        f'(its output began with {", ".join(self._first) or "that"}), so that no line is known to be whose '
        f'verdict, and none of this call is counted. {MUST}.'
      )

  @contextlib.contextmanager
  def _watched(self) -> Any:
    """A block that ends, with the program, after the time for a verdict."""

    def end() -> None:
      self._late.set()
      kill_group(self._process)

    timer = threading.Timer(self._timeout, end)
    timer.daemon = True
    timer.start()
    try:
      yield
    finally:
      timer.cancel()


def _text(found: bytes) -> str:
  return shown(found.decode(errors='replace').partition('\n')[0])
