"""A user's algorithm, named by the file or module that holds the function that makes it."""

from collections.abc import Callable
from typing import Any

from dro_jax import algorithms, files
from dro_jax.algorithms import Algorithm
from dro_jax.algorithms.batch import Batch
from dro_jax.errors import UsageError, did_you_mean
from dro_jax.types import LossOutput


def import_algorithm(text: str) -> Callable[..., Any]:
  """Imports the function that FILE.py:NAME or MODULE:NAME names.

  Raises:
    UsageError: the text has another form, the module cannot be imported, or it has no such function.
  """
  if ':' not in text:
    if text in algorithms.__all__:
      raise UsageError(
        f'algorithm={text!r} is a name, and a run needs the algorithm: pass dro.algorithms.{text}(), or '
        f'--set ALGORITHM={text} on the command line.'
      )
    near = did_you_mean(text, algorithms.__all__)
    raise UsageError(
      f'ALGORITHM={text!r} names no algorithm{near}: pass FILE.py:NAME or MODULE:NAME for your own, a name '
      'listed by `dro_jax configs list algorithms` on the command line, or a function in Python.'
    )
  return files.import_function(text, 'ALGORITHM', 'function that returns a dro_jax.algorithms.Algorithm')


def explained(algorithm: Algorithm) -> Algorithm:
  """The user's algorithm, whose loss says in a line where it failed, in place of jax's many."""

  def loss(batch: Batch) -> LossOutput:
    try:
      return algorithm.loss(batch)
    except UsageError:
      raise
    except Exception as error:
      raise UsageError(
        f'ALGORITHM: the loss of {algorithm.name} raised {files.raised(error)}. docs/extend/loss.md says '
        'what a batch has, and what a loss returns.'
      ) from error

  return algorithm._replace(loss=loss)


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
