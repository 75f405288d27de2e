"""The `score` command: rewards for the answers of a file, by reward models, functions and programs."""

import functools
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dro_jax import files, limits
from dro_jax.data.records import comparisons, file_names, scored
from dro_jax.data.records.answers import Answer, new_file, read_answers
from dro_jax.data.sources.find import find, refuse_changed, stamps
from dro_jax.data.sources.task_modules import import_modules
from dro_jax.data.storage.fingerprints import differences, mixed
from dro_jax.data.storage.journal import Journal
from dro_jax.data.text import chat
from dro_jax.errors import UsageError, shown
from dro_jax.parallel import processes
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.run.sampling import rewards
from dro_jax.run.sampling.reward_models import RewardModel
from dro_jax.run.sampling.rewards import Reward

OWN, LOGGED = 'reward', 'logged_reward'  # The field that one reward fills, and where the file's own goes.
_LONGEST_NAME = 200  # Bytes; file systems allow 255, and the files beside the output have longer names.
_log = logging.getLogger(__name__)


def score(
  triplets: str | Sequence[str],
  reward: str,
  output: str,
  *,
  columns: str | Mapping[str, str] | None = None,
  split: str = 'train',
  keep_pairs: bool = False,
  chat_template: str = chat.TEMPLATE,
  batch_size: int = 256,
  model_batch_size: int = 32,
  timeout: float | int = 600.0,
  task_modules: str | Sequence[str] = (),
  data_dir: str | None = None,
  mesh: MeshSpec = MeshSpec(),
) -> dict[str, Any]:
  """Scores the answers of files and writes them, with all of their fields, as JSON lines to train on.

  What was scored is kept at once in OUTPUT.partial, by the texts of prompt and response. So the same command,
  killed at any instant, goes on where it was, and scores equal texts once. Another reward is refused there.
  Once the output is there, the same command scores nothing, and no other command replaces it.

  Args:
    triplets: files of any triplet format, in which rewards are not needed, or names of data sets. A
      comparison is two answers.
    reward: the name of a built-in reward, FILE.py:FUNCTION or MODULE:FUNCTION, the folder of a reward model,
      or 'command:PROGRAM' (see `run.sampling.rewards.find`), which fills the field `reward`; the file's own
      reward becomes `logged_reward`. Several are 'helpful=SPEC,safe=SPEC', which fill the fields of these
      names, that the file must not have, and leave `reward` as it is.
    output: the file to write, .jsonl.
    columns: names of the fields in the files: 'prompt=question,response=answer'.
    split: the part that is read of data sets by name.
    keep_pairs: whether the two answers of a comparison stay a pair (by its number, the field `comparison`),
      which algorithms for pairs get in the order of the new rewards; otherwise they form pairs of all answers
      to a prompt.
    chat_template: the text of each turn where a prompt is a conversation, for functions and programs; a
      reward model reads turns as it was trained to.
    batch_size: answers that are given to a reward, and then kept, at once.
    model_batch_size: answers that a reward model computes at once.
    timeout: seconds that a program may take for a batch.
    task_modules: modules to import first, which register seqio tasks.
    data_dir: a folder that holds the public data sets' folders; `None` downloads them.
    mesh: devices' arrangement, over which a reward model splits its batches.

  Returns:
    How many answers there are, and how many of them were scored now; mean and standard deviation by field.

  Raises:
    UsageError: there is no file or no reward, a reward fails, the output is one of the files or another file
      that is there, or scores of other rewards are kept beside it.
  """
  limits.whole('score', batch_size=batch_size, model_batch_size=model_batch_size)
  if min(batch_size, model_batch_size) < 1:
    raise UsageError(
      f'batch_size={batch_size}, model_batch_size={model_batch_size}: pass 1 or more, as --set BATCH=256 and '
      '--set MODEL_BATCH=32.'
    )
  import_modules(task_modules)
  paths = file_names.expand(triplets) if file_names.is_files(triplets) else []
  answers = functools.partial(_answers, paths or triplets, columns, data_dir, split, keep_pairs)
  target = _target(output, paths)
  if keep_pairs and comparisons.COLUMN not in next(answers()).fields:
    raise UsageError(
      f'KEEP_PAIRS=true: {triplets} holds answers and no comparisons, so that there is no pair to keep: '
      'leave it out.'
    )
  chat.check_template(chat_template)
  named = rewards.find_named(reward, mesh=mesh.over(), batch_size=model_batch_size, timeout=timeout)
  specs = {name or OWN: spec for name, spec in rewards.parse_named(reward).items()}
  records = {name: rewards.record_of(spec) for name, spec in specs.items()}
  before = stamps(paths)
  functions = [_Scorer(function, chat_template) for function in named.values()]
  new, numbers, identity = 0, _Numbers(list(specs)), {'rewards': records, 'chat_template': chat_template}
  if processes.from_first(lambda: _is_made(target, identity, answers(), numbers, None in named)):
    return {'output': str(target), 'answers': numbers.count, 'scored': 0, **numbers.summary()}
  with _Kept(target, identity, list(specs)) as kept:
    for chunk in _chunks(_checked(answers(), list(named)), batch_size):
      new += _score_chunk(chunk, functions, kept)
    refuse_changed(before)
    if jax.process_index() == 0:
      scored.write(target, **identity)
      with files.replacing(target) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        for answer in answers():
          file.write(files.json_line(_written(answer, numbers.noted(kept.of(answer)), None in named)))
      kept.remove()
  return {'output': str(target), 'answers': numbers.count, 'scored': new, **numbers.summary()}


def _answers(
  triplets: str | Sequence[str],
  columns: str | Mapping[str, str] | None,
  data_dir: str | None,
  split: str,
  keep_pairs: bool,
) -> Iterator[Answer]:
  """The answers of files with all their fields, or of data sets by name with their numbers."""
  if file_names.is_files(triplets):
    yield from read_answers(triplets, columns, keep_pairs=keep_pairs)
    return
  source = find(triplets, columns=columns, chat_template=None, split=split, data_dir=data_dir)
  for record in source.records():
    texts = {'id': record.id, 'prompt': record.prompt, 'response': record.response}
    own = {} if record.reward is None else {OWN: record.reward}
    numbers = dict(record.columns) if keep_pairs else comparisons.own(record.columns, record.id)
    yield Answer(record.prompt, record.response, texts | own | numbers, record.where)


def _target(output: str, paths: Sequence[str]) -> pathlib.Path:
  """The file to write, checked before anything is scored."""
  target = new_file(output, paths)
  if len(os.fsencode(target.name)) > _LONGEST_NAME:
    raise UsageError(
      f'--output={output}: its name is too long for the files that are written beside it: pass a name of at '
      f'most {_LONGEST_NAME} letters.'
    )
  return target


def _is_made(
  target: pathlib.Path,
  identity: Mapping[str, Any],
  answers: Iterator[Answer],
  numbers: '_Numbers',
  replaces: bool,
) -> bool:
  """Whether the output is there, of these answers and rewards: then its scores are noted.

  Raises:
    UsageError: another file is there.
  """
  if not target.exists():
    return False
  remedy = 'It would be replaced: pass another --output, or remove the file.'
  settings = scored.settings_of(target)
  if settings is None:
    raise UsageError(f'{target} is there already, and nothing says that `score` wrote it. {remedy}')
  if changed := '; '.join(differences(json.loads(files.json_text(identity)), settings)):
    raise UsageError(f'{target} holds scores of other rewards or settings ({changed}). {remedy}')
  with open(target, encoding='utf-8', newline='\n') as file:
    for answer, line in itertools.zip_longest(answers, file):
      record = files.parsed(line.encode()) if line else None
      scores = {name: (record or {}).get(name) for name in numbers.names}
      is_scored = all(isinstance(score, float | int) for score in scores.values())
      if answer is None or not is_scored or files.json_line(_written(answer, scores, replaces)) != line:
        raise UsageError(f'{target} holds other records than those to score, or was changed. {remedy}')
      numbers.noted(scores)
  _log.info('%s: all %d answers are scored already', target, numbers.count)
  return True


def _checked(answers: Iterator[Answer], names: Sequence[str | None]) -> Iterator[Answer]:
  """Yields answers; refuses one that has a field of the name of a reward, which would replace it."""
  for answer in answers:
    for name in names:
      if name is not None and answer.fields.get(name) is not None:
        raise UsageError(
          f'{answer.where}: the record has a field {name!r} ({shown(answer.fields[name])}), which the reward '
          f'of that name would replace: give the reward another name, or leave the field out with --columns '
          f'{name}=.'
        )
    yield answer


class _Scorer:
  """A reward with the texts as it reads them."""

  def __init__(self, function: Reward, chat_template: str):
    self._function, self._template = function, chat_template

  def __call__(self, answers: Sequence[Answer]) -> list[float] | None:
    """One number for each answer; `None` in a process that leaves it to the first one.

    A reward model computes on all processes' devices. What a function or a program costs is paid once.
    """
    if isinstance(self._function, RewardModel):
      prompts = [answer.prompt for answer in answers]
    elif jax.process_index() == 0:
      prompts = [chat.rendered_by(answer.prompt, self._template) for answer in answers]
    else:
      return None
    return rewards.reward_responses(self._function, prompts, [answer.response for answer in answers])


def _key(answer: Answer) -> str:
  return files.hash_parts([answer.prompt.encode(), b'\0', answer.response.encode()])


class _Kept:
  """The scores so far, by the texts' digest: in memory, and in OUTPUT.partial, to which each batch is added.

  The first of several processes alone reads and writes the file.

  Args:
    target: the output.
    identity: all on which scores depend; the scores of another identity are not used.
    names: of the scores of an answer.

  Raises:
    UsageError: in every process, where the scores are another identity's, or another command adds to them.
  """

  def __init__(self, target: pathlib.Path, identity: Mapping[str, Any], names: Sequence[str]):
    self._path, self._names = target.with_name(f'{target.name}.partial'), names
    self._scores: dict[str, list[float]] = {}
    self._journal: Journal | None = None
    head = json.loads(files.json_text({'identity': identity}))
    try:
      processes.from_first(lambda: self._resume(head))
    except BaseException:
      self.__exit__()
      raise

  def __enter__(self) -> '_Kept':
    return self

  def __exit__(self, *error: object) -> None:
    if self._journal is not None:
      self._journal.close()

  def _resume(self, head: Mapping[str, Any]) -> int:
    """Reads the scores so far; returns how many they are."""
    self._journal = Journal(self._path)
    first, *lines = self._journal.records or [None]
    if first == head:
      for line in lines:
        self._scores[line['key']] = [line['scores'][name] for name in self._names]
      _log.info('%s: goes on after %d scored answers', self._path, len(self._scores))
      return len(self._scores)
    if lines:  # They may have cost hours, or money.
      held = f'{len(lines)} scores of other rewards or settings'
      raise mixed(self._path, held, head['identity'], first.get('identity') or {})
    self._journal.clear()
    self._journal.append(head)
    return 0

  def __contains__(self, answer: Answer) -> bool:
    return _key(answer) in self._scores

  def of(self, answer: Answer) -> dict[str, float]:
    """The scores of an answer, by their names."""
    return dict(zip(self._names, self._scores[_key(answer)]))

  def add(self, answers: Sequence[Answer], scores: np.ndarray) -> None:
    """Keeps scores `[answers, names]`: they are on disk when this returns."""
    rows = {_key(answer): row.tolist() for answer, row in zip(answers, scores)}
    self._scores |= rows
    if self._journal is not None:
      lines = ({'key': key, 'scores': dict(zip(self._names, row))} for key, row in rows.items())
      self._journal.append(*lines)

  def share(self, answers: Sequence[Answer]) -> list[Answer]:
    """The answers that are still to be scored, the same in every process."""
    if jax.process_count() > 1:
      table = np.full((len(answers), len(self._names)), np.nan)
      for row, answer in zip(table, answers):
        row[:] = self._scores.get(_key(answer), np.nan)
      table = np.asarray(multihost_utils.broadcast_one_to_all(table), np.float64)
      for row, answer in zip(table, answers):
        if not np.isnan(row).any():
          self._scores[_key(answer)] = row.tolist()
    return [answer for answer in answers if answer not in self]

  def remove(self) -> None:
    self._path.unlink(missing_ok=True)


def _chunks(answers: Iterator[Answer], size: int) -> Iterator[list[Answer]]:
  """Answers of different texts, `size` at a time; equal texts once."""
  seen: set[str] = set()
  chunk: list[Answer] = []
  for answer in answers:
    if (key := _key(answer)) not in seen:
      seen.add(key)
      chunk.append(answer)
    if len(chunk) == size:
      yield chunk
      chunk = []
  if chunk:
    yield chunk


def _score_chunk(chunk: Sequence[Answer], functions: Sequence[_Scorer], kept: _Kept) -> int:
  """Scores those of some answers that have no scores yet; returns how many these are."""
  missing = kept.share(chunk)
  if not missing:
    return 0
  columns = [function(missing) for function in functions]
  scores = np.array([[np.nan] * len(missing) if x is None else x for x in columns], np.float64).T
  if jax.process_count() > 1:
    scores = np.asarray(multihost_utils.broadcast_one_to_all(scores), np.float64)
  kept.add(missing, scores)
  return len(missing)


def _written(answer: Answer, scores: Mapping[str, float], replaces: bool) -> dict[str, Any]:
  """A record as the output has it; a reward without a name `replaces` the record's own."""
  fields = dict(answer.fields)
  if replaces and fields.get(OWN) is not None:
    fields.setdefault(LOGGED, fields[OWN])
  return {**{name: _plain(value) for name, value in fields.items()}, **scores}


def _plain(value: Any) -> Any:
  """A field's value as JSON can hold it; a date of a parquet file is its text."""
  try:
    files.json_text(value)
  except TypeError:
    return str(value)
  return value


class _Numbers:
  """Counts, means and deviations of the scores that are written."""

  def __init__(self, names: Sequence[str]):
    self.count = 0
    self.names = names
    self._sums = {name: np.zeros(2) for name in names}

  def noted(self, scores: Mapping[str, float]) -> Mapping[str, float]:
    self.count += 1
    for name, score in scores.items():
      self._sums[name] += score, score**2
    return scores

  def summary(self) -> dict[str, float]:
    """The mean and the standard deviation of each score."""
    result = {}
    for name, (total, squares) in self._sums.items():
      mean = total / max(self.count, 1)
      result[f'{name}_mean'] = float(mean)
      result[f'{name}_sd'] = float(np.sqrt(max(squares / max(self.count, 1) - mean**2, 0.0)))
    return result


__all__ = ['score']
