import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from dro_jax.models import policy
from dro_jax.models.causal import names
from tests.models.causal import tiny


@pytest.mark.parametrize('kind', list(tiny.KINDS))
def test_every_parameter_has_one_stored_array_and_returns_to_it(kind):
  config, weights = tiny.config(kind), tiny.torch_model(kind).state_dict()
  network = policy.make_network(config)
  shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), policy.smallest_rows())['params'])
  ours = traverse_util.flatten_dict(tiny.params(kind))
  assert {path: x.shape for path, x in ours.items()} == {
    path: x.shape for path, x in traverse_util.flatten_dict(shapes).items()
  }
  for stored in names.stored(config):
    joined = stored.layout.join([ours[path] for path in stored.paths], config.num_heads)
    name = 'lm_head.weight' if stored.name == 'embed_out.weight' else stored.name
    np.testing.assert_array_equal(joined, weights[name].numpy())
  # What is left over is an alias of a tied table.
  left = {*weights} - {stored.name for stored in names.stored(config)}
  assert left <= {'lm_head.weight', 'embed_out.weight'}
