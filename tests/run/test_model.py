"""Which model a run has: as it is named, and as a checkpoint says."""

import dataclasses
import functools

import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.checkpoints import orbax
from dro_jax.data.text import vocabularies
from dro_jax.data.worlds import placeholder
from dro_jax.errors import UsageError
from dro_jax.models import policy as policies
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.policy import config_metadata, fitting_lengths
from dro_jax.models.t5.config import T5Config
from dro_jax.run import reference_store
from dro_jax.run.build import build
from dro_jax.run.model import find_model_config
from dro_jax.run.spec import Batches, Compute, Policy, RunSpec
from tests.data.text import tiny_tokenizers
from tests.models import bag

BYTES = vocabularies.vocabulary('bytes')
NAMED = CausalConfig(
  vocab_size=300, emb_dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=16, positions='learned',
  max_positions=32,
)  # fmt: skip


def find_saved(tmp_path, saved, named):
  metadata = config_metadata(saved) | {'vocabulary': 'bytes', 'vocabulary_fingerprint': BYTES.fingerprint}
  orbax.save_params(tmp_path / 'saved', {'x': np.zeros(1)}, metadata)
  return find_model_config(Policy(str(tmp_path / 'saved'), named), Compute(), BYTES)


def test_a_checkpoint_brings_its_special_tokens_its_context_and_its_vocabulary(tmp_path):
  saved = dataclasses.replace(NAMED, vocab_size=512, pad=3, eos=4, start=5, max_positions=64)
  # The vocabulary's ids are the run's.
  assert find_saved(tmp_path, saved, NAMED) == dataclasses.replace(
    saved, pad=0, eos=1, start=0
  )  # The vocabulary's.


def test_a_checkpoint_of_another_size_or_kind_is_refused(tmp_path):
  with pytest.raises(UsageError, match='of another size than is named: num_layers 2 there and 1 here'):
    find_saved(tmp_path / 'size', dataclasses.replace(NAMED, num_layers=2), NAMED)
  with pytest.raises(UsageError, match='of another kind, CausalConfig, than is named, T5Config'):
    find_saved(tmp_path / 'kind', NAMED, T5Config())


def spec(prompt_length, response_length, algorithm=algorithms.sft):
  data = functools.partial(
    placeholder.triplets, prompts=8, prompt_length=prompt_length, response_length=response_length
  )
  return RunSpec(data=data, policy=Policy(config=NAMED), algorithm=algorithm, batches=Batches(8))


def test_texts_longer_than_the_learned_positions_are_refused_before_anything_is_compiled():
  # A response's last token is no input.
  assert build(spec(25, 8)).networks.policy.config.max_positions == 32
  with pytest.raises(UsageError, match='are 34 together, .* 32 learned positions, which hold 33 t'):
    build(spec(26, 8))


@pytest.mark.parametrize(
  'longest, fitting', [((25, 8), (25, 8)), ((40, 8), (25, 8)), ((8, 40), (8, 25)), ((40, 40), (17, 16))]
)
def test_lengths_fit_the_learned_positions(longest, fitting):
  assert fitting_lengths(NAMED, *longest) == fitting and sum(fitting) <= 33


@pytest.fixture
def words(tmp_path):
  return vocabularies.vocabulary(tiny_tokenizers.llama3(tmp_path))


def find(config, words):
  return find_model_config(Policy(config=config), Compute(dtype='bfloat16'), words)


def test_a_model_takes_the_ids_and_the_size_of_its_vocabulary(monkeypatch, words):
  monkeypatch.setitem(policies.FAMILIES, 'bag', bag.FAMILY)
  config = find(bag.BagConfig(), words)
  assert (config.pad, config.eos, config.start) == (*words.special[:2], words.special.start)
  assert config.vocab_size == 512 > words.size and config.dtype == 'bfloat16'


def test_a_model_with_ids_of_its_own_refuses_a_vocabulary_with_others(words):
  assert find(T5Config(), BYTES) == T5Config(vocab_size=384, dtype='bfloat16')
  with pytest.raises(
    UsageError, match=rf'ends a text with the id {words.special.eos}, but a T5Config always with 1'
  ):
    find(T5Config(), words)


SIZE = {'vocab_size': 384, 'emb_dim': 16, 'num_heads': 2, 'head_dim': 8, 'mlp_dim': 32}
CAUSAL = CausalConfig(num_layers=1, **SIZE)


def test_a_run_chooses_the_way_of_attention():
  config = find_model_config(Policy(config=CAUSAL), Compute(attention='blockwise'), BYTES)
  assert config == dataclasses.replace(CAUSAL, attention='blockwise')
  assert find_model_config(Policy(config=CAUSAL), Compute(), BYTES).attention == 'auto'


def test_a_kernel_without_a_bias_is_refused_for_t5():
  t5 = Policy(config=T5Config(**SIZE))
  with pytest.raises(UsageError, match="attention='splash': a T5 adds a relative bias"):
    find_model_config(t5, Compute(attention='splash'), BYTES)


def test_the_way_of_attention_is_no_part_of_a_checkpoint_or_of_a_reference():
  kernel = dataclasses.replace(CAUSAL, attention='splash')
  assert policies.saved_config(policies.config_metadata(kernel)) == CAUSAL
  fingerprints = [reference_store.fingerprint(config, BYTES, {}) for config in (CAUSAL, kernel)]
  assert fingerprints[0] == fingerprints[1]
