"""The token table: every prompt and response tokenised once, random access, memory-mapped.

A table is a directory of flat arrays, built in a temporary directory and renamed when complete. Its
fingerprint covers the inputs, the vocabulary and the options; a table with another fingerprint is built anew.
Equal prompts are stored once. The table also holds the texts, for reports.
"""

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.data.records.triplets import Record, from_mappings
from dro_jax.data.scaling import RewardScaling
from dro_jax.data.storage import buckets, folders, hashes
from dro_jax.data.storage.fingerprints import fingerprint
from dro_jax.data.table.flat import Ragged as Ragged
from dro_jax.data.table.flat import Texts as Texts
from dro_jax.data.table.flat import gather, pick_texts
from dro_jax.data.table.writer import DESCRIPTION as DESCRIPTION
from dro_jax.data.table.writer import VERSION
from dro_jax.data.table.writer import Writer as _Writer
from dro_jax.data.text import lost_text, templates, tokenise
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError
from dro_jax.files import hash_parts

# From digests of responses and of prompts to numbers, see `column_store`.
Lookup = Callable[[np.ndarray, np.ndarray], np.ndarray]
_CHUNK = 2048  # Records tokenised at a time.


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """N records; every array and every index refers to these N, also after `subset`.

  Attributes:
    prompt_index: `[N]`, equal numbers for equal prompts.
    prompt_lengths: tokens, BOS and EOS included where the model has them, `[N]`.
    response_lengths: tokens, EOS included unless the response was cut, `[N]`.
    rewards: float64 `[N]`, scaled for the losses (see `scaled`); NaN where a record has no reward.
    raw_rewards: in the rewards' own unit.
    columns: other numbers, float64 `[N]` each.
    ids, prompts, responses: texts; the prompts with the template filled in.
    weights: sampling weights `[N]` (mixture rates), or None.
    report: counts, mean lengths, and what was cut, dropped or left out.
    directory: the table's folder.
    token_columns: numbers by response token, by name (see `column_store`).
    pair_columns: numbers of responses under other prompts than their own, by name: a function from responses'
      and prompts' digests to numbers (see `column_store`).
  """

  prompt_index: np.ndarray
  prompt_lengths: np.ndarray
  response_lengths: np.ndarray
  rewards: np.ndarray
  raw_rewards: np.ndarray
  columns: dict[str, np.ndarray]
  ids: Texts
  prompts: Texts
  responses: Texts
  prompt_digests: np.ndarray
  truncated: np.ndarray
  weights: np.ndarray | None
  report: dict[str, Any]
  vocabulary: str
  directory: str
  _records: np.ndarray = dataclasses.field(repr=False)
  _tokens: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(repr=False)
  token_columns: dict[str, Ragged] = dataclasses.field(default_factory=dict[str, Any])
  pair_columns: dict[str, Lookup] = dataclasses.field(default_factory=dict[str, Any])

  def __len__(self) -> int:
    return len(self.rewards)

  def prompt(self, i: int) -> np.ndarray:
    """Tokens of record i's prompt, ending in EOS where the model's prompts do."""
    tokens, offsets = self._tokens['prompt']
    number = self.prompt_index[i]
    return tokens[offsets[number] : offsets[number + 1]]

  def response(self, i: int) -> np.ndarray:
    """Tokens of record i's response, ending in EOS unless it was cut."""
    tokens, offsets = self._tokens['response']
    number = self._records[i]
    return tokens[offsets[number] : offsets[number + 1]]

  def prompt_tokens(self, records: np.ndarray) -> 'Ragged':
    """The prompts of some records, one after the other."""
    return gather(*self._tokens['prompt'], self.prompt_index[records])

  def response_tokens(self, records: np.ndarray) -> 'Ragged':
    """The responses of some records, one after the other."""
    return gather(*self._tokens['response'], self._records[records])

  def token_column(self, name: str, i: int) -> np.ndarray:
    """Numbers of record i's response tokens."""
    flat, starts = self.token_columns[name]
    return flat[starts[i] : starts[i] + self.response_lengths[i]]

  def response_digests(self, indices: np.ndarray | None = None) -> np.ndarray:
    """64-bit hashes of the response texts of some records, or of all."""
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
    """A hash of each column, such as labels, logged log-probs and values."""
    columns = {name: np.ascontiguousarray(x, np.float64) for name, x in sorted(self.columns.items())}
    return {name: hash_parts([x.tobytes()]) for name, x in columns.items()}

  def subset(self, indices: np.ndarray) -> 'TokenTable':
    """A view of some records with new numbers; tokens and texts are not copied."""
    picked = np.flatnonzero(indices) if np.asarray(indices).dtype == bool else np.asarray(indices)
    arrays = {name: getattr(self, name)[picked] for name in _PER_RECORD}
    texts = {name: pick_texts(getattr(self, name), picked) for name in ('ids', 'prompts', 'responses')}
    columns = {name: column[picked] for name, column in self.columns.items()}
    ragged = {name: Ragged(flat, starts[picked]) for name, (flat, starts) in self.token_columns.items()}
    weights = None if self.weights is None else self.weights[picked]
    return dataclasses.replace(
      self, columns=columns, token_columns=ragged, weights=weights, **arrays, **texts
    )

  def with_columns(
    self,
    columns: Mapping[str, np.ndarray] = {},
    token_columns: Mapping[str, Ragged] = {},
    pair_columns: Mapping[str, Lookup] = {},
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

  def with_missing_rewards_zero(self, scaling: RewardScaling) -> 'TokenTable':
    """The same table with the reward 0 where a record has none, scaled by a `RewardScaling`."""
    return dataclasses.replace(self, raw_rewards=np.nan_to_num(self.raw_rewards)).scaled(scaling)

  def scaled(self, scaling: RewardScaling) -> 'TokenTable':
    """The same table with `rewards` scaled by a `RewardScaling`."""
    levels = scaling.levels(self.raw_rewards, self.prompt_index)
    return dataclasses.replace(self, rewards=scaling.apply(self.raw_rewards, levels))


_PER_RECORD = (
  'prompt_index', 'prompt_lengths', 'response_lengths', 'rewards', 'raw_rewards', 'prompt_digests',
  'truncated', '_records',
)  # fmt: skip


def build(
  records: Iterable[Record | Mapping[str, Any]],
  vocabulary: Vocabulary,
  directory: str | os.PathLike[str],
  *,
  prompt_length: int,
  response_length: int,
  overlong: str = 'truncate',
  keep: str = 'auto',
  template: str = templates.PLAIN,
  chat: bool | None = None,
  rates: Mapping[str, float | int] | None = None,
  source_fingerprint: str | None = None,
) -> TokenTable:
  """The table of these records in `directory`: loaded if its fingerprint is the same, otherwise built.

  Args:
    records: of `read_triplets`, or dicts with prompt, response, optional reward and other numbers.
    vocabulary: see `vocabularies.vocabulary`.
    directory: the table's own; the new table replaces an old one when it is complete.
    prompt_length: prompt tokens at most, with BOS, EOS and a chat template's; a longer prompt is cut, keeps
      these, and is counted.
    response_length: response tokens at most, EOS included.
    overlong: 'truncate' cuts longer responses, without EOS; 'drop' leaves them out. Both are counted.
    keep: the end of an overlong prompt to keep, 'start' or 'end'; 'auto' keeps a conversation's end, and the
      start of other prompts.
    template: of the prompt text.
    chat: whether the model's own chat template writes the prompts; None asks for it where there is one.
    rates: mixture rates by the records' `source`, which become sampling weights.
    source_fingerprint: a hash of the records; without it they are read into memory and hashed.

  Raises:
    UsageError: bad records, no records, or bad options. No partial table remains.
  """
  _check_options(prompt_length, response_length, overlong, keep)
  templates.check_template(template)
  if source_fingerprint is None:
    records = list(_as_records(records))
    source_fingerprint = fingerprint(*records)
  meta = description(
    source_fingerprint, vocabulary, prompt_length=prompt_length, response_length=response_length,
    overlong=overlong, keep=keep, template=template, chat=chat, rates=rates,
  )  # fmt: skip
  options, mark = meta['options'], meta['fingerprint']
  directory = os.path.abspath(os.path.expanduser(directory))
  if (existing := load_if(directory, mark)) is not None:
    return existing
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
  template: str = templates.PLAIN,
  chat: bool | None = None,
  rates: Mapping[str, float | int] | None = None,
) -> dict[str, Any]:
  """The start of a table's description: its options and fingerprint; arguments and errors as `build`."""
  _check_options(prompt_length, response_length, overlong, keep)
  templates.check_template(template)
  options = {
    'prompt_length': prompt_length, 'response_length': response_length, 'overlong': overlong, 'keep': keep,
    'template': template, 'vocabulary': vocabulary.fingerprint, 'rates': dict(rates) if rates else None,
  }  # fmt: skip
  options |= tokenise.chat_option(vocabulary, tokenise.uses_chat(vocabulary, chat))
  mark = fingerprint(VERSION, source_fingerprint, json.dumps(options, sort_keys=True))
  return {
    'version': VERSION, 'fingerprint': mark, 'vocabulary': vocabulary.spec, 'options': options,
    'lost_blanks': lost_text.lost_blanks(vocabulary), 'unknown_id': vocabulary.special.unknown,
  }  # fmt: skip


def load(directory: str | os.PathLike[str]) -> TokenTable:
  """The table in a directory.

  Raises:
    UsageError: there is no table, or it is damaged.
  """
  directory = os.path.abspath(os.path.expanduser(directory))
  meta = _read_meta(directory)
  if meta is None:
    raise UsageError(f'{directory}: there is no complete token table of version {VERSION}; build it again')
  if damaged := folders.damaged(directory, meta):
    raise UsageError(f'{directory}: the token table is damaged ({", ".join(damaged)}); build it again')
  return _open(directory, meta)


def exists(directory: str) -> bool:
  """Whether there is a complete table; does not check its bytes."""
  return _read_meta(directory) is not None


def fetch(url: str, directory: str) -> bool:
  """Copies a table from a bucket; returns whether the bucket had an intact one."""
  return buckets.fetch(url, directory, description=DESCRIPTION, version=VERSION, what='token table')


def _open(directory: str, meta: Mapping[str, Any]) -> TokenTable:
  read = {name: _array(directory, name) for name in meta['arrays']}
  # Plain arrays of the same memory map: slices of a memmap cost ten times as much.
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
      f'prompt_length and response_length must be at least 1 token, got {prompt_length}, {response_length}'
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
  """A temporary directory to build a table in, which then replaces `directory`."""
  return folders.Replacing(
    directory, what='token table', description=DESCRIPTION, version=VERSION, mark=mark,
    elsewhere='another cache_dir (--set CACHE_DIR=DIR)',
  )  # fmt: skip


def _read_meta(directory: str) -> Mapping[str, Any] | None:
  """The description of a complete table of this version, or None."""
  return folders.describe(directory, DESCRIPTION, VERSION)


def load_if(directory: str, mark: str) -> TokenTable | None:
  """The table with this fingerprint, or None where there is none, another, or a damaged one."""
  meta = _read_meta(directory)
  if meta is None or meta['fingerprint'] != mark:
    return None
  if damaged := folders.damaged(directory, meta):
    log = logging.getLogger(__name__)
    log.warning('%s: the token table is damaged (%s) and is built again', directory, ', '.join(damaged))
    return None
  return _open(directory, meta)


def _array(directory: str, name: str) -> np.ndarray:
  return np.asarray(np.load(os.path.join(directory, f'{name}.npy'), mmap_mode='r'))


def _weights(
  source: np.ndarray, names: Sequence[str], rates: Mapping[str, float | int] | None
) -> np.ndarray | None:
  """Each source's rate, divided among its records."""
  if not rates:
    return None
  counts = np.bincount(source, minlength=len(names))
  return np.array([rates[name] for name in names])[source] / counts[source]
