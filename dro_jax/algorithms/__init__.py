"""Algorithms as data: the losses of each, and the scores and columns that they need.

Example:
  >>> dro.algorithms.dro_v(tau=0.3).uses_value, dro.algorithms.kto(beta=0.1).uses_value
  (True, False)
"""

import inspect
from typing import Any

from dro_jax.algorithms.a_lol import *
from dro_jax.algorithms.base import NO_LOSS as NO_LOSS
from dro_jax.algorithms.base import Algorithm as Algorithm
from dro_jax.algorithms.base import Online as Online
from dro_jax.algorithms.base import by_group as by_group
from dro_jax.algorithms.base import by_pair as by_pair
from dro_jax.algorithms.base import by_response as by_response
from dro_jax.algorithms.base import check_columns as check_columns
from dro_jax.algorithms.base import with_batch_value as with_batch_value
from dro_jax.algorithms.dro import *
from dro_jax.algorithms.groups import *
from dro_jax.algorithms.kto import *
from dro_jax.algorithms.labels import *
from dro_jax.algorithms.labels import Baseline as Baseline
from dro_jax.algorithms.labels import Labels as Labels
from dro_jax.algorithms.labels import Thumbs as Thumbs
from dro_jax.algorithms.next_token_kl import NextTokenKl as NextTokenKl
from dro_jax.algorithms.next_token_kl import with_next_token_kl as with_next_token_kl
from dro_jax.algorithms.online import *
from dro_jax.algorithms.oreo import *
from dro_jax.algorithms.policy_gradient import *
from dro_jax.algorithms.preference import *
from dro_jax.algorithms.quantile import *
from dro_jax.algorithms.reward_models import *
from dro_jax.algorithms.weighted import *
from dro_jax.errors import did_you_mean

# The functions of these files make algorithms of others, and are none.
_MAKERS = ('dro_jax.algorithms.base', 'dro_jax.algorithms.next_token_kl', 'dro_jax.errors')
# The files' own lists say what is public, so that a new algorithm is named in its file alone.
__all__ = sorted(
  name for name, value in globals().items() if inspect.isfunction(value) and value.__module__ not in _MAKERS
)


def __getattr__(name: str) -> Any:
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}{did_you_mean(name, __all__)}')
