"""What a run may end with, other than a result or a fault of ours."""


class UsageError(ValueError):
  """Bad usage or bad data: the message names file, line and field, and says what to do. Exit code 2."""


class Stopped(Exception):
  """A signal stopped the run after its state was saved: the same command resumes it. Exit code 75."""
