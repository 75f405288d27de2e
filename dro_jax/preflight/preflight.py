"""The `preflight` command: a run's own step, compiled for a slice that need not be here, and its needs."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from dro_jax import algorithms
from dro_jax.costs import slices
from dro_jax.data.batches import groups
from dro_jax.data.triplets import Triplets, load_triplets
from dro_jax.errors import UsageError
from dro_jax.models.scoring import Score
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.preflight import compilation
from dro_jax.preflight.placeholders import DERIVED_FROM, placeholder_triplets
from dro_jax.preflight.remedies import make_ladder, spread_mesh, try_remedies
from dro_jax.preflight.sweep import sweep_meshes
from dro_jax.preflight.tables import shown_report
from dro_jax.run import batches
from dro_jax.run import train as run_train
from dro_jax.run.schedule import Schedule
from dro_jax.step.reference import Reference, frozen


def preflight(
  topology: str,
  data: Callable[..., Triplets] = load_triplets,
  algorithm: Callable[[], algorithms.Algorithm] = algorithms.dro_v,
  *,
  train: Callable[..., Any] = run_train.train,
  reference: Callable[[Score], Reference] = frozen,
  mesh: Callable[..., Mesh] = partitioning.make_mesh,
  rows: Callable[[], batches.RowOptions] = batches.RowOptions,
  schedule: Callable[[], Schedule] = Schedule,
  unit_options: Callable[[], groups.UnitOptions] = groups.UnitOptions,
  triplets: str | None = None,
  prompt_length: int = 512,
  response_length: int = 512,
  batch_size: int = 32,
  num_microbatches: int = 1,
  chunk_size: int | None = None,
  remedies: bool = True,
  sweep: bool | int = False,
  sweep_limit: int | None = 12,
) -> dict[str, Any]:
  """Compiles a run's train step for a slice, and reports whether it fits and how fast it can be.

  Nothing is run or sent anywhere. Without `triplets` nothing is written, with them their token table is,
  where a run keeps it. A checkpoint need exist only where the run starts from one (`train`'s `init_from`).

  Args:
    topology: the slice, such as v5e:4x8, or 2xv5e:4x8 for two of them.
    data: the triplets and how to read them; not read without `triplets`.
    algorithm: what the run minimises.
    train: the run; its step is the one that is compiled.
    reference: the run's; a store need not be there.
    mesh: lays out devices, for the sweep.
    rows: how the run's batches are laid out.
    schedule: the run's length.
    unit_options: how the run forms pairs and groups.
    triplets: the run's; `None` stands for batches of texts of full length.
    prompt_length: prompt tokens of those.
    response_length: response tokens of those.
    batch_size: the run's.
    num_microbatches: the run's.
    chunk_size: the run's.
    remedies: where the step does not fit, look for the smallest change with which it does.
    sweep: try every mesh that divides the slice, the rows and the parameters.
    sweep_limit: compile for so many of them at most; `None` for all.

  Returns:
    Parameters, memory a chip by kind, operations, bytes, seconds, and what would make the step fit.

  Raises:
    UsageError: there is no such slice or no libtpu, or settings or data cannot make a run.
  """
  jax.config.update('jax_platforms', 'cpu')  # A machine with libtpu and no TPU would look for one.
  chosen, where = algorithm(), slices.find(topology)
  if chosen.online is not None:
    raise UsageError(
      f'{chosen.name} samples its responses, and preflight compiles steps on logged ones: pass its offline '
      'kin (--gin_file=algorithms/rloo.gin, copg.gin, ...), whose step is the same, without the sampling.'
    )
  if triplets is None:
    sizes = {'prompts': batch_size, 'prompt_length': prompt_length, 'response_length': response_length}
    sizes['responses'] = unit_options().group_size if chosen.unit == 'group' else 2
    columns = (*chosen.requires, *(DERIVED_FROM if chosen.columns else ()))
    data = functools.partial(placeholder_triplets, columns=columns, **sizes)
    rows = functools.partial(_filled, rows(), prompt_length, response_length)
  settings = {
    'model_dir': 'preflight', 'algorithm': algorithm, 'reference': reference, 'rows': rows,
    'batch_size': batch_size, 'num_microbatches': num_microbatches, 'chunk_size': chunk_size,
    'schedule': schedule, 'unit_options': unit_options,
  }  # fmt: skip
  asked = functools.partial(compilation.make_request, train, where, data, settings)
  if sweep:
    return sweep_meshes(asked, mesh, where, sweep_limit)
  first = compilation.try_compile(asked())
  if first.fits or not remedies:
    return shown_report(first.report)
  held = chosen.uses_reference and _scheme(reference) == 'frozen'
  spread = functools.partial(spread_mesh, mesh, where, first.report['mesh'], batch_size)
  ladder = make_ladder(first.report['model'], settings, held, spread)
  tried = list(try_remedies(asked, first, ladder))
  fitting = next((row for row in tried if row['fits']), None)
  return shown_report(first.report | {'tried': tried, 'remedy': fitting and fitting['change']})


def _filled(rows: batches.RowOptions, prompt_length: int, response_length: int) -> batches.RowOptions:
  """Rows that hold exactly one text of full length a side, where they are not said to be longer."""
  return batches.RowOptions(
    **vars(rows) | {
      'prompt_length': rows.prompt_length or prompt_length,
      'response_length': rows.response_length or response_length,
    }
  )  # fmt: skip


def _scheme(reference: Callable[[Score], Reference]) -> str:
  """What a reference is called."""
  return reference(lambda *_: None).settings['scheme']


__all__ = ['preflight']
