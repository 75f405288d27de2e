"""Templates of prompts, and truncation."""

import string
from collections.abc import Sequence

import numpy as np

from dro_jax.errors import UsageError

PLAIN = '{prompt}'  # The prompt alone.
PROMPT_LENGTH, RESPONSE_LENGTH = 512, 512  # Tokens at most where nothing else is set, EOS included.
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


def cut_prompt(
  ids: np.ndarray, length: int, keep: str, *, before: Sequence[int] = (), after: Sequence[int] = ()
) -> tuple[np.ndarray, bool]:
  """A prompt's ids between others, at most `length` in all, and whether it was cut.

  Args:
    ids: the prompt's own, which alone are cut.
    length: the most ids, at least as many as there are before and after.
    keep: the end to keep, 'start' or 'end'.
    before, after: ids around the prompt, such as BOS and EOS.
  """
  room = length - len(before) - len(after)
  cut = len(ids) > room
  if cut:
    ids = ids[:room] if keep == 'start' else ids[len(ids) - room :]
  return np.concatenate((np.asarray(before, np.int32), ids, np.asarray(after, np.int32))), cut


def cut_response(ids: np.ndarray, length: int) -> tuple[np.ndarray, bool]:
  """A response's ids, at most `length`, and whether it was cut, and so lost its EOS.

  An EOS after a cut would teach the model to stop there.
  """
  return ids[:length], len(ids) > length
