"""Did it work: a run's first policy against the one that it ends with, on the same held-out prompts."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax import files
from dro_jax.data.triplets import FEW_HELD_OUT
from dro_jax.printing import tables
from dro_jax.printing.result import to_html
from dro_jax.run.folder import validation
from dro_jax.run.folder.validation import Validation
from dro_jax.statistics import agreement, mass
from dro_jax.statistics.bootstrap import Estimate

RESAMPLES, SEED = 1000, 0
FEW_PROMPTS = 50  # Below it the interval of an accuracy is wider than ±.14.
NEAR, FAR = 0.01, 10.0  # nats of KL: a policy that has hardly moved, and one that has left its reference.
ANSWERS = 3
_LONGEST = 300  # Characters of a text that the terminal shows.

_RHO, _LOGP = 'within_prompt_accuracy/log_ratio', 'within_prompt_accuracy/logp'
_PAIRS, _SCORE = 'pair_accuracy', 'within_prompt_accuracy/score'  # Of a reward model.
# As the table calls a metric, which fits a terminal's width, and as a sentence does.
_LABELS = {
  'criterion': 'criterion',
  'sample_reward': 'reward of samples',
  'kl': 'KL, nats',
  mass.KEPT: 'mass kept',
  mass.SIZE: 'effective size',
  _RHO: 'accuracy of ρ',
  _PAIRS: 'accuracy on pairs',
  'pair_calibration_error': 'calibration error',
  _SCORE: 'accuracy of R',
  _LOGP: 'accuracy of log π',
  'within_prompt_explained_variance': 'explained by τρ',
}
_PHRASES = {
  'sample_reward': 'reward of own samples',
  _PAIRS: 'accuracy on held-out pairs',
  _SCORE: 'within-prompt accuracy of the score',
  _RHO: 'within-prompt accuracy of ρ',
  _LOGP: 'within-prompt accuracy of log π',
}
Statistics = Mapping[str, Callable[[np.ndarray], float]]


class Outcome(NamedTuple):
  """A run's numbers and answers before and after, which shows itself as a table.

  Attributes:
    table: a row for each metric, with `before`, `after` and `change`: numbers, or `Estimate`s over prompts.
    answers: `prompt`, `before` and `after` of up to three held-out prompts.
    verdict: one line.
  """

  table: tables.Table
  answers: Sequence[Mapping[str, str]]
  verdict: str

  def _repr_html_(self) -> str:
    return to_html(self)

  def __rich__(self) -> Any:
    from rich import console, text

    shown = [text.Text(line) for line in self._answer_lines()]
    verdict = text.Text(f'\n{self.verdict}', style='bold')
    rows = [{name: _entry(value) for name, value in row.items()} for row in self.table.rows]
    return console.Group(tables.for_terminal(self.table._replace(rows=rows)), *shown, verdict)

  def _answer_lines(self) -> list[str]:
    return [
      f'{"" if name != "prompt" else chr(10)}{name + ":":<8}{_cut(answer[name])!r}'
      for answer in self.answers
      for name in ('prompt', 'before', 'after')
    ]


def read(folder: pathlib.Path, after: int | None = None) -> Outcome | None:
  """The outcome of the run in a folder; `None` without validations of its first policy and of a later one.

  Args:
    folder: the run's.
    after: the step to compare with; `None`, or a step without a saved validation, takes the newest.
  """
  steps = validation.steps(folder)
  if 0 not in steps or steps[-1] == 0:
    return None
  step = after if after in steps[1:] else steps[-1]
  found = validation.common([validation.load(folder, each) for each in (0, step)])
  records = _records(folder)
  rows = _criterion_rows(records.get(0, {}), records.get(step, {})) | _measured_rows(*found)
  table = tables.Table(
    f'Before and after {step} steps',
    [{'metric': _LABELS[name], **rows[name]} for name in _LABELS if name in rows],
    _note(found[1]),
  )
  deciding = _deciding(rows)
  return Outcome(table, _answers(folder, step), _verdict(rows, deciding, _num_prompts(found[1], deciding)))


def _records(folder: pathlib.Path) -> dict[int, Mapping[str, Any]]:
  """The validations' records, by step."""
  lines = files.json_lines(folder / 'metrics.jsonl')
  return {line['step']: line for line in lines if any(name.startswith('eval/') for name in line)}


def _criterion_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  a, b = (record.get('eval/criterion') for record in (before, after))
  if a is None or b is None:
    return {}
  return {'criterion': {'before': a, 'after': b, 'change': b - a}}


def _measured_rows(before: Validation, after: Validation) -> dict[str, dict[str, Any]]:
  rows: dict[str, dict[str, Any]] = {}
  if before.sample_prompts is not None and after.sample_prompts is not None:
    of = validation.sample_statistics(before), validation.sample_statistics(after)
    rows |= _rows(*of, len(after.sample_prompts))
  if before.prompts is not None and after.prompts is not None:
    first, last = validation.make_statistics(before), validation.make_statistics(after)
    if _RHO in last:  # At first ρ is 0 but for rounding, which would decide each pair.
      first[_RHO] = lambda weights_P: 0.5
      last.pop(_LOGP)
    if _SCORE in last:  # The policy of a reward model's run stays as it is.
      last.pop(_LOGP)
    rows |= _rows(first, last, len(np.unique(after.prompts)))
  return rows


def _rows(before: Statistics, after: Statistics, num_prompts: int) -> dict[str, dict[str, Any]]:
  """Both with intervals over prompts; the change's is paired, on the same draws of prompts."""
  rows = {}
  for name in _LABELS:
    if num_prompts and name in before and name in after:
      f, g = before[name], after[name]
      change = agreement.bootstrap(lambda w_P, f=f, g=g: g(w_P) - f(w_P), num_prompts, RESAMPLES, SEED)
      if np.isfinite(change.value):  # Undefined where no prompt has two responses of different reward.
        a, b = (agreement.bootstrap(each, num_prompts, RESAMPLES, SEED) for each in (f, g))
        rows[name] = {'before': a, 'after': b, 'change': change}
  return rows


def _deciding(rows: Mapping[str, Any]) -> str:
  """The reward of own samples, or else the order of logged responses, or else the criterion."""
  return next((name for name in _PHRASES if name in rows), 'criterion')


def _num_prompts(found: Validation, metric: str) -> int | None:
  """Prompts of which the metric says something; `None` where that is not known."""
  if metric == 'criterion':
    return None if found.prompts is None else len(np.unique(found.prompts))
  if metric in ('sample_reward', _PAIRS):
    return len(np.unique(found.sample_prompts if metric == 'sample_reward' else found.pair_prompts))
  # Of the order of a prompt's responses: prompts with responses of different rewards.
  return int((agreement.count_pairs(found.rewards, found.rewards, found.prompts).pairs > 0).sum())


def _note(found: Validation) -> str:
  parts = []
  if found.prompts is not None:
    parts.append(f'{len(found.prompts)} held-out responses to {len(np.unique(found.prompts))} prompts')
  if found.sample_prompts is not None:
    parts.append(f'own samples to {len(found.sample_prompts)} prompts')
  return f'{" and ".join(parts)}; 95 % intervals over prompts.' if parts else ''


def _answers(folder: pathlib.Path, step: int) -> list[dict[str, str]]:
  """The answers to the prompts that were answered both before and after."""
  file = folder / 'samples.jsonl'
  lines = list(files.json_lines(file)) if file.exists() else []
  later = {line['prompt']: line['response'] for line in lines if line['step'] == step}
  both = [line for line in lines if line['step'] == 0 and line['prompt'] in later]
  return [
    {'prompt': line['prompt'], 'before': line['response'], 'after': later[line['prompt']]}
    for line in both[:ANSWERS]
  ]


def _verdict(rows: Mapping[str, Mapping[str, Any]], deciding: str, num_prompts: int | None) -> str:
  sentences = [_judged(rows, deciding, num_prompts)]
  if (kl := rows.get('kl')) is not None:
    value = kl['after'].value
    if _stayed(rows):
      sentences.append(
        f'The KL of {_number(value)} nats says that the policy has hardly moved: lower τ, raise the learning '
        'rate, or train longer.'
      )
    elif value > FAR:
      sentences.append(
        f'The KL of {_number(value)} nats says that the policy has left its reference: read its answers.'
      )
  if mass.KEPT in rows and mass.has_left(*(rows[name]['after'].value for name in (mass.KEPT, mass.SIZE))):
    sentences.append(
      f'The policy has {_number(rows[mass.KEPT]["after"].value)} of its probability on answers that its '
      'reference gives, and the rest where no loss looks: read its answers, and try '
      'NextTokenKl(weight=1.0) (--set NEXT_TOKEN_KL=1.0).'
    )
  if num_prompts is not None and FEW_HELD_OUT <= num_prompts < FEW_PROMPTS:
    sentences.append(f'{num_prompts} {_kind(deciding)} are few, so other prompts may differ.')
  return ' '.join(sentences)


def _judged(rows: Mapping[str, Mapping[str, Any]], deciding: str, num_prompts: int | None) -> str:
  if deciding not in rows:
    return 'No verdict: nothing was measured both before and after.'
  change = rows[deciding]['change']
  if num_prompts is not None and num_prompts < FEW_HELD_OUT:
    return f'Undecided: {num_prompts} {_kind(deciding)} are too few{_changed(deciding, change)}.'
  if deciding == 'criterion':
    if change < 0:
      return 'It seems to have worked: the held-out criterion fell. It has no interval here.'
    return 'It did not work: the held-out criterion did not fall.'
  phrase, shown = _PHRASES[deciding], _in_line(change)
  if change.low > 0 and deciding != 'sample_reward' and _stayed(rows):
    return f'Not yet: the {phrase} rose by {shown}, and the policy answers as before.'
  if change.low > 0:
    return f'It worked: the {phrase} rose by {shown}.'
  if change.high < 0:
    return f'It made things worse: the {phrase} changed by {shown}.'
  return f'Undecided: the {phrase} changed by {shown}, and an interval that holds 0 decides nothing.'


def _stayed(rows: Mapping[str, Mapping[str, Any]]) -> bool:
  return 'kl' in rows and abs(rows['kl']['after'].value) < NEAR


def _kind(deciding: str) -> str:
  """What the number of prompts counts."""
  by_order = deciding in (_RHO, _LOGP, _SCORE)
  return 'held-out prompts with answers of different rewards' if by_order else 'held-out prompts'


def _changed(deciding: str, change: Any) -> str:
  return '' if deciding == 'criterion' else f' (the {_PHRASES[deciding]} changed by {_in_line(change)})'


def _in_line(change: Estimate) -> str:
  return ' '.join(_entry(change).split('\n'))


def _entry(value: Any) -> str:
  """A table's entry, an interval in a line of its own: three of them fit a terminal's width."""
  if isinstance(value, Estimate):
    # Alike for every prompt, as 0 of a policy that has not moved, it has no interval to show.
    interval = f'[{_number(value.low)}, {_number(value.high)}]' if value.low < value.high else ''
    return f'{_number(value.value)}\n{interval}'.strip()
  return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
  shown = f'{value:.4f}' if abs(value) < 0.99995 else f'{value:#.4g}'.rstrip('.')
  return shown.replace('-', '−')


def _cut(text: str) -> str:
  return text if len(text) <= _LONGEST else f'{text[:_LONGEST]}…'


__all__ = ['ANSWERS', 'Outcome', 'read']
