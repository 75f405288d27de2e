"""One layer of a decoder-only model: attention of one stream or of both, and the MLP."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from dro_jax.models import layers
from dro_jax.models.attention import ways
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.causal import rotary
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.layers import KeysValues
from dro_jax.types import Array

SMALL = 0.02  # The standard deviation of fresh embeddings and of the products that read the states.
kernel_init = nn.initializers.normal(SMALL)


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


def make_norm(config: CausalConfig, name: str) -> nn.Module:
  """A norm of the configuration's kind."""
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

  def setup(self) -> None:
    cfg = self.config
    dense = lambda features, axes, bias: layers.Dense(features, axes, cfg.dtype, kernel_init, bias)  # noqa: E731
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
      cfg.mlp_dim, cfg.mlp_activations, cfg.dropout_rate, cfg.dtype, cfg.mlp_bias, kernel_init, name='mlp'
    )
    before = cfg.norm_place != 'after'
    y_BTD = make_norm(cfg, 'pre_attention_norm')(x_BTD) if before else x_BTD
    new = attend.keys_values(y_BTD, context)
    read = new if own.response is None else layers.write_cache(own.response, new, context.position, axis=1)
    attended_BTD = self._finish(attend(y_BTD, read, own.prompt, context), 'post_attention_norm')
    if cfg.norm_place == 'parallel':
      y_BTD = make_norm(cfg, 'pre_mlp_norm')(x_BTD)
      x_BTD = x_BTD + attended_BTD + self._finish(mlp(y_BTD, self.deterministic), 'post_mlp_norm')
      return layers.constrain_hidden(x_BTD), self._kept(new)
    x_BTD = layers.constrain_hidden(x_BTD + attended_BTD)
    y_BTD = make_norm(cfg, 'pre_mlp_norm')(x_BTD) if before else x_BTD
    x_BTD = x_BTD + self._finish(mlp(y_BTD, self.deterministic), 'post_mlp_norm')
    return layers.constrain_hidden(x_BTD), self._kept(new)

  def _kept(self, new: KeysValues) -> KeysValues | None:
    return jax.tree.map(lambda x: x[:, : self.prompt_length], new) if self.keep else None

  def _finish(self, y_BTD: Array, name: str) -> Array:
    """A block's output as it is added: normed in some families."""
    if self.config.norm_place in ('after', 'sandwich'):
      y_BTD = make_norm(self.config, name)(y_BTD)
    return layers.dropout(y_BTD, self.config.dropout_rate, self.deterministic)


def layer_flag(own: Array | np.bool_ | None, pattern: tuple[bool, ...]) -> Array | bool:
  """A layer's own flag in a pattern: a bool where it is known before compilation."""
  if own is None:
    return pattern[0]
  return bool(own) if isinstance(own, np.bool_) else own


def flags_by_layer(pattern: tuple[bool, ...]) -> np.ndarray | None:
  """Every layer's flag in a pattern, or `None` where all are alike."""
  return np.array(pattern) if len(set(pattern)) > 1 else None
