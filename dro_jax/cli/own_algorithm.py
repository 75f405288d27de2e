"""`--set ALGORITHM=FILE.py:NAME`: registers the user's function with gin before gin reads a binding."""

import pathlib
import re

import gin

from dro_jax.cli.registry import modules_of, wrapper
from dro_jax.errors import UsageError

_SETTINGS = ('ALGORITHM', 'RunSpec.algorithm')


def own_reference(setting: str) -> str | None:
  """Returns gin's reference to the user's function where a setting names one as the algorithm, else None."""
  path, name = _parsed(setting) or (None, None)
  return path and f'@{_module(path)}.{name}'


def register_own_algorithm(setting: str) -> None:
  """Registers the function with gin where a setting names one as the algorithm.

  Raises:
    UsageError: the file cannot be imported or lacks the function, or dro_jax has an algorithm of this name.
  """
  if not (parsed := _parsed(setting)):
    return
  from dro_jax.run.own_algorithm import import_algorithm  # Imports jax, which `--help` does without.

  path, name = parsed
  if any(module.startswith('dro_jax.') for module in modules_of(name)):
    raise UsageError(
      f"--set {setting}: dro_jax has an algorithm {name}, too. For dro_jax's pass --set ALGORITHM={name}; "
      'for yours give the function another name.'
    )
  # The file may register the function itself, and may have changed since this process imported it.
  with gin.config.interactive_mode():
    function = import_algorithm(f'{path}:{name}')
    module = _module(path)
    if wrapper(f'{module}.{name}') is not function:
      gin.external_configurable(function, name, module=module)


def _parsed(setting: str) -> tuple[str, str] | None:
  """The path and the name in NAME=FILE.py:NAME or NAME=MODULE:NAME, where the setting is the algorithm."""
  setting_name, _, text = (part.strip() for part in setting.partition('='))
  path, colon, name = text.strip('\'"').rpartition(':')
  return (path, name) if setting_name in _SETTINGS and colon else None


def _module(path: str) -> str:
  """The module by which gin knows the functions of a file."""
  return re.sub(r'\W', '_', pathlib.Path(path).stem) if path.endswith('.py') else path
