"""Compiles a run's step for devices that this machine does not have."""

import sys
import types
from typing import Any


class _Preflight(types.ModuleType):
  """A package that is called as its one function: `dro_jax.preflight` names both."""

  def __call__(self, *arguments: Any, **options: Any) -> Any:
    """Calls `preflight.preflight.preflight`."""
    from dro_jax.preflight.preflight import preflight

    return preflight(*arguments, **options)


sys.modules[__name__].__class__ = _Preflight
