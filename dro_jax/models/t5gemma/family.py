"""T5Gemma as a family: its encoder reads prompts, its decoder responses."""

from collections.abc import Mapping

from jaxtyping import Float

from dro_jax.models.causal.family import select
from dro_jax.models.family import Family, in_two_passes, num_parameters
from dro_jax.models.readouts import prompt_means
from dro_jax.models.t5gemma.config import T5GemmaConfig
from dro_jax.models.t5gemma.network import T5Gemma
from dro_jax.names import SpecialTokens
from dro_jax.types import Array, Mismatched, Params, Rows


def _encode(network: T5Gemma, rows: Rows, dropout: bool) -> Float[Array, 'B S E']:
  return network.encode(rows, dropout)


def _decode(
  network: T5Gemma, encoded: Float[Array, 'B S E'], rows: Rows, responses: Rows | Mismatched, dropout: bool
) -> Float[Array, 'B T D']:
  return network.decode(encoded, rows, responses, dropout)


def _parameters_met(params: Mapping[str, Params], projects: bool) -> tuple[int, int]:
  """The encoder's, and the decoder's with the logits' table; a table that is looked up meets none."""
  encoder, decoder, table = (
    num_parameters(params.get(part, {})) for part in ('encoder', 'decoder', 'token_embedder')
  )
  return encoder, decoder + (table if projects else 0)


FAMILY = Family(
  name='t5gemma',
  config=T5GemmaConfig,
  network=T5Gemma,
  encode=_encode,
  prompt_states=lambda encoded: encoded,
  pool_prompts=prompt_means,
  decode=_decode,
  run=in_two_passes(_encode, _decode),
  logits=lambda network, states: network.logits(states),
  start=lambda network, prompts, max_length, copies: network.start_decoding(*prompts, max_length, copies),
  advance=lambda network, cache, tokens, position: network.decode_step(cache, tokens, position),
  select=select,
  parameters_met=_parameters_met,
  stacks=('encoder', 'decoder'),
  tokens=lambda config: SpecialTokens(config.pad, config.eos, start=config.start),
)
