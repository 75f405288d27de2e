import json
import os
import re

import numpy as np
import pytest

from dro_jax import main
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.recipes import train_vocabulary

SIZE = 300


@pytest.fixture(scope='module')
def triplets(tmp_path_factory):
  """Forty records of words made of a few letters; two to a prompt."""
  rng = np.random.default_rng(0)
  words = [''.join(rng.choice(list('abcdef'), rng.integers(2, 6))) for _ in range(30)]
  path = tmp_path_factory.mktemp('texts') / 'a.jsonl'
  records = [
    {'prompt': f'prompt {i}: {" ".join(rng.choice(words, 6))}', 'response': ' '.join(rng.choice(words, 8))}
    for i in range(40)
  ]
  for i in range(1, 40, 2):
    records[i]['prompt'] = records[i - 1]['prompt']
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def made(triplets, path, **options):
  train_vocabulary.train_vocabulary(triplets, str(path), **({'size': SIZE} | options))
  return vocabularies.vocabulary(str(path))


def test_the_command_writes_a_vocabulary_that_train_can_use(triplets, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  code = main.main(
    ['train_vocabulary', triplets, '--output=my.model', f'--set=VOCABULARY_SIZE={SIZE}', '--json']
  )
  result = json.loads(capsys.readouterr().out)
  assert code == 0 and os.listdir() == ['my.model']
  words = vocabularies.vocabulary(result['use'].removeprefix('--set VOCABULARY='))
  assert words.size == SIZE + 100 == result['ids']
  assert result['texts'] == 40 + 20  # Every response, and each prompt once.
  assert words.decode(words.encode('abc 漢ß ed')) == 'abc 漢ß ed'  # Characters without a piece are bytes.
  assert words.special.unknown not in words.encode('漢ß')


def test_the_same_texts_make_the_same_file(triplets, tmp_path):
  made(triplets, tmp_path / 'a.model')
  made(triplets, tmp_path / 'b.model')
  assert (tmp_path / 'a.model').read_bytes() == (tmp_path / 'b.model').read_bytes()


def test_whitespace_is_kept_on_demand(triplets, tmp_path):
  code = 'if a:\n\n  b\tc ﬁ'
  kept = made(triplets, tmp_path / 'a.model', keep_whitespace=True)
  assert kept.decode(kept.encode(code)) == code
  plain = made(triplets, tmp_path / 'b.model')
  assert plain.decode(plain.encode(code)) == 'if a: b c fi'


def test_too_little_text_says_the_largest_size_that_works(triplets, tmp_path):
  with pytest.raises(UsageError, match='VOCABULARY_SIZE=9000: .* pieces at most') as refused:
    made(triplets, tmp_path / 'a.model', size=9000)
  assert os.listdir(tmp_path) == []
  largest = int(re.search(r'make (\d+) pieces at most', str(refused.value))[1])
  made(triplets, tmp_path / 'a.model', size=largest)
  with pytest.raises(UsageError, match=f'make {largest} pieces'):
    made(triplets, tmp_path / 'b.model', size=largest + 1)


def test_too_small_a_size_says_the_smallest(triplets, tmp_path):
  with pytest.raises(UsageError, match=r'need (2\d\d) pieces at least') as refused:
    made(triplets, tmp_path / 'a.model', size=50)
  smallest = int(re.search(r'need (\d+) pieces', str(refused.value))[1])
  made(triplets, tmp_path / 'a.model', size=smallest)


@pytest.mark.parametrize(
  'output, message',
  [
    ('taken.model', 'exists, and replacing it'),
    ('taken.model/a.model', 'is a file and not a folder'),
    ('gs://b/a.model', 'on this machine'),
  ],
)
def test_a_place_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch, output, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'taken.model').write_text('precious')
  with pytest.raises(UsageError, match=message):
    train_vocabulary.train_vocabulary('no_such_file.jsonl', output)
  assert (tmp_path / 'taken.model').read_text() == 'precious' and os.listdir() == ['taken.model']


def test_a_write_that_fails_leaves_nothing(triplets, tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError('no space left')))
  with pytest.raises(UsageError, match='no space left'):
    made(triplets, tmp_path / 'a.model')
  assert os.listdir(tmp_path) == []
