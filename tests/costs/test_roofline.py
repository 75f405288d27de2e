import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import linen as nn

from dro_jax import algorithms
from dro_jax.costs import flops, roofline
from dro_jax.models import policy, scoring
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.policy import FAMILIES
from dro_jax.run import networks
from dro_jax.step.state import TrainState
from tests.examples import CONFIG, layout, random_examples


def sizes(tree) -> dict[str, int]:
  return {name: sum(math.prod(x.shape) for x in jax.tree.leaves(part)) for name, part in tree.items()}


def estimated(**value) -> tuple[float, dict[str, int], dict[str, int]]:
  """(operations at 3 + 5 tokens, sizes of the policy's parts, of the value trunk's)."""
  nets = networks.build(CONFIG, uses_value=True, **value)
  params = nn.unbox(networks.abstract_params(nets))
  state = TrainState(np.zeros(()), params, {}, None)
  found = roofline.rule_of_thumb(state, (3, 5), algorithms.dro_v(), FAMILIES['t5'], nets.value)
  return found, sizes(params['policy']), sizes(params['value'].get('trunk', {}))


def test_a_value_trunk_projects_to_no_vocabulary():
  found, policy, trunk = estimated(readout='token')
  assert trunk['token_embedder'] > 0 and trunk['decoder'] > 0
  own = 6 * (3 * policy['encoder'] + 5 * policy['decoder'])
  assert found - own == 6 * (3 * trunk['encoder'] + 5 * trunk['decoder'])


@pytest.mark.parametrize('frozen, factor', [(False, 6), (True, 2)])
def test_a_frozen_trunk_has_no_backward_pass(frozen, factor):
  found, policy, trunk = estimated(frozen_trunk=frozen)
  own = 6 * (3 * policy['encoder'] + 5 * policy['decoder'])
  assert found - own == factor * 3 * trunk['encoder']


def test_a_tied_policy_counts_its_table_as_projection():
  params = nn.unbox(networks.abstract_params(networks.build(TIED, uses_value=False)))['policy']
  state = TrainState(np.zeros(()), {'policy': params}, {}, params)
  parts = sizes(params)
  met = 3 * parts['encoder'] + 5 * (parts['decoder'] + parts['token_embedder'])
  assert roofline.rule_of_thumb(state, (3, 5), algorithms.dpo(), FAMILIES['t5']) == (6 + 2) * met


def test_a_moving_reference_holds_the_initial_policy_too():
  shape = {
    'w': jax.ShapeDtypeStruct(
      (4, 8), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
  }
  state = TrainState(np.zeros(()), {'policy': shape}, {}, shape)
  frozen, moving = roofline.state_memory(state), roofline.state_memory(state._replace(initial=shape))
  assert 'initial_policy' not in frozen
  assert moving['initial_policy'] == moving['reference'] == frozen['reference'] == 128


@pytest.mark.parametrize('shared', [False, True])
def test_a_reward_model_counts_its_own_pass_and_none_of_the_policy(shared):
  nets = networks.build(CONFIG, uses_value=True, readout='response', shared=shared)
  params = nn.unbox(networks.abstract_params(nets))
  state = TrainState(np.zeros(()), params, {}, None)
  found = roofline.rule_of_thumb(state, (3, 5), algorithms.bradley_terry(), FAMILIES['t5'], nets.value)
  trunk = sizes(params['policy'] if shared else params['value']['trunk'])
  assert found == (2 if shared else 6) * (3 * trunk['encoder'] + 5 * trunk['decoder'])


TIED = dataclasses.replace(CONFIG, logits_via_embedding=True)


def test_a_shared_value_adds_no_operations():
  found, policy, _ = estimated(shared=True)
  assert found == 6 * (3 * policy['encoder'] + 5 * policy['decoder'])


CAUSAL = CausalConfig(
  vocab_size=96, emb_dim=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
  max_positions=64, logits_via_embedding=False,
)  # fmt: skip
# By hand: queries, keys, values, the output; three products of the MLP; two norms. The last norm stands once.
CAUSAL_LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32
CAUSAL_LAYERS, CAUSAL_TABLE = 3 * CAUSAL_LAYER + 32, 96 * 32


@pytest.mark.parametrize(
  'algorithm, value, expected',
  [
    # Prompts and responses meet all layers, responses the table; the reference a third as often.
    (algorithms.dpo, None, (6 + 2) * (8 * CAUSAL_LAYERS + 5 * CAUSAL_TABLE)),
    # The mismatched pairs are responses only: the prompts' keys are there already.
    (
      algorithms.kto, None,
      (6 + 2) * (8 * CAUSAL_LAYERS + 5 * CAUSAL_TABLE) + (2 + 2) * 5 * (CAUSAL_LAYERS + CAUSAL_TABLE),
    ),
    # V(x) reads prompts only, though its trunk has the layers that responses would meet.
    (
      algorithms.dro_v, {'readout': 'prompt'},
      (6 + 2) * (8 * CAUSAL_LAYERS + 5 * CAUSAL_TABLE) + 6 * 3 * CAUSAL_LAYERS,
    ),
    (
      algorithms.dro_v, {'readout': 'token', 'frozen_trunk': True},
      (6 + 2) * (8 * CAUSAL_LAYERS + 5 * CAUSAL_TABLE) + 2 * 8 * CAUSAL_LAYERS,
    ),
  ],
)  # fmt: skip
def test_a_decoder_only_models_prompts_meet_all_layers(algorithm, value, expected):
  nets = networks.build(CAUSAL, uses_value=value is not None, **(value or {}))
  params = nn.unbox(networks.abstract_params(nets))
  state = TrainState(np.zeros(()), params, {}, params['policy'])
  found = roofline.rule_of_thumb(state, (3, 5), algorithm(), FAMILIES['causal'], nets.value)
  assert found == expected


@pytest.mark.parametrize('tied', [False, True])
def test_a_decoder_only_pass_counts_its_products_and_scores(tied):
  """Of two rows with 8 + 4 tokens, by hand: 2 N D, and scores and their products with values."""
  config = dataclasses.replace(CAUSAL, logits_via_embedding=tied, scan_layers=True)
  network = policy.make_network(config)
  params = jax.eval_shape(network.init, jax.random.key(0), policy.smallest_rows())['params']
  rows = layout(random_examples(2), 2, 1, (8, 4))
  rows = rows._replace(mismatched=None)
  score = lambda tree, rows: scoring.make_score(network)({'policy': tree}, rows, None)  # noqa: E731
  counted = flops.count(score, params, rows)
  kernels = CAUSAL_LAYER - 2 * 32
  scores = 2 * 2 * (4 * 8) * (8 * 8 + 4 * 8 + 4 * 4)
  assert counted == 2 * (2 * 12 * 3 * kernels + 3 * scores + 2 * 4 * CAUSAL_TABLE)
