"""The formats of all families in transformers."""

from pathlib import Path

from dro_jax.checkpoints.huggingface import causal, t5
from dro_jax.checkpoints.huggingface.format import Format, Raw
from dro_jax.errors import UsageError

# By the names of families in `models.policy.FAMILIES`.
FORMATS: dict[str, Format] = {'t5': t5.FORMAT, 'causal': causal.FORMAT}


def format_of(raw: Raw, folder: Path) -> Format:
  """The format of a config.json.

  Raises:
    UsageError: no family here has models of this type.
  """
  kind = raw.get('model_type')
  for each in FORMATS.values():
    if kind in each.model_types:
      return each
  known = ', '.join(name for each in FORMATS.values() for name in each.model_types)
  raise UsageError(f'{folder / "config.json"}: its model_type is {kind!r}, but only {known} can be imported.')
