"""What a vocabulary loses of texts is counted with the table, and told."""

import json

import pytest

from dro_jax.data.sources import find
from dro_jax.data.table import cache, table
from dro_jax.data.text import lost_text
from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.errors import UsageError
from tests.data.text.test_vocabularies import train

NOTHING = {'unknown': 0, 'mostly_unknown': 0, 'blanks': 0, 'examples': {}}


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  """A vocabulary of T5's kind: no bytes, blanks of all kinds are one."""
  return vocabulary(train(tmp_path_factory.mktemp('vocabulary')))


def triplet(number: int, prompt: str, response: str) -> dict:
  return {'id': f'r{number}', 'prompt': prompt, 'response': response, 'reward': float(number)}


RECORDS = [
  triplet(0, 'A quick fox', 'brown  fox'),
  triplet(1, '你好', 'A brown\nfox\n\tA fox'),
  triplet(2, '你好', 'A 你 quick brown fox '),
  triplet(3, ' A fox\tquick ', ' brown'),
]


def build(directory, words, records=RECORDS, **options) -> table.TokenTable:
  return table.build(records, words, directory, **{'prompt_length': 64, 'response_length': 64} | options)


@pytest.mark.parametrize('block', [2**13, 1, 3])
def test_losses_count_each_prompt_once(tmp_path, words, monkeypatch, block):
  monkeypatch.setattr(lost_text, '_TEXTS', block)
  lost = build(tmp_path / 't', words).report['lost']
  assert lost['prompt'] == {
    'texts': 3, 'unknown': 1, 'mostly_unknown': 1, 'blanks': 1,
    'examples': {'unknown': '你好', 'mostly_unknown': '你好', 'blanks': ' A fox\tquick '},
  }  # fmt: skip
  assert lost['response'] == {
    'texts': 4, 'unknown': 1, 'mostly_unknown': 0, 'blanks': 2,
    'examples': {'unknown': 'A 你 quick brown fox ', 'blanks': 'brown  fox'},
  }  # fmt: skip
  assert table.load(tmp_path / 't').report['lost'] == lost


def test_bytes_and_a_vocabulary_that_keeps_blanks_lose_nothing(tmp_path):
  kept = {'byte_fallback': True, 'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False}
  pieces = vocabulary(train(tmp_path, vocab_size=340, hard_vocab_limit=False, **kept))
  for i, words in enumerate((vocabulary('bytes'), pieces)):
    assert lost_text.lost_blanks(words) == []
    lost = build(tmp_path / str(i), words).report['lost']
    assert lost == {'prompt': {'texts': 3} | NOTHING, 'response': {'texts': 4} | NOTHING}
    assert list(lost_text.sentences(lost, words)) == []


def test_a_warning_shows_lost_text_with_an_example_and_a_remedy(tmp_path, words, caplog):
  path = tmp_path / 'feedback.jsonl'
  path.write_text(''.join(json.dumps(record) + '\n' for record in RECORDS))
  cache.build_table(
    find.find(str(path)), words, str(tmp_path / 'cache'), prompt_length=64, response_length=64
  )
  unknown, blanks, *_ = caplog.messages
  assert (
    "1 of 3 prompts hold characters that the vocabulary does not know, and 1 of them hold little else ('你好'"
    in unknown
  )
  assert 'is read as' in unknown and '`dro_jax train_vocabulary`' in unknown and 'bytes' in unknown
  assert (
    "1 of 3 prompts lose line breaks, tabs or runs of blanks (' A fox\\tquick ' is read as 'A fox quick')"
    in blanks
  )
  assert 'KEEP_WHITESPACE=true' in blanks
  assert len(caplog.messages) == 4


@pytest.mark.parametrize('side', ['prompt', 'response'])
def test_a_text_without_tokens_is_refused_like_an_empty_one(tmp_path, words, side):
  path = tmp_path / 'feedback.jsonl'
  record = triplet(0, 'A fox', 'brown') | {side: '\u200b\u200b'}
  path.write_text(json.dumps(RECORDS[0] | {'id': 'x'}) + '\n' + json.dumps(record) + '\n')
  found = find.find(str(path))
  with pytest.raises(
    UsageError, match=rf"feedback.jsonl:2: the {side} '.u200b.u200b' is empty: the vocabulary has no tokens"
  ):
    cache.build_table(found, words, str(tmp_path / 'cache'), prompt_length=64, response_length=64)
  assert not list((tmp_path / 'cache').glob('*feedback*'))
  assert len(build(tmp_path / 'bytes', vocabulary('bytes'), [record])) == 1


def test_an_example_shows_the_place(tmp_path, words):
  records = [
    triplet(0, 'A quick fox ' * 20 + '你' + ' brown fox' * 20, 'A fox ' * 20 + '\nfox' + ' A fox' * 20)
  ]
  unknown, blanks = lost_text.sentences(
    build(tmp_path / 't', words, records, prompt_length=999).report['lost'], words
  )
  assert 'A quick fox 你 brown' in unknown
  assert 'A fox \\nfox' in blanks
