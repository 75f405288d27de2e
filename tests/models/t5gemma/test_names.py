import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from safetensors import numpy as safetensors

from dro_jax.models import policy
from dro_jax.models.t5gemma import names
from tests.models.t5gemma import tiny


@pytest.mark.parametrize('kind', list(tiny.KINDS))
def test_every_parameter_has_one_stored_array_and_returns_to_it(kind):
  config, weights = tiny.config(kind), tiny.weights(kind)
  network = policy.make_network(config)
  shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), policy.smallest_rows())['params'])
  ours = traverse_util.flatten_dict(tiny.params(kind))
  assert {path: x.shape for path, x in ours.items()} == {
    path: x.shape for path, x in traverse_util.flatten_dict(shapes).items()
  }
  for stored in names.stored(config):
    joined = stored.layout.join([ours[path] for path in stored.paths], config.num_heads)
    np.testing.assert_array_equal(joined, weights[stored.name])
  assert {stored.name for stored in names.stored(config)} == {*weights}


@pytest.mark.parametrize('kind', ['t5gemma', 't5gemma2'])
def test_files_have_these_names_and_images_beside_them(kind, tmp_path):
  config = tiny.config(kind)
  tiny.torch_model(kind).save_pretrained(tmp_path)
  saved = {*safetensors.load_file(tmp_path / 'model.safetensors')}
  expected = {stored.name for stored in names.stored(config)}
  assert expected <= saved
  others = saved - expected
  assert all(names.is_of_images(name) for name in others)
  assert (kind == 't5gemma2') == any('vision_tower' in name for name in others)
  assert not any('vision' in part for path in traverse_util.flatten_dict(tiny.params(kind)) for part in path)
