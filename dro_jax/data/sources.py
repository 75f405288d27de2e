"""Triplet files: one record a line or row with a prompt, a response, and (but for plain imitation) a reward.

Formats by name: .jsonl, .csv, .tsv, each also .gz, and .parquet. Whatever is wrong with a record is one error
that names the file, the line and the field, and says what to do.
"""

import csv
import glob
import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.derived import SAMPLED
from dro_jax.errors import UsageError

FORMATS = ('.jsonl', '.csv', '.tsv', '.jsonl.gz', '.csv.gz', '.tsv.gz', '.parquet')
FIELDS = ('prompt', 'response', 'reward', 'id')
# What a log calls them, and what the rest of the project does.
_ALIASES = {'behaviour_logprob': 'behaviour_logps', 'reference_logprob': 'reference_logps'}
# Which text says how a log was drawn, and the number that it becomes: 1 where it was sampled.
_SAMPLER, _SAMPLED = 'behaviour_sampler', 'behaviour_sampled'
NUMERIC = (
  'label',
  'behaviour_logps',
  'reference_logps',
)  # Columns that mean something: text in them is an error.
_CSV_FIELD_LIMIT = 2**27


class Record(NamedTuple):
  """One triplet; `columns` holds its other numbers, `where` (file:line) is for errors, `source` its task."""

  id: str
  prompt: str
  response: str
  reward: float | None
  columns: dict[str, float]
  where: str
  source: str = ''


def is_files(name: str | Sequence[str]) -> bool:
  """Whether this looks like triplet files: a known ending, a path separator, or an existing file."""
  names = name.split(',') if isinstance(name, str) else list(name)
  # A seqio name has no separator; asking seqio takes ten seconds, too long for a mistyped path.
  return any(
    n.endswith(FORMATS) or os.sep in n or os.path.exists(n) or glob.has_magic(n) for n in map(str, names)
  )


def expand(paths: str | Sequence[str]) -> list[str]:
  """File names from one path, several, a comma-separated string or glob patterns, in order.

  Raises:
    UsageError: nothing there, or a format that is not known.
  """
  if isinstance(paths, str):
    paths = [paths] if os.path.exists(paths) else paths.split(',')
  found = []
  for path in map(os.path.expanduser, map(os.fspath, paths)):
    matches = sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
    if not matches or not all(map(os.path.isfile, matches)):
      raise UsageError(f"triplets '{path}': there is no such file")
    found += matches
  for path in found:
    if not path.endswith(FORMATS):
      raise UsageError(f"triplets '{path}': unknown format; the name must end in one of {', '.join(FORMATS)}")
  return found


def parse_pairs(pairs: str | Mapping[str, Any] | None, what: str) -> dict[str, Any]:
  """'a=b,c=d' (or a mapping, or nothing) as a dict."""
  if not pairs:
    return {}
  if isinstance(pairs, Mapping):
    return dict(pairs)
  parts = [part.partition('=') for part in pairs.split(',')]
  if not all(key.strip() and equals and value.strip() for key, equals, value in parts):
    raise UsageError(f"{what} '{pairs}': pass NAME=VALUE pairs separated by commas")
  return {key.strip(): value.strip() for key, _, value in parts}


def read_triplets(
  paths: str | Sequence[str],
  columns: str | Mapping[str, str] | None = None,
  *,
  rewards_required: bool = True,
  map_reward: str | Mapping[str, float | int] | None = None,
) -> Iterator[Record]:
  """Records of triplet files, one after the other.

  Args:
    paths: see `expand`.
    columns: our name to the file's: 'prompt=question,response=answer,reward=thumbs'.
    rewards_required: False where rewards are of no use (imitation): a missing or unusable one is None.
    map_reward: numbers for rewards that are words: 'up=1,down=0'.

  Raises:
    UsageError: names file:line and field.
  """
  files = expand(paths)
  raw = (pair for path in files for pair in located(path))
  options = {'columns': columns, 'rewards_required': rewards_required, 'map_reward': map_reward}
  typeless = {path for path in files if _format(path) in ('csv', 'tsv')}
  return _records(raw, typeless=typeless, **options)


def read_prompts(
  paths: str | Sequence[str], columns: str | Mapping[str, str] | None = None
) -> Iterator[tuple[str, str]]:
  """(id, prompt) of the records of files that need not hold more; arguments and errors as `read_triplets`."""
  names = parse_pairs(columns, 'columns')
  ids: dict[str, str] = {}
  for path in expand(paths):
    for where, fields in located(path):
      record_id = _id(fields, names, where, ids)
      ids[record_id] = where
      yield record_id, _text(fields, names, 'prompt', where)


def from_mappings(
  mappings: Iterable[Mapping[str, Any]], where: str = 'record', **options
) -> Iterator[Record]:
  """Records from dicts in memory, checked like those of files; options as `read_triplets`."""
  return _records(((f'{where}:{i}', fields) for i, fields in enumerate(mappings, 1)), **options)


def located(path: str) -> Iterator[tuple[str, dict]]:
  """(file:line, fields) of one file, unchecked; it must hold something.

  A `.json`, which no triplet file is, holds JSON lines or one array of objects.
  """
  where = None
  for line, fields in _READERS[_format(path)](path):
    where = f'{path}:{line}'
    yield where, fields
  if where is None:
    raise UsageError(f'{path}: the file holds no records; pass one that does')


# --- files to fields ----------------------------------------------------------------------------------------


def _format(path: str) -> str:
  return path.removesuffix('.gz').rpartition('.')[2]


def _lines(path: str) -> Iterator[tuple[int, str]]:
  """Numbered lines of text, unzipped."""
  number = 0
  try:
    with gzip.open(path) if path.endswith('.gz') else open(path, 'rb') as file:
      for number, line in enumerate(file, 1):
        yield number, line.decode('utf-8-sig' if number == 1 else 'utf-8')
  except UnicodeDecodeError as error:
    raise UsageError(
      f'{path}:{number}: not UTF-8 text ({error.reason}); convert the file to UTF-8'
    ) from error
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UsageError(
      f'{path}:{number + 1}: the gzip data is damaged or cut short ({error}); make or download the file again'
    ) from error
  except OSError as error:
    raise UsageError(f'{path}: cannot read it ({error})') from error


def _read_jsonl(path: str) -> Iterator[tuple[int, dict]]:
  for number, line in _lines(path):
    if not line.strip():
      continue
    try:
      fields = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
      raise UsageError(f'{path}:{number}: not JSON ({error}); write one JSON object a line') from error
    if not isinstance(fields, dict):
      raise UsageError(
        f'{path}:{number}: a JSON {type(fields).__name__}, not an object; write one object a line'
      )
    yield number, fields


def _read_csv(path: str, delimiter: str = ',') -> Iterator[tuple[int, dict]]:
  csv.field_size_limit(_CSV_FIELD_LIMIT)
  reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
  try:
    header = next(reader, [])
    if len(set(header)) < len(header):
      raise UsageError(f'{path}:1: a column name occurs twice in the header {header}; give each its own')
    for row in reader:
      if row and len(row) != len(header):
        raise UsageError(
          f'{path}:{reader.line_num}: {len(row)} fields, but the header has {len(header)}; quote fields that '
          'hold the delimiter or a line break'
        )
      if row:
        yield reader.line_num, {name: value for name, value in zip(header, row) if value != ''}
  except csv.Error as error:
    raise UsageError(
      f'{path}:{reader.line_num}: {error}; quote fields that hold quotes (doubled), delimiters or line '
      'breaks, or write .jsonl'
    ) from error


def _read_tsv(path: str) -> Iterator[tuple[int, dict]]:
  return _read_csv(path, '\t')


def _read_parquet(path: str) -> Iterator[tuple[int, dict]]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  number = 0
  try:
    with pq.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=4096):
        names = batch.schema.names
        for values in zip(*(column.to_pylist() for column in batch.columns)):
          number += 1
          yield number, dict(zip(names, values))
  except (pa.ArrowException, OSError) as error:
    raise UsageError(
      f'{path}:{number + 1}: not readable as parquet ({error}); write the file again'
    ) from error


def _read_json(path: str) -> Iterator[tuple[int, dict]]:
  text = ''.join(line for _, line in _lines(path))
  if not text.lstrip().startswith('['):
    yield from _read_jsonl(path)
    return
  try:
    objects = json.loads(text)
  except (json.JSONDecodeError, RecursionError) as error:
    raise UsageError(f'{path}: not JSON ({error}); download the file again') from error
  for number, fields in enumerate(objects, 1):
    if not isinstance(fields, dict):
      raise UsageError(f'{path}:{number}: a JSON {type(fields).__name__}, not an object')
    yield number, fields


_READERS = {
  'jsonl': _read_jsonl,
  'json': _read_json,
  'csv': _read_csv,
  'tsv': _read_tsv,
  'parquet': _read_parquet,
}


# --- fields to records --------------------------------------------------------------------------------------


def _records(
  raw: Iterable[tuple[str, Mapping[str, Any]]],
  *,
  columns: str | Mapping[str, str] | None = None,
  rewards_required: bool = True,
  map_reward: str | Mapping[str, float | int] | None = None,
  typeless: Collection[str] = (),
) -> Iterator[Record]:
  names = parse_pairs(columns, 'columns')
  carried, mapped = _carried(names), _reward_map(map_reward)
  ids: dict[str, str] = {}
  for where, fields in raw:
    textual = where.rpartition(':')[0] in typeless
    record = Record(
      _id(fields, names, where, ids),
      _text(fields, names, 'prompt', where),
      _text(fields, names, 'response', where),
      _reward(fields, names, where, mapped, textual, rewards_required),
      _columns(fields, names, carried, where, textual),
      where,
    )
    ids[record.id] = where
    yield record


def _reward_map(map_reward: str | Mapping[str, float | int] | None) -> dict[str, float]:
  mapped = parse_pairs(map_reward, 'map_reward')
  try:
    return {str(word): float(value) for word, value in mapped.items()}
  except ValueError as error:
    raise UsageError(f"map_reward '{map_reward}': {error}; pass WORD=NUMBER pairs") from error


def _called(name: str, names: Mapping[str, str]) -> str:
  """How errors name a field: by the file's name, and ours where it differs."""
  theirs = names.get(name, name)
  return f"'{theirs}'" if theirs == name else f"'{theirs}' (the {name})"


def _missing(fields: Mapping[str, Any], names: Mapping[str, str], name: str, where: str) -> UsageError:
  known = ', '.join(map(str, fields)) or 'no fields'
  return UsageError(
    f'{where}: field {_called(name, names)} is missing or empty; the record has {known}. Say which one it is '
    f'with --columns {name}=FIELD, or fill it in'
  )


def _id(fields: Mapping[str, Any], names: Mapping[str, str], where: str, seen: Mapping[str, str]) -> str:
  """The record's own id, or else file:line."""
  value = fields.get(names.get('id', 'id'))
  if value is None and 'id' in names:
    raise _missing(fields, names, 'id', where)
  if value is None:
    short = os.path.basename(where)
    return where if short in seen else short
  if not isinstance(value, str | int):
    raise UsageError(
      f'{where}: field {_called("id", names)} is {value!r}; an id must be text or a whole number'
    )
  if str(value) in seen:
    raise UsageError(
      f'{where}: id {value!r} (field {_called("id", names)}) was used before at {seen[str(value)]}; give '
      'every record its own id, or remove the field and ids will be FILE:LINE'
    )
  return str(value)


def _text(fields: Mapping[str, Any], names: Mapping[str, str], name: str, where: str) -> str:
  value = fields.get(names.get(name, name))
  if value is None:
    raise _missing(fields, names, name, where)
  if not isinstance(value, str):
    raise UsageError(
      f'{where}: field {_called(name, names)} is {value!r}, a {type(value).__name__}; it must be text'
    )
  if not value.strip():
    raise UsageError(f'{where}: field {_called(name, names)} is empty; remove the record or fill it in')
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise UsageError(
      f'{where}: field {_called(name, names)} holds half a surrogate pair; repair the text'
    ) from error
  return value


def _reward(
  fields, names, where: str, mapped: Mapping[str, float], textual: bool, required: bool
) -> float | None:
  """The reward; None where it is missing or no number, and may be."""
  value = fields.get(names.get('reward', 'reward'))
  number = mapped[str(value)] if str(value) in mapped else _number(value, textual)
  if number is not None and math.isfinite(number):
    return number
  if not required:
    return None
  if value is None:
    raise _missing(fields, names, 'reward', where)
  if number is None:
    raise UsageError(
      f'{where}: field {_called("reward", names)} is {value!r}, not a number; write a number, or give each '
      'word a value with --map_reward WORD=NUMBER,...'
    )
  raise UsageError(
    f'{where}: field {_called("reward", names)} is {value!r}; a reward must be finite: remove the record, or '
    'write the number that is meant'
  )


def _number(value: Any, textual: bool) -> float | None:
  """A number or boolean as a float, from text too where the format has no types; None for anything else."""
  try:
    if isinstance(value, int | float):
      return float(value)
    if textual and isinstance(value, str):
      lowered = value.strip().lower()
      return float(lowered == 'true') if lowered in ('true', 'false') else float(value)
    return float(value) if hasattr(value, '__float__') and not isinstance(value, str) else None
  except OverflowError:
    return math.inf
  except (TypeError, ValueError):
    return None


def _carried(names: Mapping[str, str]) -> Callable[[str], str | None]:
  """From the file's name of a column to ours; None for the fields that every triplet has."""
  ours = {theirs: name for name, theirs in names.items() if name not in FIELDS}
  taken = {names.get(field, field) for field in FIELDS} | set(FIELDS)
  known: dict[str, str | None] = {}

  def carried(theirs: str) -> str | None:
    if theirs not in known:
      name = ours.get(theirs, None if theirs in taken else theirs)
      known[theirs] = _ALIASES.get(name, name)
    return known[theirs]

  return carried


def _columns(
  fields, names: Mapping[str, str], carried: Callable, where: str, textual: bool
) -> dict[str, float]:
  """The record's other numbers, under our names; text is left out, unless the column has a meaning."""
  found = {}
  for name in names:
    if name not in FIELDS and fields.get(names[name]) is None:
      raise _missing(fields, names, name, where)
  for theirs, value in fields.items():
    name = carried(theirs)
    if name is None or value is None:
      continue
    if name == _SAMPLER:
      found[_SAMPLED] = float(str(value).strip().lower() in SAMPLED)
      continue
    number = _number(value, textual)
    if number is not None and math.isfinite(number):
      found[name] = number
    elif name in NUMERIC or theirs in names.values():
      raise UsageError(f"{where}: field '{theirs}' is {value!r}; it must be a finite number")
  if found.get('label', 0) not in (0, 1):
    raise UsageError(f"{where}: field 'label' is {found['label']}; a label must be 0 or 1")
  return found
