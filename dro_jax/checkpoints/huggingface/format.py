"""The description of how transformers keeps the models of one family, which reading and writing share."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dro_jax.checkpoints.huggingface.vocabulary import Tokenizer
from dro_jax.models.family import Config
from dro_jax.models.stored import Stored

Raw = Mapping[str, Any]


class Places(NamedTuple):
  """Where the arrays of a model are in one set of files.

  Attributes:
    names: the file's name of each stored array.
    copies: further names in the file, by the name that each repeats.
    unread: names that no model reads.
  """

  names: dict[str, str]
  copies: dict[str, str]
  unread: frozenset[str] = frozenset()


class Format(NamedTuple):
  """How transformers keeps one family.

  Attributes:
    kind: the family as errors name it.
    model_types: the values of `model_type` in config.json.
    read_config: `(config.json, its folder)`: our configuration, with dropout 0.
    config_json: `(config, dtype)`: the way back.
    stored: the arrays of a model, by the tree whose layers are not scanned.
    find: `(names in a file, config, config.json)`: the places of these arrays there.
    tokenizer: the vocabulary that a folder names; None where it names none.
    reward_stored: the arrays of a model with one score instead of logits (`models.value`'s tree); None where
      the family has no such models.
    notes: facts that a reader of an export needs.
  """

  kind: str
  model_types: tuple[str, ...]
  read_config: Callable[[Raw, Path], Config]
  config_json: Callable[[Any, str], dict[str, Any]]
  stored: Callable[[Any], list[Stored]]
  find: Callable[[Collection[str], Any, Raw], Places]
  tokenizer: Callable[[Path], Tokenizer | None]
  reward_stored: Callable[[Any], list[Stored]] | None = None
  notes: Callable[[Any], list[str]] = lambda config: []
