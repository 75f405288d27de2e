"""One exit code for several processes."""

import signal
from collections.abc import Iterable

DONE, FAILED, STOPPED = 0, 1, 75


def plain(code: int) -> int:
  """The exit code as a shell reports it: 128 + N where signal N ended the process (-N in Python)."""
  return 128 - code if code < 0 else code


def is_failure(code: int) -> bool:
  return code not in (DONE, STOPPED)


def fold(codes: Iterable[int]) -> int:
  """0 if all are done; 75 if some stopped after saving and none failed; else the code of the first failure.

  Args:
    codes: exit codes, in the order in which the processes ended.
  """
  codes = [plain(code) for code in codes]
  failures = [code for code in codes if is_failure(code)]
  return failures[0] if failures else max(codes, default=DONE)


def in_words(code: int) -> str:
  """`exit code 2`, or the name of the signal."""
  number = plain(code) - 128
  names = {item.value: item.name for item in signal.Signals}
  return f'{names[number]} (exit code {plain(code)})' if number in names else f'exit code {code}'
