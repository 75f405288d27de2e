"""Layers that families share: projections, gated MLP, norms, embedding, and T5's attention and bias.

Parameters have T5X's names.

Logical axes, which `parallel/partitioning.py` maps to the mesh:

- parameters, as T5X names them: `vocab`, `embed`, `joined_kv` (heads × head width), `mlp`, `heads`,
  `relpos_buckets`, and `layers` (axis 1 of every parameter of a scanned stack);
- activations: `activation_batch`, `activation_length`, `activation_embed`, `activation_heads`,
  `activation_kv`, `activation_mlp`, `activation_vocab`.

Dimensions beyond `dro_jax.types`: C width of a head, F width of the MLP, S keys (of a prompt, or in
self-attention of the queries' own tokens). Parameters are float32; norms, attention logits and softmax are
computed in float32; `dtype` is the activations'.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from dro_jax.models import quantised
from dro_jax.types import Array

# Low enough that a masked probability is exactly 0, and finite: a query whose keys are all masked (padding)
# gets the mean of all values instead of NaN.
MASKED = -1e10

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'relu': jax.nn.relu,
  'gelu': functools.partial(jax.nn.gelu, approximate=True),
  'gelu_exact': functools.partial(jax.nn.gelu, approximate=False),
  'silu': jax.nn.silu,
  'linear': lambda x: x,
}

# Axes of activations that stay whole where the mesh does not divide them.
_OPTIONAL = ('activation_length', 'activation_heads')

_fan_in_normal = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
_fan_in_truncated = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


class KeysValues(NamedTuple):
  """Projected keys and values, which attention reads."""

  keys: Float[Array, 'B S H C']
  values: Float[Array, 'B S H C']


def write_cache(cache: KeysValues, new: KeysValues, position: Array, *, axis: int) -> KeysValues:
  """A cache with one more token's keys and values at this place of the axis."""
  return jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, position, axis), cache, new)


def constrain(x: Array, *names: str | None) -> Array:
  """Shards an activation by its logical axis names; does nothing without a mesh and axis rules.

  A length that the mesh does not divide, such as that of one decoded token, stays whole; so do heads.
  """
  fits = (name not in _OPTIONAL or size % n == 0 for name, size, n in zip(names, x.shape, num_parts(*names)))
  return nn.with_logical_constraint(x, tuple(name if fit else None for name, fit in zip(names, fits)))


def num_parts(*names: str | None) -> list[int]:
  """The number of parts into which the mesh cuts each logical axis of an array."""
  shape = jax.sharding.get_abstract_mesh().shape
  cuts = nn.logical_to_mesh_axes(names)
  return [math.prod(shape.get(axis, 1) for axis in jax.tree.leaves(cut)) for cut in cuts]


def dropout(x_BTD: Float[Array, 'B T D'], rate: float, deterministic: bool) -> Float[Array, 'B T D']:
  """Dropout, within a module: all tokens of a row lose the same dimensions."""
  return nn.Dropout(rate, broadcast_dims=(-2,))(x_BTD, deterministic)


def constrain_hidden(x_BTD: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
  """Shards hidden states."""
  return constrain(x_BTD, 'activation_batch', 'activation_length', 'activation_embed')


def project(x: Float[Array, '*B I'], kernel: Float[Array, 'I O'], result: Any = None) -> Float[Array, '*B O']:
  """x W over x's last axis, at x's precision; sums are of the type `result`, x's own by default.

  On a CPU rows and lengths are joined into one axis for the product: where a weight's gradient sums over two
  axes, XLA's CPU backend writes out a transposed operand, which takes a fifth of a step. A TPU's step would
  be a quarter slower with joined axes, by libtpu's estimate, and a length that the mesh cuts would be
  gathered.
  """
  kernel = kernel.astype(x.dtype)
  if not _is_on_cpu() or num_parts('activation_length') != [1]:
    return jnp.einsum('...i,io->...o', x, kernel, preferred_element_type=result)
  x_NI = x.reshape(-1, x.shape[-1])
  return jnp.einsum('ni,io->no', x_NI, kernel, preferred_element_type=result).reshape(*x.shape[:-1], -1)


def _is_on_cpu() -> bool:
  """Whether the mesh consists of CPUs, which need not be this machine's."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.device_kind == 'cpu'


# Collections of flax's variables beside `params` (see `models.lora`): adapters, and kernels in fewer bits.
ADAPTER, FROZEN = 'lora', 'frozen'


@functools.partial(jax.checkpoint, static_argnums=2)
def _project_frozen(x: Float[Array, '*B I'], stored: quantised.Stored, result: Any) -> Float[Array, '*B O']:
  """x W for a kernel in fewer bits. The backward pass dequantises again instead of keeping what this made."""
  return project(x, quantised.dequantise(stored), result)


class Dense(nn.Module):
  """y = x W, or x W + b, at `dtype`; the result is of the type `result`, `dtype` by default.

  With an adapter, whose b has its scale: y = x W + (x a) b + ...
  """

  features: int
  axes: tuple[str, str]
  dtype: Any = jnp.float32
  kernel_init: Callable[..., Array] = _fan_in_truncated
  use_bias: bool = False
  result: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, '*B I']) -> Float[Array, '*B O']:
    x = x.astype(self.dtype)
    if self.has_variable(FROZEN, 'kernel'):
      y = _project_frozen(x, self.get_variable(FROZEN, 'kernel'), self.result)
    else:
      init = nn.with_logical_partitioning(self.kernel_init, self.axes)
      kernel = self.param('kernel', init, (x.shape[-1], self.features), jnp.float32)
      y = project(x, kernel, self.result)
    if self.has_variable(ADAPTER, 'a'):
      a, b = (self.get_variable(ADAPTER, name) for name in 'ab')
      y = y + project(project(x, a), b, self.result)
    if not self.use_bias:
      return y
    init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
    bias = self.param('bias', init, (self.features,), jnp.float32)
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class RMSNorm(nn.Module):
  """y = x / √(mean x² + ε) · scale over the last axis, computed in float32.

  Args:
    dtype: of the result.
    epsilon: ε.
    plus_one: multiply by 1 + scale, which starts at 0, as Gemma does.
    axis: the logical axis of the scale.
  """

  dtype: Any = jnp.float32
  epsilon: float = 1e-6
  plus_one: bool = False
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    start = nn.initializers.zeros if self.plus_one else nn.initializers.ones
    scale_D = self.param(
      'scale', nn.with_logical_partitioning(start, (self.axis,)), x.shape[-1:], jnp.float32
    )
    if self.plus_one:
      scale_D = scale_D + 1.0
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    y = x * jax.lax.rsqrt(mean_square + self.epsilon) * scale_D.reshape((1,) * (x.ndim - 1) + (-1,))
    return (constrain_hidden if self.axis == 'embed' else lambda y: y)(y.astype(self.dtype))


class LayerNorm(nn.Module):
  """y = (x − mean x) / √(var x + ε) · scale + bias over the last axis, computed in float32."""

  dtype: Any = jnp.float32
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    boxed = lambda init: nn.with_logical_partitioning(init, ('embed',))  # noqa: E731
    scale_D = self.param('scale', boxed(nn.initializers.ones), x.shape[-1:], jnp.float32)
    bias_D = self.param('bias', boxed(nn.initializers.zeros), x.shape[-1:], jnp.float32)
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + self.epsilon) * scale_D[None, None, :] + bias_D[None, None, :]
    return constrain_hidden(y.astype(self.dtype))


class Embedding(nn.Module):
  """Token vectors, and logits by the same table in models that tie them."""

  vocab_size: int
  features: int
  dtype: Any = jnp.float32
  stddev: float = 1.0

  def setup(self) -> None:
    init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), ('vocab', 'embed'))
    self.embedding = self.param('embedding', init, (self.vocab_size, self.features), jnp.float32)

  def __call__(self, tokens_BT: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    # An id outside the vocabulary gives NaN, which stops the run; clamping would train on another token.
    vectors_BTD = jnp.take(self.embedding, tokens_BT, axis=0, mode='fill', fill_value=jnp.nan)
    # Looked up on the table's shards and then sent on: that moves fewer bytes than gathering the table.
    vectors_BTD = constrain(vectors_BTD, 'activation_batch', 'activation_length', 'embed')
    return constrain_hidden(vectors_BTD.astype(self.dtype))

  def attend(self, x_BTD: Float[Array, 'B T D']) -> Float[Array, 'B T V']:
    """Inner products with every token's vector at x's precision, summed and returned in float32."""
    return project(x_BTD, self.embedding.T, jnp.float32)


class Positions(nn.Module):
  """A learned vector for each position."""

  length: int
  features: int
  dtype: Any = jnp.float32
  stddev: float = 0.02

  @nn.compact
  def __call__(self, positions_BT: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), (None, 'embed'))
    table = self.param('embedding', init, (self.length, self.features), jnp.float32)
    # A position beyond the table gives NaN, which stops the run; clamping would train on another one.
    vectors_BTD = jnp.take(table, positions_BT, axis=0, mode='fill', fill_value=jnp.nan)
    return constrain_hidden(vectors_BTD.astype(self.dtype))


def mlp_inputs(activations: Sequence[str]) -> list[str]:
  """The names of an MLP's products that come before its activations."""
  return ['wi'] if len(activations) == 1 else [f'wi_{i}' for i in range(len(activations))]


class MLP(nn.Module):
  """y = (Π_i act_i(x W_i)) W_o: one activation, or a gated pair such as silu and linear."""

  width: int
  activations: tuple[str, ...]
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  use_bias: bool = False
  kernel_init: Callable[..., Array] = _fan_in_truncated

  @nn.compact
  def __call__(self, x_BTD: Float[Array, 'B T D'], deterministic: bool = True) -> Float[Array, 'B T D']:
    dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init, use_bias=self.use_bias)
    parts = [
      ACTIVATIONS[activation](dense(self.width, ('embed', 'mlp'), name=name)(x_BTD))
      for name, activation in zip(mlp_inputs(self.activations), self.activations)
    ]
    inner_BTF = functools.reduce(operator.mul, parts)
    inner_BTF = dropout(inner_BTF, self.dropout_rate, deterministic)
    inner_BTF = constrain(inner_BTF, 'activation_batch', 'activation_length', 'activation_mlp')
    return dense(x_BTD.shape[-1], ('mlp', 'embed'), name='wo')(inner_BTF)


def attention_weights(
  queries: Float[Array, 'B T H C'],
  keys: Float[Array, 'B S H C'],
  bias: Float[Array, '1 H T S'] | None,
  mask: Bool[Array, 'B 1 T S'],
) -> Float[Array, 'B H T S']:
  """softmax_s(q_t · k_s + bias_ts) over the keys that the mask allows, float32.

  T5 does not divide by √C; the queries' initialiser does instead.
  """
  logits_BHTS = jnp.einsum('bthc,bshc->bhts', queries, keys, preferred_element_type=jnp.float32)
  if bias is not None:
    logits_BHTS = logits_BHTS + bias
  return jax.nn.softmax(jnp.where(mask, logits_BHTS, MASKED), axis=-1)


def _by_head(x: Float[Array, 'B T H C']) -> Float[Array, 'B T H C']:
  return constrain(x, 'activation_batch', 'activation_length', 'activation_heads', 'activation_kv')


class Attention(nn.Module):
  """Multi-head attention of `x` over the result of `keys_values`, of this pass or cached."""

  features: int
  num_heads: int
  head_dim: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  def setup(self) -> None:
    def query_init(*args: Any) -> Array:
      return _fan_in_normal(*args) / np.sqrt(self.head_dim).astype(np.float32)

    joined = self.num_heads * self.head_dim
    self.query = Dense(joined, ('embed', 'joined_kv'), self.dtype, query_init)
    self.key = Dense(joined, ('embed', 'joined_kv'), self.dtype, _fan_in_normal)
    self.value = Dense(joined, ('embed', 'joined_kv'), self.dtype, _fan_in_normal)
    self.out = Dense(self.features, ('joined_kv', 'embed'), self.dtype, _fan_in_normal)
    self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))

  def _split_heads(self, x: Float[Array, 'B T HC']) -> Float[Array, 'B T H C']:
    return _by_head(x.reshape(*x.shape[:-1], self.num_heads, self.head_dim))

  def queries(self, x_BTD: Float[Array, 'B T D']) -> Float[Array, 'B T H C']:
    """The queries of states."""
    return self._split_heads(self.query(x_BTD))

  def keys_values(self, context_BSD: Float[Array, 'B S D']) -> KeysValues:
    """The keys and values of states, for attention to them."""
    return KeysValues(self._split_heads(self.key(context_BSD)), self._split_heads(self.value(context_BSD)))

  def join(self, read_BTHC: Float[Array, 'B T H C']) -> Float[Array, 'B T D']:
    """The result of what all heads read."""
    return self.out(_by_head(read_BTHC).reshape(*read_BTHC.shape[:2], self.num_heads * self.head_dim))

  def __call__(
    self,
    x_BTD: Float[Array, 'B T D'],
    keys_values: KeysValues,
    bias: Float[Array, '1 H T S'] | None,
    mask: Bool[Array, 'B 1 T S'],
    deterministic: bool = True,
  ) -> Float[Array, 'B T D']:
    weights_BHTS = attention_weights(self.queries(x_BTD), keys_values.keys, bias, mask)
    weights_BHTS = self.dropout(weights_BHTS.astype(self.dtype), deterministic)
    return self.join(jnp.einsum('bhts,bshc->bthc', weights_BHTS, keys_values.values))


def relative_buckets(
  relative: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
  """The bucket of each relative position (key − query): exact near 0, logarithmic far off (T5, Sect. 2.1)."""
  sign_bucket = np.zeros_like(relative)
  if bidirectional:
    num_buckets //= 2
    sign_bucket = np.where(relative > 0, num_buckets, 0)
    distance = np.abs(relative)
  else:
    distance = np.maximum(-relative, 0)
  exact = num_buckets // 2
  # float32 and ε are part of the definition: they decide on which side of a boundary a distance falls.
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact + np.finfo(np.float32).eps)
  far = exact + (ratio / np.log(max_distance / exact) * (num_buckets - exact)).astype(np.int64)
  return sign_bucket + np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))


def toeplitz(vector_HL: Float[Array, 'H L'], queries: int, keys: int) -> Float[Array, 'H T S']:
  """Matrix whose entry (t, s) is the vector's entry s − t + queries − 1, for L = queries + keys.

  By repeating and reshaping, whose gradient is a sum. A gather's gradient would be a scatter, which is slow
  on a TPU and adds in no fixed order on a GPU.
  """
  heads, length = vector_HL.shape
  repeated = jnp.tile(vector_HL, (1, queries))[:, queries - 1 :]
  return repeated[:, : queries * (length - 1)].reshape(heads, queries, length - 1)[:, :, :keys]


class RelativeBias(nn.Module):
  """T5's attention bias: one number per head and bucket of relative position."""

  num_heads: int
  num_buckets: int
  max_distance: int
  bidirectional: bool

  def setup(self) -> None:
    init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
    init = nn.with_logical_partitioning(init, ('heads', 'relpos_buckets'))
    self.rel_embedding = self.param('rel_embedding', init, (self.num_heads, self.num_buckets), jnp.float32)

  def by_relative_position(self, queries: int, keys: int) -> Float[Array, 'H L']:
    """Bias at relative positions −(queries − 1) … keys, L = queries + keys."""
    buckets_L = relative_buckets(
      np.arange(-(queries - 1), keys + 1),
      bidirectional=self.bidirectional,
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    one_hot_NL = np.equal(np.arange(self.num_buckets)[:, None], buckets_L[None, :]).astype(np.float32)
    # The product only selects: the float32 bias must not be rounded to bfloat16.
    return jnp.einsum('hn,nl->hl', self.rel_embedding, one_hot_NL, precision=jax.lax.Precision.HIGHEST)

  def __call__(self, queries: int, keys: int) -> Float[Array, '1 H T S']:
    return toeplitz(self.by_relative_position(queries, keys), queries, keys)[None]

  def at(self, position: Int[Array, ''], keys: int) -> Float[Array, '1 H 1 S']:
    """The row of the one query of a decoding step, whose position is known only at run time."""
    vector_HL = self.by_relative_position(keys, keys)
    return jax.lax.dynamic_slice_in_dim(vector_HL, keys - 1 - position, keys, axis=1)[None, :, None, :]
