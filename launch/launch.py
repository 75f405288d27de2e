"""Runs dro_jax somewhere: `python launch/launch.py --job=launch/jobs/NAME.py --job.FIELD=VALUE -- ARGUMENTS`.

The launcher passes everything after `--` to dro_jax unchanged. A job spec is an ml_collections config; its
`backend` names the function that runs it (MODULE:FUNCTION, called with the job, the arguments and `dry_run`).
With `--sweep=launch/sweeps/NAME.py` the launcher runs the job once for each cell of a sweep.

Exit codes are those of dro_jax: 0 done, 1 failed, 2 bad usage or bad data, 75 stopped after saving.
"""

import importlib
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

# Python looks in the folder of a script first, where it would take this file for the package `launch`.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from dro_jax.errors import UsageError, did_you_mean
from launch import signals
from launch import sweep as cells
from launch.say import say

ROOT = pathlib.Path(__file__).resolve().parents[1]
JOBS = ROOT / 'launch' / 'jobs'
SWEEPS = ROOT / 'launch' / 'sweeps'
BAD_USAGE = 2
# The errors that ml_collections, or a wrong spec, raises.
_NOT_A_JOB = (
  *(flags.Error, AttributeError, KeyError, TypeError, ValueError),
  *(SyntaxError, ImportError, OSError),
)


def main(argv: Sequence[str]) -> int:
  """Runs one command line (without the program's name) and returns its exit code."""
  try:
    launcher, command = split(argv)
    if {'--help', '-h'} & set(launcher) or not argv:
      say(_help(), stream=sys.stdout)
      return 0
    job, sweep, dry_run = parse(launcher)
    if not command:
      raise UsageError('no dro_jax command: pass one and its flags after --, for example: -- train --help')
    backend = _backend(job)
    if sweep is not None:
      refuse = getattr(sys.modules[backend.__module__], 'refuse', None)
      return cells.run(job, sweep, _without_sweep(launcher), command, refuse=refuse, dry_run=dry_run)
    return backend(job, command, dry_run=dry_run)
  except UsageError as error:
    say(f'launch: {error}')
    return BAD_USAGE
  except signals.Interrupted as interrupted:
    say(f'launch: {interrupted}')
    return interrupted.exit_code


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """The launcher's arguments, and those of dro_jax, which follow the first `--`."""
  argv = list(argv)
  place = argv.index('--') if '--' in argv else len(argv)
  return argv[:place], argv[place + 1 :]


def parse(launcher: Sequence[str]) -> tuple[config_dict.ConfigDict, config_dict.ConfigDict | None, bool]:
  """The job with its overrides; the sweep with its own, if there is one; whether to only print commands.

  Raises:
    UsageError: there is no such job or field, or a value has the wrong type.
  """
  argv = ['launch', *_named(launcher)]
  values = flags.FlagValues()
  for name, about in (('job', 'the job spec'), ('sweep', "the sweep's spec")):
    config_flags.DEFINE_config_file(name, None, about, flag_values=values, sys_argv=argv)
  flags.DEFINE_boolean('dry_run', False, 'print every command, run none', flag_values=values)
  try:
    _, *rest = values(argv)
  except _NOT_A_JOB as error:
    raise UsageError(_in_words(error, launcher)) from error
  if rest:
    raise UsageError(f'{rest[0]!r} is not a flag of the launcher: pass flags of dro_jax after --')
  if values.job is None:
    raise UsageError(f'no job: pass --job=launch/jobs/NAME.py, one of {_listed(JOBS)}')
  return values.job, values.sweep, values.dry_run


def _named(launcher: Sequence[str]) -> list[str]:
  """Joins `--job NAME` and `--sweep NAME`, and replaces the name of a packaged spec by its file."""
  joined = list(launcher)
  for flag in ('--job', '--sweep'):
    if flag in joined[:-1]:
      place = joined.index(flag)
      joined[place : place + 2] = [f'{flag}={joined[place + 1]}']
  return [_file_of(argument) for argument in joined]


def _file_of(argument: str) -> str:
  flag, equals, name = argument.partition('=')
  folder = {'--job': JOBS, '--sweep': SWEEPS}.get(flag)
  if folder is None or not equals:
    return argument
  for path in (pathlib.Path(name).expanduser(), ROOT / name, folder / f'{name}.py'):
    if path.is_file():
      return f'{flag}={path.resolve()}'
  close = did_you_mean(pathlib.Path(name).stem, [path.stem for path in _specs(folder)])
  raise UsageError(f'there is no {flag[2:]} spec {name!r}{close}: pass a file, or one of {_listed(folder)}')


def _specs(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in folder.glob('*.py') if path.stem != '__init__')


def _listed(folder: pathlib.Path) -> str:
  return ', '.join(str(path.relative_to(ROOT)) for path in _specs(folder))


def _without_sweep(launcher: Sequence[str]) -> list[str]:
  """The launcher's arguments for one cell of a sweep."""
  return [argument for argument in _named(launcher) if not re.match(r'--sweep[.=]|--dry_run', argument)]


def _in_words(error: Exception, launcher: Sequence[str]) -> str:
  """The error of ml_collections, which has many lines or only a type, as one sentence."""
  job = _without_overrides(launcher)
  for argument in launcher if job is not None else ():
    name, _, value = argument.partition('=')
    field = name.removeprefix('--job.').removeprefix('--nojob.')
    if field == name:
      continue
    if field not in job:
      close = did_you_mean(field, job)
      return f'{argument}: this job has no field {field!r}{close}. It has {", ".join(job)}'
    if f'job.{field}' in str(error):
      kind = type(job[field]).__name__
      return f'{argument}: {field} has the type {kind} (its default is {job[field]!r}), {value!r} has another'
  place = '' if isinstance(error, flags.Error) else f'{_blamed(launcher)}: '
  first, *others = [line.strip() for line in str(error).splitlines() if line.strip()]
  return place + ' '.join([first, *others[-1:]])


def _blamed(launcher: Sequence[str]) -> str:
  """The argument of a sweep without which everything else can be read, or else the job's argument."""
  for argument in sorted(launcher):  # An override of a sweep comes before the name of the sweep.
    if argument.startswith('--sweep'):
      rest = [
        a for a in launcher if a != argument and not (argument.startswith('--sweep=') and '--sweep.' in a)
      ]
      try:
        parse(rest)
        return argument if '--sweep=' in argument else f'{argument}: the sweep has no such setting'
      except UsageError:
        continue
  return next((argument for argument in launcher if argument.startswith('--job=')), '--job')


def _without_overrides(launcher: Sequence[str]) -> config_dict.ConfigDict | None:
  """The job without overrides; `None` where that cannot be read either."""
  plain = [argument for argument in launcher if not argument.startswith(('--job.', '--nojob.'))]
  try:
    return parse(plain)[0] if plain != list(launcher) else None
  except UsageError:
    return None


def _backend(job: config_dict.ConfigDict) -> Callable[..., int]:
  name, _, function = job.backend.partition(':')
  try:
    module = importlib.import_module(name)
    if missing := [field for field in getattr(module, 'spec', dict)() if field not in job]:
      raise AttributeError(f'the job has no field {missing[0]}, which this backend reads')
    return getattr(module, function)
  except (ImportError, AttributeError, ValueError) as error:
    raise UsageError(
      f'--job.backend={job.backend}: {error}. Pass MODULE:FUNCTION, such as launch.backends.local:run'
    ) from error


def _help() -> str:
  return f"""{__doc__}
  --job=FILE          the job spec, for example {_listed(JOBS)}
  --job.FIELD=VALUE   set a field of the job; the function `spec` of its backend explains the fields
  --sweep=FILE        run one job for each cell, in a folder of its own in --model_dir: {_listed(SWEEPS)}
  --dry_run           print every command and run none"""


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
