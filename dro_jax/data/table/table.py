"""The token table: every prompt and response tokenised once, random access, memory-mapped.

A table is a directory of flat arrays, built in a temporary directory and renamed when complete, so it is
there whole or not at all. Its fingerprint covers the inputs, the vocabulary and the options; another
fingerprint is another table. Equal prompts are stored once. The texts are kept, to be shown.
"""

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.data.records.triplets import Record, from_mappings
from dro_jax.data.storage import buckets, folders, hashes
from dro_jax.data.storage.fingerprints import fingerprint
from dro_jax.data.table.flat import Ragged, Texts, gather, pick_texts
from dro_jax.data.table.writer import DESCRIPTION, VERSION
from dro_jax.data.table.writer import Writer as _Writer
from dro_jax.data.text import lost_text, templates
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError
from dro_jax.files import hash_parts

_CHUNK = 2048  # Records tokenised at a time.


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """N records; every array and every index is about these N, also after `subset`.

  Attributes:
    prompt_index: `[N]`, equal numbers for equal prompts.
    prompt_lengths: tokens, EOS included, `[N]`.
    response_lengths: tokens, EOS included unless the response was cut, `[N]`.
    rewards: float64 `[N]`, scaled for the losses (see `scaled`); NaN where a record has no reward.
    raw_rewards: in the unit in which they came.
    columns: other numbers, float64 `[N]` each.
    ids, prompts, responses: texts; the prompts with the template filled in.
    weights: sampling weights `[N]` (mixture rates), or None.
    report: what building found: counts, mean lengths, what was cut, dropped or left out.
    directory: where it lies.
    token_columns: numbers by response token, by name (see `data.columns`).
    pair_columns: numbers of responses under other prompts than their own, by name: a function from responses'
      and prompts' digests to numbers (see `data.columns`).
  """

  prompt_index: np.ndarray
  prompt_lengths: np.ndarray
  response_lengths: np.ndarray
  rewards: np.ndarray
  raw_rewards: np.ndarray
  columns: dict
  ids: Texts
  prompts: Texts
  responses: Texts
  prompt_digests: np.ndarray
  truncated: np.ndarray
  weights: np.ndarray | None
  report: dict
  vocabulary: str
  directory: str
  _records: np.ndarray = dataclasses.field(repr=False)
  _tokens: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(repr=False)
  token_columns: dict = dataclasses.field(default_factory=dict)
  pair_columns: dict = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.rewards)

  def prompt(self, i: int) -> np.ndarray:
    """Tokens of record i's prompt, ending in EOS."""
    tokens, offsets = self._tokens['prompt']
    number = self.prompt_index[i]
    return tokens[offsets[number] : offsets[number + 1]]

  def response(self, i: int) -> np.ndarray:
    """Tokens of record i's response, ending in EOS unless it was cut."""
    tokens, offsets = self._tokens['response']
    number = self._records[i]
    return tokens[offsets[number] : offsets[number + 1]]

  def prompt_tokens(self, records: np.ndarray) -> 'Ragged':
    """Some records' prompts, one after the other."""
    return gather(*self._tokens['prompt'], self.prompt_index[records])

  def response_tokens(self, records: np.ndarray) -> 'Ragged':
    """Some records' responses, one after the other."""
    return gather(*self._tokens['response'], self._records[records])

  def token_column(self, name: str, i: int) -> np.ndarray:
    """Numbers of record i's response tokens."""
    flat, starts = self.token_columns[name]
    return flat[starts[i] : starts[i] + self.response_lengths[i]]

  def response_digests(self, indices: np.ndarray | None = None) -> np.ndarray:
    """64-bit hashes of some records' response texts, or of all."""
    picked = range(len(self)) if indices is None else indices
    return hashes.digests(self.responses[int(i)] for i in picked)

  def fingerprint(self) -> str:
    """A hash of the records: texts, lengths in tokens, rewards as they came, sampling weights."""
    # Earlier versions stored 0 where a record has no reward, and their runs must still resume.
    rewards = np.where(np.isnan(self.raw_rewards), 0.0, self.raw_rewards)
    parts = (
      self.prompt_digests,
      self.response_digests(),
      self.response_lengths,
      rewards,
      self.weights,
    )
    return hash_parts(b'-' if part is None else np.ascontiguousarray(part).tobytes() for part in parts)

  def column_fingerprints(self) -> dict[str, str]:
    """A hash of each column: labels, logged log-probs, values."""
    columns = {name: np.ascontiguousarray(x, np.float64) for name, x in sorted(self.columns.items())}
    return {name: hash_parts([x.tobytes()]) for name, x in columns.items()}

  def subset(self, indices: np.ndarray) -> 'TokenTable':
    """A view of some records, numbered afresh; tokens and texts stay where they are."""
    picked = np.flatnonzero(indices) if np.asarray(indices).dtype == bool else np.asarray(indices)
    taken = {name: getattr(self, name)[picked] for name in _PER_RECORD}
    texts = {name: pick_texts(getattr(self, name), picked) for name in ('ids', 'prompts', 'responses')}
    columns = {name: column[picked] for name, column in self.columns.items()}
    ragged = {name: Ragged(flat, starts[picked]) for name, (flat, starts) in self.token_columns.items()}
    weights = None if self.weights is None else self.weights[picked]
    return dataclasses.replace(self, columns=columns, token_columns=ragged, weights=weights, **taken, **texts)

  def with_columns(
    self,
    columns: Mapping[str, np.ndarray] = {},
    token_columns: Mapping[str, Ragged] = {},
    pair_columns: Mapping[str, Any] = {},
  ) -> 'TokenTable':
    """The same table with more columns, which replace those of the same names."""
    return dataclasses.replace(
      self,
      columns={**self.columns, **columns},
      token_columns={**self.token_columns, **token_columns},
      pair_columns={**self.pair_columns, **pair_columns},
    )

  def require_rewards(self, reader: str) -> None:
    """Raises a UsageError where a record has no reward, and `reader`, an algorithm or command, needs one."""
    missing = int(np.isnan(self.raw_rewards).sum())
    if missing:
      problem = self.report.get('reward_problem') or f'{self.directory}: records without a reward'
      raise UsageError(f'{problem}. {reader} needs rewards, and {missing} of {len(self)} records have none.')

  def with_missing_rewards_zero(self, scaling) -> 'TokenTable':
    """The same table with the reward 0 where a record has none, scaled by a `RewardScaling`."""
    return dataclasses.replace(self, raw_rewards=np.nan_to_num(self.raw_rewards)).scaled(scaling)

  def scaled(self, scaling) -> 'TokenTable':
    """The same table with `rewards` scaled by a `RewardScaling`."""
    return dataclasses.replace(self, rewards=scaling.apply(self.raw_rewards))


_PER_RECORD = (
  'prompt_index', 'prompt_lengths', 'response_lengths', 'rewards', 'raw_rewards', 'prompt_digests',
  'truncated', '_records',
)  # fmt: skip


def build(
  records: Iterable[Record | Mapping[str, Any]],
  vocabulary: Vocabulary,
  directory: str | os.PathLike,
  *,
  prompt_length: int,
  response_length: int,
  overlong: str = 'truncate',
  keep: str = 'auto',
  template: str = '{prompt}',
  rates: Mapping[str, float | int] | None = None,
  source_fingerprint: str | None = None,
) -> TokenTable:
  """The table of these records in `directory`: loaded if it is there with this fingerprint, else built.

  Args:
    records: of `sources.read_triplets`, or dicts with prompt, response and reward (optional) and other
      numbers.
    vocabulary: see `vocabularies.vocabulary`.
    directory: the table's own; what is there is replaced, whole, once the new table is complete.
    prompt_length: prompt tokens at most, EOS included; a longer prompt is cut, keeps its EOS, and is counted.
    response_length: response tokens at most, EOS included.
    overlong: what happens to longer responses, counted either way: 'truncate' (cut, without EOS) or 'drop'.
    keep: which end of an overlong prompt to keep, 'start' or 'end'; 'auto': a conversation's end, and the
      start of other prompts.
    template: of the prompt text.
    rates: mixture rates by the records' `source`; they make sampling weights.
    source_fingerprint: stands for the records; without one they are read into memory and hashed.

  Raises:
    UsageError: bad records, no records at all, or bad options. Nothing is left behind.
  """
  _check_options(prompt_length, response_length, overlong, keep)
  templates.check_template(template)
  if source_fingerprint is None:
    records = list(_as_records(records))
    source_fingerprint = fingerprint(*records)
  meta = description(
    source_fingerprint, vocabulary, prompt_length=prompt_length, response_length=response_length,
    overlong=overlong, keep=keep, template=template, rates=rates,
  )  # fmt: skip
  options, mark = meta['options'], meta['fingerprint']
  directory = os.path.abspath(os.path.expanduser(directory))
  if (found := load_if(directory, mark)) is not None:
    return found
  with replacing(directory, mark) as building:
    writer = _Writer(building, vocabulary, options)
    for chunk in _chunks(_as_records(records)):
      writer.add(chunk)
    writer.finish(meta)
  return load(directory)


def description(
  source_fingerprint: str,
  vocabulary: Vocabulary,
  *,
  prompt_length: int,
  response_length: int,
  overlong: str = 'truncate',
  keep: str = 'auto',
  template: str = '{prompt}',
  rates: Mapping[str, float | int] | None = None,
) -> dict[str, Any]:
  """What a table is made of, and its fingerprint; arguments and errors as `build`."""
  _check_options(prompt_length, response_length, overlong, keep)
  templates.check_template(template)
  options = {
    'prompt_length': prompt_length, 'response_length': response_length, 'overlong': overlong, 'keep': keep,
    'template': template, 'vocabulary': vocabulary.fingerprint, 'rates': dict(rates) if rates else None,
  }  # fmt: skip
  mark = fingerprint(VERSION, source_fingerprint, json.dumps(options, sort_keys=True))
  return {
    'version': VERSION, 'fingerprint': mark, 'vocabulary': vocabulary.spec, 'options': options,
    'lost_blanks': lost_text.lost_blanks(vocabulary),
  }  # fmt: skip


def load(directory: str | os.PathLike) -> TokenTable:
  """The table that lies in a directory.

  Raises:
    UsageError: there is none, or it is damaged.
  """
  directory = os.path.abspath(os.path.expanduser(directory))
  meta = _read_meta(directory)
  if meta is None:
    raise UsageError(f'{directory}: no complete token table of version {VERSION}; build it again')
  if damaged := folders.damaged(directory, meta):
    raise UsageError(f'{directory}: the token table is damaged ({", ".join(damaged)}); build it again')
  return _open(directory, meta)


def exists(directory: str) -> bool:
  """Whether a complete table lies there; its bytes are not looked at."""
  return _read_meta(directory) is not None


def fetch(url: str, directory: str) -> bool:
  """Copies a table from a bucket; whether one was there, and sound."""
  return buckets.fetch(url, directory, description=DESCRIPTION, version=VERSION, what='token table')


def _open(directory: str, meta: Mapping) -> TokenTable:
  read = {name: _array(directory, name) for name in meta['arrays']}
  # As plain arrays, which are memory-mapped all the same: slices of a memmap cost ten times as much.
  flat = {
    name: np.asarray(np.memmap(os.path.join(directory, name), dtype, 'r'))
    for name, dtype in meta['flat'].items()
  }
  rows = read['prompt_index']
  everything = np.arange(len(rows))
  return TokenTable(
    prompt_index=rows,
    prompt_lengths=np.diff(read['prompt_offsets'])[rows],
    response_lengths=np.diff(read['response_offsets']),
    rewards=read['rewards'],
    raw_rewards=read['rewards'],
    columns={name: read[f'column.{i}'] for i, name in enumerate(meta['columns'])},
    ids=Texts(flat['ids.bin'], read['id_offsets'], everything),
    prompts=Texts(flat['prompt_texts.bin'], read['prompt_text_offsets'], rows),
    responses=Texts(flat['response_texts.bin'], read['response_text_offsets'], everything),
    prompt_digests=read['prompt_digests'][rows],
    truncated=read['truncated'],
    weights=_weights(read['source'], meta['sources'], meta['options']['rates']),
    report=meta['report'],
    vocabulary=meta['vocabulary'],
    directory=directory,
    _records=everything,
    _tokens={
      'prompt': (flat['prompt_tokens.bin'], read['prompt_offsets']),
      'response': (flat['response_tokens.bin'], read['response_offsets']),
    },
  )


# --- building -----------------------------------------------------------------------------------------------


def _check_options(prompt_length: int, response_length: int, overlong: str, keep: str) -> None:
  if prompt_length < 1 or response_length < 1:
    raise UsageError(
      f'prompt_length and response_length must be 1 token at least, got {prompt_length}, {response_length}'
    )
  if overlong not in templates.OVERLONG:
    raise UsageError(f"overlong '{overlong}' is unknown; choose from {', '.join(templates.OVERLONG)}")
  if keep not in templates.KEEPS:
    raise UsageError(f"keep '{keep}' is unknown; choose from {', '.join(templates.KEEPS)}")


def _as_records(records: Iterable[Record | Mapping[str, Any]]) -> Iterator[Record]:
  rest = iter(records)
  first = next(rest, None)
  if first is None:
    return iter(())
  everything: Any = itertools.chain([first], rest)
  return everything if isinstance(first, Record) else from_mappings(everything, rewards_required=False)


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
  while chunk := list(itertools.islice(records, _CHUNK)):
    yield chunk


# --- the directory ------------------------------------------------------------------------------------------


def replacing(directory: str, mark: str) -> folders.Replacing:
  """A directory to build a table in, which then takes its place."""
  return folders.Replacing(
    directory, what='token table', description=DESCRIPTION, version=VERSION, mark=mark,
    elsewhere='another cache_dir',
  )  # fmt: skip


def _read_meta(directory: str) -> Mapping | None:
  """The description of a complete table of this version, or None."""
  return folders.describe(directory, DESCRIPTION, VERSION)


def load_if(directory: str, mark: str) -> TokenTable | None:
  """The table with this fingerprint, or None where another or none lies there, or it is damaged."""
  meta = _read_meta(directory)
  if meta is None or meta['fingerprint'] != mark:
    return None
  if damaged := folders.damaged(directory, meta):
    log = logging.getLogger(__name__)
    log.warning('%s: the token table is damaged (%s) and built again', directory, ', '.join(damaged))
    return None
  return _open(directory, meta)


def _array(directory: str, name: str) -> np.ndarray:
  return np.asarray(np.load(os.path.join(directory, f'{name}.npy'), mmap_mode='r'))


def _weights(
  source: np.ndarray, names: Sequence[str], rates: Mapping[str, float | int] | None
) -> np.ndarray | None:
  """A source's rate, shared out among its records."""
  if not rates:
    return None
  counts = np.bincount(source, minlength=len(names))
  return np.array([rates[name] for name in names])[source] / counts[source]
