"""The tokenizer in a GGUF file, written as a folder in Hugging Face's layout (see `tokenizer_folders`).

A byte-level vocabulary becomes a tokenizer.json. GGUF names the rule by which its texts are split into words
(`tokenizer.ggml.pre`), and the rules here are the models' own, as llama.cpp has them. (transformers knows
fewer, and takes GPT-2's for the others: of two blanks before a digit of SmolLM's it makes two tokens, where
the model learnt one.) A SentencePiece vocabulary becomes a tokenizer.model.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dro_jax.data.text import tokenizer_folders
from dro_jax.errors import UsageError
from dro_jax.files import json_text

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # Types of tokens, of which SentencePiece has the same numbers.
_ROLES = {'bos_token': 'bos', 'eos_token': 'eos', 'pad_token': 'padding', 'unk_token': 'unknown'}

# What is a word: at most this many digits of a number, and a letter with the mark before it.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,{digits}}}"
  r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# Names of rules by kind.
_GPT2 = ('gpt-2', 'gpt2', 'mpt', 'olmo', 'jais', 'default')
_DIGITS = ('smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone', 'minerva-7b')
_LLAMA3 = ('llama3', 'llama-v3', 'llama-bpe', 'falcon3', 'pixtral')
_QWEN2 = ('qwen2', 'deepseek-r1-qwen', 'megrez')


def read_metadata(file: str | os.PathLike[str]) -> dict[str, Any]:
  """What a GGUF file says of its model and tokenizer, by key.

  Raises:
    UsageError: `gguf` is not installed, or the file is none.
  """
  try:
    import gguf
  except ImportError as error:
    raise UsageError(f"{file}: reading GGUF needs the package gguf: pip install 'dro_jax[gguf]'") from error
  try:
    fields = gguf.GGUFReader(os.fspath(file)).fields
  except (OSError, ValueError) as error:
    raise UsageError(f'{file} cannot be read as GGUF: {error}') from error
  kept = {name: field for name, field in fields.items() if name.startswith(('general.', 'tokenizer.'))}
  return {name: field.contents() for name, field in kept.items()}


def write_tokenizer(metadata: Mapping[str, Any], folder: Any) -> None:
  """Writes the folder of a GGUF file's tokenizer.

  Args:
    metadata: of `read_metadata`.
    folder: a path or `epath.Path`; made where it does not exist.

  Raises:
    UsageError: the tokenizer is of a kind that is not known here.
  """
  kind = metadata.get('tokenizer.ggml.model')
  if kind not in ('gpt2', 'llama'):
    raise UsageError(
      f"the GGUF file has a tokenizer of the kind {kind!r}, and only 'gpt2' (byte-level BPE) and 'llama' "
      "(SentencePiece) can be read: pass the model's Hugging Face folder"
    )
  files = {
    tokenizer_folders.CONFIG: _json(_config(metadata, kind)),
    tokenizer_folders.GENERATION: _json(_generation(metadata)),
  }
  if kind == 'gpt2':
    files[tokenizer_folders.JSON] = byte_level(metadata).to_str().encode()
  else:
    files[tokenizer_folders.PIECES] = sentencepiece(metadata)
  if template := metadata.get('tokenizer.chat_template'):
    files[tokenizer_folders.TEMPLATE] = template.encode()
  tokenizer_folders.write(folder, files)


def _json(value: Mapping[str, Any]) -> bytes:
  return (json_text(value, indent=2, ensure_ascii=False) + '\n').encode()


def _config(metadata: Mapping[str, Any], kind: str) -> dict[str, Any]:
  names = {role: name for role, key in _ROLES.items() if (name := _token(metadata, key)) is not None}
  made = 'PreTrainedTokenizerFast' if kind == 'gpt2' else 'LlamaTokenizer'
  return {
    'tokenizer_class': made, **names, 'add_bos_token': _adds_bos(metadata), 'add_eos_token': False,
    'clean_up_tokenization_spaces': False,
  }  # fmt: skip


def _generation(metadata: Mapping[str, Any]) -> dict[str, Any]:
  ids = {role: metadata.get(f'tokenizer.ggml.{key}_token_id') for role, key in _ROLES.items()}
  ends = [i for i in (ids['eos_token'], metadata.get('tokenizer.ggml.eot_token_id')) if i is not None]
  given = {'bos_token_id': ids['bos_token'], 'pad_token_id': ids['pad_token']}
  return {name: i for name, i in given.items() if i is not None} | {'eos_token_id': list(dict.fromkeys(ends))}


def _token(metadata: Mapping[str, Any], key: str) -> str | None:
  number = metadata.get(f'tokenizer.ggml.{key}_token_id')
  return None if number is None else metadata['tokenizer.ggml.tokens'][number]


def _adds_bos(metadata: Mapping[str, Any]) -> bool:
  """Whether a prompt begins with BOS; files that do not say follow llama.cpp's rule."""
  usual = metadata['tokenizer.ggml.model'] == 'llama' or metadata.get('tokenizer.ggml.pre') in _LLAMA3
  return bool(metadata.get('tokenizer.ggml.add_bos_token', usual)) and _token(metadata, 'bos') is not None


def byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer of a byte-level BPE vocabulary.

  Raises:
    UsageError: its rule of words is not known here.
  """
  tokens, rule = metadata['tokenizer.ggml.tokens'], metadata.get('tokenizer.ggml.pre', 'default')
  merges = [tuple(merge.split(' ', 1)) for merge in metadata['tokenizer.ggml.merges']]
  vocab = {token: i for i, token in enumerate(tokens)}
  made = Tokenizer(models.BPE(vocab, merges, ignore_merges=rule in _LLAMA3))
  made.pre_tokenizer = pre_tokenizers.Sequence(_splits(rule))
  if rule in _QWEN2:
    made.normalizer = normalizers.NFC()
  made.decoder = decoders.ByteLevel()
  if _adds_bos(metadata):
    bos = _token(metadata, 'bos')
    single, pair = f'{bos} $A', f'{bos} $A {bos} $B'
    made.post_processor = processors.TemplateProcessing(single, pair, [(bos, vocab[bos])])
  made.add_special_tokens(_added(tokens, metadata, _CONTROL))
  made.add_tokens(_added(tokens, metadata, _USER_DEFINED))
  return made


def _added(tokens: Sequence[str], metadata: Mapping[str, Any], kind: int) -> list[AddedToken]:
  types = metadata.get('tokenizer.ggml.token_type') or ()
  names = (token for token, each in zip(tokens, types) if each == kind)
  return [AddedToken(name, normalized=False, special=kind == _CONTROL) for name in names]


def _splits(rule: str) -> list[pre_tokenizers.PreTokenizer]:
  if rule in _GPT2:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False)]
  if rule in _DIGITS:
    return [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  if rule in (*_LLAMA3, *_QWEN2):
    words = Regex(_WORDS.format(digits=3 if rule in _LLAMA3 else 1))
    split = pre_tokenizers.Split(words, behavior='isolated')
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  raise UsageError(
    f'the GGUF file splits text into words by the rule {rule!r}, and only {", ".join(_GPT2 + _DIGITS)}, '
    f"{', '.join(_LLAMA3 + _QWEN2)} are known here: pass the model's Hugging Face folder"
  )


def sentencepiece(metadata: Mapping[str, Any]) -> bytes:
  """The SentencePiece model of a vocabulary of pieces and scores."""
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto()
  types = metadata['tokenizer.ggml.token_type']
  for token, score, kind in zip(metadata['tokenizer.ggml.tokens'], metadata['tokenizer.ggml.scores'], types):
    # Files write the blanks of tokens that stand for themselves as blanks.
    name = token.replace(' ', '▁') if kind == _USER_DEFINED else token
    proto.pieces.add(piece=name, score=score, type=kind)
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  trainer.model_type, trainer.vocab_size = trainer.BPE, len(proto.pieces)
  trainer.byte_fallback = _BYTE in types
  for role, key in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'), ('unk', 'unknown')):
    number = metadata.get(f'tokenizer.ggml.{key}_token_id', -1)
    setattr(trainer, f'{role}_id', number)
    if number >= 0:
      setattr(trainer, f'{role}_piece', proto.pieces[number].piece)
  normalizer.name = 'identity'
  normalizer.add_dummy_prefix = bool(metadata.get('tokenizer.ggml.add_space_prefix', True))
  normalizer.remove_extra_whitespaces = bool(metadata.get('tokenizer.ggml.remove_extra_whitespaces', False))
  normalizer.escape_whitespaces = True
  return proto.SerializeToString()


__all__ = ['byte_level', 'read_metadata', 'sentencepiece', 'write_tokenizer']
