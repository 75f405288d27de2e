"""How a run reads files that its user passes later: by the `columns` and `map_reward` of its own files."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dro_jax.data.records import field_paths
from dro_jax.data.records import triplets as sources

_SAMPLE = 100  # Records of a file that show which fields it has.


def options(
  read: Mapping[str, Any] | None,
  triplets: str | Sequence[str],
  columns: str | Mapping[str, str] | None,
  map_reward: str | Mapping[str, float | int] | None = None,
) -> dict[str, Any]:
  """`columns` and `map_reward` as the user passed them, or the run's own where the user passed None.

  Only those of the run's names hold whose fields the files have: files that `generate` wrote have this
  project's names. A data set by its name inherits nothing.

  Args:
    read: the run's `columns` and `map_reward`, None where it had none.
    triplets: files, or names of data sets.
    columns: as the user passed it.
    map_reward: as the user passed it.
  """
  passed = {'columns': columns, 'map_reward': map_reward}
  if not read or not sources.is_files(triplets):
    return passed
  result = dict(passed)
  if columns is None and read.get('columns'):
    result['columns'] = _present(sources.parse_columns(read['columns']), triplets) or None
  if map_reward is None and read.get('map_reward'):
    result['map_reward'] = read['map_reward']
  inherited = [f'--{name}={_flag(x)}' for name, x in result.items() if x != passed[name]]
  if inherited:
    logging.getLogger(__name__).info('%s: read as the run read its files, %s', triplets, ' '.join(inherited))
  return result


def _present(names: Mapping[str, str], triplets: str | Sequence[str]) -> dict[str, str]:
  """The names whose fields occur in the first records."""
  wanted = {step for field in names.values() if field for step in field_paths.first_steps(field)}
  records = [
    fields
    for path in sources.expand(triplets)
    for _, fields in itertools.islice(sources.located(path, wanted), _SAMPLE)
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
