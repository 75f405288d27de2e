"""Refuses parts of a run's description that are of another kind, and says what to pass."""

import os
from collections.abc import Mapping
from typing import Any

from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError, shown


def refuse_other_data(data: Any) -> None:
  """Refuses data that are neither triplets nor a function that reads them.

  Raises:
    UsageError: they are a path, or records.
  """
  if isinstance(data, str | os.PathLike):
    raise UsageError(
      f'data={os.fspath(data)!r} is a path, and a run needs the triplets that are read from it: pass '
      f'RunSpec(data=dro.load_triplets({os.fspath(data)!r}, vocabulary=policy.vocabulary)).'
    )
  if isinstance(data, list | tuple | Mapping) and not isinstance(data, Triplets):
    raise UsageError(
      f'data={shown(data)} is not triplets: write the records to a file, one JSON object a line, and pass '
      "RunSpec(data=dro.load_triplets('FILE.jsonl', vocabulary=policy.vocabulary))."
    )


def refuse_other_policy(policy: Any, kind: type) -> None:
  """Refuses what is no `Policy`, such as the folder of one."""
  if isinstance(policy, str | os.PathLike):
    raise UsageError(
      f'policy={os.fspath(policy)!r} is a path, and a run needs the policy that lies there: pass '
      f'RunSpec(policy=dro.pretrained({os.fspath(policy)!r})).'
    )
  refuse_other_part('policy', policy, kind)


def refuse_other_part(name: str, part: Any, kind: type) -> None:
  """Refuses a part that is of another kind, such as a mapping of its fields."""
  if not isinstance(part, kind):
    fields = (
      ', '.join(f'{key}={value!r}' for key, value in part.items()) if isinstance(part, Mapping) else '...'
    )
    raise UsageError(
      f'{name}={shown(part)} is of type {type(part).__name__}: pass {name}=dro.{kind.__name__}({fields}).'
    )


def refuse_other_reference(reference: Any) -> None:
  """Refuses what cannot build a reference, such as the name of one."""
  if not hasattr(reference, 'build'):
    raise UsageError(
      f'reference={shown(reference)} is not a reference: pass reference=dro.Frozen(), dro.Cached(STORE), '
      'dro.Soft(), dro.Hard() or dro.AdapterOff().'
    )
