import numpy as np

from dro_jax.checkpoints import orbax, policy
from dro_jax.data.text import vocabularies


def test_a_vocabulary_is_the_named_one_else_the_checkpoints_else_bytes(tmp_path):
  metadata = {'model': {'vocab_size': 384}, 'vocabulary': 'bytes', 'vocabulary_fingerprint': 'bytes'}
  orbax.save_params(tmp_path / 'named', {'x': np.zeros(1)}, metadata)
  in_bytes = vocabularies.vocabulary('bytes')
  assert policy.find_vocabulary(None, None) is policy.find_vocabulary('bytes', None) is in_bytes
  assert policy.find_vocabulary(None, str(tmp_path / 'named')) is in_bytes
  read = in_bytes._replace(spec='elsewhere')
  assert policy.find_vocabulary(read, str(tmp_path / 'named')) is read
