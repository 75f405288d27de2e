"""Runs, sweeps and experiments on TPU VMs, GKE, Slurm and this machine."""

import importlib

# Where job and sweep files of the release before import from; they work for one release.
_MOVED = {
  'cells': 'launch.sweep',
  **{name: f'launch.backends.{name}' for name in ('gke', 'local', 'slurm', 'tpu_vm')},
}


def __getattr__(name: str):
  if name in _MOVED:
    return importlib.import_module(_MOVED[name])
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
