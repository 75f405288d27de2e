"""The `answers` command: files of answers to the same prompts, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax import files, limits
from dro_jax.errors import UsageError
from dro_jax.evaluation import answer_files
from dro_jax.evaluation.answer_files import Answers
from dro_jax.printing import tables
from dro_jax.printing.result import Report
from dro_jax.run.sampling import rewards
from dro_jax.run.sampling.rewards import Reward
from dro_jax.statistics import diversity
from dro_jax.statistics.bootstrap import bootstrap_means, jackknife

_DISTINCT = (1, 2, 3)
# What is measured of every file, and how it is called; fields that are not here have their own names.
MEANINGS = {
  'reward': 'reward',
  'kl': 'mean ρ of the answers, nats: KL(π‖π_ref) at temperature 1',
  'logp': 'log π of the answers, nats',
  'tokens': 'tokens',
  'characters': 'characters',
  'ended': 'share that ended by itself',
  'repetition': 'repetition within an answer (4-grams)',
  **{f'distinct_{n}': f'distinct-{n} of all answers' for n in _DISTINCT},
  'self_bleu': 'self-BLEU of the answers to a prompt',
}


class Measured(NamedTuple):
  """A measure of one side: of each prompt, `[P]`, or of all prompts with its values without each prompt.

  Both are means over the side's files.
  """

  by_prompt: np.ndarray | None = None
  whole: diversity.Distinct | None = None

  def less(self, other: 'Measured') -> 'Measured':
    """The difference, paired by prompt."""
    if self.by_prompt is not None:
      return Measured(by_prompt=self.by_prompt - other.by_prompt)
    return Measured(
      whole=diversity.Distinct(
        self.whole.value - other.whole.value, self.whole.without_P - other.whole.without_P
      )
    )

  @property
  def value(self) -> float:
    return float(self.by_prompt.mean()) if self.whole is None else self.whole.value


def compare_answers(
  answers: str | Sequence[str],
  *,
  reward: str | Mapping[str, Reward | str] | None = None,
  output: str | None = None,
  columns: str | Mapping[str, str] | None = None,
  resamples: int = 1000,
  seed: int = 0,
) -> Report:
  """Measures files of answers to the same prompts: rewards, diversity, repetition, length, log-probs, KL.

  Each is a mean over prompts of the mean over a prompt's answers, but for distinct-n, which is of all answers
  at once (see `statistics.diversity`). Intervals are over prompts; those of differences from the first side
  are paired by prompt. Several files of one name are measured one by one and averaged, so that a side with
  more seeds is no more diverse.

  Args:
    answers: files, each FILE or NAME=FILE, several or separated by commas, as `generate` writes them: JSON
      lines with prompt, response, and any numbers (`reward` and others are averaged).
    reward: rewards for the answers, one or 'helpful=SPEC,safe=SPEC' (see `run.sampling.rewards.find_named`),
      or functions by name; `None` takes the numbers that the files have.
    output: a folder for answers.md and answers.json.
    columns: the files' names of fields: 'prompt=question,response=answer'; those that a file lacks are passed
      over.
    resamples: draws of prompts behind each 95 % interval.
    seed: of those draws.

  Raises:
    UsageError: a file cannot be read, or the files have no prompt in common.
  """
  limits.seed(seed)
  specs = [part for part in (answers.split(',') if isinstance(answers, str) else answers) if part]
  if not specs:
    raise UsageError(
      'no answers to measure: pass files of `dro_jax generate` (dro_jax answers a.jsonl b.jsonl).'
    )
  functions = _functions(reward)
  target = None if output is None else files.output_folder(output)
  every = answer_files.read(specs, columns)
  found = answer_files.in_common(every)
  sides: dict[str, list[Answers]] = {}
  for each in found:
    sides.setdefault(each.name, []).append(each)
  measured = {name: [_measure(each, functions) for each in of] for name, of in sides.items()}
  shown = [_about(sides, every), *_compared(measured, resamples, seed)]
  if any(len(of) > 1 for of in measured.values()):
    shown.append(_between_files(measured))
  by_file = {name: [{m: x.value for m, x in each.items()} for each in of] for name, of in measured.items()}
  content = {
    'files': {name: [each.file for each in of] for name, of in sides.items()},
    'by_file': by_file, 'tables': [tables.for_json(table) for table in shown],
  }  # fmt: skip
  made = Report(content, shown)
  if target is not None:
    made.save(target, 'answers', 'Answers')
  return made


def _functions(reward: str | Mapping[str, Reward | str] | None) -> dict[str, Reward]:
  """Reward functions by the names of their parts; one alone is called `reward`."""
  if reward is None:
    return {}
  if isinstance(reward, Mapping):
    return {name: rewards.find(function) for name, function in reward.items()}
  return {name or 'reward': function for name, function in rewards.find_named(reward).items()}


def _measure(answers: Answers, functions: Mapping[str, Reward]) -> dict[str, Measured]:
  """All measures of one file by name."""
  columns = {
    name: answers.mean_by_prompt(lambda record, name=name: float(record[name]))
    for name in answer_files.number_fields(answers)
  }
  columns |= {name: _rewarded(answers, function) for name, function in functions.items()}
  if (
    all(answer_files.is_number(record.get('reference_logp')) for record in answers.records)
    and 'logp' in columns
  ):
    columns['kl'] = answers.mean_by_prompt(lambda record: record['logp'] - record['reference_logp'])
  columns['characters'] = answers.mean_by_prompt(lambda record: len(record['response']))
  words_PK = [
    [diversity.words_of(record['response']) for record in records] for records in answers.by_prompt.values()
  ]
  columns['repetition'] = np.array([np.mean([*map(diversity.repetition, of)]) for of in words_PK])
  if all(len(of) > 1 for of in words_PK):
    columns['self_bleu'] = np.array([diversity.self_bleu(of) for of in words_PK])
  measured = {name: Measured(by_prompt=column) for name, column in columns.items()}
  return measured | {f'distinct_{n}': Measured(whole=diversity.distinct(words_PK, n)) for n in _DISTINCT}


def _rewarded(answers: Answers, function: Reward) -> np.ndarray:
  """The mean reward of each prompt's answers, `[P]`."""
  prompts = [prompt for prompt, of in answers.by_prompt.items() for _ in of]
  responses = [record['response'] for record in answers.records]
  scored = iter(rewards.reward_responses(function, prompts, responses))
  return np.array([np.mean([next(scored) for _ in of]) for of in answers.by_prompt.values()])


def _pooled(of: Sequence[Mapping[str, Measured]], name: str) -> Measured | None:
  """The mean of a measure over a side's files; `None` where a file lacks it."""
  if not all(name in each for each in of):
    return None
  parts = [each[name] for each in of]
  if parts[0].whole is None:
    return Measured(by_prompt=np.mean([part.by_prompt for part in parts], axis=0))
  values, without = zip(*(part.whole for part in parts))
  return Measured(whole=diversity.Distinct(float(np.mean(values)), np.mean(without, axis=0)))


def _about(sides: Mapping[str, Sequence[Answers]], every: Sequence[Answers]) -> tables.Table:
  """What each side is made of, and what to mind where sides are not alike."""
  rows = [
    {
      'answers of': name, 'files': len(of), 'prompts': len(of[0].by_prompt),
      'answers': sum(len(each.records) for each in of),
    }
    for name, of in sides.items()
  ]  # fmt: skip
  shared, notes = len(next(iter(sides.values()))[0].by_prompt), []
  if most := max(len(each.by_prompt) for each in every) - shared:
    notes.append(f'Compared on the {shared} prompts that all files answer; up to {most} others are left out.')
  if len({tuple(map(len, each.by_prompt.values())) for of in sides.values() for each in of}) > 1:
    notes.append('The files answer prompts unequally often, so compare neither distinct-n nor self-BLEU.')
  return tables.Table('Answers', rows, ' '.join([*notes, *_notes_on_decoding(sides)]))


def _notes_on_decoding(sides: Mapping[str, Sequence[Answers]]) -> list[str]:
  settings = {name: each.settings for name, of in sides.items() for each in of if each.settings}
  first, notes = next(iter(settings.values()), None), []
  for name, of in settings.items():
    if differing := [field for field in of if of[field] != first[field]]:
      said = ', '.join(f'{field}={of[field]} and not {first[field]}' for field in differing)
      notes.append(f'{name} was decoded otherwise than {next(iter(settings))}: {said}.')
  drawn = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'repetition_penalty': 1.0}
  if others := [name for name, of in settings.items() if any(of[x] != usual for x, usual in drawn.items())]:
    notes.append(
      f'{", ".join(others)}: not drawn from π itself (temperature 1, no truncation), so ρ estimates no KL.'
    )
  return notes


def _compared(
  measured: Mapping[str, Sequence[Mapping[str, Measured]]], resamples: int, seed: int
) -> list[tables.Table]:
  """Each measure of each side, and differences from the first."""
  first, *others = measured
  pooled = {
    metric: {name: _pooled(of, metric) for name, of in measured.items()} for metric in _metrics(measured)
  }
  differences = {
    metric: {name: of[name] and of[first] and of[name].less(of[first]) for name in others}
    for metric, of in pooled.items()
  }
  rows = _estimated(pooled, resamples, seed, (0.0, 1.0))
  compared = _estimated(differences, resamples, seed, (-1.0, 1.0))
  note = '95 % intervals over prompts: bootstrap, and of distinct-n the jackknife.'
  shown = [tables.Table('Measures', rows, note)]
  if others:
    paired = 'Paired: each interval is over prompts, drawn alike for both. One that spans 0 decides nothing.'
    shown.append(tables.Table(f'Difference from {first}', compared, paired))
  return shown


def _estimated(
  measures: Mapping[str, Mapping[str, Measured | None]],
  resamples: int,
  seed: int,
  shares: tuple[float, float],
) -> list[dict[str, Any]]:
  """A row for each measure: the value of each side and its interval, all on the same draws of prompts.

  distinct-n and its differences are within `shares`.
  """
  every = [x for of in measures.values() for x in of.values() if x is not None]
  columns = [x.by_prompt for x in every if x.whole is None]
  means = iter(bootstrap_means(np.stack(columns, axis=1), resamples, seed) if columns else ())
  found = iter([next(means) if x.whole is None else jackknife(*x.whole, shares) for x in every])
  return [
    {'metric': MEANINGS.get(metric, metric)} | {name: x and next(found) for name, x in of.items()}
    for metric, of in measures.items()
  ]


def _metrics(measured: Mapping[str, Sequence[Mapping[str, Measured]]]) -> list[str]:
  """The measures of any file: rewards and other numbers of the files first, then those of MEANINGS."""
  names = dict.fromkeys(name for of in measured.values() for each in of for name in each)
  known = [name for name in MEANINGS if name in names]
  head = [name for name in known if name == 'reward']
  return head + [name for name in names if name not in known] + [name for name in known if name not in head]


def _between_files(measured: Mapping[str, Sequence[Mapping[str, Measured]]]) -> tables.Table:
  """The standard deviation of each measure between the files of a side."""
  rows = []
  for metric in _metrics(measured):
    row: dict[str, Any] = {'metric': MEANINGS.get(metric, metric)}
    for name, of in measured.items():
      values = [each[metric].value for each in of if metric in each]
      row[name] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    rows.append(row)
  note = 'Standard deviation between files of one name, such as seeds. The intervals above do not hold it.'
  return tables.Table('Spread between files', rows, note)


__all__ = ['compare_answers']
