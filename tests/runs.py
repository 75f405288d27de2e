"""Runs as tests write them: a spec's settings in one flat list, and meshes of some devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

from dro_jax import algorithms
from dro_jax.parallel.partitioning import Mesh, MeshSpec, make_mesh
from dro_jax.recipes import train as command
from dro_jax.run.spec import Batches, Compute, Keep, Optimizers, Policy, RunSpec, Value


@dataclasses.dataclass(frozen=True)
class LaidOut(MeshSpec):
  """The mesh that a function makes, of some of the devices that are here."""

  make: Callable[[], Mesh] = make_mesh

  def over(self, devices: Any = None) -> Mesh:
    return self.make() if devices is None else super().over(devices)


_PARTS = {
  'policy': (Policy, {'model': 'config'} | {name: name for name in ('init_from', 'vocabulary', 'lora')}),
  'compute': (
    Compute,
    dict.fromkeys(('chunk_size', 'dtype', 'scan_layers', 'remat', 'dropout_rate', 'compiler_options')),
  ),
  'value': (
    Value,
    {
      'value_readout': 'readout', 'value_shared': 'shared', 'value_frozen_trunk': 'frozen_trunk',
      'value_warmup_steps': 'warmup_steps',
    },
  ),
  'optimizers': (Optimizers, {'policy_optimizer': 'policy', 'value_optimizer': 'value'}),
  'batches': (
    Batches,
    {
      'batch_size': 'size', 'deal': 'deal', 'num_microbatches': 'microbatches', 'rows': 'rows',
      'unit_options': 'units',
    },
  ),
  'keep': (
    Keep,
    {
      'keep_last': 'last', 'keep_best': 'best', 'best_metric': 'metric', 'best_mode': 'mode',
      'best_bound': 'bound',
    },
  ),
}  # fmt: skip


def spec(data: Any, algorithm: Any = algorithms.dro_v, **settings: Any) -> RunSpec:
  """The spec of a run; schedules, rows, units and rollouts may be functions that make them."""
  fields = {}
  for name, (part, names) in _PARTS.items():
    given = {names[old] or old: _made(settings.pop(old)) for old in [*settings] if old in names}
    fields[name] = part(**given)
  if callable(mesh := settings.get('mesh')):
    settings['mesh'] = LaidOut(make=mesh)
  fields |= {name: _made(value) for name, value in settings.items()}
  return RunSpec(data=data, algorithm=algorithm, **fields)


def _made(value: Any) -> Any:
  return value() if callable(value) else value


def train(model_dir: Any, data: Any, algorithm: Any = algorithms.dro_v, **settings: Any) -> dict[str, Any]:
  """Trains, or resumes, as the command does."""
  own = {name: settings.pop(name) for name in ('replay', 'configs', 'metrics') if name in settings}
  return command.train(str(model_dir), spec(data, algorithm, **settings), **own)
