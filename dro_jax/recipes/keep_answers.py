"""The `keep_answers` command: the answers of a file that can train."""

from collections.abc import Mapping, Sequence
from typing import Any

from dro_jax import files
from dro_jax.data.records.answers import read_answers
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
    UsageError: no answer is left.
  """
  target = files.output_file(output)
  every = list(read_answers(answers, columns))
  kept = [answer for answer in every if answer.response.strip() and '\0' not in answer.response]
  if not kept:
    raise UsageError(
      f'{answers}: none of {len(every)} answers can train: all are blank or hold a NUL character.'
    )
  files.write_atomically(target, ''.join(files.json_line(answer.fields) for answer in kept))
  return {'output': str(target), 'answers': len(every), 'kept': len(kept)}


__all__ = ['keep_answers']
