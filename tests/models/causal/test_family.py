import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import linen as nn

from dro_jax.models import policy, scoring, value
from dro_jax.names import SpecialTokens
from tests.examples import layout
from tests.models.causal import test_network, tiny
from tests.tiers import tiers


def sizes(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('kind', ['smollm2', 'llama'])
def test_parameters_met_count_the_layers_and_the_logits_table(kind):
  params = tiny.params(kind)
  layers = sizes({name: part for name, part in params['decoder'].items() if name != 'logits_dense'})
  table = 99 * 32
  met = policy.FAMILIES['causal'].parameters_met
  assert met(params, False) == (layers, layers)
  assert met(params, True) == (layers, layers + table)


def test_special_tokens_are_the_configurations():
  assert policy.special_tokens(test_network.network('llama')) == SpecialTokens(pad=0, eos=2, start=1)


def test_a_prompts_value_is_read_at_its_last_token():
  config = tiny.config('qwen2')
  rows = test_network.shared_rows()
  network = value.ValueNetwork(config, 'prompt')
  params = nn.unbox(jax.jit(network.init)(jax.random.key(0), rows)['params'])
  params['head'] = {'kernel': jnp.arange(32.0), 'bias': jnp.float32(0.5)}
  values, _ = jax.jit(network.apply)({'params': params}, rows)
  token_values, by_token = jax.jit(value.ValueNetwork(config, 'token').apply)({'params': params}, rows)
  # A response's first input is that token, so that V(x) is the token read-out's V_0 in a decoder-only model.
  np.testing.assert_allclose(values, token_values, rtol=1e-4, atol=1e-4)
  assert by_token.shape == rows.response_tokens.shape and np.ptp(np.asarray(values)) > 0.1


@functools.cache
def classifier(kind):
  """A classifier of transformers with a score for a text, and the same as a value network."""
  torch.manual_seed(0)
  config = tiny.KINDS[kind]()
  config.num_labels, config._attn_implementation = 1, 'eager'
  model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
  weights = {
    name: x for name, x in tiny.torch_model(kind).state_dict().items() if not name.startswith('lm_head')
  }
  model.load_state_dict(weights, strict=False)
  with torch.no_grad():
    model.score.weight.copy_(torch.randn_like(model.score.weight))
  trunk = tiny.params(kind)
  trunk = trunk | {'decoder': {name: x for name, x in trunk['decoder'].items() if name != 'logits_dense'}}
  head = {'kernel': jnp.asarray(model.score.weight[0].detach().numpy()), 'bias': jnp.float32(0)}
  return model, value.ValueNetwork(tiny.config(kind), 'response'), {'trunk': trunk, 'head': head}


# Full attention, windows of 8 that prompts and responses cross, and learned positions.
@pytest.mark.parametrize('kind', tiers(['gemma3', 'gpt2'], ['llama', 'gemma3', 'mistral', 'qwen3', 'gpt2']))
def test_a_responses_score_is_that_of_transformers_for_the_whole_text_in_rows_of_every_layout(kind):
  model, network, params = classifier(kind)
  expected = []
  for example in test_network.EXAMPLES:
    tokens = torch.tensor(np.concatenate([example.prompt, example.response])[None])
    with torch.no_grad():
      expected.append(float(model(input_ids=tokens).logits[0, 0]))
  assert np.std(expected) > 0.1
  apply = jax.jit(network.apply)
  for rows in (layout(test_network.EXAMPLES, 1, 4, (48, 40)), test_network.shared_rows()):
    found, _ = apply({'params': params}, rows)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
  apart, _ = apply({'params': params}, layout(test_network.EXAMPLES, 4, 1, (16, 16)))
  np.testing.assert_allclose(apart[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_score_that_shares_the_policys_trunk_is_the_same():
  _, network, params = classifier('qwen3')
  rows = test_network.shared_rows()
  shared = value.ValueNetwork(network.config, 'response', shared=True)
  policy_params = tiny.params('qwen3')
  both = {'policy': policy_params, 'value': {'head': params['head']}}
  expected = jax.jit(network.apply)({'params': params}, rows)[0]
  for scores_policy in (True, False):
    score = scoring.make_score(test_network.network('qwen3'), shared, scores_policy=scores_policy)
    scores = jax.jit(score)(both, rows)
    np.testing.assert_allclose(scores.values, expected, rtol=1e-4, atol=1e-4)
    assert bool(np.asarray(scores.logps).any()) == scores_policy


def test_a_score_needs_a_position_for_the_last_token_too():
  config = tiny.config('gpt2')
  policy.refuse_long_texts(config, 60, 5, 'lengths')
  policy.refuse_long_texts(config, 60, 4, 'lengths', is_read=True)
  with pytest.raises(ValueError, match='64 learned positions, which hold as many tokens.*at most 64'):
    policy.refuse_long_texts(config, 60, 5, 'lengths', is_read=True)
  with pytest.raises(ValueError, match='64 learned positions, which hold 65 tokens.*at most 65'):
    policy.refuse_long_texts(config, 60, 6, 'lengths')
