"""A model's character rules: the library's steps and SentencePiece replace alike."""

import unicodedata

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import normalizers

from dro_jax.data.text import charsmap
from tests.data.text.test_vocabularies import train


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  path = train(tmp_path_factory.mktemp('rules'), remove_extra_whitespaces=False, add_dummy_prefix=False)
  with open(path, 'rb') as file:
    return file.read()


@pytest.fixture(scope='module')
def normalise(model):
  """(ours, SentencePiece's)."""
  spec = sentencepiece_model_pb2.ModelProto.FromString(model).normalizer_spec
  steps = normalizers.Sequence(charsmap.steps(spec.precompiled_charsmap))
  theirs = sentencepiece.SentencePieceNormalizer(model_proto=model)
  return steps.normalize_str, lambda text: theirs.normalize(text).replace('▁', ' ')


@pytest.mark.parametrize(
  'text',
  [
    'e\u0302\u0301 e\u0301 Vie\u0323\u0302t',  # Decomposed, of which the library's own reader drops marks.
    'ê\u0301 ü\u0301',  # A composed letter and a mark stay two.
    'a\u0301\u0323',  # Marks in another order than Unicode's.
    'Ａ\u0301 ｶ\uff9e',
    '\x01\x02a\x7f\u0301',  # Characters that are deleted, the first of all too.
    '\r\n\t\u2028\u3000\u200b',
    '\u1112\u1161\u11ab 가',
    '👩\u200d💻 👍🏽 ❤\ufe0f',
    'ﬁ ① ² ½ …',
    '',
  ],
)
def test_steps_replace_characters_as_sentencepiece_does(normalise, text):
  ours, theirs = normalise
  assert ours(text) == theirs(text)


def test_composing_finds_every_letter_that_composes(model):
  spec = sentencepiece_model_pb2.ModelProto.FromString(model).normalizer_spec
  found = set(charsmap.composing(spec.precompiled_charsmap))
  composed = [unicodedata.normalize('NFD', chr(point)) for point in range(0xC0, 0x17F)]
  assert {text[0] for text in composed if len(text) > 1} <= found
  assert not found & set('éü你🙂')
