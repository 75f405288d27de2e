"""Shape checks whose messages name the argument."""

from dro_jax.types import Array


def check_same(**arrays: Array) -> None:
  """Raises ValueError unless all shapes are the first's: broadcasting would hide a wrong argument."""
  (first, expected), *others = ((name, x.shape) for name, x in arrays.items())
  for name, shape in others:
    if shape != expected:
      raise ValueError(
        f'{name} has shape {shape}, but {first} has {expected}: pass one entry for each example.'
      )


def check_scalar(**arrays: Array) -> None:
  """Raises ValueError unless every array is a scalar."""
  for name, x in arrays.items():
    if x.shape != ():
      raise ValueError(f'{name} has shape {x.shape}: pass one number, taken over the global batch.')


def check_tokens(mask: Array, *, per_example: dict[str, Array], **token_arrays: Array) -> None:
  """Raises ValueError unless token arrays are `[B, T]` like `mask` and per-example arrays are `[B]`."""
  check_same(mask=mask, **token_arrays)
  for name, x in per_example.items():
    if x.shape != mask.shape[:1]:
      raise ValueError(
        f'{name} has shape {x.shape}, but there are {mask.shape[0]} responses: pass one number each.'
      )
