"""The writer of each response of a file. Some writers are held out, as some prompts are."""

from collections.abc import Mapping, Sequence

import numpy as np

from dro_jax.data.records import field_paths, fields
from dro_jax.data.records.file_names import expand
from dro_jax.data.records.ids import Ids, read_id
from dro_jax.data.records.readers import located
from dro_jax.data.storage import hashes
from dro_jax.data.table.table import TokenTable
from dro_jax.errors import UsageError, shown

_SALT = 'writers'


def of_records(
  triplets: str | Sequence[str], columns: str | Mapping[str, str] | None, field: str
) -> dict[str, str]:
  """The writer of each record, by the record's id.

  Args:
    triplets: files.
    columns: our name to the file's.
    field: the file's field that names the writer.

  Raises:
    UsageError: a record does not name its writer; names file, line and field.
  """
  names, ids, found = fields.checked_names(columns), Ids(), {}
  for path in expand(triplets):
    for where, record in located(path):
      writer = field_paths.reach(record, field)
      if not isinstance(writer, str) or not writer:
        raise UsageError(
          f'{where}: the field {field!r} (Feedback.writer) is {shown(writer)} and must be text that names '
          'who wrote the response: pass another field, as --set WRITER=FIELD, or leave WRITER unset.'
        )
      found[read_id(record, names, where, ids)] = writer
  return found


def of_table(table: TokenTable, by_id: Mapping[str, str]) -> np.ndarray:
  """The writer of each of a table's responses, `[N]`."""
  return np.array([by_id[table.ids[i]] for i in range(len(table))], dtype=object)


def are_new(names_N: np.ndarray, share: float) -> np.ndarray:
  """True for responses of writers that train nothing, by the hash of the writer's name, bool `[N]`."""
  return hashes.by_prompt_hash(list(names_N), share, _SALT)


def mean_rewards(names_N: np.ndarray, rewards_N: np.ndarray, asked_M: np.ndarray) -> np.ndarray:
  """The mean reward of each asked writer, `[M]`; of one without a reward, the mean of all rewards."""
  writers, places, counts = np.unique(names_N, return_inverse=True, return_counts=True)
  means = dict(zip(writers, np.bincount(places, rewards_N) / counts))
  return np.array([means.get(name, rewards_N.mean()) for name in asked_M])


__all__ = ['are_new', 'mean_rewards', 'of_records', 'of_table']
