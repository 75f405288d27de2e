"""T5: encoder, decoder, their attention and caches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from dro_jax.errors import UsageError
from dro_jax.models import layers, stacks
from dro_jax.models.attention import spans, ways
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues
from dro_jax.models.readouts import prompt_ends
from dro_jax.models.t5.config import TOKENS, T5Config
from dro_jax.types import Array, Rows


class LayerCache(NamedTuple):
  """Keys and values of decoder layers: of the response so far, and of the prompt. Leading axis: layers."""

  response: KeysValues
  prompt: KeysValues | None


class Cache(NamedTuple):
  """The state of decoding between steps."""

  layers: LayerCache
  prompt_mask: Bool[Array, 'B S']


class _Read(NamedTuple):
  """The keys that queries read, as a mask; and as spans where attention may be other than dense."""

  mask: Bool[Array, 'B 1 T S']
  span: Span | None = None


class _Context(NamedTuple):
  """Arrays that all layers of a stack share; `bias` is `None` where each layer has its own."""

  bias: Array | None
  own: _Read
  encoded: Array | None = None
  prompt: _Read | None = None
  position: Array | None = None


def _attention(config: T5Config, name: str) -> layers.Attention:
  return layers.Attention(
    config.emb_dim, config.num_heads, config.head_dim, config.dropout_rate, config.dtype, name=name
  )


def _norm(config: T5Config, name: str) -> layers.RMSNorm:
  return layers.RMSNorm(config.dtype, name=name)


def _mlp(config: T5Config) -> layers.MLP:
  return layers.MLP(config.mlp_dim, config.mlp_activations, config.dropout_rate, config.dtype, name='mlp')


def _way(config: T5Config, read: _Read, deterministic: bool) -> str:
  """How attention is computed: densely for one token and where weights are dropped, else as configured.

  Raises:
    UsageError: other attention is to drop weights, or the device does not have it.
  """
  if read.span is None or read.mask.shape[-2] == 1:
    return 'dense'
  if config.dropout_rate and not deterministic:
    if config.attention not in ('auto', 'dense'):
      raise UsageError(
        f'attention={config.attention} with dropout_rate={config.dropout_rate}: only dense attention drops '
        'weights. Pass dropout_rate=0 (--set DROPOUT_RATE=0), or attention=auto or dense (--set '
        'ATTENTION=dense).'
      )
    return 'dense'
  # On TPUs blocks in plain JAX move more bytes than the scores of whole rows (docs/scale/preflight.md).
  if config.attention == 'auto' and not ways.is_on_cpu():
    return 'dense'
  return ways.choose(config.attention, read.mask.shape[-1], ways.refusals_with_bias())


def _attend(
  config: T5Config,
  attention: layers.Attention,
  x_BTD: Array,
  keys_values: KeysValues,
  bias: Array | None,
  read: _Read,
  deterministic: bool,
) -> Float[Array, 'B T D']:
  way = _way(config, read, deterministic)
  if way == 'dense':
    return attention(x_BTD, keys_values, bias, read.mask, deterministic)
  return attention.join(ways.run(way, attention.queries(x_BTD), [Source(keys_values, read.span, bias)]))


def _relative_bias(
  config: T5Config, read: _Read, position: Array | None, deterministic: bool, *, bidirectional: bool
) -> Float[Array, '1 H T S'] | Float[Array, 'H L']:
  """The bias of every query, or of the one at `position`; by relative position where attention wants that."""
  keys = read.mask.shape[-1]
  relative = layers.RelativeBias(
    config.num_heads,
    config.relative_attention_num_buckets,
    config.relative_attention_max_distance,
    bidirectional,
    name='relpos_bias',
  )
  if position is not None:
    return relative.at(position, keys)
  if _way(config, read, deterministic) == 'dense':
    return relative(keys, keys)
  return relative.by_relative_position(keys, keys)


def _shared_bias(
  config: T5Config, read: _Read, position: Array | None, deterministic: bool, *, bidirectional: bool
) -> Array | None:
  if config.relative_bias_per_layer:
    return None
  return _relative_bias(config, read, position, deterministic, bidirectional=bidirectional)


class EncoderLayer(nn.Module):
  """Self-attention, then the MLP, each with a norm before it and a sum after it."""

  config: T5Config
  deterministic: bool = True

  @nn.compact
  def __call__(self, x_BSD: Array, cache: None, context: _Context) -> tuple[Array, None]:
    cfg = self.config
    y_BSD = _norm(cfg, 'pre_attention_layer_norm')(x_BSD)
    attention = _attention(cfg, 'attention')
    bias = context.bias
    if bias is None:
      bias = _relative_bias(cfg, context.own, None, self.deterministic, bidirectional=True)
    keys_values = attention.keys_values(y_BSD)
    y_BSD = _attend(cfg, attention, y_BSD, keys_values, bias, context.own, self.deterministic)
    x_BSD = layers.constrain_hidden(x_BSD + layers.dropout(y_BSD, cfg.dropout_rate, self.deterministic))
    y_BSD = _mlp(cfg)(_norm(cfg, 'pre_mlp_layer_norm')(x_BSD), self.deterministic)
    return layers.constrain_hidden(x_BSD + layers.dropout(y_BSD, cfg.dropout_rate, self.deterministic)), None


class DecoderLayer(nn.Module):
  """Self-attention, attention over the prompt, then the MLP.

  With a cache, `x` is the one token at `context.position`. The layer returns that token's keys and values,
  which the caller writes into the cache: so a scanned stack writes one token instead of copying the cache.
  """

  config: T5Config
  deterministic: bool = True
  keep: bool = False

  @nn.compact
  def __call__(
    self, x_BTD: Array, cache: LayerCache | None, context: _Context
  ) -> tuple[Array, LayerCache | None]:
    cfg = self.config
    y_BTD = _norm(cfg, 'pre_self_attention_layer_norm')(x_BTD)
    attention = _attention(cfg, 'self_attention')
    new = attention.keys_values(y_BTD)
    response = new if cache is None else layers.write_cache(cache.response, new, context.position, axis=1)
    bias = context.bias
    if bias is None:
      bias = _relative_bias(cfg, context.own, context.position, self.deterministic, bidirectional=False)
    y_BTD = _attend(cfg, attention, y_BTD, response, bias, context.own, self.deterministic)
    x_BTD = layers.constrain_hidden(x_BTD + layers.dropout(y_BTD, cfg.dropout_rate, self.deterministic))

    y_BTD = _norm(cfg, 'pre_cross_attention_layer_norm')(x_BTD)
    attention = _attention(cfg, 'encoder_decoder_attention')
    prompt = attention.keys_values(context.encoded) if cache is None else cache.prompt
    y_BTD = _attend(cfg, attention, y_BTD, prompt, None, context.prompt, self.deterministic)
    x_BTD = layers.constrain_hidden(x_BTD + layers.dropout(y_BTD, cfg.dropout_rate, self.deterministic))

    y_BTD = _mlp(cfg)(_norm(cfg, 'pre_mlp_layer_norm')(x_BTD), self.deterministic)
    x_BTD = layers.constrain_hidden(x_BTD + layers.dropout(y_BTD, cfg.dropout_rate, self.deterministic))
    return x_BTD, LayerCache(new, prompt if cache is None else None) if self.keep else None


class Encoder(nn.Module):
  """From embedded prompts to states."""

  config: T5Config

  @nn.compact
  def __call__(
    self, x_BSD: Float[Array, 'B S D'], segments_BS: Int[Array, 'B S'], deterministic: bool
  ) -> Float[Array, 'B S D']:
    cfg = self.config
    own = _Read(
      (segments_BS[:, :, None] == segments_BS[:, None, :])[:, None], spans.segment_span(segments_BS)
    )
    context = _Context(_shared_bias(cfg, own, None, deterministic, bidirectional=True), own)
    x_BSD = layers.dropout(x_BSD, cfg.dropout_rate, deterministic)
    x_BSD, _ = stacks.run_stack(
      EncoderLayer, 'encoder', cfg.num_encoder_layers, cfg, x_BSD, None, context, deterministic=deterministic
    )
    return layers.dropout(_norm(cfg, 'encoder_norm')(x_BSD), cfg.dropout_rate, deterministic)


class Decoder(nn.Module):
  """From embedded inputs to states, and to logits where these have their own weights."""

  config: T5Config

  def setup(self) -> None:
    if not self.config.logits_via_embedding:
      self.logits_dense = layers.Dense(self.config.vocab_size, ('embed', 'vocab'), jnp.float32)

  @nn.compact
  def __call__(
    self,
    x_BTD: Float[Array, 'B T D'],
    encoded_BSD: Float[Array, 'B S D'] | None,
    own: _Read,
    prompt: _Read,
    deterministic: bool,
    keep: bool = False,
    cache: LayerCache | None = None,
    position: Int[Array, ''] | None = None,
  ) -> tuple[Float[Array, 'B T D'], LayerCache | None]:
    cfg = self.config
    bias = _shared_bias(cfg, own, position, deterministic, bidirectional=False)
    context = _Context(bias, own, encoded_BSD, prompt, position)
    x_BTD = layers.dropout(x_BTD, cfg.dropout_rate, deterministic)
    x_BTD, kept = stacks.run_stack(
      DecoderLayer, 'decoder', cfg.num_decoder_layers, cfg, x_BTD, cache, context,
      deterministic=deterministic, keep=keep,
    )  # fmt: skip
    return layers.dropout(_norm(cfg, 'decoder_norm')(x_BTD), cfg.dropout_rate, deterministic), kept


def shift_right(tokens_BT: Int[Array, 'B T'], positions_BT: Int[Array, 'B T']) -> Int[Array, 'B T']:
  """The decoder's inputs: targets moved one to the right within each segment, after the start token."""
  previous_BT = jnp.pad(tokens_BT[:, :-1], ((0, 0), (1, 0)))
  return jnp.where(positions_BT == 0, TOKENS.start, previous_BT)


def prompt_span(prompt_segments_BS: Int[Array, 'B S'], wanted_BT: Int[Array, 'B T']) -> Span:
  """The tokens of the prompt that each response token points at; of padding, which points at 0, none."""
  ends_BT = prompt_ends(prompt_segments_BS, wanted_BT)
  starts_BT = jnp.take_along_axis(spans.segment_starts(prompt_segments_BS), ends_BT, axis=1)
  return Span(starts_BT, jnp.where(wanted_BT > 0, ends_BT + 1, starts_BT))


class T5(nn.Module):
  """The policy: an encoder-decoder over rows that hold several prompts and several responses.

  T5 has no absolute positions, and segments are contiguous: distances within a row are distances within a
  segment, so that the relative bias is one `[1, H, T, T]` for all rows.
  """

  config: T5Config

  def setup(self) -> None:
    cfg = self.config
    if cfg.vocab_size is None:
      raise UsageError(
        'T5Config.vocab_size is None, so the embedding table has no size: set it, or pass '
        "dataclasses.replace(config, vocab_size=...) with the vocabulary's size."
      )
    self.token_embedder = layers.Embedding(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
    self.encoder = Encoder(cfg)
    self.decoder = Decoder(cfg)

  def encode(
    self,
    prompt_tokens_BS: Int[Array, 'B S'],
    prompt_segments_BS: Int[Array, 'B S'],
    prompt_positions_BS: Int[Array, 'B S'],
    enable_dropout: bool = False,
  ) -> Float[Array, 'B S D']:
    """States of the prompts' tokens, each of which sees its own segment. T5 does not use positions."""
    del prompt_positions_BS
    return self.encoder(self.token_embedder(prompt_tokens_BS), prompt_segments_BS, not enable_dropout)

  def decode(
    self,
    encoded_BSD: Float[Array, 'B S D'],
    prompt_segments_BS: Int[Array, 'B S'],
    response_tokens_BT: Int[Array, 'B T'],
    response_segments_BT: Int[Array, 'B T'],
    response_positions_BT: Int[Array, 'B T'],
    response_prompt_BT: Int[Array, 'B T'],
    enable_dropout: bool = False,
  ) -> Float[Array, 'B T D']:
    """States that predict each response token from the prompt it points at and the tokens before it."""
    inputs_BT = shift_right(response_tokens_BT, response_positions_BT)
    same_BTT = response_segments_BT[:, :, None] == response_segments_BT[:, None, :]
    causal_TT = np.tril(np.ones((inputs_BT.shape[1],) * 2, bool))
    own = _Read((same_BTT & causal_TT[None])[:, None], spans.own_span(response_segments_BT))
    cross_BTS = response_prompt_BT[:, :, None] == prompt_segments_BS[:, None, :]
    prompt = _Read(cross_BTS[:, None], prompt_span(prompt_segments_BS, response_prompt_BT))
    x_BTD = self.token_embedder(inputs_BT)
    return self.decoder(x_BTD, encoded_BSD, own, prompt, not enable_dropout)[0]

  def logits(self, hidden_BTD: Float[Array, 'B T D']) -> Float[Array, 'B T V']:
    """Unnormalised log-probs of the next token, float32."""
    if self.config.logits_via_embedding:
      logits_BTV = self.token_embedder.attend(hidden_BTD.astype(jnp.float32) * self.config.emb_dim**-0.5)
    else:
      logits_BTV = self.decoder.logits_dense(hidden_BTD)
    return layers.constrain(logits_BTV, 'activation_batch', 'activation_length', 'activation_vocab')

  def __call__(self, rows: Rows, enable_dropout: bool = False) -> Float[Array, 'B T V']:
    encoded_BSD = self.encode(
      rows.prompt_tokens, rows.prompt_segments, rows.prompt_positions, enable_dropout=enable_dropout
    )
    hidden_BTD = self.decode(
      encoded_BSD,
      rows.prompt_segments,
      rows.response_tokens,
      rows.response_segments,
      rows.response_positions,
      rows.response_prompt,
      enable_dropout=enable_dropout,
    )
    return self.logits(hidden_BTD)

  def start_decoding(
    self, encoded_BSD: Float[Array, 'B S D'], prompt_mask_BS: Bool[Array, 'B S'], max_length: int
  ) -> tuple[Float[Array, 'B D'], Cache]:
    """Decodes the start token: the state that predicts the first token, and a cache for `max_length`."""
    batch = encoded_BSD.shape[0]
    x_BTD = self.token_embedder(jnp.full((batch, 1), TOKENS.start, jnp.int32))
    own, prompt = _Read(jnp.ones((batch, 1, 1, 1), bool)), _Read(prompt_mask_BS[:, None, None, :])
    hidden_BTD, kept = self.decoder(x_BTD, encoded_BSD, own, prompt, True, keep=True)
    response = jax.tree.map(
      lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, max_length - 1), (0, 0), (0, 0))), kept.response
    )
    return hidden_BTD[:, 0], Cache(LayerCache(response, kept.prompt), prompt_mask_BS)

  def decode_step(
    self, cache: Cache, tokens_B: Int[Array, 'B'], position: Int[Array, '']
  ) -> tuple[Float[Array, 'B D'], Cache]:
    """Decodes the token at input `position` (0 was the start token): the state that predicts the next one."""
    length = cache.layers.response.keys.shape[2]
    mask_BTT = jnp.broadcast_to(jnp.arange(length) <= position, (tokens_B.shape[0], 1, length))
    hidden_BTD, new = self.decoder(
      self.token_embedder(tokens_B[:, None]), None, _Read(mask_BTT[:, None]),
      _Read(cache.prompt_mask[:, None, None, :]), True, keep=True, cache=cache.layers, position=position,
    )  # fmt: skip
    response = layers.write_cache(cache.layers.response, new.response, position, axis=2)
    return hidden_BTD[:, 0], cache._replace(layers=cache.layers._replace(response=response))
