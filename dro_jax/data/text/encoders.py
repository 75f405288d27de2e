"""Encoders of decoder-only models: a tokenizer.json of any kind, or a SentencePiece model with its own ids.

An encoder reads text in two ways. As text: names of control tokens in it are text, so that no text encodes to
an end. As a frame, which a chat template wrote: control tokens are what they are called, unless a mark stands
behind their first letter, as the chat template's caller puts one where a user typed such a name.
"""

import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from dro_jax import files
from dro_jax.data.text import tokenizer_json
from dro_jax.errors import UsageError

_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized')


class Encoder(NamedTuple):
  """Attributes:
  size: one more than the largest id.
  ids: of the added and control tokens, by name.
  unknown: the id of text without a piece; -1 where there is none.
  encode_batch: texts to ids.
  encode_frames: (texts, mark) to ids; '' where nothing is marked.
  decode: ids to text.
  """

  size: int
  ids: Mapping[str, int]
  unknown: int
  encode_batch: Callable[[Sequence[str]], list[np.ndarray]]
  encode_frames: Callable[[Sequence[str], str], list[np.ndarray]]
  decode: Callable[[Iterable[int]], str]


def any_of(names: Collection[str]) -> re.Pattern[str]:
  """A pattern that finds the longest of these names; of no names it finds nothing."""
  return _any_of(tuple(names))


@functools.lru_cache(maxsize=32)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
  longest_first = sorted(names, key=len, reverse=True)
  return re.compile(f'(?:{"|".join(map(re.escape, longest_first))})' if names else '(?!)')


# --- tokenizer.json -----------------------------------------------------------------------------------------


def with_tokens(read: Mapping[str, Any], tokens: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """A tokenizer.json with these added tokens too.

  Args:
    read: the file.
    tokens: by name, each with its `id`; one without is left out unless the file has it as a piece.
  """
  vocab = read['model'].get('vocab')
  pieces = vocab if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab or ())}
  present = {token['content'] for token in read.get('added_tokens') or ()}
  new = [
    {**dict.fromkeys(_FLAGS, False), 'special': True, **token, 'content': name, 'id': number}
    for name, token in tokens.items()
    if name not in present and (number := token.get('id', pieces.get(name))) is not None
  ]
  # The library numbers tokens that are no pieces in this order.
  return {**read, 'added_tokens': sorted([*(read.get('added_tokens') or ()), *new], key=lambda t: t['id'])}


def from_json(read: Mapping[str, Any], control: Collection[str], where: str) -> Encoder:
  """The encoder of a tokenizer.json.

  Args:
    read: the file, with all its added tokens.
    control: names of tokens that are text in a user's text, whatever the file says.
    where: for errors.

  Raises:
    UsageError: the library cannot load it, or its ids have gaps.
  """
  tokens = [
    {**token, 'special': bool(token.get('special')) or token['content'] in control}
    for token in read.get('added_tokens') or ()
  ]
  plain = {**read, 'added_tokens': tokens, 'truncation': None, 'padding': None}
  try:
    as_text, as_frame = (Tokenizer.from_str(text) for text in [files.json_text(plain)] * 2)
  except Exception as error:  # The library raises Exception itself.
    raise UsageError(f"vocabulary '{where}': its tokenizer.json is not readable: {error}") from error
  _check_ids(as_text, tokens, where)
  as_text.encode_special_tokens = True  # As text.
  ids = {token['content']: token['id'] for token in tokens}
  special = {token['content'] for token in tokens if token['special']}
  size = max(as_text.get_vocab(with_added_tokens=True).values()) + 1

  def encode_frames(texts: Sequence[str], mark: str) -> list[np.ndarray]:
    if not mark:
      return tokenizer_json.encode_batch(as_frame, texts)
    return [np.asarray(list(_marked(as_frame, part, text, mark, special)), np.int32) for text in texts]

  def decode(kept: Iterable[int]) -> str:
    return as_text.decode([i for i in kept if i < size], skip_special_tokens=False)

  part = _make_part(lambda text: as_text.encode(text, add_special_tokens=False).ids)
  encode = functools.partial(tokenizer_json.encode_batch, as_text)
  return Encoder(size, ids, _unknown(read['model'], as_text), encode, encode_frames, decode)


def prefix_of(read: Mapping[str, Any]) -> tuple[int, ...]:
  """The ids that a tokenizer.json puts before a text."""
  encoding = Tokenizer.from_str(files.json_text(read)).encode('a')
  own = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
  return tuple(encoding.ids[:own])


def _check_ids(tokenizer: Tokenizer, tokens: Sequence[Mapping[str, Any]], where: str) -> None:
  for token in tokens:
    number = tokenizer.token_to_id(token['content'])
    if number != token['id']:
      raise UsageError(
        f"vocabulary '{where}': the added token {token['content']!r} has the id {token['id']}, but the next "
        f'free id is {number}: added tokens must have the ids after those of the vocabulary, without gaps'
      )


def _unknown(model: Mapping[str, Any], tokenizer: Tokenizer) -> int:
  if model.get('unk_id') is not None:
    return int(model['unk_id'])
  name = model.get('unk_token')
  number = tokenizer.token_to_id(name) if name else None
  return -1 if number is None else number


def _make_part(encode: Callable[[str], list[int]]) -> Callable[[str, bool], list[int]]:
  """Encodes part of a text: but for the first, without the blank that some tokenizers put before a text."""
  line = encode('\n')
  adds_blank = encode('\nx')[len(line) :] != encode('x')

  def part(text: str, is_first: bool) -> list[int]:
    if not text or is_first or not adds_blank:
      return encode(text)
    ids = encode(f'\n{text}')
    return ids[len(line) :] if ids[: len(line)] == line else encode(text)

  return part


def _marked(
  as_frame: Tokenizer, part: Callable[[str, bool], list[int]], text: str, mark: str, special: Collection[str]
) -> Iterator[int]:
  """Ids of a frame with marks: its control tokens, and between them text without the marks."""
  encoding = as_frame.encode(text, add_special_tokens=False)
  end = 0
  for number, (start, stop) in zip(encoding.ids, encoding.offsets):
    if text[start:stop].strip() in special:
      yield from part(text[end:start].replace(mark, ''), end == 0)
      yield number
      end = stop
  yield from part(text[end:].replace(mark, ''), end == 0)


# --- SentencePiece ------------------------------------------------------------------------------------------


def from_sentencepiece(
  model: bytes, added: Mapping[str, int], control: Collection[str], where: str
) -> Encoder:
  """The encoder of a SentencePiece model with ids of its own.

  Args:
    model: the file.
    added: ids of tokens that other files add to the model's, by name.
    control: names of tokens that are text in a user's text, whatever the model says.
    where: for errors.

  Raises:
    UsageError: the file is no SentencePiece model.
  """
  proto = parse_sentencepiece(model, where)
  names = named_pieces(proto) | dict(added)
  for piece in proto.pieces:
    if piece.piece in control and piece.type == _USER_DEFINED:
      piece.type = _CONTROL
  whole = _processor(proto)
  proto.normalizer_spec.add_dummy_prefix = False
  within = _processor(proto)
  pattern, size = any_of(names.keys() & control), max(len(proto.pieces), *(i + 1 for i in names.values()))
  by_id = {i: name for name, i in names.items() if i >= len(proto.pieces) or name in control}

  def encode_frame(text: str, mark: str) -> np.ndarray:
    ids: list[int] = []
    end = 0
    for match in pattern.finditer(text):
      ids += _part(text[end : match.start()], first=end == 0, mark=mark)
      ids.append(names[match[0]])
      end = match.end()
    return np.asarray(ids + _part(text[end:], first=end == 0, mark=mark), np.int32)

  def _part(text: str, first: bool, mark: str) -> list[int]:
    text = text.replace(mark, '') if mark else text
    return (whole if first else within).encode(text) if text else []

  def decode(kept: Iterable[int]) -> str:
    parts: list[str | list[int]] = [[]]
    for i in kept:
      parts += [by_id[i], []] if i in by_id else []
      if i < len(proto.pieces) and i not in by_id:
        parts[-1].append(i)  # type: ignore[union-attr]
    return ''.join(part if isinstance(part, str) else whole.decode(part) for part in parts)

  return Encoder(
    size, names, whole.unk_id(),
    lambda texts: [np.asarray(ids, np.int32) for ids in whole.encode(list(texts))],
    lambda texts, mark: [encode_frame(text, mark) for text in texts], decode,
  )  # fmt: skip


_CONTROL, _USER_DEFINED = 3, 4  # SentencePiece's numbers of these types.
_NAMED = (_CONTROL, _USER_DEFINED)


def parse_sentencepiece(model: bytes, where: str) -> Any:
  """A SentencePiece model's fields.

  Raises:
    UsageError: the bytes are something else.
  """
  from google.protobuf.message import DecodeError
  from sentencepiece import sentencepiece_model_pb2

  try:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  except DecodeError:
    proto = None
  if proto is None or not proto.pieces:
    raise UsageError(f"vocabulary '{where}': its tokenizer.model is not a SentencePiece model")
  return proto


def control_names(proto: Any) -> list[str]:
  """Names of a SentencePiece model's control tokens."""
  return [piece.piece for piece in proto.pieces if piece.type == _CONTROL]


def named_pieces(proto: Any) -> dict[str, int]:
  """Ids of a SentencePiece model's control tokens and of those that stand for themselves, by name."""
  return {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type in _NAMED}


def roles_of(proto: Any) -> dict[str, str]:
  """The names of a SentencePiece model's special tokens, as a tokenizer's configuration calls them."""
  trainer = proto.trainer_spec
  ids = {'bos_token': trainer.bos_id, 'eos_token': trainer.eos_id, 'pad_token': trainer.pad_id}
  return {role: proto.pieces[i].piece for role, i in ids.items() if 0 <= i < len(proto.pieces)}


def _processor(proto: Any) -> Any:
  import sentencepiece

  processor = sentencepiece.SentencePieceProcessor()
  processor.LoadFromSerializedProto(proto.SerializeToString())
  return processor


def read_json(content: bytes, where: str) -> dict[str, Any]:
  """The object in a file.

  Raises:
    UsageError: there is none.
  """
  try:
    read = json.loads(content)
  except ValueError as error:
    raise UsageError(f"vocabulary '{where}' is no JSON: {error}") from error
  if not isinstance(read, dict):
    raise UsageError(f"vocabulary '{where}' is {type(read).__name__}, and must be a JSON object")
  return read
