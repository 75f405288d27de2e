"""Aligns language models offline from (prompt, response, reward) triplets.

`import dro_jax as dro` gives the names below. Each is imported when it is first used, so that the command
line answers before jax is imported.
"""

import importlib
from typing import Any

from dro_jax.errors import did_you_mean

__version__ = '0.1.0'

# The public names, each with the module that has it; a module of that name stands for itself.
_MODULES = {
  'pretrained': 'api', 'fresh': 'api', 'load_triplets': 'data.triplets', 'inspect': 'api',
  'RunSpec': 'run.spec', 'Policy': 'run.spec', 'Compute': 'run.spec', 'Value': 'run.spec',
  'Optimizers': 'run.spec', 'Batches': 'run.spec', 'Keep': 'run.spec', 'replace': 'run.spec',
  'Schedule': 'run.schedule', 'MeshSpec': 'parallel.partitioning',
  'RowOptions': 'run.batches', 'UnitOptions': 'data.batches.groups',
  'RolloutOptions': 'run.sampling.rollouts',
  'Frozen': 'step.reference', 'Cached': 'step.reference', 'Soft': 'step.reference', 'Hard': 'step.reference',
  'AdapterOff': 'step.reference', 'NextTokenKl': 'algorithms', 'Lora': 'models.lora',
  'adafactor': 'step.optimizers', 'adamw': 'step.optimizers',
  'build': 'run.build', 'train': 'run.train', 'replay': 'run.replay', 'preflight': 'preflight',
  'make_hooks': 'run.hooks', 'Tracker': 'run.folder.trackers',
  'load': 'api', 'outcome': 'api', 'report': 'api', 'judge': 'evaluation.judge.judge',
  'Decoding': 'run.sampling.decoding', 'Endpoint': 'evaluation.judge.endpoint',
  'algorithms': 'algorithms', 'losses': 'losses',
}  # fmt: skip

__all__ = [*_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}{did_you_mean(name, _MODULES)}')
  module = importlib.import_module(f'{__name__}.{_MODULES[name]}')
  return module if name == _MODULES[name] else getattr(module, name)


def __dir__() -> list[str]:
  return sorted([*__all__, '__version__'])
