"""A decoder-only policy over rows: its two streams, and its cache.

The prompt stream runs all tokens of a prompt. A response's first input is its prompt's last token, so that
its tokens read the prompt's other tokens from the prompt stream, and that one from their own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int

from dro_jax.errors import UsageError
from dro_jax.models import layers, stacks
from dro_jax.models.attention import spans
from dro_jax.models.attention.spans import Span
from dro_jax.models.causal import rotary
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.causal.layer import (
  SMALL,
  Context,
  Layer,
  Own,
  Spans,
  flags_by_layer,
  kernel_init,
  make_norm,
)  # fmt: skip
from dro_jax.models.layers import KeysValues
from dro_jax.models.readouts import prompt_ends
from dro_jax.types import Array, Mismatched, Rows


class Memory(NamedTuple):
  """A prompt stream: its states, and its keys and values, with a leading axis of layers."""

  states: Float[Array, 'B S D']
  keys_values: KeysValues


class Cache(NamedTuple):
  """The state of decoding between steps. `prompt` has a row for each prompt, `response` for each response."""

  prompt: KeysValues
  prompt_lengths: Int[Array, 'B']
  response: KeysValues


class Decoder(nn.Module):
  """From embedded tokens to states, and to logits where these have their own weights."""

  config: CausalConfig

  def setup(self) -> None:
    if not self.config.logits_via_embedding:
      self.logits_dense = layers.Dense(
        self.config.vocab_size, ('embed', 'vocab'), self.config.dtype, kernel_init, result=jnp.float32
      )

  @nn.compact
  def __call__(
    self, x_BTD: Float[Array, 'B T D'], own: Own, context: Context, **fields: Any
  ) -> tuple[Float[Array, 'B T D'], KeysValues | None]:
    """Runs the layers, whose `fields` are those of `Layer`."""
    cfg = self.config
    own = own._replace(windowed=flags_by_layer(cfg.windowed), rotated=flags_by_layer(cfg.rotated))
    x_BTD, kept = stacks.run_stack(Layer, 'decoder', cfg.num_layers, cfg, x_BTD, own, context, **fields)
    return make_norm(cfg, 'decoder_norm')(x_BTD), kept


class Causal(nn.Module):
  """The policy: a decoder-only model over rows that hold several prompts and several responses."""

  config: CausalConfig

  def setup(self) -> None:
    cfg = self.config
    if cfg.vocab_size is None:
      raise UsageError(
        'CausalConfig.vocab_size is None, so the embedding table has no size: set it, or pass '
        "dataclasses.replace(config, vocab_size=...) with the vocabulary's size."
      )
    self.token_embedder = layers.Embedding(cfg.vocab_size, cfg.emb_dim, cfg.dtype, SMALL)
    if cfg.positions == 'learned':
      self.position_embedder = layers.Positions(cfg.max_positions, cfg.emb_dim, cfg.dtype, SMALL)
    self.decoder = Decoder(cfg)

  def _embed(self, tokens_BT: Array, positions_BT: Array) -> Float[Array, 'B T D']:
    cfg = self.config
    x_BTD = self.token_embedder(tokens_BT)
    if cfg.scale_embedding:
      x_BTD = x_BTD * jnp.asarray(np.sqrt(cfg.emb_dim), x_BTD.dtype)
    return x_BTD + self.position_embedder(positions_BT) if cfg.positions == 'learned' else x_BTD

  def _context(self, positions_BT: Array, *spans: Spans) -> Context:
    """The layers' context, of queries at these positions; `spans` are own, of prompts, among prompts."""
    cfg = self.config
    rotation, local = rotary.rotation(rotary.frequencies(cfg), positions_BT), None
    if cfg.rope_local_theta is not None:
      local = rotary.rotation(rotary.frequencies(cfg, local=True), positions_BT)
    return Context(rotation, local, *spans)

  def _spans(self, span: Span, places: Array) -> Spans:
    """A span, and its part in the window where any layer has one, of queries at these places among keys."""
    cfg = self.config
    return Spans(span, spans.within(span, places, cfg.window) if any(cfg.windowed) else None)

  def _own_spans(self, segments_BT: Array) -> Spans:
    return self._spans(spans.own_span(segments_BT), jnp.arange(segments_BT.shape[1])[None])

  def encode(self, rows: Rows, enable_dropout: bool = False) -> Memory:
    """The prompt stream: each token sees the earlier tokens of its own prompt."""
    context = self._context(rows.prompt_positions, self._own_spans(rows.prompt_segments))
    x_BSD = self._embed(rows.prompt_tokens, rows.prompt_positions)
    return Memory(*self.decoder(x_BSD, Own(), context, deterministic=not enable_dropout, keep=True))

  def _inputs(
    self, rows: Rows, responses: Rows | Mismatched, reads: bool = False
  ) -> tuple[Array, Array, Spans, Spans]:
    """Of a response stream: tokens and positions, and their spans in their own stream and in prompts.

    One that `reads` has the responses' own tokens as inputs, and reads all of the prompt from its stream.
    """
    ends_BT = prompt_ends(rows.prompt_segments, responses.response_prompt)
    at_end = lambda x_BS: jnp.take_along_axis(x_BS, ends_BT, axis=1)  # noqa: E731
    previous_BT = jnp.where(
      responses.response_positions == 0,
      at_end(rows.prompt_tokens),
      jnp.pad(responses.response_tokens[:, :-1], ((0, 0), (1, 0))),
    )
    # All of the prompt but its last token; padding, whose prompt is 0, reads nothing.
    starts_BT = at_end(spans.segment_starts(rows.prompt_segments))
    behind_BT = responses.response_positions
    if reads:
      stops_BT, behind_BT = ends_BT + 1, behind_BT + 1
    else:
      stops_BT = ends_BT
    prompt = Span(starts_BT, jnp.where(responses.response_prompt > 0, stops_BT, starts_BT))
    return (
      responses.response_tokens if reads else previous_BT, at_end(rows.prompt_positions) + behind_BT,
      self._own_spans(responses.response_segments),
      self._spans(prompt, ends_BT + behind_BT),
    )  # fmt: skip

  def decode(
    self, memory: Memory, rows: Rows, responses: Rows | Mismatched, enable_dropout: bool = False
  ) -> Float[Array, 'B T D']:
    """States that predict each response token from the prompt it points at and the tokens before it."""
    tokens_BT, positions_BT, own, prompt = self._inputs(rows, responses)
    context = self._context(positions_BT, own, prompt)
    x_BTD = self._embed(tokens_BT, positions_BT)
    return self.decoder(x_BTD, Own(memory.keys_values), context, deterministic=not enable_dropout)[0]

  def run(self, rows: Rows, enable_dropout: bool = False) -> tuple[Memory, Float[Array, 'B T D']]:
    """`encode`, and `decode` of the rows' own responses, in one pass: the same numbers, and a mesh that cuts
    parameters by `fsdp` gathers each layer's once for both streams, and reduces its gradient once."""
    return self._run(rows, self._inputs(rows, rows), enable_dropout)

  def read(self, rows: Rows, enable_dropout: bool = False) -> Float[Array, 'B T D']:
    """States of the rows' own responses, each of which has read its own token, as one text has them."""
    return self._run(rows, self._inputs(rows, rows, reads=True), enable_dropout)[1]

  def _run(
    self, rows: Rows, inputs: tuple[Array, Array, Spans, Spans], enable_dropout: bool
  ) -> tuple[Memory, Float[Array, 'B T D']]:
    tokens_BT, positions_BT, own, prompt = inputs
    join = lambda x_BS, x_BT: jnp.concatenate([x_BS, x_BT], axis=1)  # noqa: E731
    positions = join(rows.prompt_positions, positions_BT)
    context = self._context(positions, own, prompt, self._own_spans(rows.prompt_segments))
    length = rows.prompt_tokens.shape[1]
    states, keys_values = self.decoder(
      self._embed(join(rows.prompt_tokens, tokens_BT), positions), Own(), context,
      deterministic=not enable_dropout, keep=rows.mismatched is not None, prompt_length=length,
    )  # fmt: skip
    return Memory(states[:, :length], keys_values), states[:, length:]

  def logits(self, states_BTD: Float[Array, 'B T D']) -> Float[Array, 'B T V']:
    """Unnormalised log-probs of the next token, float32."""
    cfg = self.config
    if cfg.logits_via_embedding:
      logits_BTV = self.token_embedder.attend(states_BTD)
    else:
      logits_BTV = self.decoder.logits_dense(states_BTD)
    if cfg.logits_softcap is not None:
      logits_BTV = cfg.logits_softcap * jnp.tanh(logits_BTV / cfg.logits_softcap)
    return layers.constrain(logits_BTV, 'activation_batch', 'activation_length', 'activation_vocab')

  def __call__(self, rows: Rows, enable_dropout: bool = False) -> Float[Array, 'B T V']:
    return self.logits(self.run(rows, enable_dropout)[1])

  def start_decoding(
    self, tokens_BS: Int[Array, 'B S'], segments_BS: Int[Array, 'B S'], max_length: int, copies: int
  ) -> tuple[Float[Array, 'N D'], Cache]:
    """Reads the prompts: the state that predicts the first token of each copy, and a cache."""
    # Padding has the first position: one beyond a learned table would be NaN.
    positions_BS = jnp.where(segments_BS > 0, jnp.arange(tokens_BS.shape[1])[None], 0)
    context = self._context(positions_BS, self._own_spans(segments_BS))
    _, keys_values = self.decoder(self._embed(tokens_BS, positions_BS), Own(), context, keep=True)
    lengths_B = jnp.sum(segments_BS > 0, axis=-1)
    responses = tokens_BS.shape[0] * copies
    empty = jax.tree.map(
      lambda x: jnp.zeros((x.shape[0], responses, max_length, *x.shape[3:]), x.dtype), keys_values
    )
    last_B1 = jnp.take_along_axis(tokens_BS, jnp.maximum(lengths_B - 1, 0)[:, None], axis=1)
    first_N = jnp.repeat(last_B1[:, 0], copies)
    return self.decode_step(Cache(keys_values, lengths_B, empty), first_N, jnp.zeros((), jnp.int32))

  def decode_step(
    self, cache: Cache, tokens_N: Int[Array, 'N'], position: Int[Array, '']
  ) -> tuple[Float[Array, 'N D'], Cache]:
    """Reads the token at input `position` (0 was the prompt's last): the state that predicts the next."""
    ends_B = jnp.maximum(cache.prompt_lengths - 1, 0)
    copies = tokens_N.shape[0] // ends_B.shape[0]
    positions_N1 = jnp.repeat(ends_B, copies)[:, None] + position
    # All copies of a prompt are at the same position, so that they share its span as well as its keys.
    prompt = Span(jnp.zeros_like(ends_B)[:, None], ends_B[:, None])
    own = Span(jnp.zeros_like(positions_N1), jnp.full_like(positions_N1, position + 1))
    context = self._context(
      positions_N1,
      self._spans(own, position[None, None]),
      self._spans(prompt, ends_B[:, None] + position),
    )._replace(position=position)
    states_N1D, new = self.decoder(
      self._embed(tokens_N[:, None], positions_N1), Own(cache.prompt, cache.response), context, keep=True
    )
    return states_N1D[:, 0], cache._replace(
      response=layers.write_cache(cache.response, new, position, axis=2)
    )
