"""How a run read its data, by the metadata of its checkpoints."""

import ast
import pathlib
from collections.abc import Mapping
from typing import Any

from dro_jax.configs.renamed import read_saved
from dro_jax.run.folder.configs import CONFIG, newest_text


def options_of(saved: Mapping[str, Any]) -> dict[str, Any]:
  """The options of a run's texts, as `load_triplets` takes them: template, lengths, chat and so on.

  Args:
    saved: the metadata of one of its checkpoints; an imported policy has no options.
  """
  options: dict[str, Any] = (saved.get('data') or {}).get('options', {})
  return options


def keep_of(saved: Mapping[str, Any]) -> dict[str, Any]:
  """The option `keep` for reading a run's data again; empty where `auto` still means the same.

  Args:
    saved: the metadata of its newest checkpoint; empty where there is no run.
  """
  keep = options_of(saved).get('keep', 'auto')
  return {} if keep == 'auto' else {'keep': keep}


def names_of(saved: Mapping[str, Any], checkpoint: str | pathlib.Path) -> dict[str, Any]:
  """A run's `columns` and `map_reward`, and `rewards` where it had them; None where it had none.

  Args:
    saved: the metadata of one of its checkpoints.
    checkpoint: the folder of that checkpoint, MODEL_DIR/checkpoints/STEP. A run of an earlier version has
      them in its configuration only.
  """
  names: dict[str, Any] | None = (saved.get('data') or {}).get('read')
  if names is not None:
    return names
  text = newest_text(pathlib.Path(checkpoint).parent.parent, CONFIG) or ''
  bound = {binding.name: binding.value for binding in read_saved(text, CONFIG) if binding.name}

  def value(name: str) -> Any:
    text = bound.get(name) or 'None'
    return value(text[1:]) if text.startswith('%') else ast.literal_eval(text)

  return {name: value(f'load_triplets.{name}') for name in ('columns', 'map_reward')}
