import functools

import jax.numpy as jnp
import pytest

from dro_jax.models.attention import cudnn, dense
from tests.models.attention import layouts


def test_the_joined_sources_and_their_mask_are_those_of_dense_attention():
  inputs, both = layouts.arrays(), layouts.response_spans(20)
  # The arguments of the kernel's call, computed by the same function without the kernel.
  without_kernel = functools.partial(cudnn.attend, implementation='xla')
  ours = layouts.values_and_gradients(without_kernel, inputs, both)
  layouts.assert_equal(ours, layouts.values_and_gradients(dense.attend, inputs, both))


@pytest.mark.parametrize(
  'width, dtype, softcap, text',
  [
    (64, 'bfloat16', 50.0, 'has no soft cap, and the model caps scores at 50'),
    (64, 'float32', None, 'computes in bfloat16, and activations are float32'),
    (256, 'bfloat16', None, 'they are 256 wide'),
    (20, 'bfloat16', None, 'they are 20 wide'),
    (64, 'bfloat16', None, None),
  ],
)
def test_a_refusal_names_what_cudnn_lacks(width, dtype, softcap, text):
  said = cudnn.refusal(jnp.zeros((1, 8, 2, width), dtype), softcap)
  assert said is None if text is None else text in said
