"""The instructions for a judge: three of our own, or a user's file."""

import pathlib
import re

from dro_jax.errors import UsageError, did_you_mean

FOLDER = pathlib.Path(__file__).resolve().parent / 'templates'
NAMES = tuple(sorted(path.stem for path in FOLDER.glob('*.txt')))
PLACES = ('prompt', 'first', 'second')
_PLACE = re.compile('{(' + '|'.join(PLACES) + ')}')


def load(name: str) -> str:
  """The template of a name, or of a user's file.

  Raises:
    UsageError: there is none, or it lacks a place for the prompt or an answer.
  """
  if name in NAMES:
    return (FOLDER / f'{name}.txt').read_text(encoding='utf-8')
  path = pathlib.Path(name).expanduser()
  if not path.is_file():
    raise UsageError(
      f'--judge_prompt={name}{did_you_mean(name, NAMES)}: there is no such file and no such template. Pass '
      f'{", ".join(NAMES)}, or a file of your own.'
    )
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise UsageError(f'--judge_prompt={name}: {error}. Pass a text file in UTF-8.') from error
  if missing := [place for place in PLACES if f'{{{place}}}' not in text]:
    raise UsageError(
      f'--judge_prompt={name}: the file has no place {{{missing[0]}}}. It must hold {{prompt}}, {{first}} '
      'and {second}, and ask for a last line "Verdict: A", "Verdict: B" or "Verdict: tie".'
    )
  return text


def fill(template: str, prompt: str, first: str, second: str) -> str:
  """The template with the texts in their places; braces in a text stay as they are."""
  texts = {'prompt': prompt, 'first': first, 'second': second}
  return _PLACE.sub(lambda match: texts[match[1]], template)
