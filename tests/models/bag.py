"""A family of models that the tests add: a token's state is made of its prompt's mean and its prefix's mean.

No encoder, no attention, and other special tokens than T5's.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dro_jax.models.family import Family
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


class Memory(NamedTuple):
  states: Array
  segments: Array


class Cache(NamedTuple):
  prompts: Array
  sums: Array


class Bag(nn.Module):
  config: BagConfig

  def setup(self):
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('vocab', 'embed'))
    shape = (self.config.vocab_size, self.config.emb_dim)
    self.embedding = self.param('embedding', init, shape, jnp.float32)
    self.mix = nn.Dense(self.config.emb_dim)

  def states(self, prompts: Array, responses: Array) -> Array:
    return jnp.tanh(self.mix(jnp.concatenate([prompts, responses], axis=-1)))

  def logits(self, states: Array) -> Array:
    return states @ self.embedding.T

  def __call__(self, rows):
    memory = _encode(self, rows, False)
    return self.logits(_decode(self, memory, rows, rows, False))


def _encode(network, rows, dropout):
  return Memory(network.embedding[rows.prompt_tokens], rows.prompt_segments)


def _mean(weights_BTS, states_BSD):
  return weights_BTS @ states_BSD / jnp.maximum(jnp.sum(weights_BTS, axis=-1, keepdims=True), 1)


def _decode(network, memory, rows, responses, dropout):
  segments, positions = responses.response_segments, responses.response_positions
  previous = jnp.pad(responses.response_tokens[:, :-1], ((0, 0), (1, 0)))
  inputs = network.embedding[jnp.where(positions == 0, network.config.start, previous)]
  own = (segments[:, :, None] == segments[:, None, :]) & (positions[:, :, None] >= positions[:, None, :])
  prompts = responses.response_prompt[:, :, None] == memory.segments[:, None, :]
  return network.states(
    _mean(prompts.astype(jnp.float32), memory.states), _mean(own.astype(jnp.float32), inputs)
  )


def _run(network, rows, dropout):
  memory = _encode(network, rows, dropout)
  return memory, _decode(network, memory, rows, rows, dropout)


def _start(network, prompts, max_length, copies):
  tokens, segments = prompts
  means = _mean((segments == 1).astype(jnp.float32)[:, None], network.embedding[tokens])[:, 0]
  means = jnp.repeat(means, copies, axis=0)
  sums = jnp.broadcast_to(network.embedding[network.config.start][None], means.shape)
  return network.states(means, sums), Cache(means, sums)


def _advance(network, cache, tokens, position):
  sums = cache.sums + network.embedding[tokens]
  return network.states(cache.prompts, sums / (position + 1)), cache._replace(sums=sums)


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
  run=_run,
  logits=lambda network, states: network.logits(states),
  start=_start,
  advance=_advance,
  select=_select,
  parameters_met=_parameters_met,
  stacks=(),
  tokens=lambda config: SpecialTokens(config.pad, config.eos, start=config.start),
)
