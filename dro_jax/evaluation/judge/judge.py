"""The `judge` command: answers of two sides or more, side by side, and who wins how often."""

import functools
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from dro_jax import files, limits
from dro_jax.checkpoints import folders
from dro_jax.data.records import inheritance
from dro_jax.errors import UsageError
from dro_jax.evaluation.judge import answers as answering
from dro_jax.evaluation.judge import choosing, comparing, judges, report
from dro_jax.evaluation.judge import prompts as asking
from dro_jax.evaluation.judge import sides as who
from dro_jax.evaluation.judge.endpoint import Endpoint
from dro_jax.evaluation.judge.prompts import Prompt
from dro_jax.evaluation.judge.sides import Side
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.printing.result import Report
from dro_jax.run.folder.lock import locked
from dro_jax.run.sampling import rewards
from dro_jax.run.sampling.decoding import Decoding
from dro_jax.run.sampling.rewards import Reward


def judge(
  sides: str | Sequence[str],
  output: str,
  *,
  prompts: str | Sequence[str] | None = None,
  columns: str | Mapping[str, str] | None = None,
  data_dir: str | None = None,
  num_prompts: int | None = None,
  endpoint: Endpoint = Endpoint(),
  command: str | None = None,
  function: str | Callable[..., Any] | None = None,
  reward: Reward | str | None = None,
  judge_prompt: str = 'helpfulness',
  decoding: Decoding = Decoding(),
  mesh: MeshSpec = MeshSpec(),
  against: str = 'all',
  choose: float | int = 0,
  folds: int = 5,
  resamples: int = 1000,
  seed: int = 0,
) -> Report:
  """Compares the answers of two sides or more, each pair in both orders.

  A second call draws no answer and asks no question again that a call before it has; it goes on where one was
  killed. The judge is one of `endpoint`, `command`, `function` and `reward`.

  Args:
    sides: two or more, or their names separated by commas: a run's folder, a checkpoint, a file of answers,
      `reference` (of the first run) or `reference:RUN`; each may be NAME=SIDE.
    output: the folder of answers, requests, verdicts and the report.
    prompts: files or names of data sets; `None` takes those that the first run kept for tests or
      else held out, or, without a run, those that the first file answers.
    columns: the files' names of fields: `prompt=question,response=answer`.
    data_dir: the folder that holds the public data sets' folders; `None` downloads them.
    num_prompts: prompts at most, those with the least hashes.
    endpoint: a model behind an endpoint.
    command: a program that reads comparisons and writes verdicts, a line each, within
      `endpoint.timeout`.
    function: of prompt, first and second answer, or FILE.py:NAME; returns 'A', 'B', 'tie', or the probability
      that the first wins.
    reward: a reward function, or its name; the higher reward wins.
    judge_prompt: an endpoint's instructions: helpfulness, safety, summary, or a file.
    decoding: how policies answer.
    mesh: devices' arrangement, of policies and of a reward model.
    against: `all` sides meet all others, or the `first` only.
    choose: the share of prompts that choose each run's best checkpoint, in [0, 1); 0 takes the
      run's own best.
    folds: parts of the prompts over which a standard deviation is reported.
    resamples: draws of prompts behind each 95 % interval.
    seed: of those draws.

  Raises:
    UsageError: a side, the prompts or the judge cannot be what was passed.
    Failed: the judge failed, or gave no verdict at all; what it said is saved.
    Stopped: SIGTERM came, likewise.
    Interrupted: Ctrl-C came, likewise.

  Example:
    >>> short = dro.Decoding(max_length=4)
    >>> found = dro.judge(['runs/dro_v', 'runs/other'], 'judged', reward='length_reward', decoding=short)
    >>> found.pairs['dro_v against other']['win_rate'].value
    0.5
  """
  limits.seed(seed)
  limits.within('judge', 0, 1, 'it is a share of the prompts, and the others are reported on', choose=choose)
  limits.above_zero('judge', 'there would be no interval', resamples=resamples)
  limits.above_zero('judge', 'the prompts are divided into so many parts', folds=folds)
  limits.above_zero('judge', 'there would be nothing to judge', num_prompts=num_prompts)
  answering.check(decoding)
  if jax.process_count() > 1:
    raise UsageError('judge runs in one process: start it on one host.')
  found = who.parse(sides)
  comparing.meetings(len(found), against)
  who.check(found)
  folder, grid = files.output_folder(output), functools.cache(mesh.over)
  with locked(folder, '--output'), files.disk_of(folder):
    by = judges.make_judge(
      folder, endpoint=endpoint, command=command, function=function, reward=reward, template=judge_prompt,
      mesh=grid,
    )  # fmt: skip
    asked = asking.fewest(_prompts(folder, found, prompts, columns, data_dir), num_prompts)
    draw = functools.partial(answering.of_side, folder=folder, mesh=grid, decoding=decoding, columns=columns)
    draws = report.Draws(resamples, seed, folds)
    more = []
    if choose:
      found, asked, table = _choose(by, found, asked, choose, draw, draws)
      more.append(table)
    return _compared(folder, by, found, asked, draw, draws, against, more)


def _prompts(
  folder: pathlib.Path,
  sides: Sequence[Side],
  prompts: str | Sequence[str] | None,
  columns: str | Mapping[str, str] | None,
  data_dir: str | None,
) -> list[Prompt]:
  """Those of a file or data set, those that a run held out, or those of a file of answers."""
  if prompts is not None:
    # The names may be those of the files of answers only.
    own = inheritance.options({'columns': columns}, prompts, None)['columns'] if columns else None
    return asking.read(prompts, own, data_dir=data_dir)
  if policies := [side for side in sides if side.kind != who.FILE]:
    first = next((side for side in policies if asking.is_run(side.path)), policies[0])
    return asking.held_out(first.path, folder / 'split', data_dir)
  return asking.read(sides[0].path, columns)


Draw = Callable[[Side, Sequence[Prompt]], Mapping[str, Sequence[str]]]


def _answered(sides: Sequence[Side], prompts: Sequence[Prompt], draw: Draw) -> tuple[list[Any], list[Prompt]]:
  """Every side's answers, and the prompts that all of them answer.

  Raises:
    UsageError: there is no such prompt.
  """
  answers = [draw(side, prompts) for side in sides]
  common = [prompt for prompt in prompts if all(prompt.text in each for each in answers)]
  if not common:
    counts = ', '.join(f'{side.name} {len(each)}' for side, each in zip(sides, answers))
    raise UsageError(
      f'no prompt is answered by all sides (of {len(prompts)} prompts, of which the first is '
      f'{prompts[0].text[:80]!r}, they answer: {counts}). Pass files of answers to the same prompts, or the '
      'prompts that they answer, as --triplets=FILE.'
    )
  if len(common) < len(prompts):
    logging.getLogger(__name__).warning(
      '%d of %d prompts are left out: not all sides answer them', len(prompts) - len(common), len(prompts)
    )
  return answers, common


def _choose(
  by: judges.Judge,
  sides: Sequence[Side],
  prompts: Sequence[Prompt],
  fraction: float | int,
  draw: Draw,
  draws: report.Draws,
) -> tuple[list[Side], list[Prompt], Any]:
  """The sides with each run's best checkpoint, the prompts that are left, and a table of the choice."""
  runs = choosing.candidates(sides)
  choosers, others = asking.apart(prompts, fraction)
  if not choosers or not others:
    raise UsageError(
      f'choose={fraction} of {len(prompts)} prompts leaves none on one side: pass more prompts, or another '
      'share (--set CHOOSE=0.5).'
    )

  def rates(checkpoints: Sequence[Side]) -> list[Any]:
    met = [sides[0], *checkpoints]
    answers, common = _answered(met, choosers, draw)
    pairs, _, judged = comparing.compare(by, common, answers, comparing.meetings(len(met), 'first'))
    judges.log_note(judged.note)
    judges.refuse_no_verdict(by, judged)
    return [pair.rates(len(common)) for pair in pairs]

  chosen, table = choosing.choose(runs, rates, resamples=draws.resamples, seed=draws.seed)
  return [chosen.get(side, side) for side in sides], others, table


def _compared(
  folder: pathlib.Path,
  by: judges.Judge,
  sides: Sequence[Side],
  prompts: Sequence[Prompt],
  draw: Draw,
  draws: report.Draws,
  against: str,
  more: Sequence[Any],
) -> Report:
  """Compares, reports, and saves both."""
  warnings = _warnings(by, sides)
  answers, common = _answered(sides, prompts, draw)
  met = comparing.meetings(len(sides), against)
  if more_answers := comparing.left_over(common, answers, met):
    warnings.append(
      f'{more_answers} answers meet none: of several answers to a prompt the first meets the first, the '
      'second the second, and one side has more of them.'
    )
    logging.getLogger(__name__).warning('%s', warnings[-1])
  pairs, records, judged = comparing.compare(by, common, answers, met)
  judges.log_note(judged.note)
  names = [side.name for side in sides]
  about = {
    'judge': by.name, 'sides': {side.name: f'{side.kind} {side.path}' for side in sides},
    'spent': dict(judged.spent), 'note': judged.note, 'warnings': warnings,
    'left_out': len(prompts) - len(common),
  }  # fmt: skip
  notes = [
    f'Judge: {by.name}.', *warnings, *([judged.note] if judged.note else []), *_spending(judged.spent)
  ]  # fmt: skip
  found = report.result(
    names, pairs, len(common), draws, sees_order=by.sees_order, about=about, notes=notes, more=more
  )
  named = [record | {'sides': [names[i] for i in record['sides']]} for record in records]
  report.save(folder, found, named)
  judges.refuse_no_verdict(by, judged)
  return found


def _warnings(by: judges.Judge, sides: Sequence[Side]) -> list[str]:
  """A sentence on each policy that was trained on the scores of its judge; the log has it too."""
  if by.record is None:
    return []
  policies = [side for side in sides if side.kind == who.POLICY]
  reasons = [rewards.why_not_judge(by.record, folders.load_metadata(side.path)) for side in policies]
  found = [f'{side.name}: {reason}' for side, reason in zip(policies, reasons) if reason]
  for warning in found:
    logging.getLogger(__name__).warning('%s', warning)
  return found


def _spending(spent: Mapping[str, Any]) -> list[str]:
  """A sentence on what the folder's requests have spent."""
  if not spent:
    return []
  cost = '' if spent['cost'] is None else f', which cost {spent["cost"]:.4g}'
  unknown = f' and at most {spent["unknown"]} that were not counted' if spent['unknown'] else ''
  return [
    f'So far {spent["requests"]} requests, {spent["input_tokens"]} tokens in and {spent["output_tokens"]} out'
    f'{unknown}{cost}.'
  ]


__all__ = ['judge']
