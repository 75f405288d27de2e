"""The prompts that sides answer: of files, of data sets by name, or those that a run held out."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dro_jax.checkpoints import folders
from dro_jax.data.records import inheritance, triplets
from dro_jax.data.sources.find import find
from dro_jax.data.storage import hashes
from dro_jax.data.text import chat
from dro_jax.errors import UsageError
from dro_jax.run.folder import configs


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


def held_out(model_dir: str, data_dir: str | None = None) -> list[Prompt]:
  """The prompts that a run held out for validation.

  Args:
    model_dir: a run's folder or one of its checkpoints.
    data_dir: the folder that holds the public data sets' folders.

  Raises:
    UsageError: the run held out none, or its data is not where it was.
  """
  checkpoint = folders.find_checkpoint(model_dir)
  saved = folders.load_metadata(model_dir)
  data = saved.get('data', {})
  if not data.get('triplets'):
    raise UsageError(
      f'{model_dir} does not say which prompts it held out: pass the prompts to judge on, as --triplets=FILE.'
    )
  names = configs.read_options(saved, pathlib.Path(checkpoint))['columns']
  if data.get('eval_triplets'):
    own = inheritance.options({'columns': names}, data['eval_triplets'], None)['columns']
    return read(data['eval_triplets'], own, split='validation', data_dir=data_dir)
  fraction = data.get('split', {}).get('fraction', 0)
  if not fraction:
    raise UsageError(f'{model_dir} held out no prompts: pass those to judge on, as --triplets=FILE.')
  whole = read(data['triplets'], names, data_dir=data_dir)
  options = data.get('options', {})
  turn = None if options.get('chat') else options.get('chat_template') or chat.TEMPLATE
  held = hashes.by_prompt_hash([prompt.by(turn) for prompt in whole], fraction, data['split'].get('salt', ''))
  return list(itertools.compress(whole, held))


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
