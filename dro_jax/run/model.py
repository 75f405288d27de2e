"""A run's model: its size and kind, as the spec names it or as its checkpoint has it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from dro_jax.checkpoints import policy as saved_policies
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models.family import Config
from dro_jax.models.policy import family_of
from dro_jax.run.folder.legacy import Legacy
from dro_jax.run.spec import Compute, Policy, Value

# The rows of a new embedding table are a multiple of this, as in published models, so meshes divide them.
VOCABULARY_MULTIPLE = 128
# Of a model's configuration: the vocabulary's ids, and how it is computed, whatever its size.
_IDS = ('pad', 'eos', 'start')
_COMPUTED = ('dtype', 'scan_layers', 'remat', 'attention', 'dropout_rate')
# What a checkpoint says of a model of its size: of its vocabulary, and the context that it was trained for.
_BROUGHT = ('vocab_size', *_IDS, 'max_positions')


def find_model_config(policy: Policy, compute: Compute, vocabulary: vocabularies.Vocabulary) -> Config:
  """The configuration of the run's model: the given one or the checkpoint's, with the run's vocabulary.

  Raises:
    UsageError: there is no model, or it has too few ids for the vocabulary.
  """
  config = policy.config
  if config is None and policy.init_from is None:
    raise UsageError(
      'no model: start from a checkpoint, as Policy(init_from=DIR) or --init_from=DIR, or name a size to '
      'start at random, as Policy(config=...) or --gin_file=models/t5_1_1_tiny.gin.'
    )
  if policy.init_from is not None:
    saved = saved_policies.config_of(policy.init_from)
    _refuse_other_size(config, saved, policy.init_from)
    config = saved if config is None else dataclasses.replace(config, **_fields(saved, _BROUGHT))
  if config.vocab_size is None:
    size = VOCABULARY_MULTIPLE * math.ceil(vocabulary.size / VOCABULARY_MULTIPLE)
    config = dataclasses.replace(config, vocab_size=size)
  if config.vocab_size < vocabulary.size:
    raise UsageError(
      f'the vocabulary {vocabulary.spec!r} has {vocabulary.size} ids, but {type(config).__name__}.vocab_size '
      f'is {config.vocab_size}: leave it unset, or pass at least as many.'
    )
  changes = {name: getattr(compute, name) for name in _COMPUTED if getattr(compute, name) is not None}
  return with_ids(dataclasses.replace(config, **changes), vocabulary)


def with_ids(config: Config, vocabulary: vocabularies.Vocabulary) -> Config:
  """The model with the vocabulary's ids of special tokens, where its configuration has them.

  Raises:
    UsageError: all models of its family end texts by another id.
  """
  ids = {name: getattr(vocabulary.special, name) for name in _IDS if hasattr(config, name)}
  config = dataclasses.replace(config, **ids)
  eos = family_of(config).tokens(config).eos
  if eos != vocabulary.special.eos:
    raise UsageError(
      f'the vocabulary {vocabulary.spec!r} ends a text with the id {vocabulary.special.eos}, but a '
      f'{type(config).__name__} always with {eos}: pass a vocabulary of such models, as '
      'Policy(vocabulary=...) or --set VOCABULARY=....'
    )
  return config


def _fields(config: Config, names: Sequence[str]) -> dict[str, Any]:
  """Those of these fields that a configuration has."""
  return {name: getattr(config, name) for name in names if hasattr(config, name)}


def _refuse_other_size(config: Config | None, saved: Config, init_from: str) -> None:
  if config is not None and type(config) is not type(saved):
    raise UsageError(
      f'the checkpoint {init_from} holds a model of another kind, {type(saved).__name__}, than is named, '
      f"{type(config).__name__}. Name its own (--gin_file=models/...), or take the checkpoint's: "
      '--gin.Policy.config=None.'
    )
  same = _fields(saved, (*_BROUGHT, *_COMPUTED))
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
      "readout='scalar' is one learned number, which reads no network, so that shared and frozen_trunk would "
      "change nothing: remove them (VALUE_SHARED, VALUE_FROZEN_TRUNK), or pass Value(readout='batch'), or "
      '--set VALUE_READOUT=batch, which is one number for a batch too and reads one.'
    )
