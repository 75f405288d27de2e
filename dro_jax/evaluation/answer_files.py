"""Files of answers as the `answers` command compares them: by name, and by the prompts that all answer."""

import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.data.records.answers import read_unchecked
from dro_jax.data.records.file_names import expand
from dro_jax.data.storage import partial
from dro_jax.errors import UsageError
from dro_jax.run.sampling.decoding import Decoding

# Fields of `generate` that are no measure by themselves.
_BESIDE = ('step', 'reference_logp')
# Settings of `generate` that decide which answers are drawn; seeds are pooled, checkpoints are compared.
_DECODING = tuple(Decoding().distribution())


class Answers(NamedTuple):
  """The answers of one file, or of one step of a file that has several.

  Attributes:
    name: of the side that they belong to.
    file: where they lie.
    by_prompt: records by prompt, with our names of fields; a conversation by its turns as JSON.
    settings: how `generate` decoded them; `None` where that is not known.
  """

  name: str
  file: str
  by_prompt: Mapping[str, Sequence[Mapping[str, Any]]]
  settings: Mapping[str, Any] | None

  @property
  def records(self) -> list[Mapping[str, Any]]:
    """All records, prompt by prompt."""
    return [record for records in self.by_prompt.values() for record in records]

  def mean_by_prompt(self, value: Callable[[Mapping[str, Any]], float]) -> np.ndarray:
    """The mean over each prompt's answers, `[P]`."""
    return np.array([math.fsum(map(value, each)) / len(each) for each in self.by_prompt.values()])


def read(specs: Sequence[str], columns: str | Mapping[str, str] | None = None) -> list[Answers]:
  """The files that are named, each FILE or NAME=FILE, in their order.

  Several files of one NAME are one side, such as the seeds of one method. The answers of several steps in one
  file are sides of their own, NAME@STEP.

  Args:
    specs: name the files.
    columns: the files' names of fields; those that a file lacks are passed over.

  Raises:
    UsageError: a file is missing, or a record has no prompt or response.
  """
  named = [(name, path) for spec in specs for name, path in _expanded(spec)]
  paths = [os.path.realpath(path) for _, path in named]
  if repeated := [path for i, path in enumerate(paths) if path in paths[:i]]:
    raise UsageError(f'{repeated[0]} is named twice: name each file of answers once.')
  stems = [pathlib.Path(path).name.partition('.')[0] for name, path in named if name is None]
  found = []
  for name, path in named:
    stem = pathlib.Path(path).name.partition('.')[0]
    # Two files are one side only where the user says so.
    own = name or (stem if stems.count(stem) == 1 and stem not in [n for n, _ in named] else path)
    found += _of_steps(own, path, columns)
  return found


def _expanded(spec: str) -> Iterator[tuple[str | None, str]]:
  """(name, path) of each file that a text names; the name is None where the user gave none."""
  name, equals, path = spec.partition('=')
  if not equals or os.path.exists(os.path.expanduser(spec)):
    name, path = '', spec
  for file in expand([path.strip()]):
    yield name.strip() or None, file


def _of_steps(name: str, path: str, columns: str | Mapping[str, str] | None) -> Iterator[Answers]:
  by_step: dict[Any, dict[str, list[Mapping[str, Any]]]] = {}
  for answer in read_unchecked(path, columns):
    record = answer.fields | {'response': answer.response}
    by_step.setdefault(record.get('step'), {}).setdefault(answer.prompt, []).append(record)
  settings = partial.settings_of(pathlib.Path(path))
  decoding = settings and {field: settings.get(field) for field in _DECODING}
  for step, by_prompt in by_step.items():
    yield Answers(name if len(by_step) == 1 else f'{name}@{step}', path, by_prompt, decoding)


def in_common(found: Sequence[Answers]) -> list[Answers]:
  """The answers to the prompts that all files have, in one order.

  Raises:
    UsageError: no prompt is in all of them.
  """
  shared = [prompt for prompt in found[0].by_prompt if all(prompt in each.by_prompt for each in found)]
  if not shared:
    counts = ', '.join(f'{len(each.by_prompt)} in {each.file}' for each in found)
    raise UsageError(
      f'no prompt is in all files of answers ({counts}): pass answers to the same prompts, as `dro_jax '
      'generate` writes them with the same --triplets.'
    )
  return [each._replace(by_prompt={prompt: each.by_prompt[prompt] for prompt in shared}) for each in found]


def number_fields(answers: Answers) -> list[str]:
  """The fields that hold a finite number in every record: rewards and what else was measured."""
  records = answers.records
  names = dict.fromkeys(name for name in records[0] if name not in _BESIDE)
  return [name for name in names if all(is_number(record.get(name)) for record in records)]


def is_number(value: Any) -> bool:
  """Whether a field holds a finite number or a yes or no."""
  return isinstance(value, bool | int | float) and math.isfinite(value)
