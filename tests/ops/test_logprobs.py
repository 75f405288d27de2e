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


# --- next-token KL ------------------------------------------------------------------------------------------

LOGITS, REFERENCE_LOGITS = jnp.asarray(2 * RNG.normal(size=(2, 2, 3, 9)), jnp.float32)
REFERENCE = jnp.asarray(RNG.normal(size=(2, 6, 4)), jnp.float32)
REFERENCE_KERNEL = jnp.asarray(RNG.normal(size=(4, 9)), jnp.float32)
directions = pytest.mark.parametrize('direction', ['reverse', 'forward'])


def kl_by_hand(logits, reference_logits, direction):
  """(π, π_ref, KL by token) in float64."""
  logp, logq = (log_softmax(np.asarray(x, np.float64), axis=-1) for x in (logits, reference_logits))
  first, second = (logp, logq) if direction == 'reverse' else (logq, logp)
  return np.exp(logp), np.exp(logq), np.sum(np.exp(first) * (first - second), axis=-1)


@directions
def test_token_kl_and_its_gradient_equal_their_closed_forms(direction):
  """Gradients to the policy's logits: p (log p/q − KL) of the reverse KL, p − q of the forward one."""
  p, q, expected = kl_by_hand(LOGITS, REFERENCE_LOGITS, direction)
  kls = logprobs.token_kls(LOGITS, REFERENCE_LOGITS, direction)
  np.testing.assert_allclose(kls, expected, rtol=1e-5)
  gradients = jax.grad(lambda *args: logprobs.token_kls(*args, direction).sum(), (0, 1))(
    LOGITS, REFERENCE_LOGITS
  )
  reverse = p * (np.log(p / q) - expected[..., None])
  np.testing.assert_allclose(gradients[0], reverse if direction == 'reverse' else p - q, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(gradients[1], 0.0)


@directions
def test_a_policy_that_is_its_reference_has_no_kl_and_no_gradient(direction):
  def total(logits):
    return logprobs.token_kls(logits, LOGITS, direction).sum()

  value, gradient = jax.value_and_grad(total)(LOGITS)
  assert value == 0.0
  np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


def test_token_kl_of_bfloat16_logits_is_taken_in_float32():
  logits, others = (x.astype(jnp.bfloat16) for x in (LOGITS, REFERENCE_LOGITS))
  kls = logprobs.token_kls(logits, others)
  assert kls.dtype == jnp.float32
  np.testing.assert_allclose(kls, kl_by_hand(logits, others, 'reverse')[2], rtol=1e-5)


def scores_of_both(args, chunk_size, direction='reverse'):
  hidden, kernel, reference, reference_kernel = args
  return logprobs.response_token_logps_and_kls(
    lambda h: h @ kernel, lambda h: h @ reference_kernel, hidden, reference, TOKENS, MASK, direction,
    chunk_size,
  )  # fmt: skip


ARGS = HIDDEN, KERNEL, REFERENCE, REFERENCE_KERNEL


@directions
def test_both_scores_come_from_one_projection_and_are_zero_on_padding(direction):
  logps, kls = scores_of_both(ARGS, None, direction)
  np.testing.assert_array_equal(logps, score(HIDDEN, KERNEL, None))
  expected = kl_by_hand(HIDDEN @ KERNEL, REFERENCE @ REFERENCE_KERNEL, direction)[2]
  np.testing.assert_allclose(kls, np.where(MASK, expected, 0.0), rtol=1e-4)


@pytest.mark.parametrize('chunk_size', [2, 4])
def test_chunks_change_neither_kls_nor_gradients_and_none_reaches_the_reference(chunk_size):
  def total(args, chunk_size):
    logps, kls = scores_of_both(args, chunk_size)
    return jnp.sum(jnp.sin(logps) + jnp.cos(kls))

  full, chunked = (jax.value_and_grad(total)(ARGS, size) for size in (None, chunk_size))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), full, chunked)
  assert all(jnp.any(x != 0) for x in chunked[1][:2]) and not any(jnp.any(x != 0) for x in chunked[1][2:])


def test_chunks_never_make_full_logits_of_policy_or_reference():
  for size, whole in ((2, False), (None, True)):
    gradient = jax.grad(lambda args, size=size: sum(map(jnp.sum, scores_of_both(args, size))))
    assert ('f32[2,6,9]' in str(jax.make_jaxpr(gradient)(ARGS))) == whole
