import pytest
import seqio

from dro_jax.data.sources import find

NAME = 'lines_of_test_find'


@pytest.fixture
def lines(tmp_path):
  """The folder whose text files are a seqio task's, by a pattern."""
  (tmp_path / 'a.txt').write_text('one\n')
  source = seqio.TextLineDataSource({'train': str(tmp_path / '*.txt')})
  features = {'prompt': seqio.Feature(seqio.ByteVocabulary())}
  seqio.TaskRegistry.add(NAME, source=source, preprocessors=[], output_features=features)
  yield tmp_path
  seqio.TaskRegistry.remove(NAME)


def test_a_tasks_fingerprint_follows_the_files_of_its_pattern(lines):
  before = find.find(NAME).fingerprint
  assert find.find(NAME).fingerprint == before
  (lines / 'b.txt').write_text('two\n')
  more = find.find(NAME).fingerprint
  (lines / 'a.txt').write_text('another one\n')
  assert len({before, more, find.find(NAME).fingerprint}) == 3
