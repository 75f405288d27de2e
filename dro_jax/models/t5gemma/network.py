"""T5Gemma over rows that hold several prompts and several responses: encoder, decoder, and its cache.

Dimensions beyond `dro_jax.models.layers`: E width of the encoder's states, N responses that are decoded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from dro_jax.errors import UsageError
from dro_jax.models import layers, stacks
from dro_jax.models.causal import attention
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.causal.network import (
  Attention,
  Cache,
  Context,
  Layer,
  Masks,
  Own,
  flags_by_layer,
  layer_flag,
  write,
)
from dro_jax.models.layers import KeysValues
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


def _dropout(config: CausalConfig, x_BTD: Array, deterministic: bool) -> Array:
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))(x_BTD, deterministic)


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
    response = new if own.response is None else write(own.response, new, context.position, axis=1)
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
    y_BTD = _dropout(self.config, _norm(self.config, name)(y_BTD), self.deterministic)
    return layers.constrain_hidden(x_BTD + y_BTD)


class Encoder(nn.Module):
  """From embedded prompts to states, by a decoder-only model's layers with masks that are not causal."""

  config: CausalConfig

  @nn.compact
  def __call__(
    self, x_BSE: Float[Array, 'B S E'], context: Context, deterministic: bool
  ) -> Float[Array, 'B S E']:
    cfg = self.config
    own = Own(windowed=flags_by_layer(cfg.windowed))
    x_BSE, _ = stacks.run_stack(
      Layer, 'encoder', cfg.num_layers, cfg, _dropout(cfg, x_BSE, deterministic), own, context,
      deterministic=deterministic,
    )  # fmt: skip
    return _dropout(cfg, _norm(cfg, 'encoder_norm')(x_BSE), deterministic)


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
    x_BTD, kept = stacks.run_stack(
      DecoderLayer, 'decoder', cfg.num_layers, cfg, _dropout(cfg, x_BTD, deterministic), own, shared,
      merged=self.merged, deterministic=deterministic, keep=keep,
    )  # fmt: skip
    return _dropout(cfg, _norm(cfg, 'decoder_norm')(x_BTD), deterministic), kept


class T5Gemma(nn.Module):
  """The policy: an encoder that reads prompts in both directions, and a decoder that reads its states.

  A response's positions start at 0, with BOS; a prompt's states have positions of their own, which the
  decoder does not see.
  """

  config: T5GemmaConfig

  def setup(self):
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
    earlier, later = cfg.encoder_reach
    same_BSS, distance_BSS = _same(segments_BS), _distances(positions_BS)
    near_BSS = (distance_BSS <= earlier) & (distance_BSS >= -later)
    context = _context(cfg.encoder, positions_BS, _masks(cfg.encoder, same_BSS, near_BSS))
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
    distance_BTT = _distances(positions_BT)
    causal_BTT = _same(responses.response_segments) & (distance_BTT >= 0)
    cross_BTS = responses.response_prompt[:, :, None] == rows.prompt_segments[:, None, :]
    context = _context(
      cfg.decoder,
      positions_BT,
      _masks(cfg.decoder, causal_BTT, distance_BTT < (cfg.window or 0)),
      Masks(cross_BTS, None),
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
      Masks(jnp.ones((number, 1, 1), bool), None),
      _prompt_masks(lengths_B, tokens_BS.shape[1]),
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
    places = jnp.arange(cache.response.keys.shape[2])
    earlier_N1T = jnp.broadcast_to(places <= position, (number, 1, places.size))
    near_11T = (position - places < (cfg.window or 0))[None, None]
    context = _context(
      cfg,
      jnp.broadcast_to(position, (number, 1)),
      _masks(cfg, earlier_N1T, near_11T),
      _prompt_masks(cache.prompt_lengths, cache.prompt.keys.shape[2]),
    )
    states_N1D, new = self.decoder(
      _scaled(self.token_embedder(tokens_N[:, None])),
      Own(cache.prompt, cache.response),
      _Shared(context._replace(position=position), None),
      True,
      keep=True,
    )
    return states_N1D[:, 0], cache._replace(response=write(cache.response, new.response, position, axis=2))


def _scaled(x_BTD: Array) -> Array:
  """Token vectors times √D, rounded to their own type first, as Gemma does."""
  return x_BTD * jnp.asarray(np.sqrt(x_BTD.shape[-1]), x_BTD.dtype)


def _context(config: CausalConfig, positions_BT: Array, own: Masks, prompt: Masks | None = None) -> Context:
  rotation, local = attention.rotation(attention.frequencies(config), positions_BT), None
  if config.rope_local_theta is not None:
    local = attention.rotation(attention.frequencies(config, local=True), positions_BT)
  return Context(rotation, local, own, prompt)


def _masks(config: CausalConfig, whole: Bool[Array, 'B T S'], near: Bool[Array, '#B T S']) -> Masks:
  """The masks of layers without a window, and of those with one, where any layer has one."""
  return Masks(whole, whole & near if any(config.windowed) else None)


def _prompt_masks(lengths_B: Array, length: int) -> Masks:
  """All tokens of each prompt, in all layers; its copies read alike."""
  return Masks((jnp.arange(length)[None] < lengths_B[:, None])[:, None], None)


def _same(segments_BT: Array) -> Bool[Array, 'B T T']:
  return segments_BT[:, :, None] == segments_BT[:, None, :]


def _distances(positions_BT: Array) -> Int[Array, 'B T T']:
  """How far each token stands behind each other one; it matters within a segment only."""
  return positions_BT[:, :, None] - positions_BT[:, None, :]
