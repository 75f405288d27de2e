"""Runs dro_jax somewhere: `python launch/launch.py --job=launch/jobs/NAME.py --job.FIELD=VALUE -- ARGUMENTS`.

What follows `--` is dro_jax's, verbatim. A job spec is an ml_collections config whose `backend` names the
function that runs it (MODULE:FUNCTION, called with the job, the arguments and `dry_run`).

Exit codes are dro_jax's: 0 done, 1 failed, 2 bad usage or bad data, 75 stopped after saving.
"""

import difflib
import importlib
import pathlib
import sys
from collections.abc import Callable, Sequence

# Run as a file, Python looks in this folder first, where `launch` would be this file.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from dro_jax.errors import UsageError
from launch.say import say

ROOT = pathlib.Path(__file__).resolve().parents[1]
JOBS = ROOT / 'launch' / 'jobs'
BAD_USAGE = 2
# What ml_collections, and a spec that is wrong, end with.
_NOT_A_JOB = (
  *(flags.Error, AttributeError, KeyError, TypeError, ValueError),
  *(SyntaxError, ImportError, OSError),
)


def main(argv: Sequence[str]) -> int:
  """Runs one command line (without the program's name) and returns its exit code."""
  try:
    ours, theirs = split(argv)
    if {'--help', '-h'} & set(ours) or not argv:
      say(_help(), stream=sys.stdout)
      return 0
    job, dry_run = parse(ours)
    if not theirs:
      raise UsageError('what shall dro_jax do? Put its command and flags after --, as in: -- train --help')
    return _backend(job)(job, theirs, dry_run=dry_run)
  except UsageError as error:
    say(f'launch: {error}')
    return BAD_USAGE


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Our arguments, and dro_jax's, which follow the first `--`."""
  argv = list(argv)
  place = argv.index('--') if '--' in argv else len(argv)
  return argv[:place], argv[place + 1 :]


def parse(ours: Sequence[str]) -> tuple[config_dict.ConfigDict, bool]:
  """The job with its overrides, and whether to print commands only.

  Raises:
    UsageError: no such job or field, or a value of another type.
  """
  argv = ['launch', *_named(ours)]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('job', None, 'the job spec', flag_values=values, sys_argv=argv)
  flags.DEFINE_boolean('dry_run', False, 'print every command, run none', flag_values=values)
  try:
    _, *rest = values(argv)
  except _NOT_A_JOB as error:
    raise UsageError(_in_words(error, ours)) from error
  if rest:
    raise UsageError(f"{rest[0]!r} is no flag of ours: dro_jax's arguments follow --")
  if values.job is None:
    raise UsageError(f'which job? Pass --job=launch/jobs/NAME.py, of {_job_names()}')
  return values.job, values.dry_run


def _named(ours: Sequence[str]) -> list[str]:
  """`--job NAME` as one argument, with the file of a job of ours that is only named."""
  joined = list(ours)
  if '--job' in joined[:-1]:
    place = joined.index('--job')
    joined[place : place + 2] = [f'--job={joined[place + 1]}']
  return [_file_of(argument) for argument in joined]


def _file_of(argument: str) -> str:
  flag, equals, name = argument.partition('=')
  if flag != '--job' or not equals:
    return argument
  for path in (pathlib.Path(name), ROOT / name, JOBS / f'{name}.py'):
    if path.is_file():
      return f'--job={path.resolve()}'
  raise UsageError(f'no job spec {name!r}{_did_you_mean(pathlib.Path(name).stem, _names())}: {_job_names()}')


def _names() -> list[str]:
  return sorted(path.stem for path in JOBS.glob('*.py') if path.stem != '__init__')


def _job_names() -> str:
  return ', '.join(f'launch/jobs/{name}.py' for name in _names())


def _in_words(error: Exception, ours: Sequence[str]) -> str:
  """What ml_collections says in many lines, or as a wrong type, in one."""
  job = _without_overrides(ours)
  for argument in ours if job is not None else ():
    name, _, value = argument.partition('=')
    field = name.removeprefix('--job.').removeprefix('--nojob.')
    if field == name:
      continue
    if field not in job:
      return (
        f'{argument}: this job has no field {field!r}{_did_you_mean(field, job)}. It has {", ".join(job)}'
      )
    if f'job.{field}' in str(error):
      kind = type(job[field]).__name__
      return f'{argument}: {field} is of type {kind} ({job[field]!r} unless given), and {value!r} is not'
  job_file = next((argument for argument in ours if argument.startswith('--job=')), '--job')
  place = '' if isinstance(error, flags.Error) else f'{job_file}: '
  first, *others = [line.strip() for line in str(error).splitlines() if line.strip()]
  return place + ' '.join([first, *others[-1:]])


def _without_overrides(ours: Sequence[str]) -> config_dict.ConfigDict | None:
  """The job as its file has it, if that is not what cannot be read."""
  plain = [argument for argument in ours if not argument.startswith(('--job.', '--nojob.'))]
  try:
    return parse(plain)[0] if plain != list(ours) else None
  except UsageError:
    return None


def _did_you_mean(word: str, candidates: Sequence[str]) -> str:
  close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
  return f' (did you mean {close[0]}?)' if close else ''


def _backend(job: config_dict.ConfigDict) -> Callable[..., int]:
  module, _, name = job.backend.partition(':')
  try:
    return getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise UsageError(
      f'--job.backend={job.backend}: {error}. Pass MODULE:FUNCTION, such as launch.local:run'
    ) from error


def _help() -> str:
  return f"""{__doc__}
  --job=FILE          the job spec: {_job_names()}
  --job.FIELD=VALUE   another value for one of its fields, which `spec` of its backend explains
  --dry_run           print every command, run none"""


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
