"""The `export_split` command: the train, validation and test parts of a run's triplets, as files."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from dro_jax import files
from dro_jax.checkpoints import folders, policy
from dro_jax.data.records import comparisons
from dro_jax.data.sources.find import find
from dro_jax.data.storage import hashes
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import chat, tokenise
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.data.triplets import Parts, read_again, read_parts
from dro_jax.errors import UsageError
from dro_jax.run.folder.reading import names_of

# The parts by the names of their files, and the names of their counts in a run's metadata.
PARTS = {'train': 'train', 'validation': 'eval', 'test': 'test'}


def export_split(
  model_dir: str,
  output: str | None = None,
  *,
  num_prompts: int | None = None,
  responses: bool = True,
  triplets: str | Sequence[str] | None = None,
  eval_triplets: str | Sequence[str] | None = None,
  vocabulary: str | None = None,
  task_modules: str | Sequence[str] | None = None,
  data_dir: str | None = None,
  cache_dir: str | None = None,
) -> dict[str, Any]:
  """Writes OUTPUT/train.jsonl, validation.jsonl and test.jsonl: id, prompt, response, reward, other numbers.

  The triplets are read as the run read them, and a prompt is without the run's template: `generate` and
  `evaluate` put it around the prompt again. A part that the run does not have is not written, and the folder
  may not have it of another run. Parts that are there are replaced, all of them or none.

  Args:
    model_dir: the run's folder, or one of its checkpoints.
    output: the folder to write.
    num_prompts: prompts of each part at most, those with the least hashes: the same ones in every file that
      has them; `None` writes all.
    responses: whether the logged responses are written, with rewards as they came; else each prompt once.
    triplets: where the run's triplets lie now; `None` takes them from where they lay.
    eval_triplets: where its held-out triplets lie now.
    vocabulary: where its vocabulary lies now.
    task_modules: where the modules of its seqio tasks lie now.
    data_dir: where public data sets lie now.
    cache_dir: the folder of token tables.

  Returns:
    By part, the prompts, the records and the file.

  Raises:
    UsageError: there is no run, its triplets changed or are not there, or nothing can be written.
  """
  if output is None:
    raise UsageError('export_split writes a folder: pass output=FOLDER, or --output=FOLDER.')
  if num_prompts is not None and num_prompts < 1:
    raise UsageError(
      f'num_prompts={num_prompts} (PROMPTS) leaves no prompt: pass 1 or more, or None for all.'
    )
  target = files.output_folder(output)
  checkpoint = folders.find_checkpoint(model_dir)
  saved = folders.load_metadata(checkpoint)
  moved = {
    'triplets': triplets, 'eval_triplets': eval_triplets, 'task_modules': task_modules, 'data_dir': data_dir,
  }  # fmt: skip
  reading = _reading(saved, pathlib.Path(checkpoint), moved, model_dir)
  words = policy.vocabulary_of(str(checkpoint), vocabulary)
  parts = _read(reading, words, cache_dir)
  _refuse_changed(saved['data'], parts, model_dir)
  by_chat = tokenise.uses_chat(words, reading['chat'], reading['chat_template'])
  turn = tokenise.turn_template(by_chat, reading['chat_template'])
  tables = {name: getattr(parts, field) for name, field in PARTS.items()}
  _refuse_leftovers(target, [name for name, table in tables.items() if table is None], model_dir)
  target.mkdir(parents=True, exist_ok=True)
  written = {}
  # All parts or none take their places: parts of two runs may share prompts.
  with contextlib.ExitStack() as places:
    for name, table in tables.items():
      if table is not None:
        path = target / f'{name}.jsonl'
        temporary = places.enter_context(files.replacing(path))
        records = _records(reading, name, _chosen_ids(table, num_prompts), turn)
        written[name] = _write(temporary, records, responses) | {'file': str(path)}
  return written


def _reading(
  saved: Mapping[str, Any], checkpoint: pathlib.Path, moved: Mapping[str, Any], model_dir: str
) -> dict[str, Any]:
  """How the run read its triplets, as `read_parts` takes it, from where they lie now."""
  data = saved.get('data') or {}
  if 'triplets' not in data or 'options' not in data:
    raise UsageError(
      f'{model_dir} does not say which triplets it read: they were made in memory, or it is not a run. Pass '
      'the folder of a run that reads files or data sets by their names.'
    )
  again = read_again({**data, 'read': names_of(saved, checkpoint)})
  return again | {name: value for name, value in moved.items() if value is not None}


def _read(reading: Mapping[str, Any], vocabulary: Vocabulary, cache_dir: str | None) -> Parts:
  try:
    return read_parts(**reading, vocabulary=vocabulary, cache_dir=cache_dir)
  except UsageError as error:
    places = ' and '.join(str(reading[name]) for name in ('triplets', 'eval_triplets') if reading[name])
    raise UsageError(
      f'{error}. The run read {places}, from the folder in which it was started: pass --triplets=FILE (and '
      '--eval_triplets=FILE) where they lie now.'
    ) from error


def _refuse_changed(then: Mapping[str, Any], parts: Parts, model_dir: str) -> None:
  """Refuses triplets of which the run read others."""
  for name, field in PARTS.items():
    table, mark = getattr(parts, field), then.get(f'{field}_fingerprint')
    # The mark of a run that joined columns is of the records that these left.
    is_comparable = mark is not None and not (field == 'train' and then.get('columns_from'))
    if is_comparable and (table is None or table.fingerprint() != mark):
      raise UsageError(
        f'{model_dir}: its {name} part was made of other records than lie there now ({then["triplets"]}), so '
        'that other prompts may be held out: bring the files back that it read, or pass them as --triplets.'
      )


def _refuse_leftovers(target: pathlib.Path, absent: Sequence[str], model_dir: str) -> None:
  """Refuses a folder that has a part which the run lacks: its prompts may be among those of other parts."""
  leftovers = [f'{name}.jsonl' for name in absent if (target / f'{name}.jsonl').exists()]
  if leftovers:
    raise UsageError(
      f'--output={target} has {" and ".join(leftovers)} of another run, and {model_dir} has no such part. It '
      'would stand beside the parts of this run, and may hold the same prompts: pass another folder, or '
      'remove it.'
    )


def _chosen_ids(table: TokenTable, num_prompts: int | None) -> set[str]:
  """The ids of the records to write: of all prompts, or of those with the least hashes."""
  digests = table.prompt_digests
  kept = np.unique(digests)
  if num_prompts is not None:
    # Mixed again, for a part was chosen by its hashes.
    kept = kept[np.argsort(hashes.mix(kept ^ hashes.digests(['export'])[0]), kind='stable')[:num_prompts]]
  return {table.ids[int(i)] for i in np.flatnonzero(np.isin(digests, kept))}


def _records(
  reading: Mapping[str, Any], part: str, ids: Set[str], turn: str | None
) -> Iterator[dict[str, Any]]:
  """The records with these ids, as a triplet file has them.

  A conversation that was read as text is written as its turns: only of a conversation is an overlong prompt's
  end kept, which is the question.
  """
  is_apart = part == 'validation' and bool(reading['eval_triplets'])
  name = reading['eval_triplets'] if is_apart else reading['triplets']
  split = reading.get('eval_task_split', 'validation') if is_apart else reading.get('task_split', 'train')
  options = {of: reading.get(of) for of in ('columns', 'map_reward', 'data_dir')} | {'split': split}
  sources = [find(name, chat_template=template, **options) for template in dict.fromkeys((turn, None))]
  for record, *as_turns in zip(*(source.records() for source in sources), strict=True):
    if record.id not in ids:
      continue
    prompt = record.prompt
    if isinstance(prompt, chat.Rendered):
      prompt = [spoken._asdict() for spoken in chat.turns_of(as_turns[0].prompt)]
    reward = {} if record.reward is None else {'reward': record.reward}
    own = comparisons.own(record.columns, record.id)
    yield {'id': record.id, 'prompt': prompt, 'response': record.response, **reward, **own}


def _write(path: pathlib.Path, records: Iterator[dict[str, Any]], responses: bool) -> dict[str, Any]:
  """Writes a part; returns how many prompts and records it has."""
  seen, count = set(), 0
  with open(path, 'w', encoding='utf-8') as file:
    for record in records:
      text = files.json_text(record['prompt'])
      if responses or text not in seen:
        kept = record if responses else {name: record[name] for name in ('id', 'prompt')}
        file.write(files.json_line(kept))
        count += 1
      seen.add(text)
  return {'prompts': len(seen), 'records': count}


__all__ = ['export_split']
