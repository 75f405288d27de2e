import functools

import jax.numpy as jnp
import pytest

from dro_jax.errors import UsageError
from dro_jax.models.attention import blockwise, dense, splash, ways
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues
from dro_jax.parallel import partitioning
from tests.models.attention import layouts

TPU, GPU, CPU = ('tpu', 'TPU v5 lite'), ('gpu', 'NVIDIA H200'), ('cpu', 'cpu')


def chosen(way, device, monkeypatch, length=ways.LONG, keys=None, softcap=None, dtype=jnp.bfloat16, rows=1):
  monkeypatch.setattr(ways, '_device', lambda: device)
  queries, read = jnp.zeros((rows, length, 2, 8), dtype), jnp.zeros((1, keys or length, 2, 8), dtype)
  place = jnp.zeros((1, length), jnp.int32)
  return ways._choose(way, queries, [Source(KeysValues(read, read), Span(place, place))], softcap)


def test_auto_chooses_by_length_and_device(monkeypatch):
  choose = functools.partial(chosen, 'auto', monkeypatch=monkeypatch)
  assert [choose(device) for device in (TPU, GPU, CPU)] == ['splash', 'cudnn', 'blockwise']
  assert {choose(device, length=64) for device in (TPU, GPU, CPU)} == {'dense'}
  assert choose(GPU, softcap=50.0) == choose(GPU, dtype=jnp.float32) == 'blockwise'
  assert choose(TPU, softcap=50.0, dtype=jnp.float32) == 'splash'
  assert choose(('gpu', 'AMD MI300X')) == 'blockwise'


@pytest.mark.parametrize('way', ways.WAYS)
def test_decoding_is_dense(way, monkeypatch):
  assert chosen(way, TPU, monkeypatch, length=1, keys=ways.LONG) == 'dense'
  assert chosen(way, TPU, monkeypatch, rows=3) == 'dense'


@pytest.mark.parametrize(
  'way, device, softcap, text',
  [
    ('splash', CPU, None, "it is a kernel for TPUs, and the device is 'cpu'"),
    ('cudnn', TPU, None, "it is a kernel for NVIDIA's GPUs, and the device is 'TPU v5 lite'"),
    ('cudnn', GPU, 50.0, 'cuDNN has no soft cap'),
    ('flash', CPU, None, "attention='flash' is unknown"),
  ],
)
def test_a_way_that_cannot_run_is_refused(way, device, softcap, text, monkeypatch):
  with pytest.raises(UsageError, match=text):
    chosen(way, device, monkeypatch, softcap=softcap)


@pytest.mark.parametrize('way, kv_heads', [('blockwise', 4), ('blockwise', 2), ('splash', 4)])
def test_a_mesh_cuts_rows_and_heads_without_changing_a_number(way, kv_heads):
  """Two heads of keys over four devices stay whole."""
  functions = {
    'blockwise': functools.partial(blockwise.attend, block=64),
    'splash': functools.partial(splash.attend, interpret=True),
  }
  inputs, both = layouts.arrays(kv_heads=kv_heads), layouts.response_spans(20)
  with partitioning.use_mesh(partitioning.make_mesh(2, 1, 4)):
    ours = layouts.values_and_gradients(functools.partial(ways.on_mesh, functions[way]), inputs, both)
  layouts.assert_equal(ours, layouts.values_and_gradients(dense.attend, inputs, both))
