"""A reward model's scores are those of transformers; commands that need a policy refuse it."""

import numpy as np
import pytest
import torch
import transformers

from dro_jax.checkpoints import import_checkpoint as importers
from dro_jax.checkpoints import policy, reward_models
from dro_jax.checkpoints.export_checkpoint import export_checkpoint
from dro_jax.errors import UsageError
from tests.checkpoints import tiny_tokenizer
from tests.models.causal import tiny
from tests.torch_t5 import edit_config


def make_torch(kind, labels=1):
  torch.manual_seed(0)
  config = tiny.KINDS[kind]()
  config.num_labels = labels
  config._attn_implementation = 'eager'
  model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.2)
  return model


def import_model(model, folder):
  model.save_pretrained(folder / 'theirs')
  tiny_tokenizer.write(folder / 'theirs')
  return importers.import_checkpoint(str(folder / 'theirs'), str(folder / 'ours'))


# Llama's and Qwen's; untied, tied and with biases; and one of another layout of names.
@pytest.mark.parametrize('kind', ['llama', 'qwen2', 'qwen3', 'neox'])
def test_scores_equal_transformers(tmp_path, kind):
  model = make_torch(kind)
  report = import_model(model, tmp_path)
  assert report['parameters'] == sum(x.numel() for x in model.parameters()) + 1  # And a bias of 0.
  network, params = reward_models.load_reward_model(str(tmp_path / 'ours'))
  rng = np.random.default_rng(0)
  # Up to the longest row, and with two lengths of rows.
  texts = [np.append(rng.integers(3, 99, length), 2) for length in (1, 63, 7, 40, 11)]
  with torch.no_grad():
    expected = np.array([model(input_ids=torch.tensor(text[None])).logits[0, 0] for text in texts])
  actual = reward_models.scores(network, params, texts, batch_size=2)
  assert expected.std() > 0.1
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_reward_model_is_no_policy_and_a_policy_no_reward_model(tmp_path):
  report = import_model(make_torch('llama'), tmp_path)
  ours = str(tmp_path / 'ours')
  assert report['check'] is None
  assert policy.vocabulary_of(ours).special.eos == 2
  for use in (policy.config_of, lambda folder: export_checkpoint(folder, str(tmp_path / 'back'))):
    with pytest.raises(UsageError, match='is a reward model, .*pass the checkpoint of a language model'):
      use(ours)
  tiny.torch_model('llama').save_pretrained(tmp_path / 'language')
  tiny_tokenizer.write(tmp_path / 'language')
  importers.import_checkpoint(str(tmp_path / 'language'), str(tmp_path / 'policy'))
  with pytest.raises(UsageError, match='has no reward model: pass a folder'):
    reward_models.load_reward_model(str(tmp_path / 'policy'))


def test_a_classifier_of_several_labels_and_an_empty_text_are_refused(tmp_path):
  with pytest.raises(UsageError, match=r'score\.weight has shape \(3, 32\), .* it has \(1, 32\)'):
    import_model(make_torch('llama', labels=3), tmp_path)
  edit_config(tmp_path / 'theirs', architectures=['LlamaForCausalLM'])
  with pytest.raises(UsageError, match='lacks 1 weights .*lm_head'):
    importers.import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'ours'))
  with pytest.raises(UsageError, match='without tokens has no score'):
    reward_models.scores(None, None, [np.array([3]), np.array([], int)])
