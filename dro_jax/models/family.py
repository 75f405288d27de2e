"""A family: the description of one kind of model, which the rest of dro_jax uses."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
from flax import linen as nn
from jaxtyping import Float, Int

from dro_jax.errors import UsageError
from dro_jax.names import SpecialTokens
from dro_jax.types import Array, Mismatched, Params, Rows

# Prompts to be answered, one a row: tokens, and segments that are 1 on the prompt and 0 on padding.
Prompts = tuple[Int[Array, 'B S'], Int[Array, 'B S']]
# The part of prompts that responses read, and the state between steps of decoding: trees of the family's own.
Memory = Any
Cache = Any

DTYPES = ('float32', 'bfloat16')
# jax's policy of the arrays that a layer's forward pass keeps, where the others are recomputed.
REMATS = {True: None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@runtime_checkable
class Config(Protocol):
  """The fields of every family's configuration, a frozen dataclass that JSON can hold.

  Attributes:
    vocab_size: rows of the embedding table; `None` leaves it to the run, which takes the vocabulary's.
    emb_dim: width of the hidden states.
    num_heads: attention heads.
    head_dim: width of a head.
    dropout_rate: used only where a caller enables dropout.
    dtype: of activations, `float32` or `bfloat16`.
    scan_layers: one compiled layer run over stacked parameters (see `models.stacks`).
    remat: what of a layer is recomputed in the backward pass.
  """

  __dataclass_fields__: ClassVar[dict[str, Any]]
  vocab_size: int | None
  emb_dim: int
  num_heads: int
  head_dim: int
  dropout_rate: float
  dtype: str
  scan_layers: bool
  remat: bool | str


def check_config(config: Config, sizes: Sequence[str], activations: Collection[str]) -> None:
  """Refuses a configuration that no network can have, for every family alike.

  Args:
    config: with `mlp_activations`.
    sizes: the fields that are 1 or more.
    activations: the names of activations.

  Raises:
    UsageError: a field is out of its range.
  """
  chosen: tuple[str, ...] = config.mlp_activations  # type: ignore[attr-defined]
  if not chosen or set(chosen) - set(activations):
    raise UsageError(f'mlp_activations={chosen!r}: pass one or more of {sorted(activations)}.')
  for name in sizes:
    if getattr(config, name) < 1:
      raise UsageError(f'{name}={getattr(config, name)} makes no network: pass 1 or more.')
  if config.remat and config.remat not in REMATS:
    raise UsageError(
      f'remat={config.remat!r} is unknown: pass True (each layer), dots (all but products) or False.'
    )
  if config.dtype not in DTYPES:
    raise UsageError(f'dtype={config.dtype!r} is not a type for activations: pass one of {DTYPES}.')


def freeze(config: Config, *names: str) -> None:
  """Makes tuples of fields, so that jit can hash the configuration; JSON and gin pass lists."""
  for name in names:
    object.__setattr__(config, name, tuple(getattr(config, name)))


def num_parameters(tree: Params) -> int:
  """How many numbers a tree has; shapes will do."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def in_two_passes(encode: Callable[..., Memory], decode: Callable[..., Any]) -> Callable[..., Any]:
  """`Family.run` of models whose prompts and responses have layers of their own: one pass after the other."""

  def run(network: nn.Module, rows: Rows, dropout: bool) -> tuple[Memory, Float[Array, 'B T D']]:
    memory = encode(network, rows, dropout)
    return memory, decode(network, memory, rows, rows, dropout)

  return run


class Family(NamedTuple):
  """One kind of model: two streams, of prompts and of responses, over one row layout.

  Functions that compute take the network first, bound as within another module; `models.policy` binds it.

  Attributes:
    name: the family's, in a checkpoint's metadata.
    config: the class of its configurations (see `Config`).
    network: from a configuration to the module, which may be called on `Rows` and has the field `config`.
    encode: `(network, rows, dropout)`: the prompts' memory.
    prompt_states: `(memory)`: states of the prompts' tokens, `[B, S, D]`, which a value network reads.
    pool_prompts: `(states, prompt_segments, response_prompts)`: one state for each response's prompt,
      `[B, R, D]`, float32, 0 where a response points at none.
    decode: `(network, memory, rows, responses, dropout)`: states that predict each response token, from its
      prompt and the tokens before it, `[B, T, D]`.
    run: `(network, rows, dropout)`: what `encode`, and `decode` of the rows' own responses, return, where one
      pass of both costs less than two.
    logits: `(network, states)`: unnormalised log-probs of the next token, `[B, T, V]`, float32.
    start: `(network, prompts, max_length, copies)`: the state that predicts the first token of `copies`
      responses to each prompt, `[N, D]`, row by row, and a cache for `max_length` tokens.
    advance: `(network, cache, tokens, position)`: the state after the token at input `position` (0 was the
      start), and the new cache.
    select: `(cache, rows, same_prompts)`: the cache of these rows, in this order. With `same_prompts` each
      row takes the place of a response to its own prompt.
    parameters_met: `(params, projects)`: how many parameters a prompt token meets, and a response token, with
      the vocabulary's projection where the pass `projects`.
    stacks: the names of its stacks of layers, of `models.stacks.STACKS`.
    tokens: from a configuration to the special tokens' ids.
    most_tokens: from a configuration to the most tokens that a prompt and its response have together; `None`
      where nothing bounds them.
    continues_prompts: whether a response continues its prompt's own text, as in decoder-only models, so that
      a prompt's tokens count as repeated too (see `models.sampling.penalised`).
    read: `(network, rows, dropout)`: states of the responses' tokens, each of which has read its own token
      besides those before it, `[B, T, D]`; `None` where a token is an input only to the next one's state. A
      response's score is then read from the state that predicts its last token, as T5's classifiers do.
  """

  name: str
  config: type
  network: Callable[[Any], nn.Module]
  encode: Callable[[nn.Module, Rows, bool], Memory]
  prompt_states: Callable[[Memory], Float[Array, 'B S D']]
  pool_prompts: Callable[[Float[Array, 'B S D'], Int[Array, 'B S'], Int[Array, 'B R']], Float[Array, 'B R D']]
  decode: Callable[[nn.Module, Memory, Rows, Rows | Mismatched, bool], Float[Array, 'B T D']]
  run: Callable[[nn.Module, Rows, bool], tuple[Memory, Float[Array, 'B T D']]]
  logits: Callable[[nn.Module, Float[Array, 'B T D']], Float[Array, 'B T V']]
  start: Callable[[nn.Module, Prompts, int, int], tuple[Float[Array, 'N D'], Cache]]
  advance: Callable[[nn.Module, Cache, Int[Array, 'N'], Int[Array, '']], tuple[Float[Array, 'N D'], Cache]]
  select: Callable[[Cache, Int[Array, 'N'], bool], Cache]
  parameters_met: Callable[[Mapping[str, Params], bool], tuple[int, int]]
  stacks: tuple[str, ...]
  tokens: Callable[[Any], SpecialTokens]
  most_tokens: Callable[[Any], int | None] = lambda config: None
  continues_prompts: bool = False
  read: Callable[[nn.Module, Rows, bool], Float[Array, 'B T D']] | None = None

  def read_responses(self, network: nn.Module, rows: Rows, dropout: bool) -> Float[Array, 'B T D']:
    """States of the responses' tokens, the last of which has read its response as far as the family does."""
    return self.run(network, rows, dropout)[1] if self.read is None else self.read(network, rows, dropout)
