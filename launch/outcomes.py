"""What the exit codes of several processes mean together."""

import signal
from collections.abc import Iterable

DONE, FAILED, STOPPED = 0, 1, 75


def plain(code: int) -> int:
  """A code as a shell has it: 128 + N where signal N ended the process, which Python says as -N."""
  return 128 - code if code < 0 else code


def is_failure(code: int) -> bool:
  return code not in (DONE, STOPPED)


def fold(codes: Iterable[int]) -> int:
  """75 if all stopped after saving (or were done), 0 if all were done, else the first real failure's.

  Args:
    codes: exit codes, in the order in which the processes ended.
  """
  codes = [plain(code) for code in codes]
  failures = [code for code in codes if is_failure(code)]
  return failures[0] if failures else max(codes, default=DONE)


def in_words(code: int) -> str:
  """`exit code 2`, or the signal."""
  number = plain(code) - 128
  names = {item.value: item.name for item in signal.Signals}
  return f'{names[number]} (exit code {plain(code)})' if number in names else f'exit code {code}'
