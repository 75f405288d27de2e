"""Every loss: a pure function of float32 arrays that returns the per-example loss, never a mean."""

from dro_jax.losses.dro import dro_p, dro_v_policy, dro_v_residual, dro_v_token_value, dro_v_value
from dro_jax.losses.kto import kto, kto_reference_point
from dro_jax.losses.weighted import sft

__all__ = [
  'dro_p',
  'dro_v_policy',
  'dro_v_residual',
  'dro_v_token_value',
  'dro_v_value',
  'kto',
  'kto_reference_point',
  'sft',
]
