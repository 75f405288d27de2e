"""T5Gemma over rows that hold several prompts and several responses: encoder, decoder, and its cache.

Dimensions beyond `dro_jax.models.layers`: E width of the encoder's states, N responses that are decoded.
"""

from typing import NamedTuple

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
  Attention,
  Context,
  Layer,
  Own,
  Spans,
  flags_by_layer,
  layer_flag,
)
from dro_jax.models.causal.network import Cache
from dro_jax.models.layers import KeysValues
from dro_jax.models.readouts import prompt_ends
from dro_jax.models.t5gemma.config import T5GemmaConfig
from dro_jax.types import Array, Mismatched, Rows

_SMALL = 0.02  # The standard deviation of fresh embeddings and of the products that read the states.
_kernel_init = nn.initializers.normal(_SMALL)


class _Shared(NamedTuple):
  """Arrays that all decoder layers share; no `encoded` where the cache has the prompts' keys and values."""

  attention: Context
  encoded: Float[Array, 'B S E'] | None


class _Kept(NamedTuple):
  """The keys and values that a decoder layer made: of its tokens, and of the prompts."""

  response: KeysValues
  prompt: KeysValues | None


def _norm(config: CausalConfig, name: str) -> layers.RMSNorm:
  return layers.RMSNorm(config.dtype, config.norm_epsilon, True, name=name)


class DecoderLayer(nn.Module):
  """Attention to the response and to the prompt, then the MLP, with a norm before and after each block.

  With `merged`, one block reads both: the prompts' keys come of the same parameters, and are not rotated.
  With a cache, `x` is the one token at the context's position; the caller writes what is returned.
  """

  config: CausalConfig
  merged: bool
  deterministic: bool = True
  keep: bool = False

  @nn.compact
  def __call__(
    self, x_BTD: Float[Array, 'B T D'], own: Own, shared: _Shared
  ) -> tuple[Float[Array, 'B T D'], _Kept | None]:
    cfg, context = self.config, shared.attention
    attend = Attention(cfg, layer_flag(own.windowed, cfg.windowed), True, name='attention')
    cross = attend if self.merged else Attention(cfg, False, False, name='cross_attention')
    prompt = cross.keys_values(shared.encoded, None) if own.prompt is None else own.prompt

    y_BTD = _norm(cfg, 'pre_attention_norm')(x_BTD)
    new = attend.keys_values(y_BTD, context)
    response = (
      new if own.response is None else layers.write_cache(own.response, new, context.position, axis=1)
    )
    y_BTD = attend(y_BTD, response, prompt if self.merged else None, context)
    x_BTD = self._add(x_BTD, y_BTD, 'post_attention_norm')
    if not self.merged:
      y_BTD = _norm(cfg, 'pre_cross_norm')(x_BTD)
      y_BTD = cross(y_BTD, prompt, None, context._replace(own=context.prompt, prompt=None))
      x_BTD = self._add(x_BTD, y_BTD, 'post_cross_norm')

    mlp = layers.MLP(
      cfg.mlp_dim, cfg.mlp_activations, cfg.dropout_rate, cfg.dtype, kernel_init=_kernel_init, name='mlp'
    )
    y_BTD = mlp(_norm(cfg, 'pre_mlp_norm')(x_BTD), self.deterministic)
    x_BTD = self._add(x_BTD, y_BTD, 'post_mlp_norm')
    return x_BTD, _Kept(new, prompt if own.prompt is None else None) if self.keep else None

  def _add(self, x_BTD: Array, y_BTD: Array, name: str) -> Array:
    """A block's output, normed, added to its input."""
    y_BTD = layers.dropout(_norm(self.config, name)(y_BTD), self.config.dropout_rate, self.deterministic)
    return layers.constrain_hidden(x_BTD + y_BTD)


class Encoder(nn.Module):
  """From embedded prompts to states, by a decoder-only model's layers with spans that are not causal."""

  config: CausalConfig

  @nn.compact
  def __call__(
    self, x_BSE: Float[Array, 'B S E'], context: Context, deterministic: bool
  ) -> Float[Array, 'B S E']:
    cfg = self.config
    own = Own(windowed=flags_by_layer(cfg.windowed))
    x_BSE = layers.dropout(x_BSE, cfg.dropout_rate, deterministic)
    x_BSE, _ = stacks.run_stack(
      Layer, 'encoder', cfg.num_layers, cfg, x_BSE, own, context, deterministic=deterministic
    )
    return layers.dropout(_norm(cfg, 'encoder_norm')(x_BSE), cfg.dropout_rate, deterministic)


class Decoder(nn.Module):
  """From embedded inputs to states."""

  config: CausalConfig
  merged: bool

  @nn.compact
  def __call__(
    self, x_BTD: Float[Array, 'B T D'], own: Own, shared: _Shared, deterministic: bool, keep: bool = False
  ) -> tuple[Float[Array, 'B T D'], _Kept | None]:
    cfg = self.config
    own = own._replace(windowed=flags_by_layer(cfg.windowed))
    x_BTD = layers.dropout(x_BTD, cfg.dropout_rate, deterministic)
    x_BTD, kept = stacks.run_stack(
      DecoderLayer, 'decoder', cfg.num_layers, cfg, x_BTD, own, shared,
      merged=self.merged, deterministic=deterministic, keep=keep,
    )  # fmt: skip
    return layers.dropout(_norm(cfg, 'decoder_norm')(x_BTD), cfg.dropout_rate, deterministic), kept


class T5Gemma(nn.Module):
  """The policy: an encoder that reads prompts in both directions, and a decoder that reads its states.

  A response's positions start at 0, with BOS; a prompt's states have positions of their own, which the
  decoder does not see.
  """

  config: T5GemmaConfig

  def setup(self) -> None:
    cfg = self.config
    if cfg.vocab_size is None:
      raise UsageError(
        'T5GemmaConfig.vocab_size is None, so the embedding table has no size: set it, or pass '
        "dataclasses.replace(config, vocab_size=...) with the vocabulary's size."
      )
    table = lambda side: layers.Embedding(cfg.vocab_size, side.emb_dim, cfg.dtype, _SMALL)  # noqa: E731
    self.token_embedder = table(cfg.decoder)
    if not cfg.shared_embedding:
      self.prompt_embedder = table(cfg.encoder)
    self.encoder = Encoder(cfg.encoder)
    self.decoder = Decoder(cfg.decoder, cfg.merged_attention)

  def encode(self, rows: Rows, enable_dropout: bool = False) -> Float[Array, 'B S E']:
    """States of the prompts' tokens, each of which sees its own prompt, before it and after it."""
    return self._encode(
      rows.prompt_tokens, rows.prompt_segments, rows.prompt_positions, enable_dropout=enable_dropout
    )

  def _encode(
    self, tokens_BS: Array, segments_BS: Array, positions_BS: Array, enable_dropout: bool = False
  ) -> Float[Array, 'B S E']:
    cfg = self.config
    whole, places_1S = spans.segment_span(segments_BS), jnp.arange(segments_BS.shape[1])[None]
    windowed = spans.around(whole, places_1S, *cfg.encoder_reach) if any(cfg.encoder.windowed) else None
    context = _context(cfg.encoder, positions_BS, Spans(whole, windowed))
    embedder = self.token_embedder if cfg.shared_embedding else self.prompt_embedder
    return self.encoder(_scaled(embedder(tokens_BS)), context, not enable_dropout)

  def decode(
    self,
    encoded_BSE: Float[Array, 'B S E'],
    rows: Rows,
    responses: Rows | Mismatched,
    enable_dropout: bool = False,
  ) -> Float[Array, 'B T D']:
    """States that predict each response token from the prompt it points at and the tokens before it."""
    cfg, positions_BT = self.config, responses.response_positions
    previous_BT = jnp.pad(responses.response_tokens[:, :-1], ((0, 0), (1, 0)))
    inputs_BT = jnp.where(positions_BT == 0, cfg.start, previous_BT)
    own = spans.own_span(responses.response_segments)
    context = _context(
      cfg.decoder,
      positions_BT,
      _with_window(cfg.decoder, own, jnp.arange(positions_BT.shape[1])[None]),
      Spans(_prompt_span(rows.prompt_segments, responses.response_prompt), None),
    )
    states_BTD, _ = self.decoder(
      _scaled(self.token_embedder(inputs_BT)), Own(), _Shared(context, encoded_BSE), not enable_dropout
    )
    return states_BTD

  def logits(self, states_BTD: Float[Array, 'B T D']) -> Float[Array, 'B T V']:
    """Unnormalised log-probs of the next token, float32."""
    logits_BTV, softcap = self.token_embedder.attend(states_BTD), self.config.logits_softcap
    if softcap is not None:
      logits_BTV = softcap * jnp.tanh(logits_BTV / softcap)
    return layers.constrain(logits_BTV, 'activation_batch', 'activation_length', 'activation_vocab')

  def __call__(self, rows: Rows, enable_dropout: bool = False) -> Float[Array, 'B T V']:
    return self.logits(self.decode(self.encode(rows, enable_dropout), rows, rows, enable_dropout))

  def start_decoding(
    self, tokens_BS: Int[Array, 'B S'], segments_BS: Int[Array, 'B S'], max_length: int, copies: int
  ) -> tuple[Float[Array, 'N D'], Cache]:
    """Encodes each prompt once, and decodes BOS: the state that predicts the first token of each copy."""
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    encoded_BSE = self._encode(tokens_BS, segments_BS, positions_BS)
    lengths_B = jnp.sum(segments_BS > 0, axis=-1)
    number = tokens_BS.shape[0] * copies
    context = _context(
      self.config.decoder,
      jnp.zeros((number, 1), jnp.int32),
      Spans(Span(jnp.zeros((number, 1), jnp.int32), jnp.ones((number, 1), jnp.int32)), None),
      _whole_prompts(lengths_B),
    )
    start_N1 = jnp.full((number, 1), self.config.start, jnp.int32)
    states_N1D, kept = self.decoder(
      _scaled(self.token_embedder(start_N1)), Own(), _Shared(context, encoded_BSE), True, keep=True
    )
    response = jax.tree.map(
      lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, max_length - 1), (0, 0), (0, 0))), kept.response
    )
    return states_N1D[:, 0], Cache(kept.prompt, lengths_B, response)

  def decode_step(
    self, cache: Cache, tokens_N: Int[Array, 'N'], position: Int[Array, '']
  ) -> tuple[Float[Array, 'N D'], Cache]:
    """Decodes the token at input `position` (0 was BOS): the state that predicts the next one."""
    cfg, number = self.config.decoder, tokens_N.shape[0]
    own = Span(jnp.zeros((number, 1), jnp.int32), jnp.full((number, 1), position + 1))
    context = _context(
      cfg,
      jnp.broadcast_to(position, (number, 1)),
      _with_window(cfg, own, position[None, None]),
      _whole_prompts(cache.prompt_lengths),
    )
    states_N1D, new = self.decoder(
      _scaled(self.token_embedder(tokens_N[:, None])),
      Own(cache.prompt, cache.response),
      _Shared(context._replace(position=position), None),
      True,
      keep=True,
    )
    return states_N1D[:, 0], cache._replace(
      response=layers.write_cache(cache.response, new.response, position, axis=2)
    )


def _scaled(x_BTD: Array) -> Array:
  """Token vectors times √D, rounded to their own type first, as Gemma does."""
  return x_BTD * jnp.asarray(np.sqrt(x_BTD.shape[-1]), x_BTD.dtype)


def _context(config: CausalConfig, positions_BT: Array, own: Spans, prompt: Spans | None = None) -> Context:
  rotation, local = rotary.rotation(rotary.frequencies(config), positions_BT), None
  if config.rope_local_theta is not None:
    local = rotary.rotation(rotary.frequencies(config, local=True), positions_BT)
  return Context(rotation, local, own, prompt)


def _with_window(config: CausalConfig, span: Span, places: Array) -> Spans:
  """A span in all layers, and its part in the window, where any layer has one."""
  return Spans(span, spans.within(span, places, config.window) if any(config.windowed) else None)


def _prompt_span(prompt_segments_BS: Array, response_prompt_BT: Array) -> Span:
  """All tokens of the prompt that a response token points at; padding, whose prompt is 0, reads nothing."""
  ends_BT = prompt_ends(prompt_segments_BS, response_prompt_BT)
  starts_BT = jnp.take_along_axis(spans.segment_starts(prompt_segments_BS), ends_BT, axis=1)
  return Span(starts_BT, jnp.where(response_prompt_BT > 0, ends_BT + 1, starts_BT))


def _whole_prompts(lengths_B: Array) -> Spans:
  """All tokens of each prompt, in all layers; its copies read alike."""
  return Spans(Span(jnp.zeros_like(lengths_B)[:, None], lengths_B[:, None]), None)
