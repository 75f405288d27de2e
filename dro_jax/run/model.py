"""A run's model: its size and kind, as the spec names it or as its checkpoint has it."""

import dataclasses
import math

from dro_jax.checkpoints import policy as saved_policies
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models.family import Config
from dro_jax.run.folder.legacy import Legacy
from dro_jax.run.spec import Compute, Policy, Value

# The rows of a new embedding table are a multiple of this, as in published models, so meshes divide them.
VOCABULARY_MULTIPLE = 128
# Fields of a model's configuration that say how it is computed, not how large it is.
_COMPUTED = ('dtype', 'scan_layers', 'remat', 'dropout_rate')


def find_model_config(policy: Policy, compute: Compute, vocabulary: vocabularies.Vocabulary) -> Config:
  """The configuration of the run's model: the given one or the checkpoint's, with the run's vocabulary.

  Raises:
    UsageError: there is no model, or it has too few ids for the vocabulary.
  """
  config = policy.config
  if config is None and policy.init_from is None:
    raise UsageError(
      'no model: start from a checkpoint (--init_from=DIR), or name a size to start at random '
      '(--gin_file=models/t5_1_1_tiny.gin).'
    )
  if policy.init_from is not None:
    saved = saved_policies.config_of(policy.init_from)
    _refuse_other_size(config, saved, policy.init_from)
    config = saved if config is None else dataclasses.replace(config, vocab_size=saved.vocab_size)
  if config.vocab_size is None:
    size = VOCABULARY_MULTIPLE * math.ceil(vocabulary.size / VOCABULARY_MULTIPLE)
    config = dataclasses.replace(config, vocab_size=size)
  if config.vocab_size < vocabulary.size:
    raise UsageError(
      f'the vocabulary {vocabulary.spec!r} has {vocabulary.size} ids, but {type(config).__name__}.vocab_size '
      f'is {config.vocab_size}: leave it unset, or pass at least as many.'
    )
  changes = {name: getattr(compute, name) for name in _COMPUTED if getattr(compute, name) is not None}
  return dataclasses.replace(config, **changes)


def _refuse_other_size(config: Config | None, saved: Config, init_from: str) -> None:
  same = {'vocab_size': saved.vocab_size} | {name: getattr(saved, name) for name in _COMPUTED}
  if config is None or dataclasses.replace(config, **same) == saved:
    return
  differing = [
    f'{name} {getattr(saved, name)} there and {value} here'
    for name, value in dataclasses.asdict(dataclasses.replace(config, **same)).items()
    if value != getattr(saved, name)
  ]
  raise UsageError(
    f'the checkpoint {init_from} holds a model of another size than is named: {", ".join(differing)}. Name '
    "its own (--gin_file=models/...), or take the checkpoint's: --gin.Policy.config=None."
  )


def refuse_idle_value(value: Value, legacy: Legacy) -> None:
  """Refuses settings of a network that a scalar value does not read."""
  if value.readout == 'scalar' and (value.shared or value.frozen_trunk) and not legacy.has_scalar_value:
    raise UsageError(
      'VALUE_READOUT=scalar is one learned number, which reads no network, so that VALUE_SHARED and '
      'VALUE_FROZEN_TRUNK would change nothing: remove them, or pass --set VALUE_READOUT=batch, which is one '
      'number for a batch too and reads one.'
    )
