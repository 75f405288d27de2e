"""Changes of a run that may make its step fit."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.costs.slices import Slice
from dro_jax.errors import UsageError
from dro_jax.preflight import compilation
from dro_jax.run.spec import RunSpec, replace
from dro_jax.step.reference import Cached

_CHUNK = 64  # Response tokens projected at once, as a remedy.
_CACHED = '--gin_file=references/cached.gin --set REFERENCE_STORE=DIR (of dro_jax cache_reference)'


class Remedy(NamedTuple):
  """A change of a run: its flags on the command line, and the fields for `spec.replace`."""

  change: str
  fields: Mapping[str, Any]


def make_ladder(spec: RunSpec, where: Slice, report: Mapping[str, Any], is_held: bool) -> list[Remedy]:
  """Changes in the order of their cost, without those that the run has already.

  Args:
    spec: the run.
    where: the slice.
    report: of its first compilation.
    is_held: whether its reference stays as it is, and is scored.
  """
  parts, chunk_size = spec.batches.microbatches, report['batch']['chunk_size'] or math.inf
  remat, spread = report['model']['remat'], functools.partial(spread_mesh, spec, where, report['mesh'])
  dots = [] if remat else [Remedy('--set REMAT=dots', {'compute': {'remat': 'dots'}})]
  whole = [] if remat is True else [Remedy('--set REMAT=true', {'compute': {'remat': True}})]
  chunk = Remedy(f'--set CHUNK_SIZE={_CHUNK}', {'compute': {'chunk_size': _CHUNK}})
  chunks = [chunk] if chunk_size > _CHUNK else []
  cached = [Remedy(_CACHED, {'reference': Cached('stand-in')})] if is_held else []
  counts = (2 * parts, 4 * parts, 8 * parts)
  more = [[Remedy(f'--set MICROBATCHES={m}', {'batches': {'microbatches': m}})] for m in counts]
  light, heavy, most = dots + chunks, whole + chunks, more[-1] + spread(8 * parts)
  rungs = [
    dots, chunks, light, cached, spread(parts), light + spread(parts), *(light + part for part in more),
    heavy, heavy + more[-1], light + most, heavy + most, heavy + most + cached,
  ]  # fmt: skip
  joined = [_joined(*rung) for rung in rungs if rung]
  return list({remedy.change: remedy for remedy in joined}.values())


def _joined(*remedies: Remedy) -> Remedy:
  """Several changes as one; merges the changes of one part."""
  fields = {}
  for remedy in remedies:
    for name, change in remedy.fields.items():
      fields[name] = fields.get(name, {}) | change if isinstance(change, Mapping) else change
  return Remedy(' '.join(remedy.change for remedy in remedies), fields)


def spread_mesh(spec: RunSpec, where: Slice, now: Mapping[str, int], parts: int) -> list[Remedy]:
  """Shards parameters over as many chips as there are rows, and heads, MLP and vocabulary over the others."""
  size = len(where.devices) // where.num_slices
  fsdp = math.gcd(size, spec.batches.size // (where.num_slices * parts))
  sizes = {'fsdp': fsdp, 'model': size // fsdp}
  mesh = dataclasses.replace(spec.mesh, data=1, **sizes)
  if dict(mesh.over(where.devices).shape) == now:
    return []
  set_sizes = [f'--set make_mesh.{axis}={ways}' for axis, ways in sizes.items()]
  return [Remedy(' '.join(['--gin_file=meshes/fsdp.gin', *set_sizes]), {'mesh': mesh})]


def try_remedies(
  spec: RunSpec, where: Slice, first: compilation.Attempt, ladder: Sequence[Remedy]
) -> Iterator[dict[str, Any]]:
  """Tries changes until one makes the step fit."""
  held = sum(first.report['memory'].get(name, 0) for name in ('parameters', 'optimizer'))
  for remedy in ladder:
    # The state alone exceeds the memory, and only another mesh makes it smaller.
    if held > first.report['memory']['available'] and 'mesh' not in remedy.fields:
      continue
    try:
      attempt = compilation.try_compile(replace(spec, **remedy.fields), where)
    except UsageError as error:
      yield {'change': remedy.change, 'fits': False, 'refused': str(error)}
      continue
    yield {'change': remedy.change, 'fits': attempt.fits, **summary(attempt.report)}
    if attempt.fits:
      return


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
  """A compilation in three numbers."""
  return {
    'total_bytes': report['memory']['total'], 'roofline_seconds': report.get('roofline_seconds'),
    'bound_by': report.get('bound_by'),
  }  # fmt: skip
