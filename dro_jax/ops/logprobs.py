"""Hidden states to log-probs, at once or in chunks of T, so that `[B, T, V]` never exists in full."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dro_jax.types import Array

Tree = TypeVar('Tree')
Project = Callable[[Float[Array, 'B C D']], Float[Array, 'B C V']]


def token_logps(logits: Float[Array, 'B T V'], tokens: Int[Array, 'B T']) -> Float[Array, 'B T']:
  """log softmax(logits)[token] in nats, float32 whatever the logits' type.

  log π(y_t) = l_{y_t} − log Σ_v exp l_v.
  """
  logits = logits.astype(jnp.float32)
  chosen_BT = jnp.take_along_axis(logits, tokens[:, :, None], axis=-1)[:, :, 0]
  return chosen_BT - jax.nn.logsumexp(logits, axis=-1)


def token_kls(
  logits: Float[Array, 'B T V'], reference_logits: Float[Array, 'B T V'], direction: str = 'reverse'
) -> Float[Array, 'B T']:
  """KL between the next-token distributions of policy and reference, in nats, float32.

  reverse: KL(π‖π_ref) = Σ_v π(v) (log π(v) − log π_ref(v)), with gradient π (log π/π_ref − KL) to the logits;
  forward: KL(π_ref‖π) = Σ_v π_ref(v) (log π_ref(v) − log π(v)), with gradient π − π_ref.
  The reference's logits get no gradient.
  """
  logps_BTV = jax.nn.log_softmax(logits.astype(jnp.float32))
  reference_BTV = jax.lax.stop_gradient(jax.nn.log_softmax(reference_logits.astype(jnp.float32)))
  first, second = (logps_BTV, reference_BTV) if direction == 'reverse' else (reference_BTV, logps_BTV)
  return jnp.sum(jnp.exp(first) * (first - second), axis=-1)


def response_token_logps(
  logits_fn: Project,
  hidden: Float[Array, 'B T D'],
  tokens: Int[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  chunk_size: int | None = None,
) -> Float[Array, 'B T']:
  """Log-probs of the response tokens, 0 on padding.

  Args:
    logits_fn: the vocabulary projection.
    hidden: states that predict the tokens.
    tokens: targets.
    mask: which targets are response tokens.
    chunk_size: tokens of each row projected at once (`None`: all). The backward pass recomputes logits, so
      that the largest array is `[B, chunk_size, V]`. The last chunk is padded.

  Raises:
    ValueError: `chunk_size` is not positive.
  """

  def score(hidden_BCD: Array, tokens_BC: Array) -> Array:
    return token_logps(logits_fn(hidden_BCD), tokens_BC)

  return _by_chunk(score, (hidden, tokens), mask, chunk_size)


def response_token_logps_and_kls(
  logits_fn: Project,
  reference_logits_fn: Project,
  hidden: Float[Array, 'B T D'],
  reference_hidden: Float[Array, 'B T D'],
  tokens: Int[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  direction: str = 'reverse',
  chunk_size: int | None = None,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """`response_token_logps` and `token_kls` of the response tokens from one projection, 0 on padding.

  The reference's logits are made from its states chunk by chunk, like the policy's, and get no gradient.

  Raises:
    ValueError: `chunk_size` is not positive.
  """

  def score(hidden_BCD: Array, reference_BCD: Array, tokens_BC: Array) -> tuple[Array, Array]:
    logits_BCV = logits_fn(hidden_BCD)
    reference_BCV = reference_logits_fn(reference_BCD)
    return token_logps(logits_BCV, tokens_BC), token_kls(logits_BCV, reference_BCV, direction)

  # Stopped before the projection too, which otherwise would be transposed only to be dropped.
  arrays = hidden, jax.lax.stop_gradient(reference_hidden), tokens
  return _by_chunk(score, arrays, mask, chunk_size)


def _by_chunk(
  score: Callable[..., Tree], arrays: tuple[Array, ...], mask: Bool[Array, 'B T'], chunk_size: int | None
) -> Tree:
  """The arrays `[B, T]` that `score` makes of `[B, T, ...]`, chunk by chunk, 0 outside the mask."""
  if chunk_size is not None and chunk_size < 1:
    raise ValueError(f'chunk_size={chunk_size}: pass a positive number of tokens, or None for all at once.')
  num_rows, length = mask.shape
  if chunk_size is None or chunk_size >= length:
    whole: Tree = jax.tree.map(lambda x_BT: jnp.where(mask, x_BT, 0.0), score(*arrays))
    return whole

  def split(x: Array) -> Array:
    x = jnp.pad(x, ((0, 0), (0, -length % chunk_size)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(num_rows, -1, chunk_size, *x.shape[2:]), 1, 0)

  def join(chunks: Array) -> Array:
    return jnp.where(mask, jnp.moveaxis(chunks, 0, 1).reshape(num_rows, -1)[:, :length], 0.0)

  chunks = jax.lax.map(lambda chunk: jax.checkpoint(score)(*chunk), tuple(map(split, arrays)))
  joined: Tree = jax.tree.map(join, chunks)
  return joined
