"""T5 as a family: its encoder reads prompts, its decoder responses."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dro_jax.models.family import Family, Prompts, in_two_passes, num_parameters
from dro_jax.models.readouts import prompt_means
from dro_jax.models.t5.config import TOKENS, T5Config
from dro_jax.models.t5.network import T5, Cache
from dro_jax.types import Array, Mismatched, Params, Rows


def _encode(network: T5, rows: Rows, dropout: bool) -> Float[Array, 'B S D']:
  return network.encode(
    rows.prompt_tokens, rows.prompt_segments, rows.prompt_positions, enable_dropout=dropout
  )


def _decode(
  network: T5, encoded: Float[Array, 'B S D'], rows: Rows, responses: Rows | Mismatched, dropout: bool
) -> Float[Array, 'B T D']:
  return network.decode(
    encoded,
    rows.prompt_segments,
    responses.response_tokens,
    responses.response_segments,
    responses.response_positions,
    responses.response_prompt,
    enable_dropout=dropout,
  )


def _start(network: T5, prompts: Prompts, max_length: int, copies: int) -> tuple[Float[Array, 'N D'], Cache]:
  """Encodes each prompt once, and decodes the start token of `copies` responses to it."""
  tokens_BS, segments_BS = prompts
  positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
  encoded_BSD = network.encode(tokens_BS, segments_BS, positions_BS)
  encoded_NSD, mask_NS = (jnp.repeat(x, copies, axis=0) for x in (encoded_BSD, segments_BS == 1))
  return network.start_decoding(encoded_NSD, mask_NS, max_length)


def _select(cache: Cache, rows: Int[Array, 'N'], same_prompts: bool) -> Cache:
  take = lambda tree, axis: jax.tree.map(lambda x: jnp.take(x, rows, axis=axis), tree)  # noqa: E731
  if same_prompts:
    return cache._replace(layers=cache.layers._replace(response=take(cache.layers.response, 1)))
  return Cache(take(cache.layers, 1), take(cache.prompt_mask, 0))


def _parameters_met(params: Mapping[str, Params], projects: bool) -> tuple[int, int]:
  """The encoder's, and the decoder's with the logits' table; an embedding that is looked up meets none."""
  tied = projects and 'logits_dense' not in params['decoder']
  encoder, decoder, table = (
    num_parameters(params.get(part, {})) for part in ('encoder', 'decoder', 'token_embedder')
  )
  return encoder, decoder + (table if tied else 0)


FAMILY = Family(
  name='t5',
  config=T5Config,
  network=T5,
  encode=_encode,
  prompt_states=lambda encoded: encoded,
  pool_prompts=prompt_means,
  decode=_decode,
  run=in_two_passes(_encode, _decode),
  logits=lambda network, states: network.logits(states),
  start=_start,
  advance=lambda network, cache, tokens, position: network.decode_step(cache, tokens, position),
  select=_select,
  parameters_met=_parameters_met,
  stacks=('encoder', 'decoder'),
  tokens=lambda config: TOKENS,
)
