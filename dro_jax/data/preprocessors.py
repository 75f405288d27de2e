"""Small steps from a record's fields to a model's tokens: templates, truncation, EOS."""

import string

import numpy as np

from dro_jax.data.vocabularies import EOS
from dro_jax.errors import UsageError

_END = np.array([EOS], np.int32)
KEEPS = ('start', 'end')
OVERLONG = ('truncate', 'drop')


def check_template(template: str) -> str:
  """Refuses a template that does not use the prompt, or asks for anything else.

  A template is Python's format syntax with one field: 'Translate Romanian to English: {prompt}'.
  """
  try:
    fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
  except ValueError as error:
    raise UsageError(
      f"prompt template '{template}': {error}; write {{{{ and }}}} for braces themselves"
    ) from error
  if not fields or set(fields) != {'prompt'}:
    raise UsageError(f"prompt template '{template}' must contain {{prompt}}, and no other field")
  return template


def prompt_tokens(ids: np.ndarray, length: int, keep: str = 'start') -> tuple[np.ndarray, bool]:
  """A prompt's ids with EOS, at most `length`, and whether it was cut; `keep` is the end that stays."""
  cut = len(ids) >= length
  if cut:
    ids = ids[: length - 1] if keep == 'start' else ids[len(ids) - length + 1 :]
  return np.concatenate((ids, _END)), cut


def response_tokens(ids: np.ndarray, length: int) -> tuple[np.ndarray, bool]:
  """A response's ids with EOS; one over `length` tokens (EOS included) is cut and gets no EOS.

  An EOS after a cut would teach the model to stop there.
  """
  cut = len(ids) >= length
  return (ids[:length], True) if cut else (np.concatenate((ids, _END)), False)
