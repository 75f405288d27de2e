"""Policies of every family: made from a configuration, run on rows, and decoded step by step."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Float, Int

from dro_jax.errors import UsageError, did_you_mean
from dro_jax.models import lora, stacks
from dro_jax.models.causal import family as causal
from dro_jax.models.family import Cache, Config, Family, Memory, Prompts
from dro_jax.models.t5 import family as t5
from dro_jax.models.t5gemma import family as t5gemma
from dro_jax.names import SpecialTokens
from dro_jax.types import Array, Mismatched, Params, Rows

# By the name that a checkpoint's metadata gives.
FAMILIES: dict[str, Family] = {family.name: family for family in (t5.FAMILY, causal.FAMILY, t5gemma.FAMILY)}


def family_of(config: Config) -> Family:
  """The family that a configuration belongs to.

  Raises:
    UsageError: no family has configurations of this class.
  """
  for family in FAMILIES.values():
    if type(config) is family.config:
      return family
  raise UsageError(
    f'{type(config).__name__} is the configuration of no model that dro_jax has: pass one of '
    f'{", ".join(family.config.__name__ for family in FAMILIES.values())}.'
  )


def make_network(config: Config) -> nn.Module:
  """The module of a configuration."""
  return family_of(config).network(config)


def make_config(family: str, **fields: Any) -> Config:
  """A configuration of a family by its name.

  Raises:
    UsageError: there is no such family, or it has no field of a name.
  """
  if family not in FAMILIES:
    raise UsageError(
      f'dro_jax has no model family {family!r}, only {", ".join(FAMILIES)}: pass one of these. A checkpoint '
      'of another family needs the version of dro_jax that saved it.'
    )
  kind = FAMILIES[family].config
  known = [field.name for field in dataclasses.fields(kind)]
  for name in fields:
    if name not in known:
      raise UsageError(
        f'the configuration of {family} has no field {name}{did_you_mean(name, known)}: it has '
        f'{", ".join(known)}.'
      )
  return kind(**fields)


@functools.lru_cache(maxsize=16)
def parameter_shapes(config: Config) -> Mapping[stacks.Path, tuple[int, ...]]:
  """The shape of every parameter of a policy, by the tree whose layers are not scanned."""
  network = make_network(dataclasses.replace(config, scan_layers=True))  # Scanned layers are traced once.

  def unrolled() -> Params:
    params = network.init(jax.random.key(0), smallest_rows())['params']
    return stacks.convert_layers(nn.unbox(params), scan=False)

  flat = traverse_util.flatten_dict(jax.eval_shape(unrolled))
  return {path: x.shape for path, x in flat.items()}


def config_metadata(config: Config) -> dict[str, Any]:
  """A configuration as a checkpoint's metadata holds it; `saved_config` reads it.

  Without the way of attention: the device that reads the checkpoint decides, which may lack a kernel.
  """
  model = {name: value for name, value in dataclasses.asdict(config).items() if name != 'attention'}
  return {'family': family_of(config).name, 'model': model}


def saved_config(metadata: Mapping[str, Any]) -> Config:
  """The configuration in a checkpoint's metadata.

  Raises:
    UsageError: dro_jax does not have its family.
  """
  return make_config(metadata['family'], **metadata['model'])


def special_tokens(network: nn.Module) -> SpecialTokens:
  """The special tokens' ids of a policy."""
  return family_of(network.config).tokens(network.config)


def refuse_long_texts(
  config: Config, prompt: int, response: int, settings: str, *, is_read: bool = False
) -> None:
  """Refuses texts that are longer than a model has positions for.

  Args:
    config: the model's.
    prompt: tokens of the longest prompt.
    response: tokens of the longest response.
    settings: the settings that bound these, to be named.
    is_read: whether the response's last token is read too, as reward models do, and not only predicted.

  Raises:
    UsageError: together they are too long.
  """
  most = family_of(config).most_tokens(config)
  if most is None or prompt + response <= most - is_read:
    return
  held = f'{most} tokens, because the last one is only predicted'
  if is_read:
    most, held = most - 1, 'as many tokens, because a score reads the last one too'
  raise UsageError(
    f'a prompt of {prompt} tokens and a response of {response} are {prompt + response} together, and the '
    f'model has {most - 1 + is_read} learned positions, which hold {held}: pass {settings} whose sum is at '
    f'most {most}, or a model with rotary positions.'
  )


def fitting_lengths(config: Config, prompt: int, response: int) -> tuple[int, int]:
  """The lengths of prompt and response that fit the model's positions: as given, or cut where too long.

  A side that is longer than half of the positions gives way to the other; both do where both are.
  """
  most = family_of(config).most_tokens(config)
  if most is None or prompt + response <= most:
    return prompt, response
  response = min(response, max(most // 2, most - prompt))
  return most - response, response


# --- with a network's parameters ----------------------------------------------------------------------------


def encode(network: nn.Module, params: Params, rows: Rows, rng: Array | None = None) -> Memory:
  """The memory of the rows' prompts; dropout is on exactly where `rng` is given."""
  return _apply(network, params, 'encode', rows, rng is not None, rng=rng)


def decode(
  network: nn.Module,
  params: Params,
  memory: Memory,
  rows: Rows,
  responses: Rows | Mismatched,
  rng: Array | None = None,
) -> Float[Array, 'B T D']:
  """States that predict each response token from the prompt it points at and the tokens before it."""
  return _apply(network, params, 'decode', memory, rows, responses, rng is not None, rng=rng)


def run(
  network: nn.Module, params: Params, rows: Rows, rng: Array | None = None
) -> tuple[Memory, Float[Array, 'B T D']]:
  """The memory of the rows' prompts, and the states that predict the tokens of the rows' own responses."""
  return _apply(network, params, 'run', rows, rng is not None, rng=rng)


def read(network: nn.Module, params: Params, rows: Rows, rng: Array | None = None) -> Float[Array, 'B T D']:
  """States of the tokens of the rows' own responses, which have read them; see `Family.read`."""
  return _apply(network, params, 'read_responses', rows, rng is not None, rng=rng)


def logits(network: nn.Module, params: Params, states: Float[Array, 'B T D']) -> Float[Array, 'B T V']:
  """Unnormalised log-probs of the next token, float32."""
  return _apply(network, params, 'logits', states)


def next_logits(network: nn.Module, params: Params, state: Float[Array, 'N D']) -> Float[Array, 'N V']:
  """Unnormalised log-probs of the token that follows `start` or `advance`, float32."""
  return logits(network, params, state[:, None])[:, 0]


def start(
  network: nn.Module, params: Params, prompts: Prompts, max_length: int, copies: int = 1
) -> tuple[Float[Array, 'N D'], Cache]:
  """Begins `copies` responses to each prompt: the states that predict their first tokens, and a cache."""
  return _apply(network, params, 'start', prompts, max_length, copies)


def advance(
  network: nn.Module, params: Params, cache: Cache, tokens: Int[Array, 'N'], position: Int[Array, '']
) -> tuple[Float[Array, 'N D'], Cache]:
  """Reads the token at input `position` (0 was the start): the state that predicts the next, and a cache."""
  return _apply(network, params, 'advance', cache, tokens, position)


def select(network: nn.Module, cache: Cache, rows: Int[Array, 'N'], *, same_prompts: bool = False) -> Cache:
  """The cache of these rows, in this order; see `Family.select`."""
  return family_of(network.config).select(cache, rows, same_prompts)


def _apply(network: nn.Module, params: Params, function: str, *args: Any, rng: Array | None = None) -> Any:
  method = getattr(family_of(network.config), function)
  return network.apply(
    lora.variables_of(params), *args, method=method, rngs=None if rng is None else {'dropout': rng}
  )


def smallest_rows() -> Rows:
  """One row with one token a side, for a network's `init`."""
  token = jnp.ones((1, 1), jnp.int32)
  zero = jnp.zeros((1, 1), jnp.int32)
  return Rows(
    prompt_tokens=token, prompt_segments=token, prompt_positions=zero,
    response_tokens=token, response_segments=token, response_positions=zero, response_prompt=token,
    rewards=jnp.zeros((1, 1)), example_id=zero, valid=jnp.ones((1, 1), bool),
  )  # fmt: skip
