"""Writes the tokenizer of an exported policy."""

from etils import epath

from dro_jax.checkpoints.huggingface.files import write_json
from dro_jax.data.text import tokenizer_folders, tokenizer_json
from dro_jax.data.text.model_files import read_folder
from dro_jax.data.text.vocabularies import is_json, parse, read_model, vocabulary
from dro_jax.errors import UsageError

# The class that loads tokenizer.json unchanged, in transformers 4 and 5.
_FAST = 'PreTrainedTokenizerFast'
_LOADED = (
  "load its tokenizer with AutoTokenizer: transformers 5's T5Tokenizer builds another from the pieces, "
  'without line breaks, bytes and added tokens'
)
# ByT5's tokenizer numbers its sentinels from the last row.
_BYTE_IDS, _BYTE_EXTRA_IDS = 259, 125


def write(folder: epath.Path, spec: str | None, rows: int) -> list[str]:
  """Writes the tokenizer of a vocabulary beside a model of so many rows; returns notes for its reader."""
  if spec == 'bytes':
    extra_ids = min(_BYTE_EXTRA_IDS, max(rows - _BYTE_IDS, 0))
    _write_tokenizer_config(folder, 'ByT5Tokenizer', [f'<extra_id_{i}>' for i in range(extra_ids)])
    return []
  if spec is None:
    return ['without a tokenizer, because its vocabulary is unknown: pass --set VOCABULARY=FILE']
  try:
    if files := read_folder(spec, tokenizer_folders.FILES):
      tokenizer_folders.write(folder, files)
      return []
    content = read_model(parse(spec)[0])
  except UsageError as error:
    return [f'without a tokenizer: {error}']
  return (
    _write_json_tokenizer(folder, spec, content) if is_json(spec) else _write_pieces(folder, spec, content)
  )


def _write_pieces(folder: epath.Path, spec: str, model: bytes) -> list[str]:
  """Writes a SentencePiece model, and the tokenizer.json built from it."""
  extra_ids = parse(spec)[1]
  sentinels = [f'<extra_id_{i}>' for i in range(extra_ids)]
  (folder / 'spiece.model').write_bytes(model)
  try:
    made = tokenizer_json.from_sentencepiece(model, extra_ids)
  except UsageError as error:
    _write_tokenizer_config(folder, 'T5Tokenizer', sentinels)
    return [f'without a tokenizer.json: {error}. transformers builds its own tokenizer from spiece.model, '
            'which may give other ids']  # fmt: skip
  write_json(folder / 'tokenizer.json', made)
  _write_tokenizer_config(folder, _FAST, sentinels)
  return [_LOADED, *_unlike(tokenizer_json.unlike(vocabulary(spec).encode, made))]


def _unlike(names: list[str]) -> list[str]:
  return [f'tokenizer.json gives other ids than dro_jax for {", ".join(names)}'] if names else []


def _write_json_tokenizer(folder: epath.Path, spec: str, content: bytes) -> list[str]:
  read = tokenizer_json.from_json(content, spec)
  names = [token['content'] for token in read['added_tokens']]
  write_json(folder / 'tokenizer.json', read)
  _write_tokenizer_config(folder, _FAST, [name for name in names if tokenizer_json.SENTINEL.fullmatch(name)])
  return [_LOADED]


def _write_tokenizer_config(folder: epath.Path, tokenizer: str, sentinels: list[str]) -> None:
  special = {'eos_token': '</s>', 'pad_token': '<pad>', 'unk_token': '<unk>'}
  settings = {
    'tokenizer_class': tokenizer,
    'extra_ids': len(sentinels),
    'clean_up_tokenization_spaces': False,
  }
  # Sentinels are not listed as special for the fast tokenizer, so that text with a sentinel's name means it.
  listed = {} if tokenizer == _FAST else {'additional_special_tokens': sentinels}
  write_json(folder / 'special_tokens_map.json', special | listed)
  # In text the names of special tokens are plain text, as in dro_jax.
  write_json(folder / 'tokenizer_config.json', special | settings | listed | {'split_special_tokens': True})
