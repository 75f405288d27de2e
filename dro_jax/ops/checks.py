"""Shape checks whose messages name the argument."""

from collections.abc import Mapping

from dro_jax.types import Array


def check_same(**arrays: Array) -> None:
  """Raises ValueError unless all are `[B]`, of one length: broadcasting would hide a wrong argument."""
  _check(1, 'pass one number for each response (or pair), summed over its tokens', arrays)


def check_tokens(mask: Array, *, per_example: dict[str, Array], **token_arrays: Array) -> None:
  """Raises ValueError unless token arrays are `[B, T]` like `mask` and per-example arrays are `[B]`."""
  _check(2, 'pass one number for each token of each response', {'mask': mask, **token_arrays})
  for name, x in per_example.items():
    if x.shape != mask.shape[:1]:
      raise ValueError(
        f'{name} has shape {x.shape}, but there are {mask.shape[0]} responses: pass one number for each.'
      )


def check_groups(mask: Array, **arrays: Array) -> None:
  """Raises ValueError unless all arrays are `[G, K]` like `mask`."""
  _check(2, 'pass one number for each member of each group', {'mask': mask, **arrays})


def check_scalar(**arrays: Array) -> None:
  """Raises ValueError unless every array is a scalar."""
  for name, x in arrays.items():
    if x.shape != ():
      raise ValueError(f'{name} has shape {x.shape}: pass one number, taken over the global batch.')


def _check(rank: int, remedy: str, arrays: Mapping[str, Array]) -> None:
  first, expected = next((name, x.shape) for name, x in arrays.items())
  # A loss of one number a response would otherwise accept token log-probs, and be another method.
  if len(expected) != rank:
    raise ValueError(f'{first} has shape {expected}, not {rank} axes: {remedy}.')
  for name, x in arrays.items():
    if x.shape != expected:
      raise ValueError(f'{name} has shape {x.shape}, but {first} has {expected}: {remedy}.')
