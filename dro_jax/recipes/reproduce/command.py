"""The `reproduce` command: a paper's tables and figures, from data to judging."""

import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dro_jax import files, limits
from dro_jax.errors import UsageError, did_you_mean
from dro_jax.printing import tables
from dro_jax.printing.result import Report, Shown
from dro_jax.recipes.reproduce import (
  a_lol_hh,
  a_lol_tasks,
  copg,
  dro,
  dro_ablations,
  laptop,
  notes,
  planning,
  running,
  trust_region,
)
from dro_jax.recipes.reproduce.stages import Reproduction, find
from dro_jax.run.folder.lock import locked

# By name: from the scale and the judge's settings to the reproduction.
REPRODUCTIONS: Mapping[str, Callable[[str, Sequence[str]], Reproduction]] = {
  'dro': dro.reproduction,
  'dro_ablations': dro_ablations.reproduction,
  'copg': copg.reproduction,
  'trust_region': trust_region.reproduction,
  'a_lol_hh': a_lol_hh.reproduction,
  'a_lol_tasks': a_lol_tasks.reproduction,
}
UNJUDGED = ('copg', 'a_lol_tasks')  # Their papers measure rewards and compare nothing side by side.
# Settings of `judge` that a user chooses; see gin_configs/runs/judge.gin.
JUDGES = ('JUDGE_MODEL', 'COMMAND', 'FUNCTION', 'REWARD')
ABOUT_JUDGES = ('JUDGE_PROMPT', 'BASE_URL', 'JUDGE_TEMPERATURE', 'VERDICT_LENGTH', 'SOFT', *notes.FREE)
SCALES = ('paper', 'small', 'smoke')
REPORTS = 'reports'


def reproduce(
  name: str,
  *,
  scale: str = 'small',
  model_dir: str | None = None,
  jobs: int = 1,
  launch: str | None = None,
  judge: str | None = None,
  dry_run: bool = False,
  preflight: bool = True,
  redo: bool = False,
) -> Shown:
  """Runs the stages of a reproduction that are not done, and makes its tables and figures.

  Each stage is an ordinary command in a process of its own, with a folder in `model_dir` that holds its
  files, its note `stage.json`, its log and its result. The same command goes on where it was interrupted.
  Reproductions of one scale share the stages that they have in common. The tables and figures are in
  reports/NAME.

  Args:
    name: dro, dro_ablations, copg, trust_region, a_lol_hh or a_lol_tasks.
    scale: paper (its own models, data and settings), small (an hour or two on two cores) or smoke (the same
      stages, in the fewest steps).
    model_dir: the folder of all stages; `None` is reproduced/SCALE.
    jobs: stages at once.
    launch: the launcher's job for stages that train, or SIZE=JOB,SIZE=JOB; `None` trains here.
    judge: settings of `judge`, which choose the judge, as 'JUDGE_MODEL=gpt-4.1-mini'; `None` is the world's
      own grade, and refused at the paper's scale.
    dry_run: runs nothing, and tells all commands, which of them are done, and preflight's verdict and hours.
    preflight: whether it tells those, which compiles for minutes where they were not asked before.
    redo: removes and runs anew the stages whose commands or inputs changed.

  Raises:
    UsageError: there is no such reproduction or scale, or a stage was made otherwise.
    Failed: a stage failed.
    Stopped: SIGTERM came; the same command goes on.
    Interrupted: Ctrl-C came, likewise.
  """
  make = find(name, REPRODUCTIONS, 'reproduction')
  find(scale, dict.fromkeys(SCALES), 'scale')
  limits.above_zero('reproduce', 'no stage would run', jobs=jobs)
  made = make(scale, _judge(name, scale, judge, dry_run))
  if model_dir and files.is_remote(model_dir):
    raise UsageError(
      f'--model_dir={model_dir} is an address, and stages read and write ordinary files: pass a folder of '
      'this machine, or of a mount that it shares with the machines that train.'
    )
  root = files.output_folder(model_dir or f'reproduced/{scale}', '--model_dir').absolute()
  program = running.here(root) if launch is None else running.by_launcher(root, launch, made.stages)
  if dry_run:
    return planning.plan(made, root, program, preflight=preflight)
  with locked(root), files.disk_of(root):
    running.run(root, made.stages, program, jobs, redo=redo)
    return _report(made, root)


def _judge(name: str, scale: str, judge: str | None, dry_run: bool) -> tuple[str, ...]:
  """The judge's settings, one by one."""
  if name in UNJUDGED:
    if judge:
      raise UsageError(
        f'JUDGE={judge}: {name} has no judge, so that this would change nothing: leave it out.'
      )
    return ()
  if judge:
    return _judge_settings(judge)
  if scale != 'paper':
    return laptop.JUDGE
  if dry_run:
    return ('JUDGE_MODEL=MODEL',)
  raise UsageError(
    'there is no judge: those of the papers can be had no longer, or cost. Pass the settings of yours, as '
    "--set JUDGE='JUDGE_MODEL=gpt-4.1-mini REQUEST_BUDGET=100000' (docs/guides/judging.md)."
  )


def _judge_settings(judge: str) -> tuple[str, ...]:
  """The settings of a text, checked before days of training."""
  known, example = (*JUDGES, *ABOUT_JUDGES), "--set JUDGE='JUDGE_MODEL=gpt-4.1-mini REQUEST_BUDGET=100000'"
  try:
    settings = tuple(shlex.split(judge))
  except ValueError as error:
    raise UsageError(f'JUDGE={judge}: {error}: pass settings as {example}.') from None
  names = [setting.partition('=')[0] for setting in settings]
  for name, setting in zip(names, settings):
    if '=' not in setting:
      raise UsageError(f'JUDGE={judge}: {setting!r} is not NAME=VALUE: pass settings as {example}.')
    if name not in known:
      raise UsageError(
        f'JUDGE={judge}: {name} is not a setting that chooses a judge{did_you_mean(name, known)}: choose '
        f'from {", ".join(known)}. The reproduction sets the others of `dro_jax judge`.'
      )
  if len([name for name in names if name in JUDGES]) != 1:
    raise UsageError(f'JUDGE={judge}: pass exactly one of {", ".join(JUDGES)}, as {example}.')
  return settings


def _report(made: Reproduction, root: pathlib.Path) -> Report:
  """The tables and figures of finished stages, saved and shown."""
  from matplotlib.figure import Figure

  results, folder = made.results(root), root / REPORTS / made.name
  content: dict[str, Any] = {
    'name': made.name, 'folder': str(folder), 'notes': list(results.notes),
    'tables': list(map(tables.for_json, results.tables)),
    'figures': [figure.file for figure in results.figures],
  }  # fmt: skip
  report = Report(content, results.tables)
  folder.mkdir(parents=True, exist_ok=True)
  for file, draw in results.figures:
    figure = Figure(layout='constrained')
    draw(figure)
    with files.replacing(folder / file) as temporary:
      figure.savefig(temporary, dpi=120, format='png')
  pictures = ''.join(f'\n![{file}]({file})\n' for file, _ in results.figures)
  report.save(folder, 'report', made.title, pictures + ''.join(f'\n{note}\n' for note in results.notes))
  return report


__all__ = ['reproduce']
