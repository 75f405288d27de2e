"""Public preference data as seqio tasks: `--triplets=ultrafeedback`, or `--triplets=hh_helpful,hh_harmless`.

Importing this module registers every data set of `DATASETS`. Those on the Hugging Face Hub are downloaded
once (`pip install 'dro_jax[hf]'`), the others by hand; the user's own folder, `data_dir`, comes first. TFDS
has none of them. Known records that make no triplet (without a rating, with an empty answer) are left out and
counted in one warning; any other problem is an error with file, line and field.
"""

import collections
import glob
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from dro_jax.data.records import comparisons
from dro_jax.data.records import triplets as sources
from dro_jax.data.sources import public_records, seqio_tasks
from dro_jax.data.sources.public_records import Gap, Malformed, Triplet
from dro_jax.data.storage import fingerprints
from dro_jax.errors import UsageError

_VERSION = 2  # Of the triplets that files become; a new version gives new token tables.


class DataSet(NamedTuple):
  """A public data set.

  Attributes:
    files: by split, the files required below its folder; 'a|b' is a, or else b.
    triplets: of one record of a split.
    folder: its folder's name below `data_dir`.
    origin: where to download it by hand.
    repo: on the Hugging Face Hub; None where it is not there.
    revision: of the repository; None is the newest.
    columns: other numbers of its triplets.
    compares: whether a record is a comparison, with a chosen and a rejected response.
  """

  files: Mapping[str, tuple[str, ...]]
  triplets: public_records.Read
  folder: str
  origin: str
  repo: str | None = None
  revision: str | None = None
  columns: tuple[str, ...] = ()
  compares: bool = False


# --- the data sets ------------------------------------------------------------------------------------------


def _ultrafeedback_set(score: Callable[[Mapping[str, Any], str], float | None]) -> DataSet:
  return DataSet(
    {'train': ('*.jsonl',)}, public_records.ultrafeedback(score), 'UltraFeedback',
    'huggingface.co/datasets/openbmb/UltraFeedback', repo='openbmb/UltraFeedback',
  )  # fmt: skip


def _hh_set(*tranches: str) -> DataSet:
  files = {
    split: tuple(f'{tranche}/{split}.jsonl.gz|{tranche}/{split}.jsonl' for tranche in tranches)
    for split in ('train', 'test')
  }
  origin = 'huggingface.co/datasets/Anthropic/hh-rlhf'
  return DataSet(files, public_records.hh, 'hh-rlhf', origin, repo='Anthropic/hh-rlhf', compares=True)


def _tldr_set(
  part: str,
  authors_part: str,
  splits: tuple[str, ...],
  triplets: Callable[[Mapping[str, Any]], Iterator[Triplet | Gap]],
  columns: tuple[str, ...] = (),
  compares: bool = False,
) -> DataSet:
  """A part of the TL;DR data, by the Hub's name (`part`) and the authors' name."""
  return DataSet(
    {split: (f'{part}/{split}/*.parquet|{authors_part}/*.json',) for split in splits},
    public_records.on_posts(triplets),
    'summarize_from_feedback', 'github.com/openai/summarize-from-feedback', columns=columns,
    compares=compares,
    # The repository itself holds only a script, which downloads the data from elsewhere.
    repo='openai/summarize_from_feedback', revision='refs/convert/parquet',
  )  # fmt: skip


_PRO_TESTS = ('harmless_base', 'helpful_base', 'helpful_online', 'helpful_rejection')


def _hh_rewarded_set(*sides: int) -> DataSet:
  """The pairs of PRO's data.zip; `sides` are the answers taken of each, 0 the better one."""
  parts = {f'test_{part}': (f'hh_test/{part}.json',) for part in _PRO_TESTS}
  files = {
    'train': ('hh_train_len2/train.json',), 'validation': ('hh_dev/sampled_dev.json',), **parts,
    'test': tuple(file for files in parts.values() for file in files),
  }  # fmt: skip
  origin = 'github.com/AlibabaResearch/DAMO-ConvAI/tree/main/PRO, whose data.zip holds the folder data'
  return DataSet(
    files, public_records.hh_rewarded(sides), 'data', origin, columns=public_records.HH_REWARDED_COLUMNS,
    compares=len(sides) == 2,
  )  # fmt: skip


def _a_lol_set(folder: str, names: tuple[str, ...], train: str = 'train', test: str = 'test') -> DataSet:
  files = {'train': (f'{train}.jsonl',), 'validation': ('val.jsonl',), 'test': (f'{test}.jsonl',)}
  origin = f'github.com/abaheti95/LoL-RL, whose preprocessing writes data/{folder}'
  return DataSet(files, public_records.a_lol(names), folder, origin, columns=names)


_REDDIT_FOLDER = 'reddit_comment_scores_kaggle'
_REDDIT_DONE, _DIALOGUE_DONE = f'{_REDDIT_FOLDER}/preprocessed', 'preprocessed_and_rewarded'

DATASETS: dict[str, DataSet] = {
  'ultrafeedback': _ultrafeedback_set(public_records.overall),
  'ultrafeedback_fine_grained': _ultrafeedback_set(public_records.fine_grained),
  'hh_helpful': _hh_set('helpful-base', 'helpful-online', 'helpful-rejection-sampled'),
  'hh_helpful_base': _hh_set('helpful-base'),
  'hh_helpful_online': _hh_set('helpful-online'),
  'hh_helpful_rejection': _hh_set('helpful-rejection-sampled'),
  'hh_harmless': _hh_set('harmless-base'),
  'hh_rewarded': _hh_rewarded_set(0, 1),
  'hh_rewarded_chosen': _hh_rewarded_set(0),
  'tldr_sft': DataSet(
    {
      split: (f'default/{split}/*.parquet|{name}.jsonl',)
      for split, name in {'train': 'train', 'validation': 'valid', 'test': 'test'}.items()
    },
    public_records.tldr_sft,
    'tldr_3_filtered',
    'openaipublic.blob.core.windows.net/summarize-from-feedback/datasets/tldr_3_filtered',
    repo='vwxyzjn/summarize_from_feedback_tldr_3_filtered',
    revision='refs/convert/parquet',
  ),
  'tldr_comparisons': _tldr_set(
    'comparisons', 'comparisons', ('train', 'validation'), public_records.tldr_comparisons, compares=True
  ),
  'tldr_axis': _tldr_set(
    'axis', 'axis_evals', ('validation', 'test'), public_records.tldr_axis, public_records.TLDR_AXES
  ),
  'atomic10x': DataSet(
    dict.fromkeys(('train', 'validation', 'test'), ('ATOMIC10X.jsonl',)),
    public_records.atomic10x,
    'symbolic_knowledge_distillation/downloaded',
    'github.com/peterwestai2/symbolic-knowledge-distillation',
  ),
  'comet_rewarded': _a_lol_set('comet_rewarded', public_records.COMET_REWARDS),
  'reddit_comments': DataSet(
    {'train': ('comments_positive.csv', 'comments_negative.csv')},
    public_records.reddit,
    _REDDIT_FOLDER,
    'kaggle.com/code/danofer/reddit-comments-scores-nlp/input',
    columns=('score', 'parent_score'),
  ),
  'reddit_upvoted': _a_lol_set(_REDDIT_DONE, public_records.REDDIT_REWARDS, train='pos_train'),
  'reddit_downvoted': _a_lol_set(_REDDIT_DONE, public_records.REDDIT_REWARDS, train='neg_train'),
  'wow_rewarded': _a_lol_set(f'wow/{_DIALOGUE_DONE}', public_records.DIALOGUE_REWARDS, test='faithdial_test'),
  'faithdial': DataSet(
    {
      split: (f'data/{name}.json|plain_text/{split}/*.parquet',)
      for split, name in {'train': 'train', 'validation': 'valid', 'test': 'test'}.items()
    },
    public_records.faithdial,
    'FaithDial',
    'huggingface.co/datasets/McGill-NLP/FaithDial',
    repo='McGill-NLP/FaithDial',
  ),
  'faithdial_rewarded': _a_lol_set(f'faithdial/{_DIALOGUE_DONE}', public_records.DIALOGUE_REWARDS),
  'faithdial_wow_rewarded': _a_lol_set(f'faithdial_wow/{_DIALOGUE_DONE}', public_records.DIALOGUE_REWARDS),
}


# --- files --------------------------------------------------------------------------------------------------


def locate(name: str, split: str, data_dir: str | None = None) -> tuple[str, list[str]]:
  """The folder of a data set, downloaded where `data_dir` is None, and the files of a split in it.

  Raises:
    UsageError: a file is missing, or cannot be downloaded.
  """
  data = DATASETS[name]
  root = _download(name, data) if data_dir is None else _own_folder(data, data_dir)
  files = []
  for pattern in data.files[split]:
    matches = _matches(root, pattern)
    if not matches:
      raise UsageError(
        f"public data '{name}': there is no {pattern.replace('|', ' or ')} in {root}; get it from "
        f'{data.origin} and pass data_dir (--set DATA_DIR=FOLDER), where FOLDER or '
        f'FOLDER/{data.folder} holds it'
      )
    files += matches
  return root, files


def _matches(root: str, pattern: str) -> list[str]:
  """The files of the first alternative that matches any."""
  for alternative in pattern.split('|'):
    if matches := sorted(glob.glob(os.path.join(glob.escape(root), alternative))):
      return matches
  return []


def _own_folder(data: DataSet, data_dir: str) -> str:
  """The data set's folder in `data_dir`, or `data_dir` itself."""
  data_dir = os.path.expanduser(data_dir)
  inner = os.path.join(data_dir, data.folder)
  return inner if os.path.isdir(inner) else data_dir


def _download(name: str, data: DataSet) -> str:
  """The folder of a snapshot from the Hugging Face Hub."""
  by_hand = f'get it from {data.origin} and pass data_dir (--set DATA_DIR=FOLDER)'
  if data.repo is None:
    raise UsageError(f"public data '{name}' is not on the Hugging Face Hub; {by_hand}")
  try:
    import huggingface_hub
  except ImportError as error:
    raise UsageError(
      f"public data '{name}' is downloaded with huggingface_hub, which is not installed: pip install "
      f"'dro_jax[hf]', or {by_hand}"
    ) from error
  patterns = sorted({part for group in data.files.values() for text in group for part in text.split('|')})
  try:
    return huggingface_hub.snapshot_download(
      data.repo, repo_type='dataset', revision=data.revision, allow_patterns=patterns
    )
  except (OSError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
    raise UsageError(
      f"public data '{name}': cannot download {data.repo} ({type(error).__name__}: {error}); try again with "
      f'a connection, or {by_hand}'
    ) from error


# --- registration -------------------------------------------------------------------------------------------


def _triplets(name: str, split: str, data_dir: str | None) -> Iterator[dict[str, Any]]:
  """A split's triplets as the task's examples; logs the number of records left out."""
  data = DATASETS[name]
  root, files = locate(name, split, data_dir)
  gaps: collections.Counter[str] = collections.Counter()
  kept = 0
  for path in files:
    for where, record in sources.located(path):
      for triplet in _checked(data.triplets(record, split), where):
        if isinstance(triplet, Gap):
          gaps[triplet.reason] += 1
        else:
          kept += 1
          yield _example(triplet, os.path.relpath(where, root), data)
  if gaps:
    reasons = ', '.join(f'{count} with {reason}' for reason, count in gaps.most_common())
    logging.getLogger(__name__).warning('%s[%s]: %d triplets; left out: %s', name, split, kept, reasons)


def _checked(triplets: Iterator[Triplet | Gap], where: str) -> Iterator[Triplet | Gap]:
  """The triplets without empty texts; adds file and line to errors."""
  try:
    for triplet in triplets:
      if isinstance(triplet, Gap):
        yield triplet
      elif not triplet.prompt.strip():
        yield Gap('an empty prompt')
      elif not triplet.response.strip():
        yield Gap('an empty response')
      else:
        yield triplet
  except Malformed as error:
    raise UsageError(f'{where}: {error}; download the file again') from error


def _example(triplet: Triplet, where: str, data: DataSet) -> dict[str, Any]:
  # Some of UltraFeedback's texts hold half a surrogate pair, which no tokeniser accepts.
  prompt, response = (text.encode('utf-8', 'replace').decode() for text in (triplet.prompt, triplet.response))
  numbers = {column: triplet.columns.get(column, math.nan) for column in data.columns}
  numbers |= {comparisons.COLUMN: comparisons.number(where)} if data.compares else {}
  fields = {'id': f'{where}/{triplet.part}', 'prompt': prompt, 'response': response.strip()}
  return fields | {'reward': math.nan if triplet.reward is None else triplet.reward} | numbers


_folder: dict[str, str | None] = {'data_dir': None}


def read_from(data_dir: str | None) -> None:
  """Sets the folder from which the tasks read; None is the Hugging Face Hub's downloads."""
  _folder['data_dir'] = data_dir


def _register(name: str) -> None:
  def triplets(split: str) -> Iterator[dict[str, Any]]:
    return _triplets(name, split, _folder['data_dir'])

  def fingerprint(split: str) -> str:
    _, files = locate(name, split, _folder['data_dir'])
    return fingerprints.fingerprint(_VERSION, name, split, fingerprints.files_fingerprint(files))

  data = DATASETS[name]
  columns = (*data.columns, *((comparisons.COLUMN,) if data.compares else ()))
  seqio_tasks.add(name, triplets, fingerprint, splits=list(data.files), columns=columns)


def _register_all() -> None:
  import seqio

  for name in DATASETS:
    if name not in seqio.TaskRegistry.names():  # The user's own task of that name stays.
      _register(name)


_register_all()
