"""Rewards by a program of the user's: `command:PROGRAM ARGUMENTS`.

It is run once for each batch. It gets one JSON object a line on standard input, {"prompt": ..., "response":
...}, and writes one number a line on standard output, in the same order.
"""

import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from dro_jax import files
from dro_jax.errors import UsageError, shown

PREFIX = 'command:'
_TAIL = 400  # Characters of what a program wrote that an error shows.


@dataclasses.dataclass(frozen=True)
class RewardCommand:
  """A reward function that runs a program.

  Args:
    command: the program and its arguments, as a shell quotes them; it is not run by a shell, so that pipes
      need `sh -c '...'`.
    timeout: seconds that it may take for one batch.

  Raises:
    UsageError: there is no such program.
  """

  command: str
  timeout: float | int = 600.0

  def __post_init__(self) -> None:
    if not self.timeout > 0:
      raise UsageError(f'timeout={self.timeout}: pass seconds above 0, as --set TIMEOUT=600.')
    words = words_of(self.command)
    if not words:
      raise UsageError(f'REWARD={PREFIX} names no program: pass {PREFIX}PROGRAM, such as {PREFIX}./judge.sh.')
    if shutil.which(os.path.expanduser(words[0])) is None:
      raise UsageError(
        f'REWARD={PREFIX}{self.command}: there is no program {words[0]!r}, or it may not be run: pass its '
        f'path, or the interpreter first, as {PREFIX}python {words[0]}.'
      )

  @property
  def reward_name(self) -> str:
    """The name in the record of a run."""
    return f'{PREFIX}{self.command}'

  @property
  def reward_code(self) -> str:
    """A hash of the command line and of the files that it names."""
    return code_of(self.command)

  def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    records = [{'prompt': prompt, 'response': response} for prompt, response in zip(prompts, responses)]
    lines = self._run(''.join(map(files.json_line, records))).split('\n')
    lines = lines[:-1] if lines[-1] == '' else lines
    if len(lines) != len(records):
      raise self._wrong(
        f'wrote {len(lines)} lines for {len(records)} responses: it must write one number a line, and '
        'nothing else, on standard output (what it says belongs on standard error)'
      )
    return [self._number(line, number) for number, line in enumerate(lines, 1)]

  def _number(self, line: str, number: int) -> float:
    try:
      return float(line)
    except ValueError:
      raise self._wrong(
        f'wrote {shown(line)} as line {number} of its standard output, which is not a number'
      ) from None

  def _run(self, text: str) -> str:
    words = words_of(self.command)
    # A session of its own, so that what the program starts ends with it.
    with subprocess.Popen(
      [os.path.expanduser(words[0]), *words[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, encoding='utf-8', errors='replace',
      start_new_session=True,
    ) as process, _ended(process):  # fmt: skip
      try:
        said, errors = process.communicate(text, timeout=self.timeout)
      except subprocess.TimeoutExpired:
        raise self._wrong(
          f'did not end within {self.timeout:g} seconds, after the end of its input: make it faster, or pass '
          'more time (timeout=SECONDS; of `dro_jax score` --set TIMEOUT=SECONDS), or smaller batches'
        ) from None
    if process.returncode:
      tail = f': {errors.strip()[-_TAIL:]}' if errors.strip() else ', and wrote nothing on standard error'
      raise self._wrong(f'ended with exit code {process.returncode}{tail}')
    return said

  def _wrong(self, problem: str) -> UsageError:
    return UsageError(f'the reward {PREFIX}{self.command} {problem}.')


def words_of(command: str, setting: str = f'REWARD={PREFIX}') -> list[str]:
  """The program and its arguments, as a shell quotes them.

  Args:
    command: the command line.
    setting: what it was passed as, for errors.

  Raises:
    UsageError: a quote is open.
  """
  try:
    return shlex.split(command)
  except ValueError as error:
    raise UsageError(f'{setting}{command}: {error}: close the quotes.') from error


def code_of(command: str) -> str:
  """A hash of a command line and of the files that it names, with what Python files import beside them."""
  places = [os.path.expanduser(word) for word in words_of(command)]
  contents = [files.code_digest(place) if place.endswith('.py') else files.hash_file(place)
              for place in places if os.path.isfile(place)]  # fmt: skip
  return files.hash_parts(part.encode() for part in (command, *contents))


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
  """A block after which neither the program nor what it started runs on."""
  try:
    yield
  finally:
    kill_group(process)


def kill_group(process: subprocess.Popen[Any]) -> None:
  """Ends a program that has a session of its own, and what it started."""
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, signal.SIGKILL)
