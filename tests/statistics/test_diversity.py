"""Diversity of texts: against nltk, brute force and values by hand."""

import itertools
import math
import pathlib

import numpy as np
import pytest

from dro_jax.statistics import diversity

TEXTS = (
  'the cat sat on the mat', 'the cat sat on the mat today', 'a dog, a dog!', 'no', '', 'the the the the the',
  'the cat sat on a mat', 'yes , no', 'on the mat the cat sat on the mat',
)  # fmt: skip


def words(*texts):
  return [diversity.words_of(text) for text in texts]


def random_words(seed, count, length=12, vocabulary=6):
  rng = np.random.default_rng(seed)
  return [[str(x) for x in rng.integers(vocabulary, size=rng.integers(length))] for _ in range(count)]


def test_words_are_runs_of_letters_or_of_other_marks():
  assert diversity.words_of("Don't stop... 3,5 Löwen!\n") == [
    'Don', "'", 't', 'stop', '...', '3', ',', '5', 'Löwen', '!',
  ]  # fmt: skip
  assert diversity.words_of(' \n') == []


def test_words_are_nltks():
  tokenize = pytest.importorskip('nltk.tokenize')
  for text in (*TEXTS, "Don't stop... 3,5 Löwen!\n", 'a_b c-d 東京 #1'):
    assert diversity.words_of(text) == tokenize.wordpunct_tokenize(text)


def test_repetition_is_the_share_of_ngrams_seen_before():
  text = [*'abcdabcdab']
  # Seven 4-grams: abcd, bcda, cdab, dabc, and three of them again.
  assert diversity.repetition(text) == pytest.approx(3 / 7)
  assert diversity.repetition(text, 1) == pytest.approx(6 / 10)
  assert diversity.repetition(['a', 'b', 'c']) == 0.0 and diversity.repetition([]) == 0.0


def test_distinct_by_hand():
  found = diversity.distinct([words('a b a', 'a c'), words('b c')], 1)
  assert found.value == pytest.approx(3 / 7)
  np.testing.assert_allclose(found.without_P, [2 / 2, 3 / 5])
  assert diversity.distinct([words('a b a', 'a c'), words('b c')], 2).value == pytest.approx(4 / 7)


@pytest.mark.parametrize('order', [1, 2, 3])
def test_distinct_without_a_prompt_is_distinct_of_the_others(order):
  responses_PK = [random_words(p, 3) for p in range(8)]
  found = diversity.distinct(responses_PK, order)

  def brute_force(some):
    texts = [text for responses in some for text in responses]
    grams = {tuple(text[i : i + order]) for text in texts for i in range(len(text) - order + 1)}
    return len(grams) / sum(map(len, texts))

  assert found.value == pytest.approx(brute_force(responses_PK))
  left_out = [responses_PK[:p] + responses_PK[p + 1 :] for p in range(8)]
  np.testing.assert_allclose(found.without_P, [*map(brute_force, left_out)])


def test_distinct_of_no_words_is_undefined():
  assert math.isnan(diversity.distinct([[[]], [[]]], 1).value)
  found = diversity.distinct([words('a b'), [[]]], 1)
  assert found.value == 1 and math.isnan(found.without_P[0]) and found.without_P[1] == 1


def test_equal_responses_have_a_self_bleu_of_one_and_one_alone_has_none():
  assert diversity.self_bleu(words(*[TEXTS[0]] * 3)) == pytest.approx(1)
  assert math.isnan(diversity.self_bleu(words('alone')))
  assert diversity.self_bleu(words('one two', 'three four')) == 0.0
  assert diversity.self_bleu(words('', '')) == 0.0


@pytest.mark.parametrize('text, want', [('a', 0.1778), ('a b', 0.3162), ('a b c', 0.5623), ('a b c d', 1)])
def test_the_self_bleu_of_equal_short_responses_is_what_the_glossary_says(text, want):
  assert diversity.self_bleu(words(text, text)) == pytest.approx(want, abs=5e-5)
  glossary = pathlib.Path(__file__).parents[2] / 'docs/reference/glossary.md'
  [line] = [x for x in glossary.read_text().splitlines() if 'BLEU-4' in x]
  assert want == 1 or f'{want}'[1:] in line


def test_self_bleu_by_hand():
  """Each of the two has five of the other's words in a row."""
  one, other = 'a b c d e f', 'a b c d e g'
  want = math.exp(sum(map(math.log, (5 / 6, 4 / 5, 3 / 4, 2 / 3))) / 4)
  assert diversity.self_bleu(words(one, other)) == pytest.approx(want)
  # 'a b' of itself matches whole, but for orders that it has not: .1 of 1 each; and it is short by one word.
  short = math.exp(1 - 3 / 2 + 2 * math.log(0.1) / 4)
  long = math.exp((math.log(2 / 3) + math.log(1 / 2) + 2 * math.log(0.1)) / 4)
  assert diversity.self_bleu(words('a b', 'a b c')) == pytest.approx((short + long) / 2)


@pytest.mark.parametrize('seed', range(20))
def test_self_bleu_is_nltks(seed):
  bleu = pytest.importorskip('nltk.translate.bleu_score')
  texts = random_words(seed, 5) if seed else words(*TEXTS)
  smooth = bleu.SmoothingFunction().method1
  want = [
    bleu.sentence_bleu([*itertools.chain(texts[:k], texts[k + 1 :])], texts[k], smoothing_function=smooth)
    for k in range(len(texts))
  ]
  assert diversity.self_bleu(texts) == pytest.approx(np.mean(want), abs=1e-12)
