"""Hidden states to log-probs, at once or in chunks of T, so that `[B, T, V]` never exists in full."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dro_jax.types import Array


def token_logps(logits: Float[Array, 'B T V'], tokens: Int[Array, 'B T']) -> Float[Array, 'B T']:
  """log softmax(logits)[token] in nats, float32 whatever the logits' type.

  log π(y_t) = l_{y_t} − log Σ_v exp l_v.
  """
  logits = logits.astype(jnp.float32)
  chosen_BT = jnp.take_along_axis(logits, tokens[:, :, None], axis=-1)[:, :, 0]
  return chosen_BT - jax.nn.logsumexp(logits, axis=-1)


def response_token_logps(
  logits_fn: Callable[[Float[Array, 'B C D']], Float[Array, 'B C V']],
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
  if chunk_size is not None and chunk_size < 1:
    raise ValueError(f'chunk_size={chunk_size}: pass a positive number of tokens, or None for all at once.')

  def score(hidden_BCD: Array, tokens_BC: Array) -> Array:
    return token_logps(logits_fn(hidden_BCD), tokens_BC)

  length = tokens.shape[1]
  if chunk_size is None or chunk_size >= length:
    return jnp.where(mask, score(hidden, tokens), 0.0)

  def split(x: Array) -> Array:
    x = jnp.pad(x, ((0, 0), (0, -length % chunk_size)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:]), 1, 0)

  chunks = jax.lax.map(lambda chunk: jax.checkpoint(score)(*chunk), (split(hidden), split(tokens)))
  logps_BT = jnp.moveaxis(chunks, 0, 1).reshape(tokens.shape[0], -1)[:, :length]
  return jnp.where(mask, logps_BT, 0.0)
