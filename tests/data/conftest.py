import os
import pathlib

import pytest
from etils import epath
from etils.epath import register


@pytest.fixture(scope='session')
def vocab_file() -> pathlib.Path:
  """T5's SentencePiece model, named by DRO_JAX_VOCAB; tests that need the real one skip without it."""
  if not os.environ.get('DRO_JAX_VOCAB'):
    pytest.skip("set DRO_JAX_VOCAB to T5's SentencePiece model to run the tests on real input")
  return pathlib.Path(os.environ['DRO_JAX_VOCAB'])


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A folder that stands for a bucket: bucket://NAME is read and written through epath as gs://NAME is."""
  root = tmp_path / 'bucket'
  root.mkdir()
  # epath's own decorator takes classes only, and for good.
  monkeypatch.setitem(
    register._URI_PREFIXES_TO_CLS, 'bucket://', lambda url: epath.Path(root / url.removeprefix('bucket://'))
  )
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'here'))
  return root
