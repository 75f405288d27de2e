"""What is looked at here before anything is rented: that the run fits its slice, that its files are there."""

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
# What names files that a run reads.
_DATA = ('triplets', 'eval_triplets')
_FOLDERS = ('init_from', 'columns_from', 'replay', 'reference_store', 'data_dir')
_OTHERS = ('gin_file', 'vocabulary', 'reward')
# Of these, what is a flag of dro_jax's; the others are settings.
_PLAIN = ('triplets', 'eval_triplets', 'init_from', 'columns_from', 'replay', 'gin_file')
# Parameters that are not called as their macro is.
_PARAMETERS = {'reference_store': 'store'}
_NO_PATHS = ('None', 'bytes')
# Commands that need data and a folder.
_RUNS = ('train', 'fit_value', 'cache_reference', 'a_lol')
_FILES = ('.jsonl', '.json', '.csv', '.tsv', '.jsonl.gz', '.json.gz', '.csv.gz', '.tsv.gz', '.parquet')
_GIB = 2**30
_SKIP = '--job.preflight=False goes on without'
_FITTING = {
  'fits': True,
  'memory': {'total': 0, 'available': 0},
  'roofline_seconds': 0,
  'chip_hours': 0,
  'steps': 0,
}


def fields(job: config_dict.ConfigDict) -> None:
  """Adds the fields of a job on TPUs that `preflight` reads."""
  job.preflight = True  # say whether the run fits, and what it takes, before anything is rented
  job.preflight_flags = ()  # more of dro_jax's flags for it, such as --gin_file=models/t5_1_1_xl.gin


def refuse_absent(arguments: Sequence[str], shared_dir: str) -> None:
  """Refuses files that are on this machine and not where the run will be, which begins in the checkout.

  Args:
    arguments: dro_jax's.
    shared_dir: the folder that is there, '' for none.

  Raises:
    UsageError: says which, and what to do.
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
  """A hash of each file of this machine that a run's arguments name, by its path.

  Of a folder it is of the files that describe what it holds. What is elsewhere is left out.
  """
  found = {}
  for flag in (*_DATA, *_FOLDERS, *_OTHERS):
    for path, _ in _said_paths(arguments, flag):
      for file in [] if '://' in path else _files_of(flag, pathlib.Path(path.partition('#')[0]).expanduser()):
        found[str(file)] = _code_of(file) if file.suffix == '.py' else _hash_of(file, file.stat().st_mtime_ns)
  return found


def _files_of(flag: str, path: pathlib.Path) -> list[pathlib.Path]:
  """The files that stand for what a path holds: checkpoints and column stores are described by one each."""
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
  del changed  # What was hashed before is hashed again when it changes.
  with file.open('rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()


def refuse_missing(arguments: Sequence[str]) -> None:
  """Refuses data that is not there, for a run on machines that share this one's disk.

  Checkpoints and stores may be what a job that is queued before this one makes.

  Raises:
    UsageError: says which.
  """
  for flag in (*_DATA, 'data_dir', 'vocabulary'):
    for path, said in _said_paths(arguments, flag):
      is_place = '://' not in path and _is_a_place(arguments[0], flag, path)
      if is_place and not pathlib.Path(path).expanduser().exists():
        raise UsageError(f'{said}: no such file, and the run would wait in the queue to say so')


def _is_a_place(command: str, flag: str, path: str) -> bool:
  """Whether what is named is a file or a folder, and no data set, no model of a hub, no packaged file."""
  if flag == 'gin_file' or (flag == 'init_from' and command == 'import_checkpoint'):
    return False
  return flag not in _DATA or path.endswith(_FILES)


def _way(flag: str) -> str:
  """How a setting is given on the command line."""
  return f'--{flag}=...' if flag in _PLAIN else f'--set {flag.upper()}=...'


def refuse_unbound(arguments: Sequence[str]) -> None:
  """Refuses a run without a folder or data: its machines would begin it, and it would end at once.

  Raises:
    UsageError: says which.
  """
  for flag in ('model_dir', 'triplets') if arguments[0] in _RUNS else ():
    if not (any(words.values(arguments, flag)) or _may_bind(arguments, flag.upper())):
      raise UsageError(f'{arguments[0]} needs {flag.upper()}, which has no value: pass --{flag}')


def _may_bind(arguments: Sequence[str], macro: str) -> bool:
  """Whether gin might bind what a macro stands for: of its files, only the packaged ones are known."""
  # A parameter itself, past its macro.
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
  """The paths that the command line or its gin files give."""
  return [path for path, _ in _said_paths(arguments, flag)]


def _said_paths(arguments: Sequence[str], flag: str) -> list[tuple[str, str]]:
  """Each path, and where it is given; without what is no path: of REWARD, only FILE.py:FUNCTION is one."""
  given = [(text, f'--{flag}') for text in words.values(arguments, flag)]
  pairs = [
    (path, place) for text, place in given or _bound(arguments, flag) for path in text.split(',') if path
  ]
  if flag == 'reward':
    pairs = [(path.partition(':')[0], place) for path, place in pairs if '.py:' in path]
  return [(path, f'{place}={path}') for path, place in pairs if path not in _NO_PATHS]


def _bound(arguments: Sequence[str], flag: str) -> list[tuple[str, str]]:
  """The text that gin binds a setting to, by its macro or as a parameter; the last of each holds."""
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
  """What gin files and `--gin.` bindings say, in gin's order; of a file that is not here, nothing."""
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
  """Whether the checkout that the run gets has it."""
  if path.startswith(('/', '~')):
    return False
  command = ['git', '-C', str(ROOT), 'ls-files', '--error-unmatch', '--', path]
  return not subprocess.run(command, capture_output=True).returncode


def preflight(
  job: config_dict.ConfigDict, arguments: Sequence[str], topology: str, how: Commands, *, dry_run: bool
) -> None:
  """Compiles the run's step for the slice, on this machine, and says what it will take; of `train` alone.

  Args:
    job: its `preflight` False skips all this; its `preflight_flags` are given besides.
    arguments: dro_jax's.
    topology: the slice, as preflight has it; '' is one that we do not know.
    how: runs the command.
    dry_run: only shows it.

  Raises:
    UsageError: the step does not fit, or nothing can be said.
  """
  if not job.preflight or arguments[0] != 'train':
    return
  if not topology:
    raise UsageError(
      f'preflight does not know the shape of a {job.accelerator_type}: pass --job.topology=KIND:SHAPE, such '
      f'as v5e:4x8; {_SKIP}'
    )
  # Nobody who is told to install something has paid for a machine that was too small.
  if not dry_run and importlib.util.find_spec('libtpu') is None:
    raise UsageError(
      'preflight, which says before anything is rented whether the run fits, needs libtpu here, but no TPU: '
      f"pip install 'jax[tpu]'; {_SKIP}"
    )
  say(f'launch: preflight compiles the step for {topology} on this machine; {_SKIP}')
  result = how.call(command(job, arguments, topology), pretend=json.dumps(_FITTING))
  if result.code:
    raise UsageError(f'preflight ended with exit code {result.code}: {_last_line(result.err)}; {_SKIP}')
  _judge(json.loads(result.out.decode().splitlines()[-1]), topology, dry_run=dry_run)


def topology(job: config_dict.ConfigDict) -> str:
  """The job's slice, as preflight has it; '' is one that we do not know."""
  return job.topology or slices.of_accelerator_type(job.accelerator_type)


def command(job: config_dict.ConfigDict, arguments: Sequence[str], topology: str) -> list[str]:
  """dro_jax's preflight, of the same run but for the files that are not on this machine.

  Raises:
    UsageError: the model is known to one of those only.
  """
  absent = _absent(arguments)
  flags = [*words.without(arguments[1:], ['model_dir', *absent]), *job.preflight_flags]
  # What a gin file binds is still there without the flag.
  flags += [f'--set={flag.upper()}=None' for flag in dict.fromkeys(absent) if _bound(arguments, flag)]
  start = 'init_from' in absent and _said_paths(arguments, 'init_from')
  if start and not _names_model([*flags]):
    raise UsageError(
      f'{start[-1][1]} is not on this machine, and it alone says how large the model is. Name the model '
      f'too, for preflight: --job.preflight_flags="(\'--gin_file=models/t5_1_1_xl.gin\',)"; {_SKIP}'
    )
  program = ['env', f'PYTHONPATH={ROOT}', 'JAX_PLATFORMS=cpu', sys.executable, '-m', 'dro_jax.main']
  flags = [flag for flag in flags if flag != '--json']
  return [*program, 'preflight', *flags, f'--topology={topology}', '--json']


def _names_model(flags: Sequence[str]) -> bool:
  """Whether the model's size is known without a checkpoint."""
  return any('models/' in flag for flag in flags) or any(
    binding.name == 'train.model' for binding in _bindings(flags)
  )


def _absent(arguments: Sequence[str]) -> list[str]:
  """Flags with a path that is not here; preflight has stand-ins for what they name."""
  there = lambda path: '://' in path or pathlib.Path(path).expanduser().exists()  # noqa: E731
  absent = [f for f in (*_DATA, *_FOLDERS, 'vocabulary') if not all(map(there, _paths(arguments, f)))]
  # What else is said of data goes with it; the vocabulary decides how long its texts are.
  return [*absent, *_DATA, 'columns_from'] if {'triplets', 'vocabulary'} & {*absent} else absent


def _last_line(text: str) -> str:
  return (text.strip().splitlines() or ['it said nothing'])[-1]


def _judge(report: dict[str, Any], topology: str, *, dry_run: bool) -> None:
  """Says what preflight found; raises `UsageError` where the step does not fit."""
  total, available = (report['memory'].get(name) for name in ('total', 'available'))
  held = f'{total / _GIB:.1f} of {available / _GIB:.1f} GiB a chip' if total else 'more than a chip has'
  if not report['fits']:
    remedy = report.get('remedy') or 'nothing that preflight tried; take a larger slice'
    raise UsageError(
      f'the run does not fit {topology}: it needs {held}. What would make it fit: {remedy}; {_SKIP}'
    )
  if not dry_run:
    say(
      f'launch: it fits {topology}: {held}; at best {report["roofline_seconds"]:.3g} s a step, '
      f'{report["chip_hours"]:.3g} chip-hours for {report["steps"]} steps'
    )
