import dataclasses

import pytest

from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models import policy
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.t5.config import T5Config
from dro_jax.run import reference_store
from dro_jax.run.model import find_model_config
from dro_jax.run.spec import Compute, Policy

SIZE = {'vocab_size': 384, 'emb_dim': 16, 'num_heads': 2, 'head_dim': 8, 'mlp_dim': 32}
CAUSAL = CausalConfig(num_layers=1, **SIZE)
VOCABULARY = vocabularies.vocabulary('bytes')


def test_a_run_chooses_the_way_of_attention():
  config = find_model_config(Policy(config=CAUSAL), Compute(attention='blockwise'), VOCABULARY)
  assert config == dataclasses.replace(CAUSAL, attention='blockwise')
  assert find_model_config(Policy(config=CAUSAL), Compute(), VOCABULARY).attention == 'auto'


def test_t5_has_dense_attention_only():
  t5 = Policy(config=T5Config(**SIZE))
  with pytest.raises(UsageError, match='ATTENTION=splash: T5Config has dense attention only'):
    find_model_config(t5, Compute(attention='splash'), VOCABULARY)


def test_the_way_of_attention_is_no_part_of_a_checkpoint_or_of_a_reference():
  kernel = dataclasses.replace(CAUSAL, attention='splash')
  assert policy.saved_config(policy.config_metadata(kernel)) == CAUSAL
  fingerprints = [reference_store.fingerprint(config, VOCABULARY, {}) for config in (CAUSAL, kernel)]
  assert fingerprints[0] == fingerprints[1]
