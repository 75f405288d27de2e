import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dro_jax.models import policy, value
from dro_jax.names import SpecialTokens
from tests.models.causal import test_network, tiny


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
