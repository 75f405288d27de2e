"""Checkpoints of other projects, brought in for `--init_from`."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from etils import epath

from dro_jax import checkpoints
from dro_jax.data import vocabularies
from dro_jax.errors import UsageError
from dro_jax.importers import huggingface

_SENTENCEPIECE = 'spiece.model'


def import_checkpoint(source: str, model_dir: str, vocabulary: str | None = None) -> dict[str, Any]:
  """The `import_checkpoint` command: writes a Hugging Face T5 as a folder that `--init_from` takes.

  Args:
    source: a folder with config.json and model.safetensors or pytorch_model.bin, or a name on the hub.
    model_dir: the folder to write, which must not exist.
    vocabulary: `bytes` or a SentencePiece file; by default what the source names: its spiece.model, which is
      copied beside the checkpoint, or bytes for a ByT5.

  Raises:
    UsageError: the source cannot be imported, or the folder exists.
  """
  folder = huggingface.find_folder(source)
  target = epath.Path(model_dir).expanduser().absolute()
  if target.exists():
    raise UsageError(f'{target} exists already: name a folder that does not, or remove it first.')
  config, params = huggingface.load(folder)
  copied = None if vocabulary else _sentencepiece(folder)
  words = vocabularies.vocabulary(vocabulary or (str(copied) if copied else _bytes(folder)))
  model, vocabulary = dataclasses.asdict(config), str(target / copied.name) if copied else words.spec
  metadata = {'model': model, 'vocabulary': vocabulary, 'vocabulary_fingerprint': words.fingerprint}
  # Under another name until all of it is there.
  staged = target.with_name(f'.{target.name}.importing')
  staged.rmtree(missing_ok=True)
  checkpoints.save_params(staged, params, metadata)
  if copied:
    (staged / copied.name).write_bytes(copied.read_bytes())
  staged.rename(target)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  return {'model_dir': str(target), 'parameters': count, 'vocabulary': vocabulary, 'model': model}


def _sentencepiece(folder: Path) -> Path | None:
  file = folder / _SENTENCEPIECE
  return file if file.is_file() else None


def _bytes(folder: Path) -> str:
  file = folder / 'tokenizer_config.json'
  tokenizer = huggingface.read_json(file).get('tokenizer_class') if file.is_file() else None
  if tokenizer != 'ByT5Tokenizer':
    raise UsageError(
      f'{folder} has no {_SENTENCEPIECE}, and nothing says that it reads bytes: pass --set VOCABULARY=bytes, '
      'or the path of the SentencePiece model that it was trained with.'
    )
  return 'bytes'
