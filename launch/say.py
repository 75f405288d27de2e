"""Lines for the terminal."""

import sys
from typing import TextIO


def say(text: str, *, stream: TextIO | None = None, end: str = '\n') -> None:
  """Writes a line; a reader that has gone (a closed terminal, `| head`) must not stop a clean-up."""
  stream = stream or sys.stderr
  try:
    stream.write(text + end)
    stream.flush()
  except (OSError, ValueError):
    pass
