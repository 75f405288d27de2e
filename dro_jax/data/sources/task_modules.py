"""A user's task modules, imported by name."""

import types
from collections.abc import Sequence

from dro_jax import files
from dro_jax.errors import UsageError

_imported: dict[str, str] = {}  # Digests of the task modules that this process has imported.


def import_modules(names: str | Sequence[str]) -> None:
  """Imports a user's task modules: one name, or several."""
  for name in [names] if isinstance(names, str) else names:
    import_module(name)


def import_module(name: str) -> types.ModuleType:
  """Imports a user's task module: a dotted name, or a .py file.

  Raises:
    UsageError: the module cannot be imported, or its file changed since this process imported it.
  """
  module = files.import_module(name, f"task module '{name}'", register=True)
  file = getattr(module, '__file__', None)
  if file and file.endswith('.py'):
    now = files.code_digest(file)
    if _imported.setdefault(file, now) != now:
      raise UsageError(
        f"task module '{name}': the file, or one that it imports, changed since this process imported it, "
        'and the old tasks are still registered: start Python again'
      )
  return module
