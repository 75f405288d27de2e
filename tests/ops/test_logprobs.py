import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from dro_jax.ops import logprobs

RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(2, 6, 4)), jnp.float32)
KERNEL = jnp.asarray(RNG.normal(size=(4, 9)), jnp.float32)
TOKENS = jnp.asarray(RNG.integers(0, 9, (2, 6)), jnp.int32)
MASK = jnp.asarray(np.arange(6) < np.array([[6], [4]]))


def score(hidden, kernel, chunk_size):
  return logprobs.response_token_logps(lambda h: h @ kernel, hidden, TOKENS, MASK, chunk_size)


def test_token_logps_equal_float64_log_softmax():
  expected = log_softmax(np.float64(HIDDEN) @ np.float64(KERNEL), axis=-1)
  expected = np.take_along_axis(expected, np.asarray(TOKENS)[:, :, None], axis=-1)[:, :, 0]
  np.testing.assert_allclose(score(HIDDEN, KERNEL, None), np.where(MASK, expected, 0), rtol=1e-5, atol=1e-6)


def test_bfloat16_logits_are_normalised_in_float32():
  logits = jnp.asarray(RNG.normal(size=(1, 3, 500)), jnp.bfloat16)
  result = logprobs.token_logps(logits, jnp.zeros((1, 3), jnp.int32))
  expected = log_softmax(np.asarray(logits, np.float64), axis=-1)[:, :, 0]
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize('chunk_size', [1, 2, 4, 6, 100])
def test_chunks_change_neither_log_probs_nor_gradients(chunk_size):
  def total(args, chunk_size):
    return jnp.sum(jnp.sin(score(*args, chunk_size)))

  full = jax.value_and_grad(total)((HIDDEN, KERNEL), None)
  chunked = jax.value_and_grad(total)((HIDDEN, KERNEL), chunk_size)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), full, chunked)


def test_chunks_never_make_full_logits():
  chunked = jax.make_jaxpr(jax.grad(lambda h: jnp.sum(score(h, KERNEL, 2))))(HIDDEN)
  assert 'f32[2,6,9]' not in str(chunked)
  assert 'f32[2,6,9]' in str(jax.make_jaxpr(lambda h: score(h, KERNEL, None))(HIDDEN))


def test_a_chunk_without_tokens_is_refused():
  with pytest.raises(ValueError, match='chunk_size=0'):
    score(HIDDEN, KERNEL, 0)
