import os
import pathlib

import pytest


@pytest.fixture(scope='session')
def vocab_file() -> pathlib.Path:
  """T5's SentencePiece model, named by DRO_JAX_VOCAB; tests that need the real one skip without it."""
  if not os.environ.get('DRO_JAX_VOCAB'):
    pytest.skip("set DRO_JAX_VOCAB to T5's SentencePiece model to run the tests on real input")
  return pathlib.Path(os.environ['DRO_JAX_VOCAB'])
