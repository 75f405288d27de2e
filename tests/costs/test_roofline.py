import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import linen as nn

from dro_jax import algorithms
from dro_jax.costs import roofline
from dro_jax.models.policy import FAMILIES
from dro_jax.run import networks
from dro_jax.step.state import TrainState
from tests.examples import CONFIG


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
  policy = nn.unbox(networks.abstract_params(networks.build(TIED, uses_value=False)))['policy']
  state = TrainState(np.zeros(()), {'policy': policy}, {}, policy)
  parts = sizes(policy)
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


TIED = dataclasses.replace(CONFIG, logits_via_embedding=True)


def test_a_shared_value_adds_no_operations():
  found, policy, _ = estimated(shared=True)
  assert found == 6 * (3 * policy['encoder'] + 5 * policy['decoder'])
