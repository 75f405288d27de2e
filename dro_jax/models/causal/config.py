"""The configuration of a decoder-only model: its sizes, and the switches that distinguish families."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from dro_jax.errors import UsageError
from dro_jax.models import layers
from dro_jax.models.attention.ways import WAYS
from dro_jax.models.family import check_config, freeze

NORMS = ('rms', 'rms_plus_one', 'layer')
NORM_PLACES = ('before', 'after', 'sandwich', 'parallel')
QK_NORMS = (None, 'head', 'whole')
POSITIONS = ('rope', 'learned')
_SIZES = ('emb_dim', 'num_layers', 'num_heads', 'kv_heads', 'head_dim', 'mlp_dim')


class RopeScaling(NamedTuple):
  """How rotary frequencies are stretched for longer contexts.

  `linear` divides all of them by `factor`. `llama3` divides those whose wavelength exceeds `original_length /
  low`, leaves those below `original_length / high`, and interpolates between.
  """

  kind: str
  factor: float
  low: float = 1.0
  high: float = 4.0
  original_length: int = 8192


def as_scaling(given: Any) -> RopeScaling | None:
  """A RopeScaling of its fields: in their order, as gin passes them, or by name, as metadata has them."""
  if given is None:
    return None
  return RopeScaling(**given) if isinstance(given, Mapping) else RopeScaling(*given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalConfig:
  """Size and kind of a decoder-only model.

  A pattern is a tuple that repeats over the layers, `(True, False)` for every other layer.

  Args:
    vocab_size: rows of the embedding table; `None` leaves it to the run, which takes the vocabulary's size.
    emb_dim: width of the hidden states.
    num_layers: layers.
    num_heads: heads of queries.
    num_kv_heads: heads of keys and values, which divide `num_heads`; `None` for as many.
    head_dim: width of a head.
    mlp_dim: width of the MLP.
    mlp_activations: `('silu', 'linear')` (gated), `('gelu', 'linear')` (gated, tanh), `('gelu_exact',)`.
    norm: `rms`, `rms_plus_one` (scale 1 + w, Gemma's) or `layer` (with a bias).
    norm_place: `before` each block, `after` it and before the sum (OLMo 2), both (`sandwich`, Gemma's), or
      before two blocks that read the same input and are summed (`parallel`, GPT-NeoX).
    norm_epsilon: added to the variance.
    qk_norm: a norm of queries and keys before their rotation: `head`, over each head; `whole`, over all of
      them; None.
    positions: `rope`, or `learned`, a table of `max_positions` vectors (GPT-2).
    max_positions: rows of that table; otherwise the context that the model was trained for, if known.
    rope_theta: the base of the rotary frequencies.
    rope_local_theta: the base in layers with a window; `None` for the same, and then scaled alike.
    rope_share: the share of a head that is rotated.
    rope_scaling: how the frequencies are stretched; `None` for not.
    rope_pattern: which layers rotate.
    window: a token sees this many tokens, itself included, in the layers of `window_pattern`; `None` for all.
    window_pattern: which layers have the window.
    query_scale: multiplies queries; `None` is 1 / √head_dim.
    attention_softcap: c in c tanh(s / c) of attention scores; `None` for none.
    logits_softcap: the same of logits.
    qkv_bias: queries, keys and values have biases.
    out_bias: attention's output has one.
    mlp_bias: the MLP's products have biases.
    scale_embedding: multiply token vectors by √emb_dim.
    logits_via_embedding: tie the logits to the embedding table.
    pad: the id that fills up responses; masks never depend on it.
    eos: the id that ends a response.
    start: the vocabulary's id of a text's start; a response starts at its prompt's last token.
    dropout_rate: of each block's output, used only where a caller enables dropout.
    dtype: activations, `float32` or `bfloat16`; parameters, norms, softmax and logits are float32.
    attention: how attention is computed, the same numbers: 'auto' by length and device, 'dense', 'blockwise',
      'splash' (TPUs), 'cudnn' (NVIDIA's GPUs); see `models.attention.ways`.
    scan_layers: one compiled layer run over stacked parameters: compiles faster, the same numbers.
    remat: recompute in the backward pass, for less memory and the same numbers: each layer (True), or all of
      a layer but its products with parameters ('dots').

  Raises:
    UsageError: a field is out of range.
  """

  vocab_size: int | None = None
  emb_dim: int = 576
  num_layers: int = 30
  num_heads: int = 9
  num_kv_heads: int | None = None
  head_dim: int = 64
  mlp_dim: int = 1536
  mlp_activations: tuple[str, ...] | list[str] = ('silu', 'linear')
  norm: str = 'rms'
  norm_place: str = 'before'
  norm_epsilon: float = 1e-5
  qk_norm: str | None = None
  positions: str = 'rope'
  max_positions: int | None = None
  rope_theta: float = 10_000.0
  rope_local_theta: float | None = None
  rope_share: float = 1.0
  rope_scaling: RopeScaling | None = None
  rope_pattern: tuple[bool, ...] | list[bool] = (True,)
  window: int | None = None
  window_pattern: tuple[bool, ...] | list[bool] = (True,)
  query_scale: float | None = None
  attention_softcap: float | None = None
  logits_softcap: float | None = None
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  scale_embedding: bool = False
  logits_via_embedding: bool = True
  pad: int = 0
  eos: int = 1
  start: int = 0
  dropout_rate: float = 0.0
  dtype: str = 'float32'
  attention: str = 'auto'
  scan_layers: bool = False
  remat: bool | str = False

  def __post_init__(self) -> None:
    freeze(self, 'mlp_activations', 'rope_pattern', 'window_pattern')
    object.__setattr__(self, 'rope_scaling', as_scaling(self.rope_scaling))
    check_config(self, _SIZES, layers.ACTIVATIONS)
    choices = {'norm': NORMS, 'norm_place': NORM_PLACES, 'qk_norm': QK_NORMS, 'positions': POSITIONS}
    choices['attention'] = WAYS
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise UsageError(f'{name}={getattr(self, name)!r} is unknown: pass one of {allowed}.')
    _check_numbers(self)

  @property
  def mlp_inputs(self) -> tuple[str, ...]:
    """The names of the MLP's products that come before its activations."""
    return tuple(layers.mlp_inputs(self.mlp_activations))

  @property
  def kv_heads(self) -> int:
    """Heads of keys and values."""
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  @property
  def windowed(self) -> tuple[bool, ...]:
    """Whether each layer has the window."""
    return self._by_layer(self.window_pattern) if self.window else (False,) * self.num_layers

  @property
  def rotated(self) -> tuple[bool, ...]:
    """Whether each layer rotates queries and keys."""
    return self._by_layer(self.rope_pattern) if self.positions == 'rope' else (False,) * self.num_layers

  @property
  def rotated_dim(self) -> int:
    """The width of the rotated part of a head."""
    return int(self.head_dim * self.rope_share)

  def _by_layer(self, pattern: tuple[bool, ...]) -> tuple[bool, ...]:
    return tuple(pattern[layer % len(pattern)] for layer in range(self.num_layers))


def _check_numbers(config: CausalConfig) -> None:
  if config.num_heads % config.kv_heads:
    raise UsageError(
      f'num_kv_heads={config.num_kv_heads} does not divide num_heads={config.num_heads}: each head of keys '
      'serves the same number of heads of queries.'
    )
  if config.positions == 'learned' and not config.max_positions:
    raise UsageError("positions='learned' needs a table's size: pass max_positions (GPT-2 has 1024).")
  if config.rotated_dim % 2 or not 0 < config.rope_share <= 1:
    raise UsageError(
      f'rope_share={config.rope_share} of head_dim={config.head_dim} is {config.rotated_dim}: a rotation '
      'turns pairs, so that an even part of a head, from 2 to all of it, is needed.'
    )
  if (
    not config.rope_pattern or not config.window_pattern or (config.window is not None and config.window < 1)
  ):
    raise UsageError(
      f'window={config.window}, window_pattern={config.window_pattern}, rope_pattern={config.rope_pattern}: '
      'pass a window of 1 or more (or None), and patterns of at least one layer.'
    )
  if config.rope_scaling and (
    config.rope_scaling.kind not in ('linear', 'llama3') or not config.rope_scaling.factor > 0
  ):
    raise UsageError(
      f"rope_scaling={config.rope_scaling}: pass ('linear', factor) or ('llama3', factor, low, high, "
      'original_length) with a factor above 0.'
    )


__all__ = ['CausalConfig', 'RopeScaling']
