"""Public preference data as seqio tasks: `--triplets=ultrafeedback`, or `--triplets=hh_helpful,hh_harmless`.

Importing this registers every data set of `DATASETS`. One that lies on the Hugging Face Hub is downloaded
from there, once (`pip install 'dro_jax[hf]'`), the others by hand; either way a folder of one's own,
`data_dir`, comes first. TFDS ships none of these. A record that its data set is known to hold and that
makes no triplet (no rating, an empty answer) is left out, and all of them are counted in one warning;
anything else amiss is an error with file, line and field.

Where the fields are described:
  ultrafeedback: README of github.com/OpenBMB/UltraFeedback, "Dataset Format"; the mean of the fine-grained
    ratings is `calculate_average_rating` in its fix_overall_score_issue.py (arXiv 2310.01377).
  hh: the card of huggingface.co/datasets/Anthropic/hh-rlhf (arXiv 2204.05862).
  tldr: README of github.com/openai/summarize-from-feedback, "Human feedback data", and the loading script of
    huggingface.co/datasets/openai/summarize_from_feedback (arXiv 2009.01325).
  faithdial: the card of huggingface.co/datasets/McGill-NLP/FaithDial (arXiv 2204.10757).
  reddit, rewarded: README and preprocess_{reddit_comment_scores,wow}_and_add_rewards.py of
    github.com/abaheti95/LoL-RL (A-LoL, arXiv 2305.14718).
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
from dro_jax.data.sources import seqio_tasks
from dro_jax.data.table import table
from dro_jax.errors import UsageError

_VERSION = 2  # Of the triplets that files become: another one is another token table.
_EOS = '<|endoftext|>'  # What ends a turn in A-LoL's files.
_MAX_WORDS = 100  # Of a Reddit comment and of its parent, as in A-LoL.


class Triplet(NamedTuple):
  """One of a record's triplets; `part` says which."""

  part: str
  prompt: str
  response: str
  reward: float
  columns: Mapping[str, float] = {}


class Gap(NamedTuple):
  """What a record lacks that the data set is known to lack in places."""

  reason: str


class Malformed(Exception):
  """What is wrong with which field of a record."""


class DataSet(NamedTuple):
  """A public data set.

  Attributes:
    files: by split, what must be there below its folder; 'a|b' is a, or else b.
    triplets: of one record of a split.
    folder: its folder's name below `data_dir`.
    origin: where to get it by hand.
    repo: on the Hugging Face Hub; None: it is not there.
    revision: of the repository; None: the newest.
    columns: other numbers of its triplets.
    compares: whether a record is a comparison, its triplets the response that was chosen and the other.
  """

  files: Mapping[str, tuple[str, ...]]
  triplets: Callable[[Mapping[str, Any], str], Iterator[Triplet | Gap]]
  folder: str
  origin: str
  repo: str | None = None
  revision: str | None = None
  columns: tuple[str, ...] = ()
  compares: bool = False


# --- fields -------------------------------------------------------------------------------------------------

_KINDS = {str: 'text', list: 'a list', dict: 'an object', float: 'a number'}


def _get(record: Mapping[str, Any], path: str, kind: type) -> Any:
  """The value at a dotted path ('completions.0.response').

  Raises:
    Malformed: there is none, or it is of another kind.
  """
  value: Any = record
  for key in path.split('.'):
    known = value
    value = (
      value[int(key)] if isinstance(value, list) else value.get(key) if isinstance(value, dict) else None
    )
    if value is None:
      held = ', '.join(map(str, known)) if isinstance(known, dict) else repr(known)
      raise Malformed(f"field '{path}' is missing; where '{key}' should be there is {held or 'nothing'}")
  if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
    raise Malformed(f"field '{path}' is {value!r}, a {type(value).__name__}; it must be {_KINDS[kind]}")
  return value


def _number(value: Any, path: str) -> float | None:
  """A number, also one in text; None for none, NaN and N/A."""
  if value is None or value in ('', 'N/A'):
    return None
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise Malformed(f"field '{path}' is {value!r}; it must be a number") from error
  return None if math.isnan(number) else number


def _numbers(fields: Mapping[str, Any], names: tuple[str, ...], path: str) -> dict[str, float]:
  """Some fields as numbers, NaN where one is missing."""
  found = {name: _number(fields.get(name), f'{path}{name}') for name in names}
  return {name: math.nan if number is None else number for name, number in found.items()}


# --- UltraFeedback ------------------------------------------------------------------------------------------


def _overall(completion: Mapping[str, Any], path: str) -> float | None:
  return _number(completion.get('overall_score'), f'{path}.overall_score')


def _fine_grained(completion: Mapping[str, Any], path: str) -> float | None:
  """The mean of the ratings (1 to 5) of the aspects that have one."""
  aspects = _get(completion, 'annotations', dict)
  read = [
    _number(aspect.get('Rating'), f'{path}.annotations.{name}.Rating')
    for name, aspect in aspects.items()
    if aspect
  ]
  ratings = [rating for rating in read if rating is not None]
  return sum(ratings) / len(ratings) if ratings else None


def _ultrafeedback(score: Callable[[Mapping[str, Any], str], float | None]) -> Callable:
  def triplets(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
    del split
    prompt = _get(record, 'instruction', str)
    completions = _get(record, 'completions', list)
    if not completions:
      yield Gap('no completions')
    for i, completion in enumerate(completions):
      response = _get(record, f'completions.{i}.response', str)
      reward = score(completion, f'completions.{i}')
      yield Gap('no score') if reward is None else Triplet(str(i), prompt, response, reward)

  return triplets


# --- Anthropic HH -------------------------------------------------------------------------------------------


def _hh(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
  """The last turn of a dialogue answers what comes before: 1 for the chosen one, 0 for the rejected."""
  del split
  for side, reward in (('chosen', 1.0), ('rejected', 0.0)):
    prompt, turn, response = _get(record, side, str).rpartition('\n\nAssistant:')
    if not turn:
      raise Malformed(f"field '{side}' has no turn that begins with '\\n\\nAssistant:'")
    if '\n\nHuman:' in response:
      yield Gap("a last turn that is not the assistant's")
    else:
      yield Triplet(side, prompt + turn, response, reward)


# --- TL;DR --------------------------------------------------------------------------------------------------

_TLDR_SPLITS = {'train': ('train',), 'validation': ('valid1', 'valid2'), 'test': ('test',)}
_TLDR_AXES = ('accuracy', 'coverage', 'coherence')


def _tldr_prompt(record: Mapping[str, Any]) -> str:
  subreddit, title, post = (_get(record, f'info.{name}', str) for name in ('subreddit', 'title', 'post'))
  return f'SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:'


def _on_posts(triplets: Callable[[Mapping[str, Any]], Iterator[Triplet | Gap]]) -> Callable:
  """Of a split's records, those on Reddit posts: others are on news articles."""

  def chosen(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
    if _get(record, 'split', str) not in _TLDR_SPLITS[split]:
      return  # The authors' own files hold all splits.
    if _get(record, 'info', dict).get('post') is None:
      yield Gap('a news article, not a post')
    else:
      yield from triplets(record)

  return chosen


def _tldr_comparisons(record: Mapping[str, Any]) -> Iterator[Triplet | Gap]:
  """1 for the summary that was preferred, 0 for the other."""
  prompt, choice = _tldr_prompt(record), _get(record, 'choice', float)
  if choice not in (0, 1) or len(_get(record, 'summaries', list)) != 2:
    raise Malformed(
      f"field 'choice' is {choice} of {len(record['summaries'])} summaries; it must be 0 or 1 of 2"
    )
  for i in range(2):
    yield Triplet(str(i), prompt, _get(record, f'summaries.{i}.text', str), float(choice == i))


def _tldr_axis(record: Mapping[str, Any]) -> Iterator[Triplet | Gap]:
  """The overall rating, 1 to 7."""
  axes = _get(record, 'summary.axes', dict)
  reward = _number(axes.get('overall'), 'summary.axes.overall')
  if reward is None:
    yield Gap('no overall rating')
  else:
    columns = _numbers(axes, _TLDR_AXES, 'summary.axes.')
    yield Triplet('0', _tldr_prompt(record), _get(record, 'summary.text', str), reward, columns)


# --- A-LoL's Reddit and dialogue ----------------------------------------------------------------------------

_REDDIT_REWARDS = ('fluency', 'depth', 'updown', 'safe', 'tfidf')
_DIALOGUE_REWARDS = ('fluency', 'faithdial', 'depth', 'tfidf')


def _reddit(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
  """A comment on its parent: 1 where it got more votes up than down, 0 where fewer."""
  del split
  missing = [name for name in ('text', 'parent_text') if record.get(name) is None]
  prompt, response = (' '.join((record.get(name) or '').split()) for name in ('parent_text', 'text'))
  votes = _number(record.get('score'), 'score')
  if missing:
    yield Gap(f'no {missing[0]}')
  elif votes is None:
    raise Malformed(f"field 'score' is missing; the record has {', '.join(map(str, record))}")
  elif max(len(prompt.split()), len(response.split())) > _MAX_WORDS:
    yield Gap(f'more than {_MAX_WORDS} words')
  else:
    yield Triplet('0', prompt, response, float(votes > 0), _numbers(record, ('score', 'parent_score'), ''))


def _a_lol(names: tuple[str, ...]) -> Callable:
  """A-LoL's own files: the reward is the sum of its classifiers' scores, which become columns."""

  def triplets(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
    del split
    prompt, response = (_get(record, name, str) for name in ('prompt_or_input_text', 'references'))
    reward = float(_get(record, 'reward_components.final_reward', float))
    columns = _numbers(record['reward_components'], names, 'reward_components.')
    yield Triplet(
      '0', '\n'.join(prompt.removesuffix(_EOS).split(_EOS)), response.removesuffix(_EOS), reward, columns
    )

  return triplets


def _faithdial(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
  """1 for the faithful response; 0 for the one that it replaced where that one was not.

  The prompt is A-LoL's: the knowledge, then the turns so far, each on a line.
  """
  del split
  turns = record.get('utterances', [record])  # Whole dialogues, or one turn a row.
  for i, turn in enumerate(turns):
    history = [_get(turn, f'history.{j}', str) for j in range(len(_get(turn, 'history', list)))]
    prompt = '\n'.join([f'Knowledge: {_get(turn, "knowledge", str).strip()}', *history])
    yield Triplet(f'{i}/response', prompt, _get(turn, 'response', str), 1.0)
    if turn.get('original_response') and set(turn.get('BEGIN') or ()) != {'Entailment'}:
      yield Triplet(f'{i}/original', prompt, _get(turn, 'original_response', str), 0.0)


# --- the data sets ------------------------------------------------------------------------------------------


def _ultrafeedback_set(score: Callable) -> DataSet:
  return DataSet(
    {'train': ('*.jsonl',)}, _ultrafeedback(score), 'UltraFeedback',
    'huggingface.co/datasets/openbmb/UltraFeedback', repo='openbmb/UltraFeedback',
  )  # fmt: skip


def _hh_set(*tranches: str) -> DataSet:
  files = {
    split: tuple(f'{tranche}/{split}.jsonl.gz|{tranche}/{split}.jsonl' for tranche in tranches)
    for split in ('train', 'test')
  }
  origin = 'huggingface.co/datasets/Anthropic/hh-rlhf'
  return DataSet(files, _hh, 'hh-rlhf', origin, repo='Anthropic/hh-rlhf', compares=True)


def _tldr_set(
  part: str, theirs: str, splits: tuple[str, ...], triplets: Callable, columns=(), compares: bool = False
) -> DataSet:
  """`part` is the Hub's name for it, `theirs` the authors' own."""
  return DataSet(
    {split: (f'{part}/{split}/*.parquet|{theirs}/*.json',) for split in splits}, _on_posts(triplets),
    'summarize_from_feedback', 'github.com/openai/summarize-from-feedback', columns=columns,
    compares=compares,
    # The repository itself holds a script only, which downloads from elsewhere.
    repo='openai/summarize_from_feedback', revision='refs/convert/parquet',
  )  # fmt: skip


def _a_lol_set(folder: str, names: tuple[str, ...], train: str = 'train', test: str = 'test') -> DataSet:
  files = {'train': (f'{train}.jsonl',), 'validation': ('val.jsonl',), 'test': (f'{test}.jsonl',)}
  origin = f'github.com/abaheti95/LoL-RL, whose preprocessing writes data/{folder}'
  return DataSet(files, _a_lol(names), folder, origin, columns=names)


_REDDIT_FOLDER = 'reddit_comment_scores_kaggle'
_REDDIT_DONE, _DIALOGUE_DONE = f'{_REDDIT_FOLDER}/preprocessed', 'preprocessed_and_rewarded'

DATASETS: dict[str, DataSet] = {
  'ultrafeedback': _ultrafeedback_set(_overall),
  'ultrafeedback_fine_grained': _ultrafeedback_set(_fine_grained),
  'hh_helpful': _hh_set('helpful-base', 'helpful-online', 'helpful-rejection-sampled'),
  'hh_helpful_base': _hh_set('helpful-base'),
  'hh_harmless': _hh_set('harmless-base'),
  'tldr_comparisons': _tldr_set(
    'comparisons', 'comparisons', ('train', 'validation'), _tldr_comparisons, compares=True
  ),
  'tldr_axis': _tldr_set('axis', 'axis_evals', ('validation', 'test'), _tldr_axis, _TLDR_AXES),
  'reddit_comments': DataSet(
    {'train': ('comments_positive.csv', 'comments_negative.csv')},
    _reddit,
    _REDDIT_FOLDER,
    'kaggle.com/code/danofer/reddit-comments-scores-nlp/input',
    columns=('score', 'parent_score'),
  ),
  'reddit_upvoted': _a_lol_set(_REDDIT_DONE, _REDDIT_REWARDS, train='pos_train'),
  'reddit_downvoted': _a_lol_set(_REDDIT_DONE, _REDDIT_REWARDS, train='neg_train'),
  'wow_rewarded': _a_lol_set(f'wow/{_DIALOGUE_DONE}', _DIALOGUE_REWARDS, test='faithdial_test'),
  'faithdial': DataSet(
    {
      split: (f'data/{theirs}.json|plain_text/{split}/*.parquet',)
      for split, theirs in {'train': 'train', 'validation': 'valid', 'test': 'test'}.items()
    },
    _faithdial,
    'FaithDial',
    'huggingface.co/datasets/McGill-NLP/FaithDial',
    repo='McGill-NLP/FaithDial',
  ),
  'faithdial_rewarded': _a_lol_set(f'faithdial/{_DIALOGUE_DONE}', _DIALOGUE_REWARDS),
  'faithdial_wow_rewarded': _a_lol_set(f'faithdial_wow/{_DIALOGUE_DONE}', _DIALOGUE_REWARDS),
}


# --- files --------------------------------------------------------------------------------------------------


def locate(name: str, split: str, data_dir: str | None = None) -> tuple[str, list[str]]:
  """The folder of a data set, downloaded where `data_dir` is None, and the files of a split in it.

  Raises:
    UsageError: a file is not there, or cannot be downloaded.
  """
  data = DATASETS[name]
  root = _download(name, data) if data_dir is None else _own_folder(data, data_dir)
  files = []
  for pattern in data.files[split]:
    found = _matches(root, pattern)
    if not found:
      raise UsageError(
        f"public data '{name}': no {pattern.replace('|', ' or ')} in {root}; get it from {data.origin} and "
        f'pass data_dir (--set DATA_DIR=FOLDER), where FOLDER or FOLDER/{data.folder} holds it'
      )
    files += found
  return root, files


def _matches(root: str, pattern: str) -> list[str]:
  """The files of the first of the alternatives that has some."""
  for alternative in pattern.split('|'):
    if found := sorted(glob.glob(os.path.join(glob.escape(root), alternative))):
      return found
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
  """A split's triplets, as the task's examples; what is left out is counted and logged."""
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
    logging.getLogger(__name__).warning('%s[%s]: %d triplets; left out are %s', name, split, kept, reasons)


def _checked(triplets: Iterator[Triplet | Gap], where: str) -> Iterator[Triplet | Gap]:
  """The same without empty texts; errors say where."""
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
  # Some of UltraFeedback's texts hold half a surrogate pair, which no tokeniser takes.
  prompt, response = (text.encode('utf-8', 'replace').decode() for text in (triplet.prompt, triplet.response))
  numbers = {column: triplet.columns.get(column, math.nan) for column in data.columns}
  numbers |= {comparisons.COLUMN: comparisons.number(where)} if data.compares else {}
  fields = {'id': f'{where}/{triplet.part}', 'prompt': prompt, 'response': response.strip()}
  return fields | {'reward': triplet.reward} | numbers


_folder: dict[str, str | None] = {'data_dir': None}


def read_from(data_dir: str | None) -> None:
  """Says where the tasks read from now on: a folder of one's own; None: the Hugging Face Hub's downloads."""
  _folder['data_dir'] = data_dir


def _register(name: str) -> None:
  def triplets(split: str) -> Iterator[dict[str, Any]]:
    return _triplets(name, split, _folder['data_dir'])

  def fingerprint(split: str) -> str:
    _, files = locate(name, split, _folder['data_dir'])
    return table.fingerprint(_VERSION, name, split, table.files_fingerprint(files))

  data = DATASETS[name]
  columns = (*data.columns, *((comparisons.COLUMN,) if data.compares else ()))
  seqio_tasks.add(name, triplets, fingerprint, splits=list(data.files), columns=columns)


def _register_all() -> None:
  import seqio

  for name in DATASETS:
    if name not in seqio.TaskRegistry.names():  # A task of the user's own by that name stays.
      _register(name)


_register_all()
