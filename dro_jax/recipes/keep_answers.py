"""The `keep_answers` command: the answers of a file that can train."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dro_jax import files
from dro_jax.data.records import readers
from dro_jax.data.records.answers import can_train, new_file
from dro_jax.data.records.fields import checked_names
from dro_jax.data.records.file_names import expand
from dro_jax.errors import UsageError


def keep_answers(
  answers: str | Sequence[str], output: str, *, columns: str | Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Writes the records of answers that are not blank and hold no NUL character, with all of their fields.

  Policies give such answers now and then, and a file of triplets may not have them.

  Args:
    answers: files, as `generate` writes them.
    output: the file to write.
    columns: the files' names of fields.

  Raises:
    UsageError: no answer is left, or the output is one of the files.
  """
  target = new_file(output, expand(answers))
  every = list(_records(answers, columns))
  kept = [record for record, can_train in every if can_train]
  if not kept:
    raise UsageError(
      f'{answers}: none of {len(every)} answers can train: all are blank or hold a NUL character.'
    )
  target.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(target, ''.join(map(files.json_line, kept)))
  return {'output': str(target), 'answers': len(every), 'kept': len(kept)}


def _records(
  answers: str | Sequence[str], columns: str | Mapping[str, str] | None
) -> Iterator[tuple[dict[str, Any], bool]]:
  """Each record as it stands in its file, and whether it can train; other readers refuse some."""
  name = checked_names(columns).get('response') or 'response'
  remedy = 'pass a file of answers, or its name as --columns response=NAME'
  for path in expand(answers):
    has_texts = False
    for where, record in readers.located(path):
      text = record.get(name)
      if text is not None and not isinstance(text, str):
        raise UsageError(f'{where}: field {name!r} is not a text: {remedy}.')
      has_texts = has_texts or text is not None
      # A blank cell of a table is no text at all.
      yield record, text is not None and can_train(text)
    if not has_texts:
      raise UsageError(f'{path}: no record has the field {name!r}: {remedy}.')


__all__ = ['keep_answers']
