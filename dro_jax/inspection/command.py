"""Proposes the command line that trains on a data set."""

import inspect
import itertools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dro_jax import algorithms
from dro_jax.data.triplets import load_triplets
from dro_jax.inspection import methods
from dro_jax.run.batches import RowOptions
from dro_jax.run.spec import Batches, Policy

# The settings that a proposal may have, and the parameter that has the default of each.
_SETTINGS = {
  'VOCABULARY': (Policy, 'vocabulary'),
  'TEMPLATE': (load_triplets, 'template'),
  'CHAT_TEMPLATE': (load_triplets, 'chat_template'),
  'CHAT': (load_triplets, 'chat'),
  'PROMPT_LENGTH': (load_triplets, 'prompt_length'),
  'RESPONSE_LENGTH': (load_triplets, 'response_length'),
  'KEEP': (load_triplets, 'keep'),
  'BATCH': (Batches, 'size'),
  'TAU': (algorithms.dro_v, 'tau'),
  'REWARD_SCALING': (load_triplets, 'scaling'),
  'VALIDATION_FRACTION': (load_triplets, 'validation_fraction'),
  'PACKED': (RowOptions, 'packed'),
  'ROW_COVERAGE': (RowOptions, 'coverage'),
  'ROW_PROMPT_LENGTH': (RowOptions, 'prompt_length'),
  'ROW_RESPONSE_LENGTH': (RowOptions, 'response_length'),
  'DATA_DIR': (load_triplets, 'data_dir'),
  'CACHE_DIR': (load_triplets, 'cache_dir'),
  'TASK_MODULES': (load_triplets, 'task_modules'),
}
# The command leaves out settings that have these values.
DEFAULTS = {
  macro: inspect.signature(owner).parameters[name].default for macro, (owner, name) in _SETTINGS.items()
}
MACROS = {
  'packed': 'PACKED',
  'coverage': 'ROW_COVERAGE',
  'prompt_length': 'ROW_PROMPT_LENGTH',
  'response_length': 'ROW_RESPONSE_LENGTH',
}
USUAL = 'dro_v'  # The default algorithm of a run.


def train_command(
  admissions: Sequence[methods.Admission],
  preferred: Sequence[str],
  flags: Mapping[str, Any],
  macros: Mapping[str, Any],
) -> list[str]:
  """The arguments of a `dro_jax train` that reads the data as it was inspected, ready to run.

  Args:
    admissions: of all algorithms.
    preferred: names of algorithms: the first that can learn from the data is taken.
    flags: by name; None is left out.
    macros: by name; those with the default of a run are left out.
  """
  admitted = {method.method: method for method in admissions if method.admitted}
  method = next(admitted[name] for name in preferred if name in admitted)
  command = ['dro_jax', 'train', *typed_flags(flags), f'--model_dir={_free(f"runs/{method.method}")}']
  if flags['init_from'] is None:
    command.append('--gin_file=models/t5_1_1_tiny.gin')
  chosen = [] if method.method == USUAL else [f'ALGORITHM={method.method}']
  changed = [
    f'{name}={_typed(macros[name])}'
    for name, usual in DEFAULTS.items()
    if macros.get(name) not in (None, usual)
  ]
  return command + [word for setting in (*chosen, *method.settings, *changed) for word in ('--set', setting)]


def _typed(value: Any) -> Any:
  """A value as `--set` reads it; quotes text that `--set` would change otherwise."""
  changes = isinstance(value, str) and (value != value.strip('\'" \t\n%') or value.lower() == 'none')
  return repr(value) if changes else value


def typed_flags(flags: Mapping[str, Any]) -> Iterator[str]:
  for name, value in flags.items():
    if isinstance(value, Mapping):
      yield from ('--set', f'{name.upper()}={dict(value)}')
    elif value is not None:
      yield f'--{name}={value if isinstance(value, str) else ",".join(map(str, value))}'


def _free(folder: str) -> str:
  """A folder that does not exist yet: in an existing one, `train` would resume or refuse."""
  names = itertools.chain([folder], (f'{folder}_{i}' for i in itertools.count(2)))
  return next(name for name in names if not os.path.exists(name))


def folded(command: Sequence[str]) -> str:
  """The command on several lines, a flag on each, as a shell reads it."""
  lines = [shlex.join(command[:2])]
  for word in command[2:]:
    if lines[-1].startswith('--set') and ' ' not in lines[-1]:
      lines[-1] += f' {shlex.quote(word)}'
    else:
      lines.append(shlex.quote(word))
  return ' \\\n  '.join(lines)
