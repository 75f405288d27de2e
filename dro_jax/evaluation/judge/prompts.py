"""The prompts that sides answer: of files, of data sets by name, or those that a run held out."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dro_jax.checkpoints import folders
from dro_jax.data.records import triplets
from dro_jax.data.sources.find import find
from dro_jax.data.storage import hashes
from dro_jax.data.text import chat
from dro_jax.errors import UsageError
from dro_jax.evaluation.export_split import export_split


class Prompt(NamedTuple):
  """A prompt.

  Attributes:
    id: of its record.
    text: as a judge reads it; a conversation by the template of `text.chat`.
    turns: as a model with a chat template of its own takes it: a conversation as JSON, other prompts as text.
  """

  id: str
  text: str
  turns: str

  def by(self, template: str | None) -> str:
    """The text by a template of turns; `None` leaves the turns to the model's own."""
    if template is None:
      return self.turns
    if self.text == self.turns or template == chat.TEMPLATE:
      return self.text
    return chat.render(chat.turns_of(self.turns), template)


def read(
  names: str | Sequence[str],
  columns: str | Mapping[str, str] | None = None,
  *,
  split: str = 'train',
  data_dir: str | None = None,
) -> list[Prompt]:
  """The different prompts of files or data sets, in their order.

  Args:
    names: files of any triplet format, or names of data sets.
    columns: the files' names of fields.
    split: of a data set.
    data_dir: the folder that holds the public data sets' folders.

  Raises:
    UsageError: they cannot be read.
  """
  found: dict[str, Prompt] = {}
  texts, turns = (_pairs(names, columns, split, data_dir, template) for template in (chat.TEMPLATE, None))
  for (record_id, text), (_, own) in zip(texts, turns, strict=True):
    found.setdefault(text, Prompt(record_id, text, own))
  return list(found.values())


def _pairs(
  names: str | Sequence[str],
  columns: str | Mapping[str, str] | None,
  split: str,
  data_dir: str | None,
  template: str | None,
) -> Iterator[tuple[str, str]]:
  """(id, prompt) of every record."""
  if triplets.is_files(names):
    yield from triplets.read_prompts(names, columns, chat_template=template)
    return
  source = find(names, columns=columns, chat_template=template, split=split, data_dir=data_dir)
  for record in source.records():
    yield record.id, record.prompt


def is_run(model_dir: str) -> bool:
  """Whether a checkpoint is a run's, which says what it learnt from; an imported one says nothing."""
  return bool(folders.load_metadata(model_dir).get('data', {}).get('triplets'))


def held_out(model_dir: str, folder: pathlib.Path, data_dir: str | None = None) -> list[Prompt]:
  """The prompts that a run kept for tests, or else those that it held out for validation.

  Args:
    model_dir: a run's folder or one of its checkpoints.
    folder: where the prompts are written.
    data_dir: where the public data sets lie now.

  Raises:
    UsageError: the run kept none, or its triplets are not where they were, or changed.
  """
  if not is_run(model_dir):
    raise UsageError(
      f'{model_dir} does not say which prompts it held out: pass the prompts to judge on, as --triplets=FILE.'
    )
  written = export_split(model_dir, str(folder), responses=False, data_dir=data_dir)
  part = next((written[name] for name in ('test', 'validation') if name in written), None)
  if part is None:
    raise UsageError(f'{model_dir} held out no prompts: pass those to judge on, as --triplets=FILE.')
  return read(part['file'])


def fewest(prompts: Sequence[Prompt], count: int | None) -> list[Prompt]:
  """`count` of the prompts at most, those with the least hashes: the same ones from any file."""
  if count is None or count >= len(prompts):
    return list(prompts)
  order = np.argsort(hashes.digests(prompt.text for prompt in prompts), kind='stable')
  return [prompts[i] for i in sorted(order[:count])]


def apart(prompts: Sequence[Prompt], fraction: float) -> tuple[list[Prompt], list[Prompt]]:
  """The prompts to choose checkpoints on, and the others, to report on: by hash, the same in every call."""
  chosen = hashes.by_prompt_hash([prompt.text for prompt in prompts], fraction, 'choose')
  return list(itertools.compress(prompts, chosen)), list(itertools.compress(prompts, ~chosen))
