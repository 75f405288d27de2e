"""Checks before machines are rented: the run fits its slice, and its files are where the run will be."""

import ast
import functools
import glob
import hashlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import config_dict

from dro_jax import files
from dro_jax.configs import files as config_files
from dro_jax.configs.text import Binding, read, split
from dro_jax.errors import UsageError
from launch import arguments as words
from launch import slices
from launch.commands import Commands
from launch.say import say

ROOT = pathlib.Path(__file__).resolve().parent.parent
_GIN_CONFIGS = ROOT / 'gin_configs'
# Flags that name files which a run reads.
_DATA = ('triplets', 'eval_triplets')
_FOLDERS = ('init_from', 'columns_from', 'replay', 'reference_store', 'data_dir')
_OTHERS = ('gin_file', 'vocabulary', 'reward')
# Those that are flags of dro_jax; the others are settings.
_PLAIN = ('triplets', 'eval_triplets', 'init_from', 'columns_from', 'replay', 'gin_file')
# Parameters whose name differs from that of their macro.
_PARAMETERS = {'reference_store': 'store'}
_NO_PATHS = ('None', 'bytes')
# Commands that need data and a folder.
_RUNS = ('train', 'fit_value', 'cache_reference', 'a_lol')
_FILES = ('.jsonl', '.json', '.csv', '.tsv', '.jsonl.gz', '.json.gz', '.csv.gz', '.tsv.gz', '.parquet')
_GIB = 2**30
_SKIP = '--job.preflight=False skips this check'
_FITTING = {
  'fits': True,
  'memory': {'total': 0, 'available': 0},
  'roofline_seconds': 0,
  'chip_hours': 0,
  'steps': 0,
}


def fields(job: config_dict.ConfigDict) -> None:
  """Adds the fields of a job on TPUs that `preflight` reads."""
  job.preflight = True  # check that the run fits, and print what it takes, before anything is rented
  job.preflight_flags = ()  # more flags of dro_jax for this check, such as --gin_file=models/t5_1_1_xl.gin


def refuse_absent(arguments: Sequence[str], shared_dir: str) -> None:
  """Refuses files that are on this machine and not on those of the run, which starts in the checkout.

  Args:
    arguments: the arguments of dro_jax.
    shared_dir: the folder that the machines of the run share, '' for none.

  Raises:
    UsageError: a file is not there; the message names it and where to put it.
  """
  where = f'in {shared_dir}' if shared_dir else 'in a folder that they share (--job.shared_dir)'
  for flag in (*_DATA, *_FOLDERS, *_OTHERS):
    for path, said in _said_paths(arguments, flag):
      if '://' in path or words.is_in(path, shared_dir) or _is_tracked(path):
        continue
      remedy = f'put it {where}, and pass its path there ({_way(flag)})'
      if pathlib.Path(path).expanduser().exists():
        raise UsageError(f'{said} is on this machine, and not on those of the run: {remedy}')
      if not path.startswith('/') and _is_a_place(arguments[0], flag, path):
        raise UsageError(f'{said} is neither here nor, as a tracked file, in the checkout: {remedy}')


def contents(arguments: Sequence[str]) -> dict[str, str]:
  """A hash of each file of this machine that the arguments of a run name, by its path.

  For a folder these are the files that describe its contents. Files of other machines are left out.
  """
  found = {}
  for flag in (*_DATA, *_FOLDERS, *_OTHERS):
    for path, _ in _said_paths(arguments, flag):
      for file in [] if '://' in path else _files_of(flag, pathlib.Path(path.partition('#')[0]).expanduser()):
        found[str(file)] = _code_of(file) if file.suffix == '.py' else _hash_of(file, file.stat().st_mtime_ns)
  return found


def _files_of(flag: str, path: pathlib.Path) -> list[pathlib.Path]:
  """The files that stand for a path; one file describes a checkpoint or a column store."""
  if path.is_dir():
    names = ('metadata/metadata', 'checkpoints/*/metadata/metadata', 'columns.json', 'columns/columns.json')
    return [file for name in names for file in sorted(path.glob(name))]
  if flag in _DATA:
    return sorted(file for file in map(pathlib.Path, glob.glob(str(path))) if file.is_file())
  return [path] if path.is_file() else []


def _code_of(file: pathlib.Path) -> str:
  return files.code_digest(file)


@functools.lru_cache(maxsize=1024)
def _hash_of(file: pathlib.Path, changed: int) -> str:
  del changed  # A file that changed is hashed again.
  with file.open('rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()  # As notes of earlier versions have it.


def refuse_missing(arguments: Sequence[str]) -> None:
  """Refuses data that does not exist, for a run on machines that share the disk of this one.

  It does not check checkpoints and stores: a job that is queued before this one may make them.

  Raises:
    UsageError: a file does not exist; the message names it.
  """
  for flag in (*_DATA, 'data_dir', 'vocabulary'):
    for path, said in _said_paths(arguments, flag):
      is_place = '://' not in path and _is_a_place(arguments[0], flag, path)
      if is_place and not pathlib.Path(path).expanduser().exists():
        raise UsageError(f'{said}: no such file; the run would fail only after its time in the queue')


def _is_a_place(command: str, flag: str, path: str) -> bool:
  """Whether a name means a file or a folder, rather than a data set, a model of a hub or a packaged file."""
  if flag == 'gin_file' or (flag == 'init_from' and command == 'import_checkpoint'):
    return False
  return flag not in _DATA or path.endswith(_FILES)


def _way(flag: str) -> str:
  """The way to set a value on the command line."""
  return f'--{flag}=...' if flag in _PLAIN else f'--set {flag.upper()}=...'


def refuse_unbound(arguments: Sequence[str]) -> None:
  """Refuses a run without a folder or data: it would end as soon as its machines start it.

  Raises:
    UsageError: one has no value; the message names it.
  """
  for flag in ('model_dir', 'triplets') if arguments[0] in _RUNS else ():
    if not (any(words.values(arguments, flag)) or _may_bind(arguments, flag.upper())):
      raise UsageError(f'{arguments[0]} needs {flag.upper()}, which has no value: pass --{flag}')


def _may_bind(arguments: Sequence[str], macro: str) -> bool:
  """Whether gin may bind the parameter of a macro; the launcher knows only the packaged gin files."""
  # A binding of a parameter itself, not of its macro.
  parameter = r'--?gin(?:\.|_binding=)(?!\s*[A-Z0-9_]+\s*=)'
  if any(re.match(parameter, argument) for argument in words.joined(arguments)):
    return True
  for name in words.values(arguments, 'gin_file'):
    try:
      path = config_files.find(name, _GIN_CONFIGS).resolve()
    except UsageError:
      return True
    own = not path.is_relative_to(_GIN_CONFIGS)
    if own or any(binding.name == macro for binding in config_files.read_file(path, _GIN_CONFIGS)):
      return True
  return False


def _paths(arguments: Sequence[str], flag: str) -> list[str]:
  """The paths that the command line or its gin files set."""
  return [path for path, _ in _said_paths(arguments, flag)]


def _said_paths(arguments: Sequence[str], flag: str) -> list[tuple[str, str]]:
  """Each path and where it is set. Values that are no paths are left out, as are names of rewards."""
  given = [(text, f'--{flag}') for text in words.values(arguments, flag)]
  pairs = [
    (path, place) for text, place in given or _bound(arguments, flag) for path in text.split(',') if path
  ]
  if flag == 'reward':
    pairs = [(path.partition(':')[0], place) for path, place in pairs if '.py:' in path]
  return [(path, f'{place}={path}') for path, place in pairs if path not in _NO_PATHS]


def _bound(arguments: Sequence[str], flag: str) -> list[tuple[str, str]]:
  """The text that gin binds a setting to, by its macro or as a parameter; the last binding counts."""
  found = {}
  for binding in _bindings(arguments):
    _, selector, parameter = split(binding.name)
    names = (flag.upper(), '') if not selector else (_PARAMETERS.get(flag, flag), selector)
    if (parameter, selector) == names:
      value = ast.literal_eval(binding.value) if binding.value[0] in '\'"' else ''
      place = '--gin.' if binding.origin.startswith(':') else f'{binding.origin}: '
      found[binding.name] = (value, place + binding.name)
  return [pair for pair in found.values() if pair[0]]


def _bindings(arguments: Sequence[str]) -> Iterator[Binding]:
  """Bindings of gin files and of `--gin.`, in gin's order; files that are not here are passed over."""
  for name in words.values(arguments, 'gin_file'):
    try:
      path = config_files.find(name, _GIN_CONFIGS)
    except UsageError:
      continue
    yield from config_files.read_file(path, _GIN_CONFIGS)
  for argument in words.joined(arguments):
    if match := re.match(r'--?gin(?:\.|_binding=)\s*([\w./]+\.\w+)\s*=(.*)', argument, re.DOTALL):
      yield from read(f'{match[1]} = {match[2]}', '')


def _is_tracked(path: str) -> bool:
  """Whether a path is in the checkout that the run gets."""
  if path.startswith(('/', '~')):
    return False
  command = ['git', '-C', str(ROOT), 'ls-files', '--error-unmatch', '--', path]
  return not subprocess.run(command, capture_output=True).returncode


def preflight(
  job: config_dict.ConfigDict, arguments: Sequence[str], topology: str, how: Commands, *, dry_run: bool
) -> None:
  """Compiles the step of a `train` for its slice, on this machine, and prints memory and time.

  Args:
    job: `preflight=False` skips the check; `preflight_flags` are passed besides.
    arguments: the arguments of dro_jax.
    topology: the slice, such as v5e:4x8; '' where the launcher does not know it.
    how: runs the command.
    dry_run: only prints the command.

  Raises:
    UsageError: the step does not fit, or preflight cannot compile it.
  """
  if not job.preflight or arguments[0] != 'train':
    return
  if not topology:
    raise UsageError(
      f'preflight does not know the shape of a {job.accelerator_type}: pass --job.topology=KIND:SHAPE, such '
      f'as v5e:4x8; {_SKIP}'
    )
  # Require libtpu here: to find out on a rented machine costs money.
  if not dry_run and importlib.util.find_spec('libtpu') is None:
    raise UsageError(
      'preflight checks that the run fits before machines are rented. It needs libtpu on this machine, but '
      f"no TPU: pip install 'jax[tpu]'; {_SKIP}"
    )
  say(f'launch: preflight compiles the step for {topology} on this machine; {_SKIP}')
  result = how.call(command(job, arguments, topology), pretend=json.dumps(_FITTING))
  if result.code:
    raise UsageError(f'preflight ended with exit code {result.code}: {_last_line(result.err)}; {_SKIP}')
  _judge(json.loads(result.out.decode().splitlines()[-1]), topology, dry_run=dry_run)


def topology(job: config_dict.ConfigDict) -> str:
  """The slice of a job for preflight, such as v5e:4x8; '' where the launcher does not know it."""
  return job.topology or slices.of_accelerator_type(job.accelerator_type)


def command(job: config_dict.ConfigDict, arguments: Sequence[str], topology: str) -> list[str]:
  """The preflight command of the same run, without the files that are not on this machine.

  Raises:
    UsageError: only such a file says how large the model is.
  """
  absent = _absent(arguments)
  flags = [*words.without(arguments[1:], ['model_dir', *absent]), *job.preflight_flags]
  # A gin file binds the value also without the flag.
  flags += [f'--set={flag.upper()}=None' for flag in dict.fromkeys(absent) if _bound(arguments, flag)]
  start = 'init_from' in absent and _said_paths(arguments, 'init_from')
  if start and not _names_model([*flags]):
    raise UsageError(
      f'{start[-1][1]} is not on this machine, and it alone says how large the model is. Name the model '
      f'for preflight: --job.preflight_flags="(\'--gin_file=models/t5_1_1_xl.gin\',)"; {_SKIP}'
    )
  program = ['env', f'PYTHONPATH={ROOT}', 'JAX_PLATFORMS=cpu', sys.executable, '-m', 'dro_jax.main']
  flags = [flag for flag in flags if flag != '--json']
  return [*program, 'preflight', *flags, f'--topology={topology}', '--json']


def _names_model(flags: Sequence[str]) -> bool:
  """Whether the model's size is known without a checkpoint."""
  return any('models/' in flag for flag in flags) or any(
    binding.name == 'Policy.config' for binding in _bindings(flags)
  )


def _absent(arguments: Sequence[str]) -> list[str]:
  """Flags whose path is not on this machine; preflight has stand-ins for their files."""
  there = lambda path: '://' in path or pathlib.Path(path).expanduser().exists()  # noqa: E731
  absent = [f for f in (*_DATA, *_FOLDERS, 'vocabulary') if not all(map(there, _paths(arguments, f)))]
  # Without the data its other flags go too; the vocabulary decides how long its texts are.
  return [*absent, *_DATA, 'columns_from'] if {'triplets', 'vocabulary'} & {*absent} else absent


def _last_line(text: str) -> str:
  return (text.strip().splitlines() or ['it printed nothing'])[-1]


def _judge(report: dict[str, Any], topology: str, *, dry_run: bool) -> None:
  """Prints the result of preflight; raises `UsageError` where the step does not fit."""
  total, available = (report['memory'].get(name) for name in ('total', 'available'))
  held = f'{total / _GIB:.1f} of {available / _GIB:.1f} GiB a chip' if total else 'more than a chip has'
  if not report['fits']:
    remedy = report.get('remedy') or 'nothing that preflight tried; take a larger slice'
    raise UsageError(f'the run does not fit {topology}: it needs {held}. A remedy: {remedy}; {_SKIP}')
  if not dry_run:
    say(
      f'launch: the run fits {topology}: {held}; at best {report["roofline_seconds"]:.3g} s a step, '
      f'{report["chip_hours"]:.3g} chip-hours for {report["steps"]} steps'
    )
