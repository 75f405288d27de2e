"""Tokenizers of decoder-only models as folders in Hugging Face's layout: files, special ids, chat template.

    tokenizer.json           the tokenizer; or else
    tokenizer.model          a SentencePiece model, such as Llama 2's and Gemma's
    tokenizer_config.json    names of special tokens, chat_template; of tokenizer.model, add_bos_token
    special_tokens_map.json  names of special tokens, where the file above has none
    added_tokens.json        tokens that are added to tokenizer.model
    generation_config.json   ids that end a text
    chat_template.jinja      the chat template, before that of tokenizer_config.json

A chat model's EOS is the token with which its template ends an answer. Without a template, or where it ends
an answer with no token, it is the first of generation_config.json's, or else the tokenizer's. A tokenizer
without padding gets EOS's id for it: masks come from segments.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.data.text import chat_templates, encoders
from dro_jax.data.text.chat import Turn
from dro_jax.data.text.chat_templates import ChatTemplate
from dro_jax.errors import UsageError
from dro_jax.files import hash_parts
from dro_jax.names import SpecialTokens

JSON, PIECES, CONFIG, NAMES = (
  'tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json'
)  # fmt: skip
ADDED, GENERATION, TEMPLATE = 'added_tokens.json', 'generation_config.json', 'chat_template.jinja'
FILES = (JSON, PIECES, CONFIG, NAMES, ADDED, GENERATION, TEMPLATE)
_ROLES = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
_MORE = ('additional_special_tokens', 'extra_special_tokens')
_QUESTION, _ANSWER = 'Wann?', 'Heute.'  # A probe; no template writes these words of its own.


class Tokenizer(NamedTuple):
  """What a folder holds; see `vocabularies.Vocabulary` for the fields."""

  size: int
  fingerprint: str
  encode_batch: Callable[[Sequence[str]], list[np.ndarray]]
  decode: Callable[[Iterable[int]], str]
  special: SpecialTokens
  prefix: tuple[int, ...]
  chat: ChatTemplate | None


class _Contents(NamedTuple):
  """A folder's files, read.

  Attributes:
    where: the folder, for errors.
    config: of the tokenizer, with the names of special tokens.
    generation: of generation_config.json.
    template: the chat template, or None.
    fast: tokenizer.json with all added tokens, or None.
    pieces: tokenizer.model, where there is no tokenizer.json.
    added: ids of added tokens, by name.
    names: of special tokens: `bos_token`, ... where the folder names them.
    control: names of all special tokens.
  """

  where: str
  config: Mapping[str, Any]
  generation: Mapping[str, Any]
  template: str | None
  fast: Mapping[str, Any] | None
  pieces: bytes
  added: Mapping[str, int]
  names: Mapping[str, str]
  control: frozenset[str]


def read(files: Mapping[str, bytes], where: str) -> Tokenizer:
  """The tokenizer of a folder.

  Args:
    files: those of FILES that the folder has.
    where: the folder, for errors.

  Raises:
    UsageError: there is no tokenizer, a file cannot be read, or no token ends a text.
  """
  contents = _read(files, where)
  probes = _probe(contents)
  control = contents.control | _around(probes[0], contents.added)
  if contents.fast is not None:
    encoder = encoders.from_json(contents.fast, control, where)
  else:
    encoder = encoders.from_sentencepiece(contents.pieces, contents.added, control, where)
  special = _special(contents, encoder, probes[1])
  prefix = _prefix(contents, encoder)

  def decode(ids: Iterable[int]) -> str:
    return encoder.decode([i for i in ids if i != special.pad])

  chat = None
  if contents.template is not None:
    names = tuple(sorted(name for name in control if len(name) > 1))
    end = next(name for name, i in encoder.ids.items() if i == special.eos)
    chat = ChatTemplate(contents.template, contents.names, names, end, encoder.encode_frames)
  mark = _fingerprint(contents, special, prefix, control)
  return Tokenizer(encoder.size, mark, encoder.encode_batch, decode, special, prefix, chat)


def write(folder: Any, files: Mapping[str, bytes]) -> None:
  """Writes a tokenizer's files into a folder, which it makes where there is none."""
  from etils import epath

  target = epath.Path(folder)
  target.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (target / name).write_bytes(content)


# --- the files ----------------------------------------------------------------------------------------------


def _read(files: Mapping[str, bytes], where: str) -> _Contents:
  if JSON not in files and PIECES not in files:
    raise UsageError(
      f"vocabulary '{where}' is a folder without {JSON} and {PIECES}: pass the folder of a Hugging Face "
      'tokenizer, or the path of a SentencePiece model'
    )
  parsed = {
    name: encoders.read_json(content, f'{where}/{name}')
    for name, content in files.items() if name not in (PIECES, TEMPLATE)
  }  # fmt: skip
  config = parsed.get(NAMES, {}) | {k: v for k, v in parsed.get(CONFIG, {}).items() if v is not None}
  names = {role: name for role in _ROLES if (name := _name(config.get(role)))}
  listed = config.get('added_tokens_decoder', {})
  decoder = {token['content']: {**token, 'id': int(i)} for i, token in listed.items()}
  fast = parsed.get(JSON)
  if fast is not None:
    fast = encoders.with_tokens(fast, decoder | {n: {} for n in _named(config, names) if n not in decoder})
    added = {token['content']: token['id'] for token in fast['added_tokens']}
    flagged = [token['content'] for token in fast['added_tokens'] if token.get('special')]
  else:
    proto = encoders.parse_sentencepiece(files[PIECES], where)
    decoder = {name: {'id': i} for name, i in parsed.get(ADDED, {}).items()} | decoder
    added = encoders.named_pieces(proto) | {name: token['id'] for name, token in decoder.items()}
    names = encoders.roles_of(proto) | {role: name for role, name in names.items() if name in added}
    flagged = encoders.control_names(proto)
    flagged += [name for name, token in decoder.items() if token.get('special', True)]
  control = frozenset(name for name in (*flagged, *_named(config, names)) if name in added)
  return _Contents(
    where, config, parsed.get(GENERATION, {}), _template(files, config), fast, files.get(PIECES, b''), added,
    {role: name for role, name in names.items() if name in added}, control,
  )  # fmt: skip


def _name(token: Any) -> str | None:
  """A token's name, which files write as text or as an object."""
  return token.get('content') if isinstance(token, Mapping) else token


def _named(config: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
  """The names of all tokens that the files call special."""
  lists = [config.get(key) or () for key in _MORE]
  more = [token for each in lists for token in (each.values() if isinstance(each, Mapping) else each)]
  return [*names.values(), *filter(None, map(_name, more))]


def _template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
  """The chat template; of several that have names, the default one."""
  if TEMPLATE in files:
    return files[TEMPLATE].decode()
  template = config.get('chat_template')
  if isinstance(template, list):
    template = {each['name']: each['template'] for each in template}.get('default')
  return template or None


# --- special tokens -----------------------------------------------------------------------------------------


def _probe(contents: _Contents) -> tuple[str, str]:
  """What a template writes for a question, and what it writes behind an answer; '' for no template."""
  if contents.template is None:
    return '', ''
  template = ChatTemplate(contents.template, contents.names, (), '', lambda texts, mark: [])
  question, answer = Turn('user', _QUESTION), Turn('assistant', _ANSWER)
  jobs = [chat_templates.Job([question], True), chat_templates.Job([question, answer], False)]
  try:
    (asked, answered), _ = chat_templates.render(template, jobs)
    whole = chat_templates.checked(answered, '')
    return chat_templates.checked(asked, ''), whole.rpartition(_ANSWER)[2]
  except UsageError as error:  # Without the template the model may still be used.
    logging.getLogger(__name__).warning('%s: %s', contents.where, error)
    return '', ''


def _around(asked: str, names: Collection[str]) -> set[str]:
  """The tokens that a template writes around a question; a line break is no control token.

  Of those before it, the last: a template's own instructions may name tokens, such as <think>, that a user's
  text may hold.
  """
  before, _, after = asked.rpartition(_QUESTION)
  find = encoders.any_of(names).findall
  return {name for name in [*find(before)[-1:], *find(after)] if not name.isspace()}


def _special(contents: _Contents, encoder: encoders.Encoder, ending: str) -> SpecialTokens:
  ids, names = encoder.ids, contents.names
  listed = contents.generation.get('eos_token_id')
  ends = listed if isinstance(listed, list) else [listed]
  ends = [i for i in ends if i in ids.values()] + ([ids[names['eos_token']]] if 'eos_token' in names else [])
  written = [ids[name] for name in encoders.any_of(ids).findall(ending) if not name.isspace()]
  ends = [i for i in written if i in ends][:1] + written[:1] + ends
  ends += [ids[name] for name in contents.control] if len(contents.control) == 1 else []
  if not ends:
    raise UsageError(
      f"vocabulary '{contents.where}': no file says which token ends a text: give {CONFIG} an eos_token"
    )
  pad = ids[names['pad_token']] if 'pad_token' in names else contents.generation.get('pad_token_id')
  start = ids.get(names.get('bos_token', ''), ends[0])
  return SpecialTokens(ends[0] if pad is None else pad, ends[0], encoder.unknown, start)


def _prefix(contents: _Contents, encoder: encoders.Encoder) -> tuple[int, ...]:
  """The ids before a prompt: those of tokenizer.json, or BOS before the text of a SentencePiece model.

  With a tokenizer.json transformers does not read `add_bos_token` either. Llama 2 and Gemma learnt with BOS,
  and their SentencePiece models do not say so.
  """
  if contents.fast is not None:
    return encoders.prefix_of(contents.fast)
  bos = encoder.ids.get(contents.names.get('bos_token', ''))
  return (bos,) if bos is not None and contents.config.get('add_bos_token', True) else ()


def _fingerprint(
  contents: _Contents, special: SpecialTokens, prefix: Sequence[int], control: Collection[str]
) -> str:
  # The post-processor and the decoder do not decide the ids of texts.
  fast = {k: v for k, v in (contents.fast or {}).items() if k not in ('post_processor', 'decoder')}
  decisive = {
    'fast': fast, 'added': dict(contents.added), 'names': dict(contents.names), 'special': list(special),
    'prefix': list(prefix), 'control': sorted(control), 'template': contents.template,
  }  # fmt: skip
  return hash_parts([json.dumps(decisive, sort_keys=True).encode(), b'' if fast else contents.pieces])


__all__ = ['FILES', 'Tokenizer', 'read', 'write']
