"""A policy is loaded scanned or not, whichever way it was saved; a value network starts fresh."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from flax import traverse_util

from dro_jax.checkpoints import orbax
from dro_jax.errors import UsageError
from dro_jax.models.stacks import convert_layers
from dro_jax.models.t5 import names
from dro_jax.models.t5.config import T5Config
from dro_jax.parallel import partitioning
from dro_jax.run import networks

CONFIG = T5Config(
  vocab_size=16, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=2, num_decoder_layers=3
)


def save(folder, config, **metadata):
  rng = np.random.default_rng(0)
  flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in names.shapes(config).items()}
  params = traverse_util.unflatten_dict(flat)
  orbax.save_params(folder, params, {'model': dataclasses.asdict(config)} | metadata)
  return params


def load(folder, config):
  nets, mesh = networks.build(config, uses_value=False), partitioning.make_mesh()
  return networks.load_policy(nets, str(folder), mesh), networks.abstract_on(nets, mesh)['policy']


@pytest.mark.parametrize('wanted', [False, True], ids=['to unrolled', 'to scanned'])
@pytest.mark.parametrize('saved', [False, True], ids=['unrolled', 'scanned'])
@pytest.mark.parametrize('per_layer', [False, True], ids=['shared bias', 'bias by layer'])
def test_every_layout_is_loaded_as_every_other(tmp_path, saved, wanted, per_layer):
  config = dataclasses.replace(CONFIG, scan_layers=saved, relative_bias_per_layer=per_layer)
  params = save(tmp_path / 'saved', config)
  loaded, abstract = load(tmp_path / 'saved', dataclasses.replace(config, scan_layers=wanted))
  assert jax.tree.map(np.shape, loaded) == jax.tree.map(np.shape, abstract)
  assert jax.tree.map(lambda x: x.sharding, loaded) == jax.tree.map(lambda x: x.sharding, abstract)
  jax.tree.map(np.testing.assert_array_equal, convert_layers(loaded, scan=saved), params)


def test_another_model_does_not_fit_in_another_layout(tmp_path):
  save(tmp_path / 'saved', CONFIG)
  wider = dataclasses.replace(CONFIG, scan_layers=True, mlp_dim=24)
  with pytest.raises(
    UsageError, match=r'mlp/wi_0/kernel is of shape \[8, 3, 16\] there and of shape \[8, 3, 24\]'
  ):
    load(tmp_path / 'saved', wider)


def test_a_checkpoints_policy_is_built_with_the_settings_that_are_passed(tmp_path):
  save(tmp_path / 'saved', CONFIG)
  nets = networks.build_policy(str(tmp_path / 'saved'), dtype='bfloat16', scan_layers=None)
  assert nets == networks.build(dataclasses.replace(CONFIG, dtype='bfloat16'), uses_value=False)


@pytest.mark.parametrize('has_value', [False, True])
def test_the_log_names_the_new_parts_of_a_value_network_once(tmp_path, caplog, has_value):
  small = dataclasses.replace(CONFIG, num_encoder_layers=1, num_decoder_layers=1)
  save(tmp_path / 'saved', small, value={'readout': 'prompt'} if has_value else None)
  nets = networks.build(small, uses_value=True)
  with caplog.at_level(logging.INFO, 'dro_jax'):
    params = networks.initial_params(nets, partitioning.make_mesh(), 0, str(tmp_path / 'saved'))
  (record,) = [record for record in caplog.records if record.name == 'dro_jax.run.networks']
  assert "its trunk is a copy of the policy's, and its head starts at zero" in record.getMessage()
  assert ('the checkpoint has none' in record.getMessage()) != has_value
  assert not params['value']['head']['kernel'].any()
  trunk = params['value']['trunk']['encoder']
  jax.tree.map(np.testing.assert_array_equal, trunk, params['policy']['encoder'])
