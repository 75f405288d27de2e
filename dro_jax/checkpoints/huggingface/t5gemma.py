"""T5Gemma and T5Gemma 2 of Hugging Face: the names in their files."""

from collections.abc import Collection
from pathlib import Path

from dro_jax.checkpoints.huggingface import t5gemma_config, vocabulary
from dro_jax.checkpoints.huggingface.format import Format, Places, Raw
from dro_jax.models.t5gemma import names
from dro_jax.models.t5gemma.config import T5GemmaConfig


def read_config(raw: Raw, folder: Path) -> T5GemmaConfig:
  """The configuration of a config.json; of a model that reads images, without these."""
  return t5gemma_config.read_config(raw, folder / 'config.json')


def find(present: Collection[str], config: T5GemmaConfig, raw: Raw) -> Places:
  """The places of a model's weights in a file."""
  del raw
  in_file = {names.stored_name(name): name for name in present}
  places = {each.name: in_file.get(each.name, each.name) for each in names.stored(config)}
  copies = {
    in_file[copy]: places[repeated] for copy, repeated in names.copies(config).items() if copy in in_file
  }
  return Places(places, copies, frozenset(filter(names.is_of_images, present)))


FORMAT = Format(
  kind='a T5Gemma',
  model_types=tuple(t5gemma_config.KINDS),
  read_config=read_config,
  config_json=t5gemma_config.config_json,
  stored=names.stored,
  find=find,
  tokenizer=vocabulary.find_files,
)
