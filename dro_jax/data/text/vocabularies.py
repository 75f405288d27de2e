"""Text to ids and back: bytes, a SentencePiece model (the ids are seqio's), a tokenizer.json, or a folder."""

import functools
import json
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.data.text import tokenizer_folders
from dro_jax.data.text.chat_templates import ChatTemplate
from dro_jax.data.text.model_files import is_folder, read_folder
from dro_jax.data.text.model_files import read_model as read_model
from dro_jax.errors import UsageError
from dro_jax.files import hash_parts
from dro_jax.names import SpecialTokens

_T5 = SpecialTokens()
_T5_PIECES = 'spiece.model'  # The file of a T5's folder.
_BYTE_OFFSET = 3
_EXTRA_IDS = 100
_BYTE_ROWS = 1024  # Most rows of a byte model's embedding; ByT5 has 384.


class Vocabulary(NamedTuple):
  """Text to ids and back. Encoding adds nothing, and no text encodes to a special token.

  Attributes:
    spec: the argument of `vocabulary`: 'bytes', a folder, or a file, with '#extra_ids=N' unless N is 100.
    size: number of ids, extra ids included; a model's embedding may have more rows.
    fingerprint: a hash of all that decides the ids.
    encode_batch: texts to arrays of ids.
    decode: ids to text, up to the first EOS.
    special: the ids that stand for no text.
    prefix: ids before every prompt, such as BOS. A chat template writes its own.
    ends_prompts: whether a prompt ends in EOS, as T5's does; a decoder-only model would stop there.
    chat: the model's own template of conversations, where it has one.
  """

  spec: str
  size: int
  fingerprint: str
  encode_batch: Callable[[Sequence[str]], list[np.ndarray]]
  decode: Callable[[Iterable[int]], str]
  special: SpecialTokens = _T5
  prefix: tuple[int, ...] = ()
  ends_prompts: bool = True
  chat: ChatTemplate | None = None

  def encode(self, text: str) -> np.ndarray:
    return self.encode_batch([text])[0]


@functools.lru_cache(maxsize=8)
def vocabulary(spec: str = 'bytes') -> Vocabulary:
  """The vocabulary with this name.

  Args:
    spec: 'bytes' (ByT5's: an id is a UTF-8 byte + 3; 259 ids), or a path, local or with a scheme such as
      gs://. Of a T5: a SentencePiece model, which gets 100 extra ids ('PATH#extra_ids=0' adds none), or a
      tokenizer.json, with its added tokens. Of any other model: the folder of a Hugging Face tokenizer (see
      `tokenizer_folders`), or the tokenizer.json in it.

  Raises:
    UsageError: the files are missing, or are of another kind.
  """
  if spec == 'bytes':
    return Vocabulary(spec, 256 + _BYTE_OFFSET, 'bytes', _encode_bytes, _decode_bytes)
  if is_json(spec):
    return _json(spec)
  return _folder(spec, spec) if is_folder(spec) else _sentencepiece(spec, *parse(spec))


def is_json(spec: str) -> bool:
  """Whether a string names a tokenizer.json."""
  return spec.endswith('.json')


def offer(rows: int) -> str:
  """The setting to pass for a model with an unknown vocabulary, by the rows of its embedding."""
  files = 'the path of the SentencePiece model, tokenizer.json or tokenizer folder'
  return f'--set VOCABULARY=bytes, or {files}' if rows <= _BYTE_ROWS else f'--set VOCABULARY=FILE, {files}'


def parse(spec: str) -> tuple[str, int]:
  """The path of a SentencePiece file, and the number of ids to add to it."""
  path, _, option = spec.partition('#')
  key, _, number = option.partition('=')
  if option and (key != 'extra_ids' or not number.isdigit()):
    raise UsageError(f"vocabulary '{spec}': after # only extra_ids=NUMBER is possible, got '{option}'")
  return path, int(number) if option else _EXTRA_IDS


def save_tokenizer(vocabulary: Vocabulary, folder: Any) -> str:
  """Copies a vocabulary's files into a folder, so that a checkpoint can carry them.

  Args:
    vocabulary: to copy.
    folder: a path or `epath.Path`; made where it does not exist.

  Returns:
    The spec of the copy: the folder, or the file in it; 'bytes' has no file.

  Raises:
    UsageError: the files are no longer where they lay.
  """
  if vocabulary.spec == 'bytes':
    return 'bytes'
  if vocabulary.ends_prompts:
    path, mark, option = vocabulary.spec.partition('#')
    tokenizer_folders.write(folder, {posixpath.basename(path): read_model(path)})
    return posixpath.join(str(folder), posixpath.basename(path)) + mark + option
  source = posixpath.dirname(vocabulary.spec) if is_json(vocabulary.spec) else vocabulary.spec
  tokenizer_folders.write(folder, read_folder(source, tokenizer_folders.FILES))
  return str(folder)


def _encode_bytes(texts: Sequence[str]) -> list[np.ndarray]:
  return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + _BYTE_OFFSET for text in texts]


def _decode_bytes(ids: Iterable[int]) -> str:
  kept = [i - _BYTE_OFFSET for i in _to_eos(ids) if _BYTE_OFFSET <= i < 256 + _BYTE_OFFSET]
  return bytes(kept).decode(errors='ignore')


def _to_eos(ids: Iterable[int], eos: int = _T5.eos) -> list[int]:
  ids = [int(i) for i in ids]
  return ids[: ids.index(eos)] if eos in ids else ids


def _folder(spec: str, folder: str) -> Vocabulary:
  """The vocabulary of a folder in Hugging Face's layout; of a T5's folder, that of its file."""
  found = read_folder(folder, (*tokenizer_folders.FILES, _T5_PIECES))
  fast = found.get('tokenizer.json')
  if fast is not None and _is_t5s(fast):
    return _json(posixpath.join(folder, 'tokenizer.json'))
  if fast is None and 'tokenizer.model' not in found and _T5_PIECES in found:
    return _sentencepiece(posixpath.join(folder, _T5_PIECES), posixpath.join(folder, _T5_PIECES), _EXTRA_IDS)
  tokenizer = tokenizer_folders.read(found, folder)

  def decode(ids: Iterable[int]) -> str:
    return tokenizer.decode(_to_eos(ids, tokenizer.special.eos))

  return Vocabulary(
    spec, tokenizer.size, tokenizer.fingerprint, tokenizer.encode_batch, decode, tokenizer.special,
    tokenizer.prefix, ends_prompts=False, chat=tokenizer.chat,
  )  # fmt: skip


def _json(spec: str) -> Vocabulary:
  """A T5's tokenizer.json, or the folder of another model's."""
  from dro_jax.data.text import tokenizer_json

  content = read_model(spec)
  if posixpath.basename(spec) == 'tokenizer.json' and not _is_t5s(content):
    return _folder(spec, posixpath.dirname(spec) or '.')
  return from_json(tokenizer_json.from_json(content, spec), spec)


def _is_t5s(content: bytes) -> bool:
  """Whether a tokenizer.json has a T5's special tokens; True where it cannot be read."""
  from dro_jax.data.text import tokenizer_json

  try:
    read = json.loads(content)
    return tokenizer_json.first_names(read) == tokenizer_json.SPECIAL
  except (ValueError, AttributeError, LookupError, TypeError):
    return True


def _sentencepiece(spec: str, path: str, extra_ids: int) -> Vocabulary:
  import sentencepiece

  model = _with_extra_ids(read_model(path), extra_ids, path)
  processor = sentencepiece.SentencePieceProcessor()
  processor.LoadFromSerializedProto(model)
  special = processor.pad_id(), processor.eos_id(), processor.unk_id()
  if special != _T5[:3]:
    raise UsageError(
      f'{path}: its pad, EOS and unknown ids are {special}, but T5 needs (0, 1, 2); train it with '
      '--pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1, or, for another kind of model, pass the folder in which '
      'tokenizer.model lies'
    )
  size = processor.GetPieceSize()

  def encode_batch(texts: Sequence[str]) -> list[np.ndarray]:
    return [np.asarray(ids, np.int32) for ids in processor.encode(list(texts))]

  def decode(ids: Iterable[int]) -> str:
    return processor.decode([i if i < size else _T5.unknown for i in _to_eos(ids)])

  return Vocabulary(spec, size, hash_parts([model]), encode_batch, decode)


def from_json(read: Mapping[str, Any], spec: str) -> Vocabulary:
  """The vocabulary of a tokenizer.json's contents (see `tokenizer_json`)."""
  from dro_jax.data.text import tokenizer_json

  tokenizer = tokenizer_json.load(read)
  size = tokenizer_json.size(tokenizer)

  def decode(ids: Iterable[int]) -> str:
    kept = [i if i < size else _T5.unknown for i in _to_eos(ids) if i != _T5.pad]
    return tokenizer.decode(kept, skip_special_tokens=False)

  # The post-processor and the decoder do not decide the ids of texts.
  deciding = {name: value for name, value in read.items() if name not in ('post_processor', 'decoder')}
  mark = hash_parts([json.dumps(deciding, sort_keys=True).encode()])
  encode_batch = functools.partial(tokenizer_json.encode_batch, tokenizer)
  return Vocabulary(spec, size, mark, encode_batch, decode)


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
