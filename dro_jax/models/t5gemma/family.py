"""T5Gemma as a family: its encoder reads prompts, its decoder responses."""

import math
from collections.abc import Mapping

import jax
from jaxtyping import Float

from dro_jax.models.causal.family import select
from dro_jax.models.causal.network import Cache
from dro_jax.models.family import Family, Prompts
from dro_jax.models.readouts import prompt_means
from dro_jax.models.t5gemma.config import T5GemmaConfig
from dro_jax.models.t5gemma.network import T5Gemma
from dro_jax.names import SpecialTokens
from dro_jax.types import Array, Params, Rows


def _start(
  network: T5Gemma, prompts: Prompts, max_length: int, copies: int
) -> tuple[Float[Array, 'N D'], Cache]:
  return network.start_decoding(*prompts, max_length, copies)


def _run(network: T5Gemma, rows: Rows, dropout: bool) -> tuple[Float[Array, 'B S E'], Float[Array, 'B T D']]:
  encoded = network.encode(rows, dropout)
  return encoded, network.decode(encoded, rows, rows, dropout)


def _parameters_met(params: Mapping[str, Params], projects: bool) -> tuple[int, int]:
  """The encoder's, and the decoder's with the logits' table; a table that is looked up meets none."""
  head = _size(params, 'token_embedder') if projects else 0
  return _size(params, 'encoder'), _size(params, 'decoder') + head


def _size(params: Mapping[str, Params], part: str) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params.get(part, {})))


FAMILY = Family(
  name='t5gemma',
  config=T5GemmaConfig,
  network=T5Gemma,
  encode=lambda network, rows, dropout: network.encode(rows, dropout),
  prompt_states=lambda encoded: encoded,
  pool_prompts=prompt_means,
  decode=lambda network, encoded, rows, responses, dropout: network.decode(encoded, rows, responses, dropout),
  run=_run,
  logits=lambda network, states: network.logits(states),
  start=_start,
  advance=lambda network, cache, tokens, position: network.decode_step(cache, tokens, position),
  select=select,
  parameters_met=_parameters_met,
  stacks=('encoder', 'decoder'),
  tokens=lambda config: SpecialTokens(config.pad, config.eos, start=config.start),
)
