"""Decoder-only models as a family: both streams run through the same layers."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.causal.network import Cache, Causal, Memory
from dro_jax.models.family import Family, num_parameters
from dro_jax.models.readouts import last_states
from dro_jax.names import SpecialTokens
from dro_jax.types import Array, Params


def select(cache: Cache, rows: Int[Array, 'N'], same_prompts: bool) -> Cache:
  """The cache of these rows (see `Family.select`).

  With other prompts, each response gets its own prompt's keys, which are then no longer shared.
  """
  take = lambda tree, index, axis: jax.tree.map(lambda x: jnp.take(x, index, axis=axis), tree)  # noqa: E731
  response = take(cache.response, rows, 1)
  if same_prompts:
    return cache._replace(response=response)
  prompts = rows // (cache.response.keys.shape[1] // cache.prompt.keys.shape[1])
  return Cache(take(cache.prompt, prompts, 1), take(cache.prompt_lengths, prompts, 0), response)


def _parameters_met(params: Mapping[str, Params], projects: bool) -> tuple[int, int]:
  """Both streams meet the layers, and responses the logits' table; a table that is looked up meets none."""
  head = num_parameters(params['decoder'].get('logits_dense', {}))
  layers = num_parameters(params['decoder']) - head
  return layers, layers + ((head or num_parameters(params['token_embedder'])) if projects else 0)


def _states(memory: Memory) -> Float[Array, 'B S D']:
  return memory.states


FAMILY = Family(
  name='causal',
  config=CausalConfig,
  network=Causal,
  encode=lambda network, rows, dropout: network.encode(rows, dropout),
  prompt_states=_states,
  pool_prompts=last_states,
  decode=lambda network, memory, rows, responses, dropout: network.decode(memory, rows, responses, dropout),
  run=lambda network, rows, dropout: network.run(rows, dropout),
  logits=lambda network, states: network.logits(states),
  start=lambda network, prompts, max_length, copies: network.start_decoding(*prompts, max_length, copies),
  advance=lambda network, cache, tokens, position: network.decode_step(cache, tokens, position),
  select=select,
  parameters_met=_parameters_met,
  stacks=('decoder',),
  tokens=lambda config: SpecialTokens(config.pad, config.eos, start=config.start),
  # A response's last token is no input, so that it needs no position.
  most_tokens=lambda config: config.max_positions + 1 if config.positions == 'learned' else None,
  continues_prompts=True,
  read=lambda network, rows, dropout: network.read(rows, dropout),
)
