import json
import pathlib
import warnings

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from dro_jax.data.text import tokenizer_json
from dro_jax.data.text.vocabularies import offer, vocabulary
from dro_jax.errors import UsageError

TEXTS = [
  'A quick brown fox.',
  ' two  spaces ',
  '„Cu inima grea”, Pétain',
  'x <extra_id_0> y <extra_id_12>',
  '日本語 text',
  '\n\ttab',
]


def train(directory, **options) -> str:
  """A tiny SentencePiece model with T5's special ids."""
  corpus = directory / 'corpus.txt'
  words = np.random.default_rng(0).choice(list('abcdefghij'), (400, 5))
  lines = ['A quick brown fox ' + ''.join(word) for word in words]
  corpus.write_text('\n'.join([*lines, ' '.join('</>_0148spadunkextri')]))
  special = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1, 'vocab_size': 64} | options
  sentencepiece.SentencePieceTrainer.train(
    input=str(corpus), model_prefix=str(directory / 'tiny'), minloglevel=2, **special
  )
  return str(directory / 'tiny.model')


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> str:
  return train(tmp_path_factory.mktemp('vocabulary'))


def seqio():
  """seqio, imported without the warnings of what it imports."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import seqio
  return seqio


@given(text=st.text(st.characters(exclude_categories=['Cs'])))
def test_bytes_decode_to_the_same_text(text):
  words = vocabulary('bytes')
  assert words.decode(words.encode(text)) == text


def check_against_seqio(words, theirs) -> None:
  assert words.size == theirs.vocab_size
  for text in TEXTS:
    ids = words.encode(text)
    np.testing.assert_array_equal(ids, theirs.encode(text))
    for decoded in (ids, [*ids, 1, 5, 6], [*ids, 2, words.size + 3]):
      assert words.decode(decoded) == theirs.decode([int(i) for i in decoded])


def test_byte_ids_equal_seqios():
  check_against_seqio(vocabulary('bytes'), seqio().ByteVocabulary(extra_ids=0))


@pytest.mark.parametrize('extra_ids', [100, 0, 3])
def test_sentencepiece_ids_equal_seqios(model, extra_ids):
  words = vocabulary(f'{model}#extra_ids={extra_ids}')
  check_against_seqio(words, seqio().SentencePieceVocabulary(model, extra_ids=extra_ids))


def test_a_model_gets_100_extra_ids_by_default(model):
  assert vocabulary(model).size == 164


def test_the_ids_of_t5s_vocabulary_equal_seqios(vocab_file):
  words = vocabulary(str(vocab_file))
  assert words.size == 32100
  check_against_seqio(words, seqio().SentencePieceVocabulary(str(vocab_file), extra_ids=100))


def test_a_batch_encodes_like_single_texts(model):
  words = vocabulary(model)
  for text, ids in zip(TEXTS, words.encode_batch(TEXTS)):
    np.testing.assert_array_equal(words.encode(text), ids)


def test_a_copy_has_the_same_fingerprint_and_other_extra_ids_another(model, tmp_path):
  copy = tmp_path / 'copy.model'
  copy.write_bytes(pathlib.Path(model).read_bytes())
  assert vocabulary(str(copy)).fingerprint == vocabulary(model).fingerprint
  assert vocabulary(f'{model}#extra_ids=0').fingerprint != vocabulary(model).fingerprint


def test_the_error_of_a_missing_model_names_it():
  with pytest.raises(
    UsageError,
    match=r"'nowhere.model'.*pass the path of a SentencePiece model, of a tokenizer.json or of the folder",
  ):
    vocabulary('nowhere.model')


def test_a_path_that_cannot_be_reached_is_named():
  with pytest.raises(UsageError, match=r"'nowhere://x/y.model': cannot read it"):
    vocabulary('nowhere://x/y.model')


@pytest.mark.parametrize('content', [b'', b'\x01junk', b'{"json": 1}'])
def test_a_file_that_is_not_a_model_is_refused(tmp_path, content):
  (tmp_path / 'x.model').write_bytes(content)
  with pytest.raises(UsageError, match='not a SentencePiece model'):
    vocabulary(str(tmp_path / 'x.model'))


def test_other_special_ids_are_refused(tmp_path):
  with pytest.raises(UsageError, match=r'\(0, 1, 2\).*--pad_id=0'):
    vocabulary(train(tmp_path, pad_id=-1, eos_id=2, unk_id=0, bos_id=1))


def test_a_bad_option_is_refused(model):
  with pytest.raises(UsageError, match='only extra_ids=NUMBER'):
    vocabulary(f'{model}#extra=1')


def test_a_tokenizer_json_has_its_added_tokens_and_its_own_fingerprint(model, tmp_path):
  content = pathlib.Path(model).read_bytes()
  marks = set()
  for names in ('', '{', '{}'):
    added = [{'id': 164 + i, 'content': name} for i, name in enumerate(names)]
    file = tmp_path / f'{len(names)}.json'
    file.write_text(json.dumps(tokenizer_json.from_sentencepiece(content, 100, added)))
    words = vocabulary(str(file))
    assert words.size == 164 + len(names)
    marks.add(words.fingerprint)
  assert len(marks) == 3
  ids = words.encode('a{ fox }')
  assert [i for i in ids if i >= 164] == [164, 165]
  assert words.decode([*ids, 1, 7]) == 'a{ fox}'
  assert words.decode([0, 2, words.size + 9]) == words.decode([2, 2])
  for text, single in zip(TEXTS, words.encode_batch(TEXTS)):
    np.testing.assert_array_equal(words.encode(text), single)


def test_offer_names_bytes_only_for_small_embeddings():
  assert 'bytes' in offer(384)
  assert 'bytes' not in offer(32128)
