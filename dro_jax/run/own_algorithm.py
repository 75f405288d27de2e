"""A user's algorithm, named by the file or module that holds the function that makes it."""

import re
from collections.abc import Callable
from typing import Any

from dro_jax import files
from dro_jax.algorithms import Algorithm
from dro_jax.errors import UsageError

_NAMED = re.compile(r'(?P<module>.+):(?P<name>[A-Za-z_]\w*)')


def import_algorithm(text: str) -> Callable[..., Any]:
  """Imports the function that FILE.py:NAME or MODULE:NAME names.

  Raises:
    UsageError: the text has another form, the module cannot be imported, or it has no such function.
  """
  match = _NAMED.fullmatch(text)
  if not match:
    raise UsageError(
      f'ALGORITHM={text!r} names no algorithm: pass FILE.py:NAME or MODULE:NAME for your own, a name '
      'listed by `dro_jax configs list algorithms` on the command line, or a function in Python.'
    )
  path, name = match['module'], match['name']
  try:
    module = files.import_module(path)
  except (ImportError, OSError) as error:
    raise UsageError(
      f'ALGORITHM={text}: cannot import {path} ({error}): pass a .py file, or a module on the path.'
    ) from error
  except (Exception, SystemExit) as error:
    raise UsageError(
      f'ALGORITHM={text}: importing {path} raised {type(error).__name__}: {error}. Mend the file.'
    ) from error
  function = getattr(module, name, None)
  if not callable(function):
    raise UsageError(
      f'ALGORITHM={text}: {path} has no function {name!r}: pass the name of a function that returns a '
      'dro_jax.algorithms.Algorithm.'
    )
  return function


def refuse_other_kinds(value: Any, source: Any) -> None:
  """Refuses what is no `Algorithm`.

  Args:
    value: the run's algorithm, made.
    source: what made it.

  Raises:
    UsageError: it is of another kind.
  """
  if not isinstance(value, Algorithm):
    maker = source if isinstance(source, str) else getattr(source, '__name__', repr(source))
    raise UsageError(
      f'ALGORITHM: {maker} returned {type(value).__name__}, and a run needs a dro_jax.algorithms.Algorithm: '
      'return one, for example by_response(NAME, loss).'
    )
