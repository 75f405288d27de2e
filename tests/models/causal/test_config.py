import dataclasses
import json

import pytest

from dro_jax.errors import UsageError
from dro_jax.models.causal.config import CausalConfig, RopeScaling


def test_a_configuration_survives_json():
  config = CausalConfig(
    rope_scaling=('llama3', 8.0), window=4, window_pattern=[True, False], rope_pattern=[True], num_layers=3
  )
  again = CausalConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
  assert again == config and hash(again) == hash(config)
  assert again.rope_scaling == RopeScaling('llama3', 8.0, 1.0, 4.0, 8192)
  assert again.windowed == (True, False, True) and again.rotated == (True,) * 3


def test_learned_positions_rotate_nothing():
  config = CausalConfig(positions='learned', max_positions=16)
  assert not any(config.rotated) and not any(config.windowed)


@pytest.mark.parametrize(
  'fields, text',
  [
    ({'num_heads': 4, 'num_kv_heads': 3}, 'num_kv_heads=3 does not divide num_heads=4'),
    ({'positions': 'learned'}, 'pass max_positions'),
    ({'positions': 'alibi'}, "positions='alibi' is unknown"),
    ({'norm': 'batch'}, "norm='batch' is unknown"),
    ({'norm_place': 'middle'}, "norm_place='middle' is unknown"),
    ({'qk_norm': 'all'}, "qk_norm='all' is unknown"),
    ({'head_dim': 6, 'rope_share': 0.5}, 'an even part of a head'),
    ({'window': 0}, 'pass a window of 1 or more'),
    ({'window_pattern': ()}, 'patterns of at least one layer'),
    ({'rope_scaling': ('yarn', 4.0)}, 'rope_scaling='),
    ({'mlp_activations': ('swish',)}, 'mlp_activations='),
    ({'num_layers': 0}, 'num_layers=0'),
    ({'attention': 'flash'}, "attention='flash' is unknown"),
    ({'remat': 'most'}, "remat='most' is unknown"),
    ({'dtype': 'float16'}, "dtype='float16'"),
  ],
)
def test_a_field_out_of_its_range_is_refused(fields, text):
  with pytest.raises(UsageError, match=text):
    CausalConfig(**fields)
