"""Every loss: a pure function of float32 arrays that returns the per-example loss, never a mean.

Example:
  >>> import jax.numpy as jnp
  >>> loss = dro.losses.sft(jnp.array([-1.5, -0.5]))
  >>> loss.tolist()
  [1.5, 0.5]
"""

from dro_jax import errors
from dro_jax.losses.a_lol import *
from dro_jax.losses.dro import *
from dro_jax.losses.groups import *
from dro_jax.losses.kto import *
from dro_jax.losses.oreo import *
from dro_jax.losses.policy_gradient import *
from dro_jax.losses.preference import *
from dro_jax.losses.quantile import *
from dro_jax.losses.reward_models import *
from dro_jax.losses.weighted import *

# The files' own lists say what is public, so that a new loss is named in its file alone.
__all__ = sorted(name for name, value in globals().items() if callable(value))


def __getattr__(name: str) -> object:
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}{errors.did_you_mean(name, __all__)}')
