"""The `preflight` command: compiles a run's step for a slice that this machine does not have."""

from collections.abc import Sequence
from typing import Annotated

from dro_jax.configs.effects import PARTS
from dro_jax.costs import slices
from dro_jax.data.text.templates import PROMPT_LENGTH, RESPONSE_LENGTH
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError
from dro_jax.preflight import compilation, placeholders
from dro_jax.preflight.remedies import make_ladder, try_remedies
from dro_jax.preflight.sweep import sweep_meshes
from dro_jax.preflight.tables import shown_report
from dro_jax.printing.result import Sections
from dro_jax.run.spec import RunSpec
from dro_jax.step.reference import Frozen


def preflight(
  spec: Annotated[RunSpec, PARTS],
  topology: str,
  *,
  triplets: str | Sequence[str] | None = None,
  prompt_length: int = PROMPT_LENGTH,
  response_length: int = RESPONSE_LENGTH,
  remedies: bool = True,
  sweep: bool | int = False,
  sweep_limit: int | None = 12,
) -> Sections:
  """Compiles a run's train step for a slice, and reports whether it fits and how fast it can be.

  Preflight runs nothing and sends nothing. It needs neither the slice nor the data nor the weights. It takes
  loaded triplets, reads files of this machine, and writes their token table where a run keeps it; for all
  others it uses texts of full length. Where the checkpoint is missing, the spec must name the model
  (`policy.config`).

  Args:
    spec: the run.
    topology: the slice, such as v5e:4x8, or 2xv5e:4x8 for two of them.
    triplets: the files that `spec.data` reads; texts of full length replace `None` and names of data sets.
    prompt_length: prompt tokens of such a text.
    response_length: response tokens of such a text.
    remedies: where the step does not fit, look for the smallest change that makes it fit.
    sweep: try every mesh that divides the slice, the rows and the parameters.
    sweep_limit: compile at most so many of them; `None` for all.

  Returns:
    Parameters, memory a chip by kind, operations, bytes, seconds, and the change that makes the step fit.

  Raises:
    UsageError: there is no such slice or no libtpu, or settings or data cannot make a run.

  Example:
    >>> dro.preflight(spec, 'v5e:2x2').fits
    True
  """
  where, algorithm = slices.find(topology), spec.algorithm
  if algorithm.online is not None:
    raise UsageError(
      f'{algorithm.name} samples its responses, and preflight compiles steps on logged ones: pass the '
      'offline algorithm with the same step (--gin_file=algorithms/rloo.gin, copg.gin, ...); the report then '
      'leaves out the sampling.'
    )
  if not isinstance(spec.data, Triplets) and not placeholders.are_local_files(triplets):
    spec = placeholders.with_texts_of_full_length(spec, prompt_length, response_length)
  spec = placeholders.without_weights(spec)
  if sweep:
    return sweep_meshes(spec, where, sweep_limit)
  first = compilation.try_compile(spec, where)
  if first.fits or not remedies:
    return shown_report(first.report)
  is_held = algorithm.uses_reference and isinstance(spec.reference, Frozen) and not spec.next_token_kl.weight
  ladder = make_ladder(spec, where, first.report, is_held)
  tried = list(try_remedies(spec, where, first, ladder))
  fitting = next((row for row in tried if row['fits']), None)
  return shown_report(first.report | {'tried': tried, 'remedy': fitting and fitting['change']})


__all__ = ['preflight']
