"""A run's way of reading its files, for files that are given to the run's policy later."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dro_jax.data.records import field_paths
from dro_jax.data.records import triplets as sources

_LOOKED_AT = 100  # Records of a file that tell which fields it has.


def options(
  read: Mapping[str, Any] | None,
  triplets: str | Sequence[str],
  columns: str | Mapping[str, str] | None,
  map_reward: str | Mapping[str, float | int] | None = None,
) -> dict[str, Any]:
  """`columns` and `map_reward`: as given, and where None is given as a run read its own files.

  Of the run's names those hold whose fields the files have: what `generate` wrote has names of ours. What is
  no file, but a data set by its name, inherits nothing.

  Args:
    read: the run's `columns` and `map_reward`, None where it had none.
    triplets: files, or names of data sets.
    columns: as given.
    map_reward: as given.
  """
  given = {'columns': columns, 'map_reward': map_reward}
  if not read or not sources.is_files(triplets):
    return given
  found = dict(given)
  if columns is None and read.get('columns'):
    found['columns'] = _there(sources.parse_columns(read['columns']), triplets) or None
  if map_reward is None and read.get('map_reward'):
    found['map_reward'] = read['map_reward']
  taken = [f'--{name}={_flag(x)}' for name, x in found.items() if x != given[name]]
  if taken:
    logging.getLogger(__name__).info('%s: read as the run read its files, %s', triplets, ' '.join(taken))
  return found


def _there(names: Mapping[str, str], triplets: str | Sequence[str]) -> dict[str, str]:
  """Those of the names whose fields some of the first records have."""
  wanted = {step for field in names.values() if field for step in field_paths.first_steps(field)}
  records = [
    fields
    for path in sources.expand(triplets)
    for _, fields in itertools.islice(sources.located(path, wanted), _LOOKED_AT)
  ]
  return {
    name: field
    for name, field in names.items()
    if not field or any(field_paths.reach(fields, field) is not None for fields in records)
  }


def _flag(value: str | Mapping[str, Any]) -> str:
  if isinstance(value, str):
    return value
  return ','.join(f'{name}={x}' for name, x in value.items())
