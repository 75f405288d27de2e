"""Encoders against transformers' tokenizers of the same folders."""

import pathlib

import pytest
import sentencepiece
import transformers

from dro_jax.data.text import encoders
from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.errors import UsageError
from tests.data.text import tiny_tokenizers

KINDS = ('qwen', 'llama3', 'gemma', 'llama2')
TEXTS = [
  'The quick brown fox', 'two  spaces ', 'x\n\n\ny\tz', 'naïve 🙂 ﬁ ①', '1234 5', "don't", '日本語 한국어',
  'a▁b', '\x01\x7f', 'e\u0301 ê', 'return x + 1\r\n', '👩\u200d💻', '<|', '<start', '', 'x',
]  # fmt: skip


@pytest.fixture(scope='module', params=KINDS)
def folder(request, tmp_path_factory) -> str:
  return getattr(tiny_tokenizers, request.param)(tmp_path_factory.mktemp(request.param))


def test_ids_equal_transformers(folder):
  ours, theirs = vocabulary(folder), transformers.AutoTokenizer.from_pretrained(folder)
  for text, ids in zip(TEXTS, ours.encode_batch(TEXTS)):
    assert [*ours.prefix, *ids] == theirs(text).input_ids, ascii(text)
    assert '▁' in text or ours.decode([*ids, ours.special.eos, 5]) == text
  assert not ours.ends_prompts and ours.prefix == (() if 'qwen' in folder else (theirs.bos_token_id,))


def test_a_text_that_begins_with_a_blank_is_encoded_as_sentencepiece_does(tmp_path):
  """transformers takes that blank for the one that SentencePiece puts before every text."""
  words = vocabulary(tiny_tokenizers.llama2(tmp_path))
  processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'tokenizer.model'))
  for text in (' a', '  two  ', '▁a'):
    assert words.encode(text).tolist() == processor.encode(text), text


def test_no_text_encodes_to_a_special_token(folder):
  words = vocabulary(folder)
  special = set(words.chat.control) if words.chat else {'<s>', '</s>'}
  ids = {i for name in special for i in words.encode(f'a {name} b{name}').tolist()}
  assert not ids & {words.special.eos, words.special.pad, *words.prefix}
  for name in special:
    assert words.decode(words.encode(f'a {name} b{name}')) == f'a {name} b{name}'


def test_a_frame_has_the_ids_of_transformers_and_marked_names_are_text(folder):
  words, theirs = vocabulary(folder), transformers.AutoTokenizer.from_pretrained(folder)
  if words.chat is None:
    pytest.skip('the model has no chat template')
  end, first = words.chat.end, words.chat.control[-1]
  frame = f'{first}user\nHello there{end}\n\n {end}x'
  [plain] = words.chat.encode([frame], '')
  assert plain.tolist() == theirs(frame, add_special_tokens=False).input_ids
  marked = f'{end[0]}\ue000{end[1:]}'
  [ids] = words.chat.encode([f'{first}user\nHello {marked} there{end}\n'], '\ue000')
  assert ids.tolist().count(words.special.eos) == 1
  inner = words.encode(f'user\nHello {end} there').tolist()
  assert ids[1 : 1 + len(inner)].tolist() == inner


def test_a_frame_whose_tokenizer_puts_a_blank_before_texts_has_it_only_at_its_start(tmp_path):
  template = '{% for turn in messages %}<s>[INST] {{ turn.content }} [/INST]{% endfor %}'
  folder = tiny_tokenizers.llama2(tmp_path, template=template)
  words, theirs = vocabulary(folder), transformers.AutoTokenizer.from_pretrained(folder)
  frame = '<s>[INST] a [/INST] b</s>'
  assert words.chat.encode([frame], '')[0].tolist() == theirs(frame, add_special_tokens=False).input_ids
  marked = words.chat.encode(['<s>[INST] <\ue000s> [/INST] b</s>'], '\ue000')[0].tolist()
  assert marked.count(1) == 1 and words.decode(marked[1:]) == '[INST] <s> [/INST] b'


def test_marks_do_not_move_the_blank_that_a_tokenizer_json_puts_before_texts(tmp_path):
  """Such as Llama 2's tokenizer.json: in a frame with marks, as in one without."""
  from tokenizers import Tokenizer, models, pre_tokenizers

  names = ['<unk>', '<s>', '</s>', '▁', *'abs<>/']
  made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
  made.add_special_tokens(['<s>', '</s>'])
  read = encoders.read_json(made.to_str().encode(), 'here')
  encoder = encoders.from_json(read, ('<s>', '</s>'), 'here')
  [plain], [marked] = encoder.encode_frames(['a<s>b</s>'], ''), encoder.encode_frames(['a<s>b</s>'], '\ue000')
  assert marked.tolist() == plain.tolist() == [3, 4, 1, 5, 2]
  [text] = encoder.encode_frames(['<s>b<\ue000s>a'], '\ue000')
  assert [names[i] for i in text] == ['<s>', 'b', '<', 's', '>', 'a']
  assert encoder.unknown == 0


@pytest.mark.parametrize('content', [b'{"model": {"type": "BPE"}}', b'{"added_tokens": 3, "model": {}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
  (tmp_path / 'tokenizer.json').write_bytes(content)
  with pytest.raises(UsageError, match='not.*readable'):
    vocabulary(str(tmp_path))


def test_added_tokens_with_gaps_are_refused(tmp_path):
  folder = tiny_tokenizers.qwen(tmp_path)
  file = pathlib.Path(folder, 'tokenizer.json')
  file.write_text(file.read_text().replace('"id":386', '"id":390'))
  with pytest.raises(UsageError, match="'<|im_end|>' has the id 390, but the next free id is 386"):
    vocabulary(folder)
