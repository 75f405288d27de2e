"""Text to ids and back: bytes, a SentencePiece model (the ids are seqio's) or a tokenizer.json."""

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.errors import UsageError
from dro_jax.files import hash_parts
from dro_jax.names import SpecialTokens

PAD, EOS, UNKNOWN = SpecialTokens()[:3]
_BYTE_OFFSET = 3
_EXTRA_IDS = 100
_BYTE_ROWS = 1024  # Most rows of a byte model's embedding; ByT5 has 384.


class Vocabulary(NamedTuple):
  """Text to ids and back; pad is 0, EOS is 1, and encoding appends no EOS.

  Attributes:
    spec: the argument of `vocabulary`: 'bytes', or a path, with '#extra_ids=N' unless N is 100.
    size: number of ids, extra ids included; a model's embedding may have more rows.
    fingerprint: a hash of all that decides the ids.
    encode_batch: texts to arrays of ids.
    decode: ids to text, up to the first EOS.
  """

  spec: str
  size: int
  fingerprint: str
  encode_batch: Callable[[Sequence[str]], list[np.ndarray]]
  decode: Callable[[Iterable], str]

  def encode(self, text: str) -> np.ndarray:
    return self.encode_batch([text])[0]


@functools.lru_cache(maxsize=8)
def vocabulary(spec: str = 'bytes') -> Vocabulary:
  """The vocabulary with this name.

  Args:
    spec: 'bytes' (ByT5's: an id is a UTF-8 byte + 3; 259 ids), or the path of a SentencePiece model, local or
      with a scheme such as gs://. It gets 100 extra ids, as in T5; 'PATH#extra_ids=0' adds none. Or the path
      of a Hugging Face tokenizer.json, with its added tokens.

  Raises:
    UsageError: the file is missing, is neither kind, or does not have pad 0, EOS 1 and unknown 2.
  """
  if spec == 'bytes':
    return Vocabulary(spec, 256 + _BYTE_OFFSET, 'bytes', _encode_bytes, _decode_bytes)
  if is_json(spec):
    from dro_jax.data.text import tokenizer_json

    return from_json(tokenizer_json.from_json(read_model(spec), spec), spec)
  return _sentencepiece(spec, *parse(spec))


def is_json(spec: str) -> bool:
  """Whether a string names a tokenizer.json."""
  return spec.endswith('.json')


def offer(rows: int) -> str:
  """The setting to pass for a model with an unknown vocabulary, by the rows of its embedding."""
  files = 'the path of the SentencePiece model or tokenizer.json'
  return f'--set VOCABULARY=bytes, or {files}' if rows <= _BYTE_ROWS else f'--set VOCABULARY=FILE, {files}'


def parse(spec: str) -> tuple[str, int]:
  """The path of a SentencePiece file, and the number of ids to add to it."""
  path, _, option = spec.partition('#')
  key, _, number = option.partition('=')
  if option and (key != 'extra_ids' or not number.isdigit()):
    raise UsageError(f"vocabulary '{spec}': after # only extra_ids=NUMBER is possible, got '{option}'")
  return path, int(number) if option else _EXTRA_IDS


def _encode_bytes(texts: Sequence[str]) -> list[np.ndarray]:
  return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + _BYTE_OFFSET for text in texts]


def _decode_bytes(ids: Iterable) -> str:
  kept = [i - _BYTE_OFFSET for i in _to_eos(ids) if _BYTE_OFFSET <= i < 256 + _BYTE_OFFSET]
  return bytes(kept).decode(errors='ignore')


def _to_eos(ids: Iterable) -> list[int]:
  ids = [int(i) for i in ids]
  return ids[: ids.index(EOS)] if EOS in ids else ids


def _sentencepiece(spec: str, path: str, extra_ids: int) -> Vocabulary:
  import sentencepiece

  model = _with_extra_ids(read_model(path), extra_ids, path)
  processor = sentencepiece.SentencePieceProcessor()
  processor.LoadFromSerializedProto(model)
  special = processor.pad_id(), processor.eos_id(), processor.unk_id()
  if special != (PAD, EOS, UNKNOWN):
    raise UsageError(
      f'{path}: its pad, EOS and unknown ids are {special}, but T5 needs (0, 1, 2); train it with '
      '--pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1'
    )
  size = processor.GetPieceSize()

  def encode_batch(texts: Sequence[str]) -> list[np.ndarray]:
    return [np.asarray(ids, np.int32) for ids in processor.encode(list(texts))]

  def decode(ids: Iterable) -> str:
    return processor.decode([i if i < size else UNKNOWN for i in _to_eos(ids)])

  return Vocabulary(spec, size, hash_parts([model]), encode_batch, decode)


def from_json(read: Mapping[str, Any], spec: str) -> Vocabulary:
  """The vocabulary of a tokenizer.json's contents (see `tokenizer_json`)."""
  from dro_jax.data.text import tokenizer_json

  tokenizer = tokenizer_json.load(read)
  size = tokenizer_json.size(tokenizer)

  def encode_batch(texts: Sequence[str]) -> list[np.ndarray]:
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(encoding.ids, np.int32) for encoding in encoded]

  def decode(ids: Iterable) -> str:
    kept = [i if i < size else UNKNOWN for i in _to_eos(ids) if i != PAD]
    return tokenizer.decode(kept, skip_special_tokens=False)

  # The post-processor and the decoder do not decide the ids of texts.
  deciding = {name: value for name, value in read.items() if name not in ('post_processor', 'decoder')}
  mark = hash_parts([json.dumps(deciding, sort_keys=True).encode()])
  return Vocabulary(spec, size, mark, encode_batch, decode)


def read_model(path: str) -> bytes:
  """A vocabulary's file, local or with a scheme.

  Raises:
    UsageError: the file cannot be read.
  """
  try:
    if '://' in path:
      import tensorflow as tf

      with tf.io.gfile.GFile(path, 'rb') as file:
        return file.read()
    with open(os.path.expanduser(path), 'rb') as file:
      return file.read()
  except Exception as error:  # TensorFlow has its own exceptions for every scheme.
    raise UsageError(
      f"vocabulary '{path}': cannot read it ({error}); pass the path of a SentencePiece model or of a "
      "tokenizer.json ('bytes' is the vocabulary of models that embed bytes, such as ByT5)"
    ) from error


def _with_extra_ids(model: bytes, extra_ids: int, path: str) -> bytes:
  """Adds <extra_id_N> ... <extra_id_0> as seqio does: span corruption counts them from the end."""
  from google.protobuf.message import DecodeError
  from sentencepiece import sentencepiece_model_pb2

  try:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  except DecodeError as error:
    raise UsageError(
      f"vocabulary '{path}' is not a SentencePiece model; pass 'bytes', a .model file or a tokenizer.json"
    ) from error
  if not proto.pieces:
    raise UsageError(f"vocabulary '{path}' is not a SentencePiece model: it has no pieces")
  for i in reversed(range(extra_ids)):
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
    proto.pieces.add(piece=f'▁<extra_id_{i}>', score=0.0, type=kind)
  return proto.SerializeToString()
