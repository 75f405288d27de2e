"""The one exception that means: the user can fix this."""


class UsageError(ValueError):
  """Bad usage or bad data: the message names file, line and field, and says what to do. Exit code 2."""
