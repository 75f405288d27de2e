"""A SentencePiece model as a tokenizer.json: equal ids, equal texts."""

import json
import random

import pytest
from tokenizers import AddedToken, Tokenizer

from dro_jax.data.text import tokenizer_json, vocabularies
from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.errors import UsageError
from tests.data.text.test_vocabularies import train

KINDS = {
  'T5': {},
  'bytes for what has no piece': {'byte_fallback': True},
  'blanks are kept': {
    'byte_fallback': True, 'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False,
  },
  'user-defined pieces': {'user_defined_symbols': ['<q>', 'fox'], 'byte_fallback': True},
}  # fmt: skip
# What texts are made of: words, blanks, markup, accents, scripts, emoji, controls, special names.
ALPHABET = [
  *'abcdefgh AxQ  \n\t<>{}[]=_"', 'quick ', ' brown', 'fox', '<q>', 'é', 'ü', 'e\u0301', 'e\u0302\u0301',
  'ê\u0301', 'a\u0301\u0323', '你', '好', '日本', '한', '\u1112\u1161\u11ab', '🙂', '👩\u200d💻', '👍🏽',
  '🇩🇪', '\u200b', '\u200d', '\ufeff', '\ufe0f', '\xa0', '\u3000', '\u2028', '\r\n', '\x01', '\x7f', 'ﬁ', '①',
  'Ａ', '²', '</s>', '<pad>', '<unk>', '<s>', ' <extra_id_0> ', '<extra_id_1>', '<0x41>', 'a▁b', 'क्षि',
]  # fmt: skip


@pytest.fixture(scope='module', params=list(KINDS))
def pair(request, tmp_path_factory):
  """A vocabulary of a SentencePiece model, and the one of its tokenizer.json."""
  folder = tmp_path_factory.mktemp('pair')
  path = train(folder, vocab_size=360, hard_vocab_limit=False, **KINDS[request.param])
  with open(path, 'rb') as file:
    made = tokenizer_json.from_sentencepiece(file.read(), 100)
  (folder / 'tokenizer.json').write_text(json.dumps(made))
  return vocabulary(path), vocabulary(str(folder / 'tokenizer.json'))


def test_ids_and_decoded_texts_equal_sentencepieces(pair):
  ours, theirs = pair
  assert theirs.size == ours.size
  draw = random.Random(0)
  texts = [''.join(draw.choices(ALPHABET, k=draw.randint(1, 30))) for _ in range(600)]
  for text in ['', ' ', *tokenizer_json.PROBES.values(), *texts]:
    ids = ours.encode(text)
    assert theirs.encode(text).tolist() == ids.tolist(), ascii(text)
    if 2 not in ids:
      assert theirs.decode([0, *ids, 1, 5]) == ours.decode(ids), ascii(text)


def test_user_defined_pieces_win_over_all_others(tmp_path):
  options = {'user_defined_symbols': ['ab', 'bcd', 'cdef', 'dea'], 'vocab_size': 360}
  words = vocabulary(train(tmp_path, hard_vocab_limit=False, **options))
  with open(words.spec, 'rb') as file:
    made = tokenizer_json.load(tokenizer_json.from_sentencepiece(file.read(), 100))
  draw = random.Random(0)
  for text in (''.join(draw.choices('abcdefghij é', k=draw.randint(2, 14))) for _ in range(1000)):
    assert made.encode(text, add_special_tokens=False).ids == words.encode(text).tolist(), text


def test_no_text_encodes_to_end_or_padding(pair):
  for words in pair:
    for text in ('</s>', 'a</s>b', '<pad>', 'x </s> <pad> <unk>'):
      assert not {0, 1} & set(words.encode(text).tolist())


def test_unlike_names_the_texts_that_differ(pair):
  ours, theirs = pair
  with open(theirs.spec, encoding='utf-8') as file:
    made = json.load(file)
  assert tokenizer_json.unlike(ours.encode, made) == []
  assert tokenizer_json.unlike(lambda text: [], made) == list(tokenizer_json.PROBES)


@pytest.mark.parametrize('content', ['\n', ' '])
def test_an_added_token_that_is_normalised_to_nothing_is_refused(pair, content):
  """The library itself panics at the first text."""
  with open(pair[1].spec, encoding='utf-8') as file:
    tokenizer = Tokenizer.from_str(file.read())
  is_kept = bool(tokenizer.normalizer.normalize_str(content))
  tokenizer.add_tokens([AddedToken(content)])
  if is_kept:
    assert vocabularies.from_json(tokenizer_json.from_json(tokenizer.to_str(), 'made.json'), '').size > 0
    return
  with pytest.raises(UsageError, match='added token .* is normalised to nothing.*normalized=False'):
    tokenizer_json.from_json(tokenizer.to_str(), 'made.json')


def test_added_tokens_follow_the_vocabulary(pair):
  ours, _ = pair
  with open(ours.spec, 'rb') as file:
    model = file.read()
  added = [{'id': ours.size + 1, 'content': '}'}, {'id': ours.size, 'content': '{'}]
  tokenizer = tokenizer_json.load(tokenizer_json.from_sentencepiece(model, 100, added))
  ids = tokenizer.encode('a{b}', add_special_tokens=False).ids
  assert [i for i in ids if i >= ours.size] == [ours.size, ours.size + 1]
  assert tokenizer_json.size(tokenizer) == ours.size + 2
  with pytest.raises(UsageError, match=rf"'{{' has the id {ours.size + 5}, and {ours.size} is the next free"):
    tokenizer_json.from_sentencepiece(model, 100, [{'id': ours.size + 5, 'content': '{'}])


def test_another_kind_of_model_is_refused(tmp_path):
  with (
    open(train(tmp_path, model_type='bpe'), 'rb') as file,
    pytest.raises(UsageError, match='not a unigram'),
  ):
    tokenizer_json.from_sentencepiece(file.read(), 100)


def test_another_tools_tokenizer_is_read_with_its_added_tokens(pair):
  _, theirs = pair
  with open(theirs.spec, encoding='utf-8') as file:
    foreign = Tokenizer.from_str(file.read())
  foreign.add_special_tokens([AddedToken('<|user|>', special=True)])
  foreign.enable_truncation(3)
  foreign.pre_tokenizer = None
  read = tokenizer_json.from_json(foreign.to_str(), 'x.json')
  tokenizer = tokenizer_json.load(read)
  ids = tokenizer.encode('a quick <|user|> fox </s> fox', add_special_tokens=False).ids
  assert theirs.size in ids and 1 not in ids and len(ids) > 3
  assert [token['content'] for token in tokenizer_json.added(read)] == ['<|user|>']
  assert tokenizer_json.from_json(json.dumps(read), 'x.json') == read


@pytest.mark.parametrize('content', ['', '{}', '[1]', '\x01junk'])
def test_a_file_that_is_not_a_tokenizer_is_refused(content):
  with pytest.raises(UsageError, match=r"'x.json' is not a readable tokenizer.json"):
    tokenizer_json.from_json(content, 'x.json')


def test_other_special_ids_are_refused(pair):
  _, theirs = pair
  with open(theirs.spec, encoding='utf-8') as file:
    read = json.load(file)
  read['model']['vocab'][0], read['model']['vocab'][1] = read['model']['vocab'][1], read['model']['vocab'][0]
  read['added_tokens'] = []
  with pytest.raises(UsageError, match=r"first three tokens are '</s>', '<pad>'"):
    tokenizer_json.from_json(json.dumps(read), 'x.json')
