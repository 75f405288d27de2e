"""A decoder-only policy over rows: its layers, its two streams, and its cache.

The prompt stream runs all tokens of a prompt. A response's first input is its prompt's last token, so that
its tokens read the prompt's other tokens from the prompt stream, and that one from their own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from dro_jax.errors import UsageError
from dro_jax.models import layers, stacks
from dro_jax.models.attention import spans, ways
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.causal import rotary
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.layers import KeysValues
from dro_jax.models.readouts import prompt_ends
from dro_jax.types import Array, Mismatched, Rows

_SMALL = 0.02  # The standard deviation of fresh embeddings and of the products that read the states.
_kernel_init = nn.initializers.normal(_SMALL)


class Memory(NamedTuple):
  """A prompt stream: its states, and its keys and values, with a leading axis of layers."""

  states: Float[Array, 'B S D']
  keys_values: KeysValues


class Cache(NamedTuple):
  """The state of decoding between steps. `prompt` has a row for each prompt, `response` for each response."""

  prompt: KeysValues
  prompt_lengths: Int[Array, 'B']
  response: KeysValues


class Own(NamedTuple):
  """What one layer gets: keys and values of the prompts, of the response so far, and its place in patterns.

  A pattern that is alike in all layers is `None` here and read off the configuration.
  """

  prompt: KeysValues | None = None
  response: KeysValues | None = None
  windowed: Bool[Array, '*L'] | None = None
  rotated: Bool[Array, '*L'] | None = None


class Spans(NamedTuple):
  """The keys that queries read: in layers without a window, and in layers with one."""

  whole: Span
  windowed: Span | None


class Context(NamedTuple):
  """Arrays that all layers share.

  `among_prompts` is of a pass of both streams; `position` is the place in the cache of the token to decode.
  """

  rotation: rotary.Rotation
  local_rotation: rotary.Rotation | None
  own: Spans
  prompt: Spans | None = None
  among_prompts: Spans | None = None
  position: Int[Array, ''] | None = None


def _norm(config: CausalConfig, name: str) -> nn.Module:
  if config.norm == 'layer':
    return layers.LayerNorm(config.dtype, config.norm_epsilon, name=name)
  return layers.RMSNorm(config.dtype, config.norm_epsilon, config.norm == 'rms_plus_one', name=name)


def _chosen(flag: Array | bool, on: Any, off: Any) -> Any:
  """`on` or `off`, by a layer's place in a pattern, which is known before compilation where all are alike."""
  if isinstance(flag, bool):
    return on if flag else off
  return jax.tree.map(lambda x, y: jnp.where(flag, x, y), on, off)


class Attention(nn.Module):
  """Queries, keys and values of tokens, rotated; and what queries read: of two streams with `prompt_length`,
  the number of tokens of the first, the prompts'."""

  config: CausalConfig
  windowed: Array | bool
  rotated: Array | bool
  prompt_length: int | None = None

  def setup(self):
    cfg = self.config
    dense = lambda features, axes, bias: layers.Dense(features, axes, cfg.dtype, _kernel_init, bias)  # noqa: E731
    self.query = dense(cfg.num_heads * cfg.head_dim, ('embed', 'joined_kv'), cfg.qkv_bias)
    self.key = dense(cfg.kv_heads * cfg.head_dim, ('embed', 'joined_kv'), cfg.qkv_bias)
    self.value = dense(cfg.kv_heads * cfg.head_dim, ('embed', 'joined_kv'), cfg.qkv_bias)
    self.out = dense(cfg.emb_dim, ('joined_kv', 'embed'), cfg.out_bias)
    if cfg.qk_norm:
      axis = 'kv' if cfg.qk_norm == 'head' else 'joined_kv'
      norm = lambda: layers.RMSNorm(cfg.dtype, cfg.norm_epsilon, cfg.norm == 'rms_plus_one', axis)  # noqa: E731
      self.query_norm, self.key_norm = norm(), norm()

  def _heads(self, x_BTD: Array, norm: nn.Module | None, context: Context | None) -> Float[Array, 'B T H C']:
    if norm is not None and self.config.qk_norm == 'whole':
      x_BTD = norm(x_BTD)
    x_BTHC = _by_head(x_BTD.reshape(*x_BTD.shape[:2], -1, self.config.head_dim))
    if norm is not None and self.config.qk_norm == 'head':
      x_BTHC = norm(x_BTHC)
    return x_BTHC if context is None else self._rotate(x_BTHC, context)

  def _rotate(self, x_BTHC: Array, context: Context) -> Array:
    if self.rotated is False:
      return x_BTHC
    rotation = context.rotation
    if context.local_rotation is not None:
      rotation = _chosen(self.windowed, context.local_rotation, rotation)
    return _chosen(self.rotated, rotary.rotate(x_BTHC, rotation), x_BTHC)

  def keys_values(self, x_BTD: Float[Array, 'B T D'], context: Context | None) -> KeysValues:
    """The keys and values of tokens; without a context the keys are not rotated."""
    keys_BTKC = self._heads(self.key(x_BTD), self.key_norm if self.config.qk_norm else None, context)
    return KeysValues(keys_BTKC, _by_head(self.value(x_BTD).reshape(keys_BTKC.shape)))

  def __call__(
    self, x_BTD: Float[Array, 'B T D'], own: KeysValues, prompt: KeysValues | None, context: Context
  ) -> Float[Array, 'B T D']:
    cfg = self.config
    queries_BTHC = self._heads(self.query(x_BTD), self.query_norm if cfg.qk_norm else None, context)
    queries_BTHC = queries_BTHC * (cfg.head_dim**-0.5 if cfg.query_scale is None else cfg.query_scale)
    if self.prompt_length is None:
      sources = [(own, context.own)] if prompt is None else [(prompt, context.prompt), (own, context.own)]
      read_BTHC = self._attend(queries_BTHC, *sources)
    else:
      read_BTHC = self._attend_both(queries_BTHC, own, context)
    return self.out(read_BTHC.reshape(*x_BTD.shape[:2], cfg.num_heads * cfg.head_dim))

  def _attend(self, queries_BTHC: Array, *sources: tuple[KeysValues, Spans]) -> Float[Array, 'B T H C']:
    cfg = self.config
    read = [Source(_for_mesh(cfg, kept), self._span(places)) for kept, places in sources]
    return _by_head(ways.attend(queries_BTHC, read, softcap=cfg.attention_softcap, way=cfg.attention))

  def _attend_both(self, queries_BTHC: Array, keys_values: KeysValues, context: Context) -> Array:
    """Prompts read prompts; responses read prompts and themselves."""
    streams = lambda x: jnp.split(x, (self.prompt_length,), axis=1)  # noqa: E731
    of_prompt, of_response = streams(queries_BTHC)
    prompt, own = map(KeysValues, *map(streams, keys_values))
    first = self._attend(of_prompt, (prompt, context.among_prompts))
    last = self._attend(of_response, (prompt, context.prompt), (own, context.own))
    return jnp.concatenate([first, last], axis=1)

  def _span(self, places: Spans) -> Span:
    if places.windowed is None:
      return places.whole
    chosen: Span = _chosen(self.windowed, places.windowed, places.whole)
    return chosen


def _by_head(x_BTHC: Array) -> Array:
  return layers.constrain(
    x_BTHC, 'activation_batch', 'activation_length', 'activation_heads', 'activation_kv'
  )


def _for_mesh(config: CausalConfig, keys_values: KeysValues) -> KeysValues:
  """Heads of keys for a mesh that cuts heads finer than there are: one for each head of queries."""
  (cuts,) = layers.num_parts('activation_heads')
  if config.kv_heads % cuts == 0 or config.num_heads % cuts:
    return keys_values
  return jax.tree.map(
    lambda x: _by_head(jnp.repeat(x, config.num_heads // config.kv_heads, axis=-2)), keys_values
  )


class Layer(nn.Module):
  """Attention, then the MLP, with norms where the configuration has them.

  It returns its tokens' keys and values with `keep`, and those of prompts only with `prompt_length`, where
  `x` holds both streams. With `own.response`, `x` is the one token at `context.position`, and the caller
  writes what is returned into the cache: so a scanned stack writes one token instead of copying the cache.
  """

  config: CausalConfig
  deterministic: bool = True
  keep: bool = False
  prompt_length: int | None = None

  @nn.compact
  def __call__(
    self, x_BTD: Float[Array, 'B T D'], own: Own, context: Context
  ) -> tuple[Float[Array, 'B T D'], KeysValues | None]:
    cfg = self.config
    windowed, rotated = layer_flag(own.windowed, cfg.windowed), layer_flag(own.rotated, cfg.rotated)
    attend = Attention(cfg, windowed, rotated, self.prompt_length, name='attention')
    mlp = layers.MLP(
      cfg.mlp_dim, cfg.mlp_activations, cfg.dropout_rate, cfg.dtype, cfg.mlp_bias, _kernel_init, name='mlp'
    )
    before = cfg.norm_place != 'after'
    y_BTD = _norm(cfg, 'pre_attention_norm')(x_BTD) if before else x_BTD
    new = attend.keys_values(y_BTD, context)
    read = new if own.response is None else write(own.response, new, context.position, axis=1)
    attended_BTD = self._finish(attend(y_BTD, read, own.prompt, context), 'post_attention_norm')
    if cfg.norm_place == 'parallel':
      y_BTD = _norm(cfg, 'pre_mlp_norm')(x_BTD)
      x_BTD = x_BTD + attended_BTD + self._finish(mlp(y_BTD, self.deterministic), 'post_mlp_norm')
      return layers.constrain_hidden(x_BTD), self._kept(new)
    x_BTD = layers.constrain_hidden(x_BTD + attended_BTD)
    y_BTD = _norm(cfg, 'pre_mlp_norm')(x_BTD) if before else x_BTD
    x_BTD = x_BTD + self._finish(mlp(y_BTD, self.deterministic), 'post_mlp_norm')
    return layers.constrain_hidden(x_BTD), self._kept(new)

  def _kept(self, new: KeysValues) -> KeysValues | None:
    return jax.tree.map(lambda x: x[:, : self.prompt_length], new) if self.keep else None

  def _finish(self, y_BTD: Array, name: str) -> Array:
    """A block's output as it is added: normed in some families."""
    if self.config.norm_place in ('after', 'sandwich'):
      y_BTD = _norm(self.config, name)(y_BTD)
    return nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))(y_BTD, self.deterministic)


def write(cache: KeysValues, new: KeysValues, position: Array, *, axis: int) -> KeysValues:
  """A cache with one more token's keys and values."""
  return jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, position, axis), cache, new)


class Decoder(nn.Module):
  """From embedded tokens to states, and to logits where these have their own weights."""

  config: CausalConfig

  def setup(self):
    if not self.config.logits_via_embedding:
      self.logits_dense = layers.Dense(
        self.config.vocab_size, ('embed', 'vocab'), self.config.dtype, _kernel_init, result=jnp.float32
      )

  @nn.compact
  def __call__(
    self, x_BTD: Float[Array, 'B T D'], own: Own, context: Context, **fields: Any
  ) -> tuple[Float[Array, 'B T D'], KeysValues | None]:
    """Runs the layers, whose `fields` are those of `Layer`."""
    cfg = self.config
    own = own._replace(windowed=flags_by_layer(cfg.windowed), rotated=flags_by_layer(cfg.rotated))
    x_BTD, kept = stacks.run_stack(Layer, 'decoder', cfg.num_layers, cfg, x_BTD, own, context, **fields)
    return _norm(cfg, 'decoder_norm')(x_BTD), kept


def layer_flag(own: Array | np.bool_ | None, pattern: tuple[bool, ...]) -> Array | bool:
  """A layer's own flag in a pattern: a bool where it is known before compilation."""
  if own is None:
    return pattern[0]
  return bool(own) if isinstance(own, np.bool_) else own


def flags_by_layer(pattern: tuple[bool, ...]) -> np.ndarray | None:
  """Every layer's flag in a pattern, or `None` where all are alike."""
  return np.array(pattern) if len(set(pattern)) > 1 else None


class Causal(nn.Module):
  """The policy: a decoder-only model over rows that hold several prompts and several responses."""

  config: CausalConfig

  def setup(self):
    cfg = self.config
    if cfg.vocab_size is None:
      raise UsageError(
        'CausalConfig.vocab_size is None, so the embedding table has no size: set it, or pass '
        "dataclasses.replace(config, vocab_size=...) with the vocabulary's size."
      )
    self.token_embedder = layers.Embedding(cfg.vocab_size, cfg.emb_dim, cfg.dtype, _SMALL)
    if cfg.positions == 'learned':
      self.position_embedder = layers.Positions(cfg.max_positions, cfg.emb_dim, cfg.dtype, _SMALL)
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

  def _inputs(self, rows: Rows, responses: Rows | Mismatched) -> tuple[Array, Array, Spans, Spans]:
    """Of a response stream: tokens and positions, and their spans in their own stream and in prompts."""
    ends_BT = prompt_ends(rows.prompt_segments, responses.response_prompt)
    at_end = lambda x_BS: jnp.take_along_axis(x_BS, ends_BT, axis=1)  # noqa: E731
    tokens_BT = jnp.where(
      responses.response_positions == 0,
      at_end(rows.prompt_tokens),
      jnp.pad(responses.response_tokens[:, :-1], ((0, 0), (1, 0))),
    )
    # All of the prompt but its last token; padding, whose prompt is 0, reads nothing.
    starts_BT = at_end(spans.segment_starts(rows.prompt_segments))
    prompt = Span(starts_BT, jnp.where(responses.response_prompt > 0, ends_BT, starts_BT))
    return (
      tokens_BT, at_end(rows.prompt_positions) + responses.response_positions,
      self._own_spans(responses.response_segments),
      self._spans(prompt, ends_BT + responses.response_positions),
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
    tokens_BT, positions_BT, own, prompt = self._inputs(rows, rows)
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
    return states_N1D[:, 0], cache._replace(response=write(cache.response, new, position, axis=2))
