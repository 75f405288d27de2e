"""Token tables built by many machines with Apache Beam: the table of one machine, byte for byte.

Beam runs two pipelines. The first hashes the files and counts the lines of their pieces, so that every line
keeps its number. The second tokenises each piece into a part, and finds, by a shuffle of hashes, the part in
which each prompt occurs first, and the ids that occur twice. The machine that started them assembles the
parts, in the memory of one piece; its disk must hold the table, and so must the disks of the machines that
train on it.

Pieces are lines of .jsonl files, which workers read in place. A file of another format is one piece, which is
copied from a bucket to the worker's disk while it is read.
"""

import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from dro_jax.data.records import readers
from dro_jax.data.records import triplets as sources
from dro_jax.data.records.readers import Span
from dro_jax.data.records.triplets import Record
from dro_jax.data.sources import find
from dro_jax.data.storage import buckets, fingerprints, folders
from dro_jax.data.storage.hashes import text_digest
from dro_jax.data.table import cache, parts, table
from dro_jax.data.table.table import TokenTable
from dro_jax.data.table.writer import token_dtype
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.files import is_remote, json_text

PIECE_BYTES = 2**26
_CHUNK = 2048  # Records tokenised at a time.


class Piece(NamedTuple):
  """Part of a file: the lines that begin in bytes [start, stop), or all of it where `stop` is None."""

  number: int
  path: str
  start: int
  stop: int | None


class Job(NamedTuple):
  """A worker's instructions.

  Attributes:
    folder: of the parts; all machines reach it.
    vocabulary: see `vocabularies.vocabulary`; workers reach its path.
    vocabulary_fingerprint: the fingerprint that the workers' copy must have.
    read: options of `sources.read_triplets`.
    options: the table's.
    first: the number of each piece's first line.
  """

  folder: str
  vocabulary: str
  vocabulary_fingerprint: str
  read: Mapping[str, Any]
  options: Mapping[str, Any]
  first: Mapping[int, int] = {}


def build(
  triplets: str | Sequence[str],
  spec: str,
  cache_dir: str | None = None,
  *,
  read: Mapping[str, Any],
  beam_options: str | Sequence[str],
  piece_bytes: int = PIECE_BYTES,
  **options: Any,
) -> TokenTable:
  """The table that `cache.build_table` would build from triplet files, in the same place.

  Args:
    triplets: files, on a disk that all workers have or in a bucket.
    spec: of the vocabulary.
    cache_dir: the folder of tables, which also holds the parts during the build.
    read: options of `sources.read_triplets`, all that `find.find` sets.
    beam_options: Beam's own flags: '--runner=DataflowRunner --project=...'.
    piece_bytes: about the size of a piece.
    options: of the table.

  Raises:
    UsageError: Beam is not installed, or the files cannot be read.
  """
  began, vocabulary = time.perf_counter(), vocabularies.vocabulary(spec)
  files = _files(triplets)
  stamps = find.stamps(files)
  pieces = list(_pieces(stamps, piece_bytes))
  root = cache_dir if cache_dir and is_remote(cache_dir) else cache.local_root(cache_dir)
  job = Job(f'{root}/.beam-{os.getpid()}-{time.time_ns():x}', spec, vocabulary.fingerprint, read, options)
  work = epath.Path(job.folder)
  _sweep(root)
  try:
    work.mkdir(parents=True)
    hashes, job = _survey(job, pieces, beam_options)
    mark = find.files_mark(fingerprints.fingerprint(*hashes), read)
    source = find.Source(os.path.basename(files[0]), lambda: iter(()), mark)
    directory = os.path.join(cache.local_root(cache_dir), cache.table_name(source, vocabulary, options))
    meta = table.description(mark, vocabulary, **options)
    job = job._replace(options=meta['options'])
    url = f'{root}/{os.path.basename(directory)}' if is_remote(root) else None
    is_there = table.exists(directory) or (url is not None and table.fetch(url, directory))
    if table.load_if(directory, meta['fingerprint']) is None:
      _run(job, pieces, beam_options)
      _raise_first(job)
      find.refuse_changed(stamps)
      with table.replacing(directory, meta['fingerprint']) as building:
        _assemble(building, job, len(pieces), token_dtype(vocabulary), meta, began)
  finally:
    work.rmtree(missing_ok=True)
  if url:
    buckets.put(directory, url, description=table.DESCRIPTION, always=not is_there)
  return table.load(directory)


def _sweep(root: str) -> None:
  """Removes the folders of dead builders: those that nothing has written to for a day."""
  for folder in () if is_remote(root) else pathlib.Path(root).glob('.beam-*'):
    if folders.is_silent(folder):
      shutil.rmtree(folder, ignore_errors=True)


# --- files and pieces ---------------------------------------------------------------------------------------


def _files(triplets: str | Sequence[str]) -> list[str]:
  """File names as `sources.expand` gives them, but files in a bucket stay there."""
  paths = []
  for path in triplets.split(',') if isinstance(triplets, str) else triplets:
    paths += buckets.names(path) if is_remote(path) else map(os.path.abspath, sources.expand(path))
  if repeated := [path for i, path in enumerate(paths) if path in paths[:i]]:
    raise UsageError(f"triplets '{repeated[0]}': the file is named twice; name it once")
  return paths


def _pieces(stamps: Mapping[str, tuple[int, int] | None], size: int) -> Iterator[Piece]:
  number = 0
  for path, stamp in stamps.items():
    length = stamp[0] if stamp else 0
    cuts = range(0, length, size) if path.endswith('.jsonl') and length else [None]
    for start in cuts:
      yield Piece(number, path, start or 0, None if start is None else min(start + size, length))
      number += 1


def _read(piece: Piece, job: Job) -> Iterator[Record]:
  """A piece's records."""
  name = os.path.basename(piece.path)
  if piece.stop is not None:
    span = Span(piece.start, piece.stop, job.first[piece.number])
    return sources.from_located(readers.spanned(piece.path, span), name, rewards_required=False, **job.read)
  if is_remote(piece.path):
    return _staged(piece.path, job)
  return sources.read_triplets(piece.path, rewards_required=False, **job.read)


def _staged(path: str, job: Job) -> Iterator[Record]:
  """The records of a file in a bucket, from a copy that is deleted afterwards."""
  with tempfile.TemporaryDirectory() as folder:
    own = os.path.join(folder, os.path.basename(path))
    buckets.reach(path, lambda: buckets.copy(epath.Path(path), epath.Path(own)))
    try:
      for record in sources.read_triplets(own, rewards_required=False, **job.read):
        problem = record.reward_problem.replace(own, path)
        yield record._replace(where=record.where.replace(own, path, 1), reward_problem=problem)
    except UsageError as error:
      raise UsageError(str(error).replace(own, path)) from error


# --- the workers' functions ---------------------------------------------------------------------------------


def _inspect(piece: Piece, job: Job) -> tuple[int, int, tuple[str, str] | None]:
  """A piece's number, the number of lines that begin in it, and for a file's first piece the file's hash."""
  try:
    mark = None if piece.start else fingerprints.file_hash(piece.path)
    return piece.number, readers.count_lines(piece.path, piece.start, piece.stop) if piece.stop else 0, mark
  except (UsageError, OSError) as error:
    _complain(job, piece.number, f'{error}; workers read it too: pass files that all machines reach')
    return piece.number, 0, None


def _tokenise(piece: Piece, job: Job) -> Iterator[tuple[str, tuple[bytes, Any]]]:
  """Writes a piece's part; yields the hashes of its ids and prompts, and their places."""
  try:
    vocabulary = vocabularies.vocabulary(job.vocabulary)
    if vocabulary.fingerprint != job.vocabulary_fingerprint:
      raise UsageError(
        f"vocabulary '{job.vocabulary}': the workers' file differs from this machine's; pass one that all "
        'machines reach'
      )
    with tempfile.TemporaryDirectory() as folder:
      writer = parts.PartWriter(folder, vocabulary, job.options)
      for chunk in parts.chunks(_read(piece, job), _CHUNK):
        writer.add(chunk)
        for record in chunk:
          yield 'id', (text_digest(record.id), (piece.number, record.where))
      writer.finish_part()
      _put(folder, _folder(job, piece.number))
    yield from (('prompt', (key, (piece.number, i))) for i, key in enumerate(writer.keys))
  except UsageError as error:
    _complain(job, piece.number, str(error))


def _folder(job: Job, number: int) -> epath.Path:
  return epath.Path(job.folder) / 'parts' / str(number)


def _put(folder: str, target: epath.Path) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for name in sorted(os.listdir(folder)):
    buckets.copy(epath.Path(folder) / name, target / name)


def _complain(job: Job, number: int, error: str) -> None:
  """Writes an error for the machine that started the pipeline, because a runner would wrap and repeat it."""
  folder = epath.Path(job.folder) / 'errors'
  folder.mkdir(parents=True, exist_ok=True)
  (folder / str(number)).write_text(error)


def _owners(key_and_places: tuple[bytes, Any]) -> Iterator[tuple[int, tuple[int, int, int]]]:
  """For each part with a prompt: its number there, and the part and number of its first occurrence."""
  occurrences = sorted(key_and_places[1])
  for number, local in occurrences:
    yield number, (local, *occurrences[0])


def _write_owners(number_and_owners: tuple[int, Any], job: Job) -> None:
  number, owners = number_and_owners
  array = np.array(sorted(owners), np.int64)[:, 1:]
  with (_folder(job, number) / 'owners.npy').open('wb') as file:
    np.save(file, array)


def _refuse_repeated(key_and_places: tuple[bytes, Any], job: Job) -> None:
  places = sorted(key_and_places[1])
  if len(places) > 1:
    _complain(job, places[1][0], str(parts.repeated(places[1][1], places[0][1])))


def _raise_first(job: Job) -> None:
  """Raises the error of the first piece with an error."""
  folder = epath.Path(job.folder) / 'errors'
  if folder.exists() and (errors := sorted(folder.iterdir(), key=lambda path: int(path.name))):
    raise UsageError(errors[0].read_text())


# --- the pipelines ------------------------------------------------------------------------------------------


def _pipeline(beam_options: str | Sequence[str]) -> tuple[ModuleType, Any]:
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UsageError(
      "BEAM_OPTIONS: Apache Beam is not installed; pip install 'dro_jax[beam]' in an environment of its own, "
      'for it asks for an older protobuf'
    ) from error
  flags = beam_options.split() if isinstance(beam_options, str) else list(beam_options)
  return beam, beam.Pipeline(options=PipelineOptions(flags))


def _survey(
  job: Job, pieces: Sequence[Piece], beam_options: str | Sequence[str]
) -> tuple[list[tuple[str, str]], Job]:
  """Hashes of the files, and the job with the pieces' line numbers."""
  beam, pipeline = _pipeline(beam_options)
  written = epath.Path(job.folder) / 'survey' / 'pieces'
  with pipeline:
    listed = pipeline | 'pieces' >> beam.Create(list(pieces)) | 'spread' >> beam.Reshuffle()
    inspected = listed | 'look' >> beam.Map(_inspect, job) | 'gather' >> beam.combiners.ToList()
    _ = inspected | 'write' >> beam.Map(_write_json, str(written))
  if not written.exists():
    raise UsageError(
      f'{written}: the workers wrote it where this machine does not see it; pass a folder that all machines '
      'reach: '
      '--set CACHE_DIR=gs://...'
    )
  _raise_first(job)
  hashes, first, count = [], {}, 1
  for number, lines, mark in sorted(json.loads(written.read_text())):
    if mark:
      hashes, count = [*hashes, tuple(mark)], 1
    first[number], count = count, count + lines
  return hashes, job._replace(first=first)


def _write_json(value: Any, path: str) -> None:
  target = epath.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  target.write_text(json_text(value))


def _run(job: Job, pieces: Sequence[Piece], beam_options: str | Sequence[str]) -> None:
  """Tokenises the pieces into parts, each with its prompts' owners."""
  beam, pipeline = _pipeline(beam_options)
  with pipeline:
    listed = pipeline | 'pieces' >> beam.Create(list(pieces)) | 'spread' >> beam.Reshuffle()
    made = listed | 'tokenise' >> beam.FlatMap(_tokenise, job)
    prompts = made | 'prompts' >> beam.FlatMap(_items_of_kind, 'prompt') | 'same prompts' >> beam.GroupByKey()
    owners = prompts | 'owners' >> beam.FlatMap(_owners) | 'to parts' >> beam.GroupByKey()
    written = owners | 'write owners' >> beam.Map(_write_owners, job)
    ids = made | 'ids' >> beam.FlatMap(_items_of_kind, 'id') | 'same ids' >> beam.GroupByKey()
    checked = ids | 'refuse repeated ids' >> beam.Map(_refuse_repeated, job)
    # Dask runs the last step alone, and what it needs.
    _ = (written, checked) | 'both' >> beam.Flatten()


def _items_of_kind(item: tuple[str, Any], kind: str) -> list[Any]:
  return [item[1]] if item[0] == kind else []


def _described(job: Job, number: int) -> dict[str, Any]:
  """A part's description without the list that grows with its records."""
  description = json.loads((_folder(job, number) / 'part.json').read_text())
  del description['cut_ids']
  return description


def _assemble(
  directory: str, job: Job, count: int, dtype: str, meta: Mapping[str, Any], began: float
) -> None:
  metas = [_described(job, i) for i in range(count)]
  with tempfile.TemporaryDirectory(dir=os.path.dirname(directory), prefix='.building-') as scratch:

    def read(number: int) -> tuple[str, np.ndarray]:
      source, target = _folder(job, number), epath.Path(scratch) / str(number)
      if is_remote(job.folder):
        shutil.rmtree(os.path.join(scratch, str(number - 1)), ignore_errors=True)
        target.mkdir()
        for file in source.iterdir():
          buckets.copy(file, target / file.name)
      folder = target if is_remote(job.folder) else source
      owners = np.load(folder / 'owners.npy') if metas[number]['prompts'] else np.zeros((0, 2), np.int64)
      return str(folder), owners

    parts.assemble(directory, dtype, metas, read, meta, lambda: time.perf_counter() - began)
