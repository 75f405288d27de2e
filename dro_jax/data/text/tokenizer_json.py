"""Tokenizers of the `tokenizers` library: conversion from SentencePiece models with equal ids, and reading.

As in SentencePiece, the names of padding, end and unknown in a text are text: no text encodes to an end.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dro_jax.data.text import charsmap
from dro_jax.errors import UsageError
from dro_jax.files import json_text

SPECIAL = ('<pad>', '</s>', '<unk>')  # In the order of their ids.
SENTINEL = re.compile(r'<extra_id_\d+>')
FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized')
_BLANK = '▁'
# Patterns of special tokens' names, which are text where a text holds them.
_NAMES = ('<pad>', '</s>', '<unk>', r'<extra_id_\d+>', '<0x[0-9A-F]{2}>')

# Texts that a new tokenizer must encode as the original does, by their kind.
PROBES = {
  'words': 'A quick brown fox, 12.5 % of “them”.',
  'blanks around and between words': '  two  spaces \t and a tab  ',
  'line breaks': 'first\nsecond\r\n\r\nthird\n',
  'code': "def f(x):\n    return {'a': x[0] <= 1}\n",
  'Chinese, Japanese and Korean': '你好，世界。日本語 한국어',
  'emoji': '🙂👍🏽👩‍💻🇩🇪 ❤️',
  'accents': 'Grüße, naïve, cafe\u0301, e\u0302\u0301, Viê\u0323t',
  'compatibility characters': 'ﬁ ① Ａ ² ½ … ｶﾞ',
  'characters without width': 'a\u200bb\u200dc\ufeffd\u00ade',
  'control characters': '\x01a\x7fb\u2028c',
  'names of padding, end and unknown': 'a </s> b</s> <pad><unk> <s>',
  'sentinels': 'x <extra_id_0> y <extra_id_1>',
  'names of bytes': 'a <0x0A> b<0x41>',
  'literal ▁': 'a▁b ▁c',
}


def from_sentencepiece(
  model: bytes, extra_ids: int, added: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
  """The tokenizer.json of a unigram SentencePiece model.

  Args:
    model: the file's bytes, with pad 0, EOS 1 and unknown 2.
    extra_ids: sentinels after its pieces.
    added: further tokens: `id`, `content`, and their FLAGS.

  Raises:
    UsageError: the model is of another kind.
  """
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  _check(proto)
  sentinels = [f'<extra_id_{i}>' for i in reversed(range(extra_ids))]
  vocab = _scored(proto) + [(name, 0.0) for name in sentinels]
  made = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=proto.trainer_spec.byte_fallback))
  made.normalizer = normalizers.Sequence(_normalizers(proto.normalizer_spec))
  normal = [piece.piece for piece in proto.pieces if piece.type == piece.NORMAL]
  made.pre_tokenizer = _split(normal, proto.trainer_spec.byte_fallback)
  made.decoder = _decoder(proto.normalizer_spec.add_dummy_prefix)
  made.post_processor = processors.TemplateProcessing('$A </s>', '$A </s> $B </s>', [('</s>', 1)])
  made.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
  # In normalised text, where a blank comes before each, as seqio has it.
  made.add_tokens([AddedToken(name, normalized=True) for name in sentinels])
  made.add_tokens([_added(token) for token in sorted(added, key=lambda token: token['id'])])
  return _checked(json.loads(made.to_str()), {token['content']: token['id'] for token in added})


def _scored(proto: Any) -> list[tuple[str, float]]:
  """Pieces and scores; user-defined pieces score highest, as in SentencePiece."""
  return [(piece.piece, piece.score if piece.type == piece.NORMAL else 0.0) for piece in proto.pieces]


def _check(proto: Any) -> None:
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  if trainer.model_type != trainer.UNIGRAM:
    raise UsageError('the model is not a unigram model, and only these convert to a tokenizer.json')
  if trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
    raise UsageError('the model keeps blanks at the ends of words, which cannot convert to a tokenizer.json')


def _normalizers(spec: Any) -> list[normalizers.Normalizer]:
  steps = charsmap.steps(spec.precompiled_charsmap) if spec.precompiled_charsmap else []
  if spec.remove_extra_whitespaces:
    steps += [normalizers.Replace(Regex(r'\A +|[ ▁]+\z'), ''), normalizers.Replace(Regex(' {2,}'), ' ')]
  steps += [normalizers.Prepend(_BLANK)] if spec.add_dummy_prefix else []
  return [*steps, normalizers.Replace(' ', _BLANK)]


def _decoder(dummy_prefix: bool) -> decoders.Decoder:
  first = [decoders.Strip(' ', 1, 0)] if dummy_prefix else []
  blanks = [decoders.Replace(Regex(r'\A(?=<extra_id_\d+>\z)'), ' '), decoders.Replace(_BLANK, ' ')]
  return decoders.Sequence([*blanks, decoders.ByteFallback(), decoders.Fuse(), *first])


def _split(pieces: Sequence[str], has_bytes: bool) -> pre_tokenizers.PreTokenizer:
  """Cuts names of special tokens in two, so that they are text, and changes nothing else where it can.

  Args:
    pieces: none should span the cut.
    has_bytes: whether unknown characters are spelled; otherwise a run of them is one token, and stays whole.
  """
  known, joined = set(pieces), '\n'.join(pieces)

  def is_free(pair: str) -> bool:
    return pair not in joined and (has_bytes or bool(known & {*pair, f'{_BLANK}{pair[0]}'}))

  def cut(name: str) -> str:
    return f'<(?={name[1:]})' if is_free(name[:2]) else f'{name[:-1]}(?=>)'

  return pre_tokenizers.Split(Regex('|'.join(map(cut, _NAMES))), 'merged_with_previous')


def _added(token: Mapping[str, Any]) -> AddedToken:
  return AddedToken(token['content'], special=False, **{flag: bool(token.get(flag)) for flag in FLAGS})


def _checked(made: dict[str, Any], added: Mapping[str, int]) -> dict[str, Any]:
  ids = {token['content']: token['id'] for token in made['added_tokens']}
  for name, number in added.items():
    if ids.get(name) != number:
      raise UsageError(
        f'the added token {name!r} has the id {number}, and {ids.get(name)} is the next free id: added '
        'tokens must have the ids after those of the vocabulary, without gaps'
      )
  return made


def from_json(text: bytes | str, where: str) -> dict[str, Any]:
  """A tokenizer.json in which the names of padding, end and unknown are text; it ends texts in EOS.

  Raises:
    UsageError: the text is not a tokenizer.json, or does not have pad 0, EOS 1 and unknown 2.
  """
  try:
    read = json.loads(text)
    tokenizer = Tokenizer.from_str(json_text(read))
  except Exception as error:  # The library raises Exception itself.
    raise UsageError(f"vocabulary '{where}' is not a readable tokenizer.json: {error}") from error
  named = tuple(tokenizer.id_to_token(i) for i in range(len(SPECIAL)))
  if named != SPECIAL:
    raise UsageError(
      f'{where}: its first three tokens are {", ".join(map(repr, named))}, but T5 needs padding, end and '
      f'unknown there: {", ".join(map(repr, SPECIAL))}'
    )
  tokens = [token | {'special': token['content'] in SPECIAL} for token in read.get('added_tokens') or []]
  _refuse_normalised_away(tokenizer, tokens, where)
  plain = read | {'added_tokens': tokens, 'truncation': None, 'padding': None}
  return plain if _cuts_names(read) else plain | {'pre_tokenizer': _with_split(read)}


def first_names(read: Mapping[str, Any]) -> tuple[str | None, ...]:
  """The names of the first three ids of a tokenizer.json, without loading it."""
  vocab = read['model']['vocab']
  by_id = {i: name for name, i in vocab.items()} if isinstance(vocab, dict) else {}
  by_id |= {i: entry[0] for i, entry in enumerate(vocab[: len(SPECIAL)])} if isinstance(vocab, list) else {}
  by_id |= {token['id']: token['content'] for token in read.get('added_tokens') or ()}
  return tuple(by_id.get(i) for i in range(len(SPECIAL)))


def _refuse_normalised_away(tokenizer: Tokenizer, tokens: Sequence[Mapping[str, Any]], where: str) -> None:
  """Refuses added tokens, such as a line break, that normalise to nothing: no text can hold them."""
  for token in tokens if tokenizer.normalizer else ():
    if token.get('normalized') and not tokenizer.normalizer.normalize_str(token['content']):
      raise UsageError(
        f'{where}: the added token {token["content"]!r} is normalised to nothing, so that no text can hold '
        "it: add it as AddedToken(..., normalized=False), or set its 'normalized' to false in the file"
      )


def _cuts_names(read: Mapping[str, Any]) -> bool:
  """Whether the last step before the pieces is `_split`."""
  steps = read.get('pre_tokenizer') or {}
  last = (steps.get('pretokenizers') or [steps])[-1]
  return 'extra_id_' in str(last.get('pattern'))


def _with_split(read: Mapping[str, Any]) -> dict[str, Any]:
  vocab = read['model'].get('vocab') or []
  pieces = [name for name, score in vocab if score] if isinstance(vocab, list) else []
  own, made = read.get('pre_tokenizer'), Tokenizer(models.Unigram([('<unk>', 0.0)], unk_id=0))
  made.pre_tokenizer = _split(pieces, bool(read['model'].get('byte_fallback')))
  split = json.loads(made.to_str())['pre_tokenizer']
  return {'type': 'Sequence', 'pretokenizers': [own, split]} if own else split


def added(read: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The added tokens of a tokenizer.json, without special tokens and sentinels."""
  tokens = read.get('added_tokens') or []
  return [token for token in tokens if not is_usual(token['content'])]


def is_usual(name: str) -> bool:
  """Whether every T5 vocabulary has a token of this name."""
  return name in SPECIAL or SENTINEL.fullmatch(name) is not None


def unlike(ours: Callable[[str], Sequence[int]], read: Mapping[str, Any]) -> list[str]:
  """The names of the PROBES that a tokenizer encodes to other ids than the function `ours`."""
  tokenizer = load(read)
  encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
  return [name for name, text in PROBES.items() if list(ours(text)) != encode(text)]


def load(read: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer of a result of `from_sentencepiece` or `from_json`."""
  tokenizer = Tokenizer.from_str(json_text(read))
  tokenizer.encode_special_tokens = True  # As text.
  return tokenizer


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
  """Texts to ids, without the tokens that a post-processor adds."""
  encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
  return [np.asarray(encoding.ids, np.int32) for encoding in encoded]


def size(tokenizer: Tokenizer) -> int:
  """One more than the largest id."""
  return max(itertools.chain(tokenizer.get_vocab(with_added_tokens=True).values(), [2])) + 1
