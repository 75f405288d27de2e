"""The vocabulary of a Hugging Face folder, with its added tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dro_jax.checkpoints.huggingface.files import read_json
from dro_jax.data.text import model_files, tokenizer_folders, tokenizer_json, vocabularies
from dro_jax.errors import UsageError

PIECES, TOKENIZER = 'spiece.model', 'tokenizer.json'


class Tokenizer(NamedTuple):
  """A vocabulary that a source names.

  Attributes:
    spec: its spec there.
    made: a tokenizer.json that was built where the source lacks it.
    files: all files of a tokenizer's folder, by name, where it takes several.
  """

  spec: str
  made: dict[str, Any] | None = None
  files: Mapping[str, bytes] | None = None


def find_files(folder: Path) -> Tokenizer | None:
  """The tokenizer of a decoder-only model's folder, as its files; `None` where it has none."""
  files = model_files.read_folder(str(folder), tokenizer_folders.FILES)
  has_any = tokenizer_folders.JSON in files or tokenizer_folders.PIECES in files
  return Tokenizer(str(folder), files=files) if has_any else None


def find(folder: Path) -> Tokenizer | None:
  """The vocabulary of a T5's folder; `None` where its files name none.

  The SentencePiece file if no tokens were added to it, else tokenizer.json, else one built from the pieces
  and the added tokens.

  Raises:
    UsageError: a file cannot be read, or added tokens cannot be kept.
  """
  settings = _optional(folder / 'tokenizer_config.json')
  extra_ids = settings.get('extra_ids', 100)
  option = '' if extra_ids == 100 else f'#extra_ids={extra_ids}'
  fast, pieces = folder / TOKENIZER, folder / PIECES
  if fast.is_file() and (not pieces.is_file() or tokenizer_json.added(read_json(fast))):
    return Tokenizer(str(fast))
  if not pieces.is_file():
    return Tokenizer('bytes') if settings.get('tokenizer_class') == 'ByT5Tokenizer' else None
  spec = f'{pieces}{option}'
  added = _added(folder, settings)
  if not added:
    return Tokenizer(spec)
  try:
    made = tokenizer_json.from_sentencepiece(vocabularies.read_model(str(pieces)), extra_ids, added)
  except UsageError as error:
    raise UsageError(f'{folder}: its added tokens cannot be kept: {error}') from error
  return Tokenizer(spec, made)


def _optional(file: Path) -> Mapping[str, Any]:
  return read_json(file) if file.is_file() else {}


def _added(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Added tokens of a slow tokenizer, from the files of transformers 4."""
  tokens = {name: {'id': number} for name, number in _optional(folder / 'added_tokens.json').items()}
  for number, token in settings.get('added_tokens_decoder', {}).items():
    tokens[token['content']] = {**token, 'id': int(number)}
  return [{**token, 'content': name} for name, token in tokens.items() if not tokenizer_json.is_usual(name)]


__all__ = ['PIECES', 'TOKENIZER', 'Tokenizer', 'find', 'find_files']
