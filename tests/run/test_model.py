"""A run's model and its vocabulary: sizes and ids. Sizes of checkpoints are tested with runs (test_train)."""

import pytest

from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.errors import UsageError
from dro_jax.models import policy as policies
from dro_jax.models.t5.config import T5Config
from dro_jax.run import model
from dro_jax.run.spec import Compute, Policy
from tests.data.text import tiny_tokenizers
from tests.models import bag


@pytest.fixture
def words(tmp_path):
  return vocabulary(tiny_tokenizers.llama3(tmp_path))


def find(config, words):
  return model.find_model_config(Policy(config=config), Compute(dtype='bfloat16'), words)


def test_a_model_takes_the_ids_and_the_size_of_its_vocabulary(monkeypatch, words):
  monkeypatch.setitem(policies.FAMILIES, 'bag', bag.FAMILY)
  config = find(bag.BagConfig(), words)
  assert (config.pad, config.eos, config.start) == (*words.special[:2], words.special.start)
  assert config.vocab_size == 512 > words.size and config.dtype == 'bfloat16'


def test_a_model_with_ids_of_its_own_refuses_a_vocabulary_with_others(words):
  assert find(T5Config(), vocabulary('bytes')) == T5Config(vocab_size=384, dtype='bfloat16')
  with pytest.raises(
    UsageError, match=rf'ends a text with the id {words.special.eos}, but a T5Config always with 1'
  ):
    find(T5Config(), words)
