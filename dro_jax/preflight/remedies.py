"""Changes with which a step would fit."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.costs import slices
from dro_jax.errors import UsageError
from dro_jax.parallel.partitioning import Mesh
from dro_jax.preflight import compilation
from dro_jax.step import reference

_CHUNK = 64  # Response tokens projected at once, as a remedy.
_CACHED = '--gin_file=references/cached.gin --set REFERENCE_STORE=DIR (of dro_jax cache_reference)'


class Remedy(NamedTuple):
  """A change of settings: how to ask for it, and what it is for `train`."""

  change: str
  settings: Mapping[str, Any]


def make_ladder(
  model: Mapping[str, Any],
  settings: Mapping[str, Any],
  is_held: bool,
  spread: Callable[[int], list[Remedy]],
) -> list[Remedy]:
  """Changes in the order of what they cost, but for those that a run has made already.

  Args:
    model: the run's (see `_before`).
    settings: the run's.
    is_held: whether its reference stays as it is, and is scored.
    spread: from microbatches to the mesh that cuts parameters most, where the run has another.
  """
  parts, chunk_size = settings['num_microbatches'], settings['chunk_size'] or math.inf
  store = functools.partial(reference.cached, store='rehearsed')
  dots = [] if model['remat'] else [Remedy('--set REMAT=dots', {'remat': 'dots'})]
  whole = [] if model['remat'] is True else [Remedy('--set REMAT=true', {'remat': True})]
  chunks = [Remedy(f'--set CHUNK_SIZE={_CHUNK}', {'chunk_size': _CHUNK})] if chunk_size > _CHUNK else []
  cached = [Remedy(_CACHED, {'reference': store})] if is_held else []
  counts = (2 * parts, 4 * parts, 8 * parts)
  more = [[Remedy(f'--set MICROBATCHES={m}', {'num_microbatches': m})] for m in counts]
  light, heavy, most = dots + chunks, whole + chunks, more[-1] + spread(8 * parts)
  rungs = [
    dots, chunks, light, cached, spread(parts), light + spread(parts), *(light + part for part in more),
    heavy, heavy + more[-1], light + most, heavy + most, heavy + most + cached,
  ]  # fmt: skip
  joined = [_joined(*rung) for rung in rungs if rung]
  return list({one.change: one for one in joined}.values())


def _joined(*some: Remedy) -> Remedy:
  settings = dict(itertools.chain.from_iterable(one.settings.items() for one in some))
  return Remedy(' '.join(one.change for one in some), settings)


def spread_mesh(
  mesh: Callable[..., Mesh], where: slices.Slice, now: Mapping[str, int], batch_size: int, parts: int
) -> list[Remedy]:
  """Parameters over as many chips of a slice as have rows, heads, MLP and vocabulary over the others."""
  size = len(where.devices) // where.num_slices
  fsdp = math.gcd(size, batch_size // (where.num_slices * parts))
  sizes = {'fsdp': fsdp, 'model': size // fsdp}
  layout = functools.partial(mesh, data=1, **sizes)
  if dict(layout(devices=where.devices).shape) == now:
    return []
  set_sizes = [f'--set make_mesh.{axis}={ways}' for axis, ways in sizes.items()]
  return [Remedy(' '.join(['--gin_file=meshes/fsdp.gin', *set_sizes]), {'mesh': layout})]


def try_remedies(
  asked: Callable[..., compilation.Asked], first: compilation.Attempt, ladder: Sequence[Remedy]
) -> Iterator[dict[str, Any]]:
  """Tries changes until one makes the step fit."""
  held = sum(first.report['memory'].get(name, 0) for name in ('parameters', 'optimizer'))
  for remedy in ladder:
    # What lies there between steps is too much already, and stays.
    if held > first.report['memory']['available'] and 'mesh' not in remedy.settings:
      continue
    try:
      found = compilation.try_compile(asked(**remedy.settings))
    except UsageError as error:
      yield {'change': remedy.change, 'fits': False, 'refused': str(error)}
      continue
    yield {'change': remedy.change, 'fits': found.fits, **summary(found.report)}
    if found.fits:
      return


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'total_bytes': report['memory']['total'], 'roofline_seconds': report.get('roofline_seconds'),
    'bound_by': report.get('bound_by'),
  }  # fmt: skip
