"""Kernels in fewer bits, against what their definitions say in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dro_jax.errors import UsageError
from dro_jax.models import quantised

KERNEL = np.random.default_rng(0).normal(size=(128, 6)).astype(np.float32)


def test_nf4s_codes_are_quantiles_of_a_normal_distribution():
  # QLoRA, Appendix E: eight positive quantiles, seven negative ones and 0, within [-1, 1].
  quantiles = lambda count: stats.norm.ppf(np.linspace(0.9677083, 0.5, count)[:-1])  # noqa: E731
  codes = np.sort([*quantiles(9), 0, *-quantiles(8)])
  np.testing.assert_allclose(quantised.NF4, codes / codes.max(), rtol=1e-6)


def test_nf4_takes_the_nearest_code_of_each_block_and_packs_two_in_a_byte():
  stored = quantised.quantise(jnp.asarray(KERNEL), 'nf4')
  assert {name: (x.shape, str(x.dtype)) for name, x in stored.items()} == {
    'nf4': ((64, 6), 'uint8'), 'scale': ((2, 6), 'float32'),
  }  # fmt: skip
  blocks = KERNEL.astype(np.float64).reshape(2, 64, 6)
  largest = np.abs(blocks).max(axis=1, keepdims=True)
  nearest = np.abs((blocks / largest)[..., None] - quantised.NF4.astype(np.float64)).argmin(-1)
  expected = (quantised.NF4.astype(np.float64)[nearest] * largest).reshape(KERNEL.shape)
  np.testing.assert_allclose(quantised.dequantise(stored), expected, rtol=1e-6)


def test_int8_is_off_by_half_a_step_of_its_output_at_most():
  stored = quantised.quantise(jnp.asarray(KERNEL), 'int8')
  assert stored['int8'].dtype == jnp.int8 and stored['scale'].shape == (1, 6)
  step = np.abs(KERNEL).max(axis=0) / 127
  error = np.abs(np.asarray(quantised.dequantise(stored), np.float64) - KERNEL)
  assert (error <= step * 0.5001).all() and error.max() > 0.3 * step.max()


@pytest.mark.parametrize('kind', ['bfloat16', 'int8', 'nf4'])
def test_layers_of_a_stack_are_stored_as_each_of_them_and_zeros_stay_zeros(kind):
  stack = jnp.stack([jnp.asarray(KERNEL), jnp.zeros(KERNEL.shape)], axis=1)
  whole = quantised.dequantise(quantised.quantise(stack, kind))
  alone = quantised.dequantise(quantised.quantise(stack[:, 0], kind))
  np.testing.assert_array_equal(whole[:, 0], alone)
  np.testing.assert_array_equal(whole[:, 1], 0)


def test_nf4_refuses_an_odd_number_of_inputs():
  with pytest.raises(UsageError, match=r'two inputs in a byte, and a kernel of shape \(3, 2\) has 3'):
    jax.eval_shape(lambda: quantised.quantise(jnp.ones((3, 2)), 'nf4'))
