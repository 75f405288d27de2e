"""Preflight's result as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from dro_jax.parallel.partitioning import AXES
from dro_jax.printing import result
from dro_jax.run import summary


def shown_report(report: dict[str, Any]) -> result.Sections:
  sections: dict[str, Sequence[Mapping[str, Any]]] = {
    report['topology']: _lines(
      {
        'mesh': summary.mesh(report['mesh']),
        'batch': '{rows} rows of {prompt_length} + {response_length} tokens'.format(**report['batch']),
        'projected at once': _projected(**report['batch']),
        'parameters': summary.parameters(report['parameters']),
        'fits': 'yes' if report['fits'] else 'no',
      }
      | ({'compiler message': report['compiler_says']} if 'compiler_says' in report else {})
      | ({'fits with': report['remedy'] or _NONE} if 'tried' in report else {})
    ),
    'memory a chip': _lines({name: _gib(size) for name, size in report['memory'].items()}),
  }
  if 'seconds' in report:
    sections |= _speed(report)
  if 'tried' in report:
    sections['changes tried'] = list(map(mesh_row, report['tried']))
  return result.Sections(report, sections, _NOTE if 'seconds' in report else '')


def _projected(response_length: int, chunk_size: int | None, **_: int) -> str:
  return f'{chunk_size or response_length} of {response_length} response tokens to the vocabulary'


def _gib(size: float | int | None) -> str | None:
  return None if size is None else f'{size / 2**30:.3f} GiB'


def mesh_row(row: Mapping[str, Any]) -> dict[str, str | int | None]:
  """A change or a mesh that was tried."""
  labels = {name: row[name] for name in ('change', *AXES, 'dcn_data', 'dcn_fsdp') if name in row}
  best = row.get('roofline_seconds')
  return labels | {
    'fits': {True: 'yes', False: 'no'}.get(row['fits']), 'memory a chip': _gib(row.get('total_bytes')),
    'roofline': None if best is None else f'{best:.4g} s', 'bound by': row.get('bound_by'),
    'refused': row.get('refused'),
  }  # fmt: skip


_NONE = 'no change that preflight tried: take more chips, a smaller BATCH, or shorter texts'
_NOTE = (
  'roofline: the longest of compute, HBM, ICI and DCN, each alone at its peak, the others hidden; '
  "sum: nothing hidden; compiler: the compiler's own count of a core's cycles, without communication. 6ND "
  'leaves out attention, recomputation, and the projection of the prompt by cross-attention.'
)


def _speed(report: Mapping[str, Any]) -> dict[str, Sequence[Mapping[str, Any]]]:
  flops_, times = report['flops'], report['seconds']
  ends = lambda name: (report[name], report['nothing_hidden'][name])  # noqa: E731
  return {
    'a step': _lines(
      {
        'operations': f'{flops_["step"]:.4g}, {flops_["ratio"]:.2f} of 6ND ({flops_["rule_of_thumb"]:.4g})',
        'operations a chip, compiled': f'{flops_["per_chip"]:.4g}',
        'bytes a chip': ', '.join(
          f'{name} {report["bytes"][name] / 1e9:.3f} GB' for name in ('hbm', 'ici', 'dcn')
        ),
        'seconds': ', '.join(f'{name} {value:.4f}' for name, value in times.items() if name != 'most'),
        'roofline': f'{report["roofline_seconds"]:.4f} s, bound by {report["bound_by"]}',
        'compiler': f'{report["compiler_seconds"]:.4f} s',
        'tokens a second, padding included': 'at most {:,.0f}, {:,.0f} with nothing hidden'.format(
          *ends('tokens_per_second')
        ),
        'MFU': 'at most {:.1%}, {:.1%} with nothing hidden'.format(*ends('mfu')),
        'chip-hours': 'at least {:.2f}, {:.2f} with nothing hidden'.format(*ends('chip_hours')),
        'compilation': f'{report["compile_seconds"]:.0f} s',
      }
    ),
    'collectives': [
      row | {'runs': f'{row["runs"]:.0f}', 'sent_bytes': f'{row["sent_bytes"] / 1e6:.1f} MB'}
      for row in report['bytes']['collectives']
    ],
  }


def _lines(values: Mapping[str, Any]) -> list[dict[str, Any]]:
  return [{' ': name, '  ': value} for name, value in values.items()]
