"""Every loss: a pure function of float32 arrays that returns the per-example loss, never a mean.

Example:
  >>> import jax.numpy as jnp
  >>> loss = dro.losses.sft(jnp.array([-1.5, -0.5]))
  >>> loss.tolist()
  [1.5, 0.5]
"""

from dro_jax.losses.a_lol import a_lol, a_lol_kl, a_lol_ref_free, a_lol_sequence, r_lol
from dro_jax.losses.dro import dro_p, dro_v_policy, dro_v_residual, dro_v_token_value, dro_v_value
from dro_jax.losses.groups import agro, copg, nca, pro, rebel, rloo
from dro_jax.losses.kto import bco, kto, kto_reference_point
from dro_jax.losses.oreo import oreo_policy, oreo_value
from dro_jax.losses.policy_gradient import gold, ppo_clip, ppo_token, reinforce, topr
from dro_jax.losses.preference import dpo, ipo, slic
from dro_jax.losses.quantile import qrpo
from dro_jax.losses.weighted import awr, sft, weighted_bc

__all__ = [
  'a_lol',
  'a_lol_kl',
  'a_lol_ref_free',
  'a_lol_sequence',
  'agro',
  'awr',
  'bco',
  'copg',
  'dpo',
  'dro_p',
  'dro_v_policy',
  'dro_v_residual',
  'dro_v_token_value',
  'dro_v_value',
  'gold',
  'ipo',
  'kto',
  'kto_reference_point',
  'nca',
  'oreo_policy',
  'oreo_value',
  'ppo_clip',
  'ppo_token',
  'pro',
  'qrpo',
  'r_lol',
  'rebel',
  'reinforce',
  'rloo',
  'sft',
  'slic',
  'topr',
  'weighted_bc',
]
