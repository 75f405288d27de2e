"""Renamed settings: saved configurations are compared and shown with today's names.

Until a run was a `RunSpec`, `train` had all of its settings as parameters of its own.
"""

from collections.abc import Iterable, Iterator

from dro_jax.configs.text import Binding, read, split

# CONFIGURABLE.PARAMETER then, and now; None where another setting of today has the same value.
RENAMED = {
  'train.data': 'RunSpec.data',
  'train.algorithm': 'RunSpec.algorithm',
  'train.reference': 'RunSpec.reference',
  'train.schedule': 'RunSpec.schedule',
  'train.rollouts': 'RunSpec.rollouts',
  'train.mesh': 'RunSpec.mesh',
  'train.seed': 'RunSpec.seed',
  'train.init_from': 'Policy.init_from',
  'train.model': 'Policy.config',
  'train.vocabulary': 'Policy.vocabulary',
  'train.chunk_size': 'Compute.chunk_size',
  'train.dropout_rate': 'Compute.dropout_rate',
  'train.dtype': 'Compute.dtype',
  'train.scan_layers': 'Compute.scan_layers',
  'train.remat': 'Compute.remat',
  'train.compiler_options': 'Compute.compiler_options',
  'train.value_readout': 'Value.readout',
  'train.value_shared': 'Value.shared',
  'train.value_frozen_trunk': 'Value.frozen_trunk',
  'train.policy_optimizer': 'Optimizers.policy',
  'train.value_optimizer': 'Optimizers.value',
  'train.batch_size': 'Batches.size',
  'train.deal': 'Batches.deal',
  'train.num_microbatches': 'Batches.microbatches',
  'train.rows': 'Batches.rows',
  'train.unit_options': 'Batches.units',
  'train.keep_last': 'Keep.last',
  'train.keep_best': 'Keep.best',
  'train.best_metric': 'Keep.metric',
  'train.best_mode': 'Keep.mode',
  'train.rehearsal': None,
  'fit_value.data': None,
  'fit_value.mesh': None,
  'fit_value.chunk_size': None,
  'fit_value.train': 'fit_value.spec',
  'a_lol_stages.data': None,
  'a_lol_stages.algorithm': None,
  'a_lol_stages.train': 'a_lol_stages.spec',
}

# Settings that no longer exist: the algorithm decides whether rewards are required.
_REMOVED = ('load_triplets.rewards_required',)

# Bindings that hold the renamed settings together, which old configurations lack.
_STRUCTURE = {
  'train.spec': '@RunSpec()',
  'RunSpec.policy': '@Policy()',
  'RunSpec.compute': '@Compute()',
  'RunSpec.value': '@Value()',
  'RunSpec.optimizers': '@Optimizers()',
  'RunSpec.batches': '@Batches()',
  'RunSpec.keep': '@Keep()',
}


def new_name(name: str) -> str | None:
  """Today's name of a renamed setting, with SCOPE/; '' if it needs none; `None` if it was not renamed."""
  scope, selector, parameter = split(name)
  old = f'{selector.rpartition(".")[2]}.{parameter}'
  if old not in RENAMED:
    return None
  return f'{scope}/{RENAMED[old]}'.lstrip('/') if RENAMED[old] else ''


def rename_all(bindings: Iterable[Binding]) -> Iterator[Binding]:
  """A saved configuration's bindings as they would be saved today."""
  bindings = [binding for binding in bindings if not _is_removed(binding.name)]
  if not any(new_name(binding.name) is not None for binding in bindings):
    yield from bindings
    return
  for binding in bindings:
    name = new_name(binding.name)
    if name is None:
      yield binding
    elif name:
      yield binding._replace(name=name, value=_renamed_value(name, binding.value))
  for name, value in _STRUCTURE.items():
    yield Binding(name, value, 'renamed')


def _is_removed(name: str) -> bool:
  _, selector, parameter = split(name)
  return f'{selector.rpartition(".")[2]}.{parameter}' in _REMOVED


def _renamed_value(name: str, value: str) -> str:
  """A reference to the result of a function that older versions referred to."""
  if name.endswith('.spec'):
    scope = value.removeprefix('@').rpartition('/')[0]
    return f'@{scope}/RunSpec()' if scope else '@RunSpec()'
  return value


def read_saved(text: str, origin: str) -> Iterator[Binding]:
  """The bindings of a saved configuration, with today's names."""
  return rename_all(read(text, origin))
