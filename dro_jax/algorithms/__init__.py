"""Algorithms as data: the losses of each, and the scores and columns that they need.

Example:
  >>> dro.algorithms.dro_v(tau=0.3).uses_value, dro.algorithms.kto(beta=0.1).uses_value
  (True, False)
"""

from dro_jax.algorithms.a_lol import *
from dro_jax.algorithms.base import (
  NO_LOSS,
  Algorithm,
  Online,
  by_group,
  by_pair,
  by_response,
  check_columns,
  with_batch_value,
)
from dro_jax.algorithms.dro import *
from dro_jax.algorithms.groups import *
from dro_jax.algorithms.kto import *
from dro_jax.algorithms.labels import *
from dro_jax.algorithms.labels import Baseline, Labels, Thumbs
from dro_jax.algorithms.online import *
from dro_jax.algorithms.oreo import *
from dro_jax.algorithms.policy_gradient import *
from dro_jax.algorithms.preference import *
from dro_jax.algorithms.quantile import *
from dro_jax.algorithms.weighted import *

__all__ = [
  'a_lol', 'a_lol_kl', 'a_lol_ref_free', 'a_lol_sequence', 'agro', 'awr', 'bco', 'column_labels', 'copg',
  'copg_online', 'data_quantiles', 'dataset_mean_labels', 'dpo', 'dro_fixed_value', 'dro_p', 'dro_v',
  'dro_v_binary', 'dro_v_residual', 'filtered_sft', 'gold', 'ipo', 'kto', 'minibatch_mean_baseline',
  'minibatch_mean_labels', 'nca', 'oreo', 'ppo_clip', 'ppo_online', 'pro', 'prompt_mean_labels',
  'prompt_quantiles', 'qrpo', 'r_lol', 'rebel', 'regression', 'reinforce', 'rloo', 'rloo_online', 'sft',
  'slic', 'threshold_labels', 'topr', 'value_baseline', 'value_labels', 'weighted_bc', 'zero_baseline',
]  # fmt: skip
