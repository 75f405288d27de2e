"""Parquet files as mappings, one a row; reads only the columns in use."""

import logging
import os
from collections.abc import Collection, Iterator
from typing import Any

from dro_jax.data.records import text_files
from dro_jax.errors import UsageError, shown

_BATCH = 1024  # Rows read at a time.


def read_parquet(path: str, wanted: Collection[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  number = 0
  try:
    if not os.path.getsize(path):
      return
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
      _check_names(file.schema_arrow.names, path)
      kept = _kept(file.schema_arrow, wanted, path)
      empty = dict.fromkeys(file.schema_arrow.names)
      for batch in file.iter_batches(batch_size=_BATCH, columns=kept):
        for fields in _rows(batch, f'{path}:{number + 1}'):
          number += 1
          yield number, empty | fields
  # Arrow raises plain ValueErrors for text that is not UTF-8 and for dates that Python lacks.
  except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError) as error:
    if isinstance(error, UsageError):
      raise
    remedy = text_files.kind_of(path)
    remedy = remedy if remedy and not remedy.startswith('it is a parquet') else 'write the file again'
    raise UsageError(f'{path}:{number + 1}: not readable as parquet ({error}); {remedy}') from error


def _check_names(names: list[str], path: str) -> None:
  if len(set(names)) < len(names):
    raise UsageError(f'{path}: a column name occurs twice in {shown(names)}; give each its own')


def _kept(schema: Any, wanted: Collection[str] | None, path: str) -> list[str]:
  """The columns of a parquet file to read: those that are wanted, and numbers; logs the others."""
  import pyarrow as pa

  types = {field.name: _content(field.type) for field in schema}
  if wanted is None:
    return list(types)
  left = {
    name: kind for name, kind in types.items()
    if name not in wanted
    and not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))
    and not pa.types.is_decimal(kind)
  }  # fmt: skip
  odd = {
    name: kind for name, kind in left.items()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
  }  # fmt: skip
  if odd:
    logging.getLogger(__name__).info(
      '%s: not read, because they are neither numbers nor named in --columns: %s', path,
      ', '.join(f'{name} ({str(kind)[:40]})' for name, kind in odd.items()),
    )  # fmt: skip
  return [name for name in types if name not in left]


def _content(kind: Any) -> Any:
  """The type of a column's values, also where the file stores them as numbers of a dictionary."""
  return kind.value_type if hasattr(kind, 'index_type') else kind


def _rows(batch: Any, where: str) -> Iterator[dict[str, Any]]:
  if not batch.num_columns:
    yield from ({} for _ in range(batch.num_rows))
    return
  columns = [_values(field, column, where) for field, column in zip(batch.schema, batch.columns)]
  for values in zip(*columns):
    yield dict(zip(batch.schema.names, values))


def _undated(column: Any) -> Any:
  """A column with whole numbers for nested dates and times, which Python may lack."""
  kind = _numbered(column.type)
  return column if kind == column.type else column.cast(kind)


def _numbered(kind: Any) -> Any:
  """A type with integers for dates and times within lists and objects."""
  import pyarrow as pa

  if pa.types.is_struct(kind):
    return pa.struct([field.with_type(_numbered(field.type)) for field in kind])
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    make = pa.list_ if pa.types.is_list(kind) else pa.large_list
    return make(kind.value_field.with_type(_numbered(kind.value_type)))
  if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
    return pa.int32() if kind.bit_width == 32 else pa.int64()
  return kind


def _values(field: Any, column: Any, where: str) -> list[Any]:
  import pyarrow as pa

  try:
    return (column if pa.types.is_primitive(field.type) else _undated(column)).to_pylist()
  # Arrow raises plain ValueErrors for text that is not UTF-8 and for dates that Python lacks.
  except (pa.ArrowException, ValueError, OverflowError, TypeError, KeyError) as error:
    raise UsageError(
      f'{where}: not readable as parquet: column {shown(field.name)} ({str(field.type)[:40]}) cannot be read '
      f'({error}); write it again, as text or numbers, or ignore it with --columns NAME='
    ) from error
