"""A family of models without an encoder or attention: a bag of embeddings.

The state that predicts a token is made of the mean embedding of its prompt and of the tokens before it.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dro_jax.models.family import Family, in_two_passes
from dro_jax.models.readouts import prompt_means
from dro_jax.names import SpecialTokens
from dro_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagConfig:
  vocab_size: int | None = None
  emb_dim: int = 8
  num_heads: int = 2
  head_dim: int = 4
  dropout_rate: float = 0.0
  dtype: str = 'float32'
  scan_layers: bool = False
  remat: bool | str = False
  pad: int = 0
  eos: int = 2
  start: int = 1


class Bag(nn.Module):
  config: BagConfig

  def setup(self):
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('vocab', 'embed'))
    shape = (self.config.vocab_size, self.config.emb_dim)
    self.embedding = self.param('embedding', init, shape, jnp.float32)
    self.mix = nn.Dense(self.config.emb_dim)

  def states(self, prompts: Array, prefixes: Array) -> Array:
    return jnp.tanh(self.mix(jnp.concatenate([prompts, prefixes], axis=-1)))

  def logits(self, states: Array) -> Array:
    return states @ self.embedding.T

  def __call__(self, rows):
    return self.logits(_decode(self, _encode(self, rows, False), rows, rows, False))


class Memory(NamedTuple):
  """The embeddings of the prompts' tokens `[B, S, D]`, and the prompt of the row that each belongs to."""

  states: Array
  segments: Array


def _encode(network, rows, dropout):
  return Memory(network.embedding[rows.prompt_tokens], rows.prompt_segments)


def _decode(network, memory, rows, responses, dropout):
  segments_BT, positions_BT = responses.response_segments, responses.response_positions
  previous_BT = jnp.pad(responses.response_tokens[:, :-1], ((0, 0), (1, 0)))
  inputs_BTD = network.embedding[jnp.where(positions_BT == 0, network.config.start, previous_BT)]
  same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
  prefix_BTT = same_BTT & (positions_BT[:, :, None] >= positions_BT[:, None, :])
  prompt_BTS = responses.response_prompt[:, :, None] == memory.segments[:, None, :]
  return network.states(_mean(prompt_BTS, memory.states), _mean(prefix_BTT, inputs_BTD))


def _mean(chosen, states):
  weights = chosen.astype(jnp.float32)
  return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1) @ states


class Cache(NamedTuple):
  """For each response, the mean embedding of its prompt and the sum over its inputs so far, `[N, D]`."""

  prompts: Array
  sums: Array


def _start(network, prompts, max_length, copies):
  tokens_BS, segments_BS = prompts
  means_BD = _mean(segments_BS[:, None] == 1, network.embedding[tokens_BS])[:, 0]
  means_ND = jnp.repeat(means_BD, copies, axis=0)
  sums_ND = jnp.broadcast_to(network.embedding[network.config.start][None], means_ND.shape)
  return network.states(means_ND, sums_ND), Cache(means_ND, sums_ND)


def _advance(network, cache, tokens, position):
  sums_ND = cache.sums + network.embedding[tokens]
  return network.states(cache.prompts, sums_ND / (position + 1)), cache._replace(sums=sums_ND)


def _select(cache, rows, same_prompts):
  return jax.tree.map(lambda x: x[rows], cache)


def _parameters_met(params, projects):
  size = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))  # noqa: E731
  return 0, size(params['mix']) + (size(params['embedding']) if projects else 0)


FAMILY = Family(
  name='bag',
  config=BagConfig,
  network=Bag,
  encode=_encode,
  prompt_states=lambda memory: memory.states,
  pool_prompts=prompt_means,
  decode=_decode,
  run=in_two_passes(_encode, _decode),
  logits=lambda network, states: network.logits(states),
  start=_start,
  advance=_advance,
  select=_select,
  parameters_met=_parameters_met,
  stacks=(),
  tokens=lambda config: SpecialTokens(config.pad, config.eos, start=config.start),
)
