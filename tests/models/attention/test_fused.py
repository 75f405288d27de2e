import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.models.attention import dense, fused, spans
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues
from tests.models.attention import layouts

attend = functools.partial(fused.attend, multiple=8, interpret=True)


def results(function, queries, keys_values, span, bias):
  """Outputs, and the gradients of a sum of their sines."""

  def total(queries, keys_values, bias):
    read = function(queries, [Source(keys_values, span, bias)], None)
    return jnp.sum(jnp.sin(read)), read

  (_, read), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(
    queries, keys_values, bias
  )
  return read, gradients


def test_the_bias_and_its_gradient_equal_dense_attentions():
  """Two rows of several blocks: texts that read themselves in both directions, and padding."""
  length = 45
  own = spans.segment_span(jnp.asarray([[1] * 15 + [2] * 30, [1] * 9 + [0] * 36]))
  inputs = (
    layouts.normal(2, length, 3, 8), KeysValues(*(layouts.normal(2, length, 3, 8) for _ in range(2))), own,
    layouts.normal(3, 2 * length),
  )  # fmt: skip
  ours, expected = (results(function, *inputs) for function in (attend, dense.attend))
  layouts.assert_equal(ours, expected)
  assert np.abs(expected[1][2]).max() > 0.1


def test_other_keys_without_a_bias_equal_dense_attentions():
  """50 keys that 20 queries read in part; the last reads nothing, and gets 0."""
  first, stop = jnp.arange(20)[None] % 7, 20 + jnp.arange(20)[None]
  span = Span(first, jnp.where(jnp.arange(20)[None] < 19, stop, first))
  keys_values = KeysValues(*(layouts.normal(1, 50, 2, 8) for _ in range(2)))
  queries = layouts.normal(1, 20, 2, 8)
  read, (to_queries, *_) = results(attend, queries, keys_values, span, None)
  assert not np.any(read[:, 19]) and not np.any(to_queries[:, 19])

  def first_19(function):
    part = Span(span.first[:, :19], span.stop[:, :19])
    return results(function, queries[:, :19], keys_values, part, None)

  layouts.assert_equal(first_19(attend), first_19(dense.attend))


@pytest.mark.parametrize('length, size', [(512, 512), (1024, 256), (2048, 128), (8192, 128)])
def test_scores_of_a_block_fit_in_fast_memory(length, size):
  assert fused.block_size(128, length, length) == size


COMPILE = """
import functools
import jax, jax.numpy as jnp
from jax.experimental import topologies
from dro_jax.models.attention import fused
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues

device = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices[0]
shape = functools.partial(jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(device))
queries, place = shape((4, 512, 2, 64), jnp.bfloat16), shape((4, 512), jnp.int32)

def total(queries, keys_values, span, bias):
  return fused.attend(queries, [Source(keys_values, span, bias)], None).astype(jnp.float32).sum()

inputs = queries, KeysValues(queries, queries), Span(place, place), shape((2, 1024), jnp.float32)
compiled = jax.jit(jax.grad(total, (0, 1, 3))).lower(*inputs).compile()
print(compiled.memory_analysis().temp_size_in_bytes)
"""


def test_the_kernel_compiles_for_a_tpu():
  """In a process of its own, for libtpu refuses the tests' settings of XLA."""
  pytest.importorskip('libtpu')
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-c', COMPILE],
    env=environment | {'TPU_SKIP_MDS_QUERY': '1'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert int(done.stdout) < 4 * 2 * 512 * 512 * 4  # One float32 of every score.
