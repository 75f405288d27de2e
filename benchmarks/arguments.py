"""Command-line arguments that several of the files here take."""


def numbers(text: str) -> tuple[int, ...]:
  """Whole numbers, separated by commas."""
  return tuple(map(int, text.split(',')))


def pair(text: str) -> tuple[int, int]:
  """Two of them."""
  first, second = numbers(text)
  return first, second
