"""Templates of prompts, truncation and EOS: the steps from a record's texts to a model's tokens."""

import string
from collections.abc import Sequence

import numpy as np

from dro_jax.data.text.vocabularies import EOS
from dro_jax.errors import UsageError

_END = np.array([EOS], np.int32)
KEEPS = ('auto', 'start', 'end')
OVERLONG = ('truncate', 'drop')


def check_template(template: str) -> str:
  """Refuses a template that does not use {prompt}, or has another field.

  A template is Python's format syntax with one field: 'Translate Romanian to English: {prompt}'.
  """
  return check_fields(template, 'prompt template', needed='prompt')


def check_fields(template: str, name: str, *, needed: str, optional: Sequence[str] = ()) -> str:
  """Refuses a template (Python's format syntax) that lacks a field, has others, or does not take text."""
  try:
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    if needed in fields and fields <= {needed, *optional}:
      template.format(**dict.fromkeys((needed, *optional), 'text'))
      return template
  except (ValueError, LookupError) as error:
    raise UsageError(f"{name} '{template}': {error}; write {{{{ and }}}} for literal braces") from error
  others = ' and '.join(f'{{{field}}}' for field in optional)
  exception = f' except {others}' if others else ''
  raise UsageError(f"{name} '{template}' must contain {{{needed}}}, and no other field{exception}")


def kept_end(keep: str, is_conversation: bool) -> str:
  """The end of an overlong prompt to keep; 'auto' keeps a conversation's end, which is the question."""
  return keep if keep != 'auto' else 'end' if is_conversation else 'start'


def prompt_tokens(ids: np.ndarray, length: int, keep: str = 'start') -> tuple[np.ndarray, bool]:
  """A prompt's ids with EOS, at most `length`, and whether it was cut; `keep` is the end to keep."""
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
