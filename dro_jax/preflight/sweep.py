"""Compiles a run's step for every mesh that divides a slice."""

import itertools
import math
from typing import Any

from dro_jax.costs import roofline
from dro_jax.costs.slices import Slice
from dro_jax.errors import UsageError
from dro_jax.preflight import compilation
from dro_jax.preflight.remedies import summary
from dro_jax.preflight.tables import mesh_row
from dro_jax.printing import result
from dro_jax.run.spec import RunSpec, replace


def sweep_meshes(spec: RunSpec, where: Slice, limit: int | None) -> result.Sections:
  """Reports every mesh, those that fit first, in the order of their speed."""
  possible, rows = _sifted(spec, where)
  chosen = possible[:limit]
  for sizes in chosen:
    try:
      attempt = compilation.try_compile(replace(spec, mesh=sizes), where)
    except UsageError as error:
      rows.append(sizes | {'fits': False, 'refused': str(error)})
      continue
    rows.append(sizes | {'fits': attempt.fits, **summary(attempt.report)})
    compilation.log.info('%s', mesh_row(rows[-1]))
  left = f'not compiled: pass --set SWEEP_LIMIT={len(possible)}'
  rows += [sizes | {'fits': None, 'refused': left} for sizes in possible[len(chosen) :]]
  rows.sort(key=lambda row: (not row['fits'], row.get('roofline_seconds') or math.inf))
  return result.Sections({'topology': where.name, 'meshes': rows}, {where.name: list(map(mesh_row, rows))})


def _sifted(spec: RunSpec, where: Slice) -> tuple[list[dict[str, int]], list[dict[str, Any]]]:
  """Returns the sizes of meshes that may fit, and rows for those that cannot; compiles nothing."""
  possible, rows = [], []
  for sizes in _meshes(len(where.devices) // where.num_slices, where.num_slices):
    try:
      run = compilation.rehearse(replace(spec, mesh=sizes), where)
    except UsageError as error:
      rows.append(sizes | {'fits': False, 'refused': str(error)})
      continue
    held = sum(roofline.state_memory(run.abstract_state).values())
    if held > where.chip.hbm:
      why = 'parameters, optimizer and reference alone exceed the memory of a chip'
      rows.append(sizes | {'fits': False, 'total_bytes': held, 'refused': why})
    else:
      possible.append(sizes)
  return possible, rows


def _meshes(size: int, slices: int) -> list[dict[str, int]]:
  """All meshes of slices of a size: most shards of rows first, then most shards of parameters."""
  meshes = [
    {'data': data, 'fsdp': fsdp, 'model': size // (data * fsdp)}
    | ({'dcn_data': slices // across, 'dcn_fsdp': across} if slices > 1 else {})
    for data, fsdp, across in itertools.product(_divisors(size), _divisors(size), _divisors(slices))
    if size % (data * fsdp) == 0
  ]
  return sorted(meshes, key=lambda sizes: (sizes['model'], sizes.get('dcn_fsdp', 1), -sizes['fsdp']))


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]
