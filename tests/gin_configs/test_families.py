"""Algorithms by decoder-only models: each algorithm on one of them, four algorithms on every kind of them."""

import numpy as np
import pytest

from dro_jax.models.causal.config import CausalConfig
from tests.gin_configs.test_algorithms import BESIDES, OFFLINE, World

_TINY = {
  'emb_dim': 8, 'num_layers': 2, 'num_heads': 4, 'num_kv_heads': 2, 'head_dim': 4, 'mlp_dim': 16,
  'max_positions': 32, 'scan_layers': True,
}  # fmt: skip
_BIASED = {'qkv_bias': True, 'out_bias': True, 'mlp_bias': True, 'norm': 'layer', 'num_kv_heads': None}
_GEMMA = {
  'norm': 'rms_plus_one', 'norm_place': 'sandwich', 'window': 4, 'window_pattern': (True, False),
  'query_scale': 0.25, 'scale_embedding': True, 'mlp_activations': ('gelu', 'linear'),
  'attention_softcap': 5.0, 'logits_softcap': 3.0,
}  # fmt: skip
# Together they have every switch of CausalConfig on.
KINDS = {
  'llama': {'rope_scaling': ('llama3', 8.0, 1.0, 4.0, 16), 'logits_via_embedding': False},
  'neox': _BIASED
  | {'norm_place': 'parallel', 'rope_share': 0.5, 'mlp_activations': ('gelu_exact',), 'scan_layers': False},
  'gpt2': _BIASED | {'positions': 'learned', 'mlp_activations': ('gelu',)},
  'gemma2': _GEMMA,
  'gemma3': _GEMMA | {'qk_norm': 'head', 'rope_local_theta': 100.0, 'rope_scaling': ('linear', 8.0)},
  'mistral': {'window': 4, 'logits_via_embedding': False},
  'qwen2': {'qkv_bias': True},
  'qwen3': {'qk_norm': 'head', 'head_dim': 8},
  'olmo2': {'norm_place': 'after', 'qk_norm': 'whole'},
  'smollm3': {'rope_pattern': (True, False), 'remat': True, 'dtype': 'bfloat16'},
}  # fmt: skip
ON_EVERY = ('dro_v', 'kto', 'copg', 'sft')
# What `make test` runs of both matrices: a kind that is unlike Llama, and the most streams.
SELECTED = {('kto', 'gpt2')}


@pytest.fixture(scope='module')
def worlds(tmp_path_factory):
  """A world by the kind of its model."""
  made = {}

  def world(kind):
    if kind not in made:
      fields = _TINY | KINDS[kind]
      lines = [f'CausalConfig.{name} = {value!r}' for name, value in fields.items()]
      folder = tmp_path_factory.mktemp(kind)
      patch.syspath_prepend(folder)
      made[kind] = World(folder, '\n'.join(['', 'Policy.config = @CausalConfig()', *lines]))
    return made[kind]

  with pytest.MonkeyPatch.context() as patch:
    yield world


def pairs():
  """(algorithm, kind) of both matrices; those that are not selected are marked long."""
  chosen = {(name, 'llama') for name in OFFLINE} | {(name, kind) for name in ON_EVERY for kind in KINDS}
  for pair in sorted(chosen):
    yield pytest.param(*pair, id='-'.join(pair), marks=[] if pair in SELECTED else pytest.mark.long)


@pytest.mark.parametrize('name, kind', list(pairs()))
def test_an_algorithm_trains_a_decoder_only_model(worlds, name, kind):
  code, records = worlds(kind).train(name, f'--gin_file=algorithms/{name}.gin', *BESIDES.get(name, ()))
  assert code == 0
  assert [record['step'] for record in records] == [1, 2]
  for record in records:
    assert all(np.isfinite(value) for value in record.values())
  assert sum(records[0].get(f'gradient_norm/{network}', 0) for network in ('policy', 'value')) > 0


def test_the_kinds_have_every_switch_on():
  sizes = {'vocab_size', 'pad', 'eos', 'start', 'dropout_rate', 'rope_theta', 'norm_epsilon', 'attention'}
  default = CausalConfig()
  made = [CausalConfig(**_TINY | fields) for fields in KINDS.values()]
  for name in sorted(set(default.__dataclass_fields__) - sizes):
    assert len({getattr(config, name) for config in (default, *made)}) > 1, name
