"""A checkpoint's metadata, whichever version of this package wrote it."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

# Keys of the metadata: the meaning of "best" in the run, and the hash of the state.
BEST_METRIC, BEST_MODE, BEST_BOUND, DIGEST = 'best_metric', 'best_mode', 'best_bound', 'digest'
# True of a model with one score instead of logits (see `reward_models`).
REWARD_MODEL = 'reward_model'
# What transformers loads an imported model by: a name on the hub, or a folder.
TRANSFORMERS_NAME = 'transformers_name'
# The version of the metadata. In 1, which was not written down, a value `batch` was today's `scalar`, and
# statistics that couple held-out responses were taken over each batch, in the order of the file.
FORMAT = 2
# The prefix that earlier versions gave to the names of dro_jax's own reward functions.
_EARLIER_REWARDS = 'dro_jax.rewards:'


def read_metadata(folder: epath.Path) -> dict[str, Any]:
  """The metadata in a checkpoint's folder, in today's form."""
  return upgrade_metadata(json.loads((folder / 'metadata' / 'metadata').read_text()))


def saved_format(saved: Mapping[str, Any]) -> int:
  """The version of a run's metadata (see `FORMAT`)."""
  return saved.get('format', 1)


def upgrade_metadata(saved: Mapping[str, Any]) -> dict[str, Any]:
  """Metadata of any earlier version, in the form of this one."""
  upgraded = {'family': 't5', **saved}  # Earlier versions had T5 only.
  value = saved.get('value') or {}
  if saved_format(saved) < 2 and value.get('readout') == 'batch':
    upgraded['value'] = {**value, 'readout': 'scalar'}
  for settings in ('online', 'decoding'):
    if isinstance(reward := (saved.get(settings) or {}).get('reward'), str):
      upgraded[settings] = {**saved[settings], 'reward': reward.removeprefix(_EARLIER_REWARDS)}
  return upgraded
